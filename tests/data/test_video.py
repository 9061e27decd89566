"""Every decoder shows the same frame at the same instant; damaged files become a DataError that names the file."""

from __future__ import annotations

import json
import logging
import random
import struct
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mtvl.data import decoders
from mtvl.data.decoders import DECODERS, open_video, read_table, unusable, video_decoder
from mtvl.data.shards import Member, member_path
from mtvl.data.video import count_frames, frame_times, iterate_frames, natural_key, probe_seconds, read_frames
from mtvl.errors import ConfigError, DataError

USABLE = [name for name in DECODERS if not unusable(name)]
SIZE = (160, 96)


def drawn(number: int) -> np.ndarray:
    """A picture that carries `number` as ten black and white bars."""
    width, height = SIZE
    pixels = np.full((height, width, 3), 128, np.uint8)
    for bit in range(10):
        pixels[height // 2 :, bit * width // 10 : (bit + 1) * width // 10] = 255 * (number >> bit & 1)
    pixels[: height // 2, number * 3 % width :][:, :12] = (200, 30, 30)  # moves, so that B-frames have work
    return pixels


def number_in(picture: Image.Image) -> int:
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    return sum(1 << b for b in range(10) if pixels[3 * height // 4, b * width // 10 + width // 20].mean() > 128)


def encode(path: Path, codec: str = "libx264", number: int = 100, *, ticks: Sequence[int] | None = None,
           b_frames: int = 2, rate: int = 20, **options: str) -> Path:  # fmt: skip
    """A clip with a counter in every frame; `ticks` are the milliseconds of frames at a varying rate."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = 24
        stream.codec_context.max_b_frames = b_frames
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(number):
            frame = av.VideoFrame.from_ndarray(drawn(i), format="rgb24")
            frame.pts = i if ticks is None else ticks[i]
            if ticks is not None:
                frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copied(source: Path, target: Path, shift: int = 0, **options: str) -> Path:
    """The packets of `source` from its second key frame on when `shift` is given, in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        per_frame = round(1 / (20 * stream.time_base))
        for packet in old.demux(stream):
            if packet.size and (not shift or packet.pts >= 24 * per_frame):
                packet.pts, packet.dts = packet.pts - shift * per_frame, packet.dts - shift * per_frame
                packet.stream = copy
                new.mux(packet)
    return target


def uneven(number: int) -> list[int]:
    steps = random.Random(0)
    ticks = [0]
    while len(ticks) < number:
        ticks.append(ticks[-1] + steps.choice((20, 33, 50, 120)))
    return ticks


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips by what is difficult about them; all count up from 0, but "edited", which counts from 30."""
    folder = tmp_path_factory.mktemp("clips")
    plain = encode(folder / "plain.mp4")
    turned = bytearray(plain.read_bytes())
    place = turned.index(b"tkhd") + (44 if turned[turned.index(b"tkhd") + 4] == 0 else 56)
    turned[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    (folder / "turned.mp4").write_bytes(turned)
    open_groups = "open-gop=1:keyint=24:min-keyint=24:scenecut=0:bframes=3:b-adapt=0:log-level=none"
    return {
        "B-frames": plain,
        "uneven": encode(folder / "uneven.mp4", ticks=uneven(100)),
        "milliseconds": encode(folder / "uneven.mkv", ticks=uneven(100)),
        "open groups": encode(folder / "open.mp4", **{"x264-params": open_groups}),
        "mpeg4 B-frames": encode(folder / "mpeg4.mp4", "mpeg4"),
        "avi": encode(folder / "plain.avi"),
        "avi mpeg4": encode(folder / "mpeg4.avi", "mpeg4"),
        "webm": encode(folder / "plain.webm", "libvpx", 40),
        "edited": copied(plain, folder / "edited.mp4", shift=30),
        "turned": folder / "turned.mp4",
    }


NAMES = ("B-frames", "uneven", "milliseconds", "open groups", "mpeg4 B-frames", "avi", "avi mpeg4", "webm", "edited")


@pytest.mark.parametrize("decoder", USABLE)
@pytest.mark.parametrize("name", NAMES)
def test_the_frame_on_the_screen_is_returned(clips: dict[str, Path], name: str, decoder: str) -> None:
    reader = open_video(str(clips[name]), decoder)
    first = 30 if name == "edited" else 0
    starts = [t / 1000 for t in uneven(100)] if name in ("uneven", "milliseconds") else [i / 20 for i in range(100)]
    starts = starts[: 40 if name == "webm" else 100 - first]
    wanted = [*range(0, len(starts), 7), len(starts) - 1]
    at_begin = [number_in(p) for p in reader.frames_at([starts[i] for i in wanted])]
    before_next = [number_in(p) for p in reader.frames_at([starts[i] + 0.019 for i in wanted])]
    assert at_begin == before_next == [first + i for i in wanted]
    assert starts[-1] < reader.seconds <= starts[-1] + 0.125  # the muxer chooses how long the last uneven frame lasts


@pytest.mark.parametrize("decoder", USABLE)
def test_repeated_and_late_instants(clips: dict[str, Path], decoder: str) -> None:
    found = [number_in(p) for p in open_video(str(clips["B-frames"]), decoder).frames_at([1.0, 1.01, 1.06, 99.0])]
    assert found == [20, 20, 21, 99]


@pytest.mark.parametrize("decoder", USABLE)
def test_a_turned_video_stands_upright(clips: dict[str, Path], decoder: str) -> None:
    picture = next(open_video(str(clips["turned"]), decoder).frames_at([2.5]))
    assert picture.size == SIZE[::-1]
    assert number_in(picture.transpose(Image.Transpose.ROTATE_90)) == 50


def test_decoders_agree_to_the_pixel(clips: dict[str, Path]) -> None:
    for name in ("B-frames", "turned", "webm"):
        read = [[p.tobytes() for p in read_frames(str(clips[name]), 0.6, d)] for d in USABLE]
        assert len(USABLE) > 1
        assert all(other == read[0] for other in read[1:]), name


def test_frame_times() -> None:
    assert frame_times(12.0) == [0.75, 2.25, 3.75, 5.25, 6.75, 8.25, 9.75, 11.25]
    assert frame_times(0.4) == [0.4]
    assert frame_times(2.3) == [0.75, 2.25]
    assert frame_times(3.0, every=1.0) == [0.5, 1.5, 2.5]
    assert all(t <= s / 7 for s in range(200) for t in frame_times(s / 7))
    with pytest.raises(ValueError, match="above 0"):
        frame_times(3.0, 0.0)


def test_a_file_is_sampled_at_the_fixed_rate(clips: dict[str, Path]) -> None:
    path = str(clips["B-frames"])
    pictures = read_frames(path)
    assert [number_in(p) for p in pictures] == [15, 45, 75]
    assert all(p.mode == "RGB" and p.size == SIZE for p in pictures)
    assert count_frames(path) == 3
    assert probe_seconds(path) == pytest.approx(5.0)


def test_only_one_picture_is_in_memory_at_a_time(clips: dict[str, Path]) -> None:
    pictures = iterate_frames(str(clips["B-frames"]))
    assert number_in(next(pictures)) == 15
    assert number_in(next(pictures)) == 45


def test_folder_is_sorted_by_number(tmp_path: Path) -> None:
    for i in (10, 9, 1, 100):
        Image.fromarray(drawn(i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [number_in(p) for p in read_frames(str(tmp_path))] == [1, 9, 10, 100]
    assert (count_frames(str(tmp_path)), probe_seconds(str(tmp_path))) == (4, 6.0)
    assert natural_key("a²") < natural_key("b1")  # a superscript is a digit that int() does not read


def test_strip_is_cut(tmp_path: Path) -> None:
    strip = Image.fromarray(np.concatenate([drawn(i) for i in (3, 1, 2)], axis=1))
    for name in ("a.3x1.png", "b.png", "c.v2.png"):
        strip.save(tmp_path / name)
    listed = tmp_path / "strips.json"
    listed.write_text(json.dumps({"b": 3, "c.v2": {"num_frames": 3}}))
    for name in ("a.3x1.png", "b.png", "c.v2.png"):
        assert [number_in(p) for p in read_frames(str(tmp_path / name))] == [3, 1, 2]
        assert probe_seconds(str(tmp_path / name)) == 4.5
    listed.unlink()
    assert len(read_frames(str(tmp_path / "b.png"), frames=3)) == 3
    with pytest.raises(DataError, match=r"b\.png: expected the number of frames .*b\.8x1\.jpg.*strips\.json"):
        read_frames(str(tmp_path / "b.png"))
    with pytest.raises(DataError, match="7 frames of equal width, found 480 pixels"):
        read_frames(str(tmp_path / "b.png"), frames=7)
    with pytest.raises(DataError, match="above 0"):
        read_frames(str(tmp_path / "b.png"), frames=0)
    for text in ("{", "[" * 100_000):
        listed.write_text(text)
        with pytest.raises(DataError, match=r"strips\.json: expected JSON"):
            read_frames(str(tmp_path / "b.png"))


def test_videos_inside_a_shard(clips: dict[str, Path], tmp_path: Path) -> None:
    strip = tmp_path / "K.3x1.png"
    Image.fromarray(np.concatenate([drawn(i) for i in (3, 1, 2)], axis=1)).save(strip)
    for i in (10, 9):
        Image.fromarray(drawn(i)).save(tmp_path / f"K.frames.{i}.png")
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(clips["B-frames"], "K.mp4")
        tar.add(strip, strip.name)
        for i in (10, 9):
            tar.add(tmp_path / f"K.frames.{i}.png", f"K.frames.{i}.png")
    with tarfile.open(tmp_path / "0.tar") as tar:
        clip, cut, *folder = tar.getmembers()
    shard = str(tmp_path / "0.tar")
    path = member_path(Member(shard, clip.offset_data, clip.size, clip.name))
    for decoder in USABLE:
        assert [number_in(p) for p in read_frames(path, decoder=decoder)] == [15, 45, 75]
    assert count_frames(path) == 3
    path = member_path(Member(shard, cut.offset_data, cut.size, cut.name))
    assert [number_in(p) for p in read_frames(path)] == [3, 1, 2]
    end = folder[-1].offset_data + -(-folder[-1].size // 512) * 512
    path = member_path(Member(shard, folder[0].offset, end - folder[0].offset, "K.frames.tar"))
    assert [number_in(p) for p in read_frames(path)] == [9, 10]
    with pytest.raises(DataError, match="expected K.mp4"):
        read_frames(member_path(Member(shard, cut.offset_data, cut.size, clip.name)))


def damaged_files(folder: Path, plain: Path) -> dict[str, tuple[Path, str]]:
    """Broken videos by kind, with what the error must say."""
    whole = plain.read_bytes()
    early = copied(plain, folder / "early_index.mp4", movflags="faststart").read_bytes()
    matroska = copied(plain, folder / "whole.mkv").read_bytes()
    avi = encode(folder / "whole.avi", number=60).read_bytes()
    third = len(whole) // 3
    contents = {
        "empty.mp4": (b"", "empty"),
        "cut.mp4": (whole[:-200], "damage"),
        "half.mp4": (whole[: len(whole) // 2], "damage"),
        "cut_data.mp4": (early[: int(len(early) * 0.9)], "cut off: .* of 100 frames"),
        "cut.mkv": (matroska[: len(matroska) // 2], "cut off: ends at"),
        "cut.avi": (avi[: len(avi) // 2], "cut off"),
        "zeroed.mp4": (whole[:third] + bytes(third // 2) + whole[third + third // 2 :], "damage"),
        "text.mp4": (b"<html>404 not found</html>" * 50, "damage"),
    }
    files = {}
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        files[name] = folder / name, reason
    return files


@pytest.mark.parametrize("decoder", USABLE)
def test_damaged_files_are_named(clips: dict[str, Path], tmp_path: Path, decoder: str) -> None:
    for name, (path, reason) in damaged_files(tmp_path, clips["B-frames"]).items():
        with pytest.raises(DataError, match=f"{name}: .*{reason}"):
            read_frames(str(path), 0.2, decoder)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    bare = tmp_path / "bare.mkv"
    with av.open(str(bare), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        container.start_encoding()
    (tmp_path / "nothing").mkdir()
    for path, reason in {
        sound: "a file of audio alone",
        bare: "without a single frame|damage",
        tmp_path / "absent.mp4": "no such file",
        tmp_path / "absent": "no such file",
        tmp_path / "absent.jpg": "no such file",
        tmp_path / "nothing": "folder of frame pictures",
    }.items():
        for read in (read_frames, probe_seconds):
            with pytest.raises(DataError, match=f"{path.name}: .*({reason})"):
                read(str(path))
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.npz: .*found a file of kind \.npz"):
        read_frames(str(tmp_path / "a.npz"))


def test_too_many_pixels(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=f"at most 1000 pixels a frame, found {SIZE[0] * SIZE[1]}"):
        read_table(str(clips["B-frames"]))


def test_decoder_by_name_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTVL_VIDEO_DECODER", raising=False)
    assert video_decoder() == video_decoder("") == USABLE[0]
    assert video_decoder("pyav") == "pyav"
    with pytest.raises(ConfigError, match="unknown video decoder 'decor'; did you mean 'decord'"):
        video_decoder("decor")
    monkeypatch.setenv("MTVL_VIDEO_DECODER", "pyav")
    assert (video_decoder(), video_decoder("decord")) == ("pyav", "decord")
    monkeypatch.setenv("MTVL_VIDEO_DECODER", "pyaw")
    with pytest.raises(ConfigError, match="unknown video decoder 'pyaw'"):
        video_decoder()


def test_falls_back_once_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("MTVL_VIDEO_DECODER", raising=False)
    monkeypatch.setattr(decoders, "unusable", lambda name: "" if name == "pyav" else f"no {name} here")
    decoders._first_usable.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="mtvl.data.decoders"):
            assert [video_decoder() for _ in range(3)] == ["pyav"] * 3
        assert [r.getMessage() for r in caplog.records] == [
            "videos are not decoded by torchcodec: no torchcodec here", "videos are not decoded by decord: no decord here",
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="'decord' does not work here: no decord here"):
            video_decoder("decord")
    finally:
        decoders._first_usable.cache_clear()
