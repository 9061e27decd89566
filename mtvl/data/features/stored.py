"""Features that others stored, read in place: .h5, .npz and .npy files as the references publish them.

Files of webdataset shards that hold features are read the same way.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtvl.data.shards import is_member, open_member
from mtvl.errors import DataError

SUFFIXES = (".h5", ".npz", ".npy")
NAME = "features"  # of the array, in .h5 groups and .npz files
_OPEN_FILES = 16  # files that hold a whole split stay open; h5py itself lets one thread in at a time
MAX_BYTES = 2**31  # of one picture's or video's features; a few kilobytes of a compressed file can claim any size
_DAMAGE = (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def stored_file(path: str) -> str:
    """The file behind `path`, which may end with the name of a group: split.h5#COCO_val2014_000000000042."""
    file, mark, _ = path.rpartition(".h5#")
    return file + ".h5" if mark else path


def is_stored(path: str) -> bool:
    """True when `path` names a file of stored features rather than a picture or video."""
    return stored_file(path).endswith(SUFFIXES)


def read_picture(path: str, grid: tuple[int, int]) -> torch.Tensor:
    """Stored features (P, F) float32 of one picture; DataError unless their shape is `grid`.

    *Source:* VL-Adapter writes one .h5 a picture: group IMG_ID (the file's stem), dataset "features", float16.
    """
    array = _read(path)
    if array.shape != grid:
        raise _misshapen(path, array, f"{grid} for one picture")
    return _floats(path, array)


def read_video(path: str, grid: tuple[int, int]) -> torch.Tensor:
    """Stored features (T, P, F) float32 of the frames of a video; (T, F) counts as one token a frame.

    Raises DataError when the shape does not fit `grid` = (P, F) of a frame or there is no frame.

    *Source:* VALUE's vis_features: one .npz a video, key "features" (T, F), a row for every 1.5 s.
    """
    array = _read(path)
    rows = array[:, None] if array.ndim == 2 else array
    if rows.ndim != 3 or rows.shape[1:] != grid or not len(rows):
        flat = f" or (frames, {grid[1]})" if grid[0] == 1 else ""
        raise _misshapen(path, array, f"(frames, {grid[0]}, {grid[1]}){flat} for one video")
    return _floats(path, rows)


def _misshapen(path: str, array: np.ndarray, expected: str) -> DataError:
    return DataError(f"expected features of shape {expected}, found {array.shape}; these features and the run's "
                     "visual tower (or its feature width) do not belong together", file=path)  # fmt: skip


def _floats(path: str, array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind != "f":
        raise DataError(f"expected floating-point features, found {array.dtype}", file=path)
    features = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bool(features.isfinite().all()):
        raise DataError("the stored features hold values that are not finite; extract them again", file=path)
    return features


def _read(path: str) -> np.ndarray:
    file = stored_file(path)
    try:
        if file.endswith(".h5"):
            return _read_h5(file, path[len(file) + 1 :])
        loaded: Any = np.load(io.BytesIO(open_member(path)) if is_member(path) else file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            _check_size(path, sum(entry.file_size for entry in loaded.zip.infolist()))
            if NAME not in loaded:
                raise DataError(f"expected an array '{NAME}', found {', '.join(loaded) or 'none'}", file=path)
            return np.asarray(loaded[NAME])
    except FileNotFoundError:
        raise DataError("expected a file of stored features, found no such file", file=path) from None
    except _DAMAGE as error:
        raise DataError(
            f"expected readable features, found damage ({error}); fetch or extract the file again", file=path
        ) from None


def _read_h5(file: str, group: str) -> np.ndarray:
    if group:
        return _dataset(_open_h5(file), group, file)
    with _h5py().File(file, "r", locking="best-effort") as opened:
        return _dataset(opened, Path(file).stem, file)


def _dataset(opened: Any, group: str, file: str) -> np.ndarray:
    if group not in opened or NAME not in opened[group]:
        found = list(opened[group]) if group in opened else list(opened)
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        where = f"in group '{group}'" if group in opened else "at the top"
        raise DataError(
            f"expected group '{group}' with a dataset '{NAME}', found {shown or 'nothing'} {where}", file=file
        )
    dataset = opened[group][NAME]
    _check_size(file, int(np.prod(dataset.shape, dtype=np.float64)) * dataset.dtype.itemsize)
    return np.asarray(dataset[()])


def _check_size(path: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise DataError(f"expected at most {MAX_BYTES} bytes of features, found {num_bytes} once unpacked", file=path)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError(
            "reading .h5 files needs h5py, which is not installed; pip install 'mtvl[features]' (or h5py)"
        ) from None
    return h5py


@lru_cache(maxsize=_OPEN_FILES)
def _open_h5(file: str) -> Any:
    return _h5py().File(file, "r", locking="best-effort")
