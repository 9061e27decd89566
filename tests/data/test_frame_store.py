"""The store of video features: rows per video, spans, folders of frames, what counts as changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtvl.data.features import FrameStore, rows_of_span
from mtvl.errors import DataError


class Encoder:
    """Mean colour of a frame, as two tokens of width three."""

    fingerprint, grid = "frames-1", (2, 3)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, images) -> torch.Tensor:
        self.batches.append(len(images))
        means = torch.tensor([float(np.asarray(i).mean()) for i in images])
        return means[:, None, None] + torch.arange(6.0).view(1, 2, 3)


def read_video(path: str) -> list[Image.Image]:
    """A "video" is a text file with the grey value of each frame."""
    return [Image.new("RGB", (4, 4), (int(v),) * 3) for v in Path(path).read_text().split()]


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    paths = []
    for i, count in enumerate((3, 1, 9, 5)):
        path = tmp_path / f"v{i}.mp4"
        path.write_text(" ".join(str(10 * i + k) for k in range(count)))
        paths.append(str(path))
    return paths


def store(tmp_path: Path, encoder: Encoder, **options) -> FrameStore:
    return FrameStore(
        encoder, tmp_path / "features", **{"batch": 4, "shard_bytes": 6 * 12, "read": read_video, **options}
    )


def grey(rows: torch.Tensor) -> list[float]:
    return rows[:, 0, 0].tolist()


def test_every_video_has_its_own_number_of_rows(tmp_path: Path, videos: list[str]) -> None:
    encoder = Encoder()
    frames, lines = store(tmp_path, encoder), []
    assert frames.ensure([*videos, videos[0]], lines.append) == 4
    assert max(encoder.batches) == 4 and sum(encoder.batches) == 18
    assert "4/4 videos" in lines[-1]
    again = store(tmp_path, Encoder())
    assert again.ensure(videos) == 0 and again.verify() == 0
    for found in (frames, again):
        for i, count in enumerate((3, 1, 9, 5)):
            rows = found.read(videos[i])
            assert rows.shape == (count, 2, 3) and rows.dtype == torch.float32
            assert grey(rows) == [10.0 * i + k for k in range(count)]
    assert grey(again.read(videos[2], (4.0, 6.1))) == [22.0, 23.0, 24.0]
    assert {p.name for p in (tmp_path / "features").iterdir()} == {"frames-1-1.5s"}
    assert again.usage().items == 4
    assert store(tmp_path, Encoder(), every=1.0).ensure(videos) == 4  # another rate, other features
    with pytest.raises(DataError, match="FrameStore.ensure"):
        again.read(str(tmp_path / "other.mp4"))
    with pytest.raises(DataError, match=r"v2.mp4: expected a time span .*\(6.1, 4.0\)"):
        again.read(videos[2], (6.1, 4.0))


def test_reading_gives_a_copy(tmp_path: Path, videos: list[str]) -> None:
    frames = store(tmp_path, Encoder())
    frames.ensure(videos)
    frames.read(videos[0]).zero_()
    assert grey(frames.read(videos[0])) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("span", "rows"),
    [
        ((0.0, 1.5), [0]), ((0.0, 1.6), [0, 1]), ((1.5, 4.5), [1, 2]), ((1.4, 4.6), [0, 1, 2, 3]), ((2.0, 2.0), [1]),
        ((3.0, 3.0), [2]), ((0.0, 99.0), [0, 1, 2, 3]), ((50.0, 60.0), [3]), ((-9.0, -3.0), [0]), ((6.0, 6.0), [3]),
    ],
)  # fmt: skip
def test_a_span_selects_the_rows_that_overlap_it(span: tuple[float, float], rows: list[int]) -> None:
    assert list(range(4))[rows_of_span(span, 1.5, 4)] == rows


def test_spans_are_not_fooled_by_binary_fractions() -> None:
    assert rows_of_span((0.3, 0.6), 0.1, 10) == slice(3, 6)
    for bad in ((2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ValueError, match="start <= end"):
            rows_of_span(bad, 1.5, 4)


def test_a_folder_of_frames_is_keyed_by_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (4, 4), (i,) * 3).save(folder / f"{i}.png")

    def read_folder(path: str) -> list[Image.Image]:
        return [Image.open(file) for file in sorted(Path(path).iterdir())]

    frames = store(tmp_path, Encoder(), read=read_folder)
    assert frames.ensure([str(folder)]) == 1
    assert frames.ensure([str(folder)]) == 0
    Image.new("RGB", (4, 4), (7,) * 3).save(folder / "1.png")
    os.utime(folder / "1.png", ns=(1, 1))
    assert frames.ensure([str(folder)]) == 1
    assert grey(frames.read(str(folder))) == [0.0, 7.0, 2.0]
    (folder / "2.png").unlink()
    assert frames.ensure([str(folder)]) == 1


def test_videos_are_read_by_the_media_interface_unless_told_otherwise(tmp_path: Path) -> None:
    strip = Image.new("RGB", (12, 4))
    for i in range(3):
        strip.paste((40 * i,) * 3, (4 * i, 0, 4 * i + 4, 4))
    path = tmp_path / "clip.3x1.png"
    strip.save(path)
    frames = FrameStore(Encoder(), tmp_path / "features")
    frames.ensure([str(path)], fill="lazy")
    assert grey(frames.read(str(path))) == [0.0, 40.0, 80.0]


def test_missing_and_empty_videos_are_named(tmp_path: Path, videos: list[str]) -> None:
    with pytest.raises(DataError, match=r"1 of 1 videos are missing, the first is .*none.mp4.*folder of videos"):
        store(tmp_path, Encoder()).ensure([str(tmp_path / "none.mp4")])
    Path(videos[3]).write_text("")
    frames = store(tmp_path, Encoder(), batch=1)
    with pytest.raises(DataError, match="v3.mp4: expected a video with at least one frame"):
        frames.ensure(videos)
    assert frames.usage().items == 3  # what was finished stays
    with pytest.raises(ValueError, match="every"):
        store(tmp_path, Encoder(), every=0.0)
