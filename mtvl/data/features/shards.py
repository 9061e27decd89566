"""A folder of shards: float16 rows in .npy files that are read through memory maps, with JSON beside each.

`NAME.npy` is (rows, P, F); `NAME.json` names the items that the rows belong to, in order, and says how large the file
is and what its content hashes to. A shard counts once its JSON stands, and that is written last, each file under a
temporary name first: a process that dies at any moment loses at most what it had not written. Names are random and no
file is ever changed, so any number of processes and nodes may add to one folder at the same time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
import time
import uuid
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mtvl.errors import DataError

Counts = tuple[int, int]  # items just done, and how many of them are damaged
_ORPHAN_SECONDS = 3600  # younger leftovers may belong to a run that is writing now
_DAMAGED = ".damaged"


class _Place(NamedTuple):
    """Where an item lies: shard, first row, number of rows."""

    shard: str
    first: int
    rows: int


@dataclass(frozen=True)
class _Record:
    """The JSON of a shard."""

    keys: list[str]
    rows: list[int]
    num_bytes: int
    digest: str

    @property
    def num_rows(self) -> int:
        return sum(self.rows)


class DamageError(Exception):
    """A shard is not what its JSON says; handled here, never seen by users of the store."""


class ShardFolder:
    """Items of one `identity` (what made them) in `folder`: `find`, `add`, `flush`. Safe to use from several threads.

    An item is rows (n, P, F) of `grid` = (P, F) under a key. A shard holds about `shard_bytes`. Added items are kept in
    memory until a shard is full; `flush` writes what is left.
    """

    def __init__(self, folder: Path, identity: str, grid: tuple[int, int], shard_bytes: int = 2**27) -> None:
        self.folder = folder
        self._identity, self._grid = identity, grid
        self._shard_rows = min(4096, max(1, shard_bytes // (grid[0] * grid[1] * 2)))
        self._lock = threading.RLock()
        self._records: dict[str, _Record] = {}  # shard -> what its JSON says
        self._rejected: set[str] = set()  # damaged shards, in case their files cannot be renamed
        self._index: dict[str, _Place] = {}  # key -> place
        self._pending: dict[str, np.ndarray] = {}  # key -> rows that wait for a full shard
        self._pending_rows = 0
        self._writing: dict[str, np.ndarray] = {}  # key -> rows of shards that are being written
        self._open = lru_cache(maxsize=_max_open_shards())(self._open_shard)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._index or key in self._pending or key in self._writing

    def find(self, key: str) -> torch.Tensor | None:
        """Rows (n, P, F) float16 of an item, mapped from disk; None when there is none, or no sound one any more."""
        with self._lock:
            waiting = self._pending.get(key, self._writing.get(key))
            place = self._index.get(key)
        if waiting is not None:
            return torch.from_numpy(waiting)
        if place is None:
            return None
        try:
            return self._open(place.shard)[place.first : place.first + place.rows]
        except DamageError as damage:
            self._set_aside(place.shard, str(damage))
            return None

    def add(self, key: str, rows: np.ndarray) -> None:
        """Keep an item; writes a shard when enough have come together."""
        with self._lock:
            if key in self:  # another thread has computed it too
                return
            self._pending[key] = rows
            self._pending_rows += len(rows)
            is_full = self._pending_rows >= self._shard_rows
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a shard. Raises DataError when the disk does not take it."""
        with self._lock:
            items, self._pending, self._pending_rows = self._pending, {}, 0
            self._writing.update(items)
        if not items:
            return
        try:
            name, record = self._write(items)  # outside the lock: other threads go on reading
        except OSError as error:
            raise DataError(f"cannot write features ({error}); make room there or set 'data.cache' to another folder",
                            file=self.folder) from error  # fmt: skip
        with self._lock:
            self._learn(name, record)
            for key in items:
                self._writing.pop(key, None)

    def scan(self) -> None:
        """Learn which shards came or went since the last call; damaged shards are set aside with a warning."""
        known = set(self._records)  # before the listing: another thread may write a shard meanwhile
        listing = sorted(self.folder.glob("*.json"))
        for name in known - {path.stem for path in listing}:
            self._forget(name)  # another process has set it aside
        for path in listing:
            if path.stem in self._records or path.stem in self._rejected:
                continue
            try:
                record = self._read_record(path)
                self._check(path.stem, record)
            except FileNotFoundError:
                continue  # another process has just set it aside
            except DamageError as damage:
                self._set_aside(path.stem, str(damage))
                continue
            with self._lock:
                self._learn(path.stem, record)

    def num_shards(self) -> int:
        """Shards known so far."""
        with self._lock:
            return len(self._records)

    def verify(self, rank: int = 0, world_size: int = 1) -> Generator[Counts, None, None]:
        """Compare the content of every shard with its hash, one after the other; damaged ones are set aside.

        Of several ranks each takes its own shards. Not done when a shard is opened: the hash costs as much as reading.
        """
        for name, record in sorted(self._records.items()):
            if int(sha256(name.encode()).hexdigest(), 16) % world_size != rank:
                continue
            try:
                found = _digest(np.load(self._check(name, record), mmap_mode="r"))
                if record.digest and found != record.digest:  # shards of earlier versions have none
                    raise DamageError("its content has changed since it was written")
            except DamageError as damage:
                self._set_aside(name, str(damage))
                yield 1, 1
            else:
                yield 1, 0

    def remove_leftovers(self) -> None:
        """Remove old files of processes that died while writing; a folder that cannot be written is left as it is."""
        old = time.time() - _ORPHAN_SECONDS
        for path in [*self.folder.glob("*.tmp"), *self.folder.glob("*.npy")]:
            is_orphan = path.suffix == ".tmp" or not path.with_suffix(".json").exists()
            with contextlib.suppress(OSError):
                if is_orphan and path.stat().st_mtime < old:
                    path.unlink()

    def usage(self) -> tuple[int, int]:
        """(items, bytes on disk) of the shards known so far."""
        with self._lock:
            return len(self._index), sum(r.num_bytes for r in self._records.values())

    def _learn(self, name: str, record: _Record) -> None:
        first = 0
        for key, rows in zip(record.keys, record.rows, strict=True):
            self._index[key] = _Place(name, first, rows)
            first += rows
        self._records[name] = record

    def _write(self, items: dict[str, np.ndarray]) -> tuple[str, _Record]:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex[:16]
        array = np.concatenate(list(items.values()))
        with _Replacing(self.folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array)
            _to_disk(file)
        num_bytes = (self.folder / f"{name}.npy").stat().st_size
        record = _Record(list(items), [len(rows) for rows in items.values()], num_bytes, _digest(array))
        content = {
            "fingerprint": self._identity, "grid": list(self._grid), "bytes": num_bytes, "sha256": record.digest,
            "rows": record.rows, "keys": record.keys,
        }  # fmt: skip
        with _Replacing(self.folder / f"{name}.json") as temporary, temporary.open("w", encoding="utf-8") as text:
            json.dump(content, text)
            _to_disk(text)
        return name, record

    def _read_record(self, path: Path) -> _Record:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            keys = list(content["keys"])
            rows = [int(n) for n in content.get("rows", [1] * len(keys))]  # without "rows": one row an item
            record = _Record(keys, rows, int(content["bytes"]), str(content.get("sha256", "")))
            same = content["fingerprint"] == self._identity and tuple(content["grid"]) == self._grid
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(f"the index {path.name} is not readable ({type(error).__name__}: {error})") from error
        if not same:
            raise DamageError(f"the index {path.name} belongs to another encoder")
        if len(rows) != len(keys):
            raise DamageError(f"the index {path.name} has {len(keys)} items and {len(rows)} counts of rows")
        return record

    def _check(self, name: str, record: _Record) -> Path:
        """Path of a shard whose size and shape are those of its record, else DamageError."""
        path, expected = self.folder / f"{name}.npy", (record.num_rows, *self._grid)
        try:
            found = path.stat().st_size
            array = np.load(path, mmap_mode="r") if found == record.num_bytes else None
        except (OSError, ValueError) as error:
            raise DamageError(f"the shard is not readable ({type(error).__name__}: {error})") from error
        if array is None or array.shape != expected or array.dtype != np.float16:
            shape = None if array is None else (array.shape, str(array.dtype))
            raise DamageError(
                f"expected {record.num_bytes} bytes and shape {expected} in float16, found {found} bytes and {shape}"
            )
        return path

    def _open_shard(self, name: str) -> torch.Tensor:
        with self._lock:
            record = self._records.get(name)
        if record is None:
            raise DamageError("another thread has set it aside")
        # "c" (private pages), as torch warns about arrays that it could not write to; nothing here writes.
        return torch.from_numpy(np.load(self._check(name, record), mmap_mode="c"))

    def _forget(self, name: str) -> None:
        with self._lock:
            self._records.pop(name, None)
            for key in [key for key, place in self._index.items() if place.shard == name]:
                del self._index[key]

    def _set_aside(self, name: str, damage: str) -> None:
        """Forget a shard and rename its files, the JSON first: from then on it counts for nobody."""
        with self._lock:
            is_news = name not in self._rejected
            self._rejected.add(name)
            self._forget(name)
        for suffix in (".json", ".npy"):
            path = self.folder / (name + suffix)
            with contextlib.suppress(OSError):  # another process was faster, or the folder cannot be written
                os.replace(path, path.with_name(path.name + _DAMAGED))
        if is_news:
            warnings.warn(f"{self.folder / name}.npy: {damage}; it is set aside with the ending {_DAMAGED} (and may be "
                          "deleted), its features are computed again", stacklevel=3)  # fmt: skip


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


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array).data.cast("B")).hexdigest()


def _max_open_shards() -> int:
    """A quarter of the files that this process may open: every memory map holds a file descriptor."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if soft == resource.RLIM_INFINITY else min(4096, max(64, soft // 4))
