"""Frozen visual features on disk: computed once per picture, kept in float16, read through memory maps.

Layout: `folder/<encoder fingerprint>/<shard>.npy` (rows, P, F) float16 with `<shard>.json` beside it, which names the
picture of every row by path, size and modification time. A shard counts once its JSON stands, and that is written
last, each file under a temporary name first: a crash loses at most the shard in progress. No file is ever rewritten,
so adding pictures costs the same however many there are already.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtvl import dist
from mtvl.data import media
from mtvl.errors import DataError
from mtvl.types import ImageEncoder

Progress = Callable[[str], None]
_OPEN_SHARDS = 256  # every memory map holds a file descriptor, and 1024 is a common limit
_ORPHAN_SECONDS = 3600  # younger leftovers may belong to a run that is writing now


class FeatureStore:
    """Features of `encoder` for any pictures, cached under `folder` (shared by all ranks and runs).

    `batch` pictures go to the encoder at once while `workers` threads decode the next ones; a shard holds about
    `shard_bytes`. `grid` is (P, F).
    """

    def __init__(
        self, encoder: ImageEncoder, folder: str | Path, *, batch: int = 32, workers: int = 2, shard_bytes: int = 2**27
    ) -> None:
        self.grid = (int(encoder.grid[0]), int(encoder.grid[1]))
        self.folder = Path(folder) / _folder_name(encoder.fingerprint)
        self._encoder, self._batch, self._workers = encoder, batch, workers
        self._shard_rows = min(4096, max(1, shard_bytes // (self.grid[0] * self.grid[1] * 2)))
        self._read: set[str] = set()  # shards whose JSON is in the index
        self._index: dict[str, tuple[str, int]] = {}  # picture key -> shard, row
        self._rows: dict[str, tuple[str, int]] = {}  # path, as given to `ensure` -> shard, row
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def ensure(self, paths: Sequence[str], progress: Progress | None = None) -> int:
        """Compute the features of those `paths` that are missing; returns how many pictures were computed.

        Collective: every rank calls it with the same paths; rank 0 computes, the others wait and learn of a failure.
        `progress` receives a line of text now and then (rank 0). Raises DataError when a picture is missing, cannot be
        decoded, or makes the encoder fail; what was finished before stays.
        """
        unique = list(dict.fromkeys(paths))
        keys = _picture_keys(unique)
        if dist.is_active() and not dist.is_main():
            computed = _wait_for_rank_0()
            self._scan(is_owner=False)
        else:
            computed = self._compute_and_tell(keys, progress)
        lost = [path for path, key in keys.items() if key not in self._index]
        if lost:
            raise DataError(f"{len(lost)} pictures have no features in {self.folder} after they were computed, the "
                            f"first is {lost[0]}; all nodes must see the same feature folder")  # fmt: skip
        self._rows.update((path, self._index[key]) for path, key in keys.items())
        return computed

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        """Features (len(paths), P, F) float32 of pictures that `ensure` has seen in this process, else DataError."""
        rows = torch.empty((len(paths), *self.grid))
        for i, path in enumerate(paths):
            place = self._rows.get(path)
            if place is None:
                raise DataError(f"no features for {path}: expected it among the pictures given to FeatureStore.ensure; "
                                "call ensure with the pictures of every split in use")  # fmt: skip
            rows[i] = self._open(place[0])[place[1]]
        return rows

    def _compute_and_tell(self, keys: dict[str, str], progress: Progress | None) -> int:
        """Rank 0's part. The others hear of the end in every case, or they would wait for a rank that has died."""
        status: tuple[str, int] = ("failed", 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._scan(is_owner=True)
            missing = [(path, key) for path, key in keys.items() if key not in self._index]
            if missing:
                self._compute(missing, progress or (lambda line: None))
                self._scan(is_owner=True)
            status = ("done", len(missing))
        finally:
            dist.broadcast_object(status)
        return status[1]

    def _compute(self, missing: list[tuple[str, str]], progress: Progress) -> None:
        keys: list[str] = []
        rows: list[np.ndarray] = []
        start = said = time.monotonic()
        done = 0
        try:
            for chunk, images in self._decoded(missing):
                rows.extend(self._encode([path for path, _ in chunk], images))
                keys.extend(key for _, key in chunk)
                done += len(chunk)
                if len(keys) >= self._shard_rows:
                    self._write(keys, rows)
                    keys, rows = [], []
                    # Keeps the waiting ranks inside the timeout of one collective, however long the whole takes.
                    dist.broadcast_object(("working", done))
                now = time.monotonic()
                if now - said > 2 or done == len(missing):
                    progress(_progress_line(done, len(missing), now - start))
                    said = now
        finally:  # also after an error: the user mends one picture and goes on from here
            if keys:
                self._write(keys, rows)

    def _decoded(self, missing: list[tuple[str, str]]) -> Iterator[tuple[list[tuple[str, str]], list[Any]]]:
        """Chunks of (path, key) with their pictures; the next chunk is decoded while the caller encodes this one."""
        chunks = [missing[i : i + self._batch] for i in range(0, len(missing), self._batch)]
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as pool:

            def submit(chunk: list[tuple[str, str]]) -> list[Future[Any]]:
                return [pool.submit(media.open_image, path) for path, _ in chunk]

            ahead = submit(chunks[0])
            try:
                for i, chunk in enumerate(chunks):
                    images = [future.result() for future in ahead]
                    ahead = submit(chunks[i + 1]) if i + 1 < len(chunks) else []
                    yield chunk, images
            finally:
                for future in ahead:
                    future.cancel()

    def _encode(self, paths: list[str], images: list[Any]) -> np.ndarray:
        names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        try:
            features = self._encoder.encode(images)
        except Exception as error:  # anything an encoder may raise says nothing about which pictures it was given
            raise DataError(f"the image encoder failed on {names}: {type(error).__name__}: {error}") from error
        expected = (len(paths), *self.grid)
        if tuple(features.shape) != expected:
            raise DataError(
                f"the image encoder returned shape {tuple(features.shape)} for {names}, expected {expected}"
            )
        half = features.detach().cpu().to(torch.float16)
        finite = half.isfinite().flatten(1).all(1)
        if not bool(finite.all()):
            bad = paths[int((~finite).nonzero()[0, 0])]
            raise DataError(f"the features of {bad} are not finite in float16 (largest magnitude it holds: 65504); "
                            "check the picture and the encoder's weights")  # fmt: skip
        return half.numpy()

    def _write(self, keys: list[str], rows: list[np.ndarray]) -> None:
        name = uuid.uuid4().hex[:16]  # two runs may fill one folder at the same time
        array = np.stack(rows)
        with _Replacing(self.folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
            _flush(file)
        num_bytes = (self.folder / f"{name}.npy").stat().st_size
        record = {"fingerprint": self._encoder.fingerprint, "grid": list(self.grid), "bytes": num_bytes, "keys": keys}
        with _Replacing(self.folder / f"{name}.json") as temporary, temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file)
            _flush(file)

    def _scan(self, is_owner: bool) -> None:
        """Read the JSON of new shards; the owner removes damaged shards, with a warning, and old leftovers."""
        for path in sorted(self.folder.glob("*.json")):
            if path.stem in self._read:
                continue
            keys, damage = self._read_record(path)
            if not damage:
                self._read.add(path.stem)
                self._index.update((key, (path.stem, row)) for row, key in enumerate(keys))
            elif is_owner:
                warnings.warn(f"{path.with_suffix('.npy')}: {damage}; its features are computed again", stacklevel=4)
                path.unlink()
                path.with_suffix(".npy").unlink(missing_ok=True)
        if is_owner:
            self._remove_leftovers()

    def _read_record(self, path: Path) -> tuple[list[str], str]:
        """(keys, "") of a sound shard, ([], what is wrong) otherwise."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            keys, num_bytes = list(record["keys"]), int(record["bytes"])
            same = record["fingerprint"] == self._encoder.fingerprint and tuple(record["grid"]) == self.grid
        except (ValueError, KeyError, TypeError) as error:
            return [], f"the index {path.name} is not readable ({type(error).__name__}: {error})"
        if not same:
            return [], f"the index {path.name} belongs to another encoder"
        try:
            found = path.with_suffix(".npy").stat().st_size
            shape = np.load(path.with_suffix(".npy"), mmap_mode="r").shape if found == num_bytes else None
        except (OSError, ValueError) as error:
            return [], f"the shard is not readable ({type(error).__name__}: {error})"
        if shape != (len(keys), *self.grid):
            return (
                [],
                f"expected {num_bytes} bytes and shape {(len(keys), *self.grid)}, found {found} bytes and {shape}",
            )
        return keys, ""

    def _remove_leftovers(self) -> None:
        old = time.time() - _ORPHAN_SECONDS
        for path in [*self.folder.glob("*.tmp"), *self.folder.glob("*.npy")]:
            is_orphan = path.suffix == ".tmp" or not path.with_suffix(".json").exists()
            if is_orphan and path.stat().st_mtime < old:
                path.unlink()

    def _open_shard(self, name: str) -> torch.Tensor:
        path = self.folder / f"{name}.npy"
        try:
            # "c" (private pages), as torch warns about arrays that it could not write to; nothing here writes.
            return torch.from_numpy(np.load(path, mmap_mode="c"))
        except (OSError, ValueError) as error:
            raise DataError(f"feature shard vanished or was cut off while in use ({error}); start again to recompute it",
                            file=path) from error  # fmt: skip


class _Replacing:
    """Context: a temporary name beside `path`, moved onto it at the end, removed when the body fails."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(path.name + ".tmp")

    def __enter__(self) -> Path:
        return self._temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _folder_name(fingerprint: str) -> str:
    """The fingerprint itself where it is a safe name, else its hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", fingerprint):
        return fingerprint
    return blake2b(fingerprint.encode(), digest_size=16).hexdigest()


def _picture_keys(paths: list[str]) -> dict[str, str]:
    """path -> key of the picture as it is on disk now; a picture that was replaced gets another key."""
    keys, lost = {}, []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError:
            lost.append(path)
            continue
        keys[path] = f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}"
    if lost:
        raise DataError(f"{len(lost)} of {len(paths)} pictures are missing, the first is {lost[0]}; "
                        "check data.root and the task's picture folder")  # fmt: skip
    return keys


def _wait_for_rank_0() -> int:
    status, count = "working", 0
    while status == "working":
        status, count = dist.broadcast_object(None)
    if status != "done":
        raise DataError("rank 0 could not compute the features; its own message says why")
    return count


def _progress_line(done: int, total: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    return f"features: {done}/{total} pictures, {rate:.1f}/s, ETA {round((total - done) / rate)} s"
