"""Frames of a video as pixels: evenly spaced, inside the span, of files and of folders."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mtvl.backbones.towers import square_pixels
from mtvl.data.features import PixelFrames
from mtvl.data.features.pixels import spaced_frames
from mtvl.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten frames whose grey is ten times their number."""
    for i in range(10):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Ten seconds at two frames a second, brighter with every second."""
    file = tmp_path / "film.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20):
            picture = np.full((48, 64, 3), 10 * (i // 2), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


def greys(frames: list[Image.Image]) -> list[int]:
    return [round(np.asarray(frame)[0, 0, 0] / 10) for frame in frames]


def test_frames_of_a_folder_are_spread_over_it_or_over_the_span(folder: Path) -> None:
    assert greys(spaced_frames(str(folder), 5, None, 1.0)) == [1, 3, 5, 7, 9]
    assert greys(spaced_frames(str(folder), 3, None, 1.0)) == [1, 5, 8]
    assert greys(spaced_frames(str(folder), 2, (2.0, 6.0), 1.0)) == [3, 5]
    assert greys(spaced_frames(str(folder), 8, (2.0, 4.0), 1.0)) == [2, 3]  # no more than there are
    with pytest.raises(DataError, match="start <= end"):
        spaced_frames(str(folder), 2, (6.0, 2.0), 1.0)


def test_frames_of_a_file_are_those_in_the_middle_of_equal_parts(film: Path) -> None:
    assert greys(spaced_frames(str(film), 5, None, 1.5)) == [1, 3, 5, 7, 9]
    assert greys(spaced_frames(str(film), 2, (2.0, 6.0), 1.5)) == [3, 5]
    assert greys(spaced_frames(str(film), 3, (9.0, 99.0), 1.5)) == [9, 9, 9]
    with pytest.raises(DataError, match="start <= end"):
        spaced_frames(str(film), 2, (6.0, float("nan")), 1.5)


def test_a_source_gives_pixels_row_by_row(folder: Path) -> None:
    source = PixelFrames(lambda pictures: square_pixels(pictures, 4), 4, 3, every=1.0)
    source.ensure([str(folder)])
    pixels = source.read(str(folder), (0.0, 5.0))
    assert source.grid == (16, 3) and pixels.shape == (3, 16, 3) and pixels.dtype == torch.float32
    stored = folder / "video.npz"
    np.savez(stored, features=np.zeros((3, 4)))
    with pytest.raises(DataError, match="give the videos"):
        source.ensure([str(stored)])
