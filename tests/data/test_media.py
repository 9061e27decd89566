"""Pictures of every mode become upright RGB; damaged files become a DataError that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtvl.data import media
from mtvl.data.media import open_image
from mtvl.errors import DataError

RED = (200, 30, 10)


def saved(path: Path, picture: Image.Image, **options: object) -> str:
    picture.save(path, **options)
    return str(path)


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = open_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), pixels)


def test_palette_grey_and_cmyk_become_rgb(tmp_path: Path) -> None:
    plain = Image.new("RGB", (4, 4), RED)
    palette = open_image(saved(tmp_path / "p.png", plain.quantize(4)))
    cmyk = open_image(saved(tmp_path / "c.jpg", plain.convert("CMYK"), quality=95))
    grey = open_image(saved(tmp_path / "g.png", Image.new("L", (4, 4), 77)))
    one_bit = open_image(saved(tmp_path / "b.png", Image.new("1", (4, 4), 1)))
    assert palette.getpixel((0, 0)) == RED
    assert np.abs(np.asarray(cmyk).astype(int) - RED).max() < 12
    assert grey.getpixel((1, 1)) == (77, 77, 77)
    assert one_bit.getpixel((1, 1)) == (255, 255, 255)


def test_transparent_parts_lie_over_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (*RED, 0))  # its hidden colour must not show
    picture.putpixel((1, 0), (*RED, 255))
    read = open_image(saved(tmp_path / "a.png", picture))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_transparent_palette_lies_over_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([*RED, 0, 0, 250])
    picture.putpixel((1, 0), 1)
    read = open_image(saved(tmp_path / "a.png", picture, transparency=0))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 250)]


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    read = open_image(saved(tmp_path / "a.png", Image.fromarray(values)))
    assert [read.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), RED)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held upright
    assert open_image(saved(tmp_path / "a.jpg", picture, exif=exif)).size == (4, 8)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in (RED, (0, 0, 255))]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((0, 0)) == RED


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_a_file_that_is_no_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png.*expected a readable picture.*fetch the file again"):
        open_image(str(path))


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_truncated_picture(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = Path(saved(tmp_path / name, Image.fromarray(noise)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=name):
        open_image(str(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", media._known_formats())
def test_a_changed_byte_leaves_a_picture_or_is_damage(tmp_path: Path, kind: str) -> None:
    """Whatever byte of the file it is, and whatever the decoder of that format raises."""
    path = tmp_path / "a.bin"
    Image.linear_gradient("L").resize((12, 8)).convert("RGB").save(path, kind)
    sound, found = path.read_bytes(), set()
    for place in range(0, len(sound), 1 + len(sound) // 400):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0xFF]) + sound[place + 1 :])
        try:
            found.add(open_image(str(path)).mode)
        except DataError:
            found.add("damage")
    assert found == {"RGB", "damage"}


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_image(str(tmp_path / "none.png"))
    with pytest.raises(DataError, match="found a folder"):
        open_image(str(tmp_path))


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "big.png", Image.new("1", (100, 100)))
    monkeypatch.setattr(media, "MAX_PIXELS", 9_999)
    with pytest.raises(DataError, match=r"big\.png: expected at most 9999 pixels, found 100 x 100"):
        open_image(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "bomb.png", Image.new("1", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"bomb\.png.*make the picture smaller"):
        open_image(path)
