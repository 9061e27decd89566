"""What a shard holds for a picture or a video: the file itself, or the frozen tower's features of it."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtvl.data.collate import FeatureSource, FrameSource
from mtvl.data.shard_plan import padded
from mtvl.data.shards import FRAMES, frame_members, is_frames, is_member, member_key, open_member, parse_member
from mtvl.data.video import PICTURE_SUFFIXES, count_frames
from mtvl.errors import ConfigError, DataError

_NPZ_BYTES = 300  # of an array's names and headers


class FileMedia:
    """Pictures and videos with their own bytes and ending; also out of other shards."""

    towers: Mapping[str, str] = {}

    def extension(self, path: str, is_video: bool) -> str:
        """Ending in lower case, as webdataset wants it.

        `frames.tar` for a folder of frames; `8x1.jpg` for a strip of eight, since `strips.json` stays behind.
        """
        if is_frames(path) or (is_video and os.path.isdir(path)):
            return FRAMES
        ending = parse_member(path).name.rpartition(".")[2] if is_member(path) else Path(path).suffix[1:].lower()
        if is_video and f".{ending}" in PICTURE_SUFFIXES:
            return f"{count_frames(path)}x1.{ending}"
        if not ending.isalnum() or ending == "json":
            raise DataError("expected a file with an ending like .jpg or .mp4, found another; rename it", file=path)
        return ending

    def num_bytes(self, path: str, is_video: bool) -> int:
        """Space in a tar; DataError when there is no such file, or it holds many items."""
        if is_member(path):
            member_key(path)  # an error when the shard is gone
            return padded(parse_member(path).size)
        if path.endswith(".h5") or ".h5#" in path:
            raise DataError("expected one file for each picture or video, found an .h5 file; shards hold them as .npz: "
                            "use --features", file=path)  # fmt: skip
        try:
            if is_video and os.path.isdir(path):
                return sum(padded(file.stat().st_size) for file in _frames(path))
            return padded(os.stat(path).st_size)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", file=path) from None

    def stamp(self, path: str) -> str:
        """Size and modification time."""
        if is_member(path):
            return member_key(path)
        files = _frames(path) if os.path.isdir(path) else [Path(path)]
        return ",".join(f"{s.st_size}:{s.st_mtime_ns}" for s in (file.stat() for file in files))

    def load(self, path: str, is_video: bool) -> dict[str, bytes]:
        """Ending -> content; a folder of frames gives `frames.NAME` for each."""
        if is_frames(path):
            return {_frame_ending(name): open_member(frame) for name, frame in frame_members(path).items()}
        if is_member(path):
            return {self.extension(path, is_video): open_member(path)}
        try:
            if is_video and os.path.isdir(path):
                return {_frame_ending(file.name): file.read_bytes() for file in _frames(path)}
            return {self.extension(path, is_video): Path(path).read_bytes()}
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", file=path) from None


def _frame_ending(name: str) -> str:
    return FRAMES.removesuffix("tar") + name


def _frames(folder: str) -> list[Path]:
    files = (file for file in Path(folder).iterdir() if not file.name.startswith("."))
    frames = sorted(file for file in files if file.suffix.lower() in PICTURE_SUFFIXES)
    if not frames:
        raise DataError(f"expected frame pictures ({' '.join(PICTURE_SUFFIXES)}), found none", file=folder)
    return frames


class FeatureMedia:
    """Features in float16 as .npz (array "features"): (P, F) of a picture; (T, P, F) of a video, (T, F) where P = 1.

    `pictures` and `frames` must know every path already (`ensure`); a tower is named by its fingerprint.
    """

    def __init__(
        self, pictures: FeatureSource | None, frames: FrameSource | None = None, towers: Mapping[str, str] | None = None
    ) -> None:
        self._pictures, self._frames, self.towers = pictures, frames, dict(towers or {})

    def extension(self, path: str, is_video: bool) -> str:
        """Always npz."""
        return "npz"

    def num_bytes(self, path: str, is_video: bool) -> int:
        """Space in a tar."""
        if is_video:
            return padded(2 * self._array(path, True).size + _NPZ_BYTES)
        if self._pictures is None:
            raise ConfigError("the task has pictures, but there is no source of their features")
        return padded(2 * self._pictures.grid[0] * self._pictures.grid[1] + _NPZ_BYTES)

    def stamp(self, path: str) -> str:
        """Features change with the file behind them, and with the tower, which stands in `towers`."""
        file = path.rpartition(".h5#")[0] + ".h5" if ".h5#" in path else path
        return FileMedia().stamp(file)

    def load(self, path: str, is_video: bool) -> dict[str, bytes]:
        """{"npz": content}."""
        stream = io.BytesIO()
        np.savez(stream, features=self._array(path, is_video))
        return {"npz": stream.getvalue()}

    def _array(self, path: str, is_video: bool) -> np.ndarray:
        if is_video:
            if self._frames is None:
                raise ConfigError("the task has videos, but there is no source of their features")
            rows = self._frames.read(path).numpy()
            return _half(rows[:, 0] if rows.shape[1] == 1 else rows, path)
        if self._pictures is None:
            raise ConfigError("the task has pictures, but there is no source of their features")
        return _half(self._pictures.get([path])[0].numpy(), path)


def _half(rows: np.ndarray, path: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # said below, with the file
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError("expected features within the range of float16 (65504), found larger ones", file=path)
    return half
