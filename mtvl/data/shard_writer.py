"""Writing a split as tar shards (`mtvl.data.shards` reads them) by a plan that stands before (`shard_plan`).

Shards are written by several threads; a run that was broken off goes on with those that it lacks. All work happens in a
hidden folder that is renamed at the end: a reader sees the whole split or nothing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtvl.data.shard_plan import Media, Plan, Row, member_text, padded, text_fields, to_json, tuples_of
from mtvl.data.shards import BLOCK, EXAMPLES, FRAMES, INDEX, File, Index, folder_of
from mtvl.errors import ConfigError, DataError
from mtvl.types import Example

Progress = Callable[[str], None]
_SPARE = 1.02  # the index comes on top of the shards
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_split(
    root: Path,
    task: str,
    split: str,
    examples: Sequence[Example],
    media: Media,
    plan: Plan,
    *,
    settings: Mapping[str, Any],
    workers: int = 1,
    progress: Progress | None = None,
) -> Index:
    """Write the shards of `plan` to `root/task/split` with `workers` threads; returns the index.

    What a broken-off run of the same plan has finished is kept. Raises DataError when the split is there already, when
    another process is writing it, and when the disk is full; then nothing becomes visible.
    """
    final = folder_of(root, task, split)
    work = final.with_name(f".{split}.partial")
    say = progress or (lambda line: None)
    with _errors_named(work), _locked(final, work):
        missing = _finished_or_new(work, plan, say)
        todo = sum(_shard_estimate(plan) for _ in missing)
        free = shutil.disk_usage(work).free
        if todo * _SPARE > free:
            raise DataError(f"expected about {todo * _SPARE / 1e6:,.0f} MB of free disk, found {free / 1e6:,.0f}; "
                            "choose another DST or make room", file=root)  # fmt: skip
        done = len(examples) - sum(len(rows) for rows in missing.values())
        meter = _Meter(f"{task}/{split}", done, len(examples), plan.num_bytes, say)
        _write_shards(work, missing, examples, media, workers, meter)
        index = _write_index(work, final, plan, Index(final, task, split, settings, media.towers, (), _NO_FILE),
                             examples)  # fmt: skip
        os.rename(work, final)
        _flush_folder(final.parent)
    return index


_NO_FILE = File("", 0, "", 0)


def _shard_estimate(plan: Plan) -> int:
    return -(-plan.num_bytes // len(plan.shards))


@contextmanager
def _errors_named(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(work.parent).free / 1e6 if work.parent.is_dir() else 0
            raise DataError(
                f"the disk is full ({free:,.0f} MB free); finished shards are kept in this hidden folder: "
                "make room and start again, or delete it",
                file=work,
            ) from error
        raise DataError(f"could not write ({error}); the split did not become visible", file=work) from error


@contextmanager
def _locked(final: Path, work: Path) -> Iterator[None]:
    """One writer at a time; the lock file lies beside the folder, which is renamed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    lock = final.with_name(f".{final.name}.lock")
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError("another process is writing this split; wait for it", file=work) from None
        try:
            if final.exists():
                raise DataError("expected no such folder yet, found one; delete it, or choose another DST", file=final)
            work.mkdir(exist_ok=True)
            yield
        finally:
            lock.unlink(missing_ok=True)


def _finished_or_new(work: Path, plan: Plan, say: Progress) -> dict[int, tuple[Row, ...]]:
    """Number -> rows of the shards that are still to be written; leftovers of another plan are deleted."""
    note = work / "plan.txt"
    if not note.is_file() or note.read_text() != plan.fingerprint:
        if any(work.iterdir()):
            say(f"{work}: what is there belongs to other examples or options; it is written afresh")
        shutil.rmtree(work)
        work.mkdir()
    note.write_text(plan.fingerprint)
    missing = {n: rows for n, rows in enumerate(plan.shards) if not _record_file(work, n).is_file()}
    if len(missing) < len(plan.shards):
        say(f"{work}: {len(plan.shards) - len(missing)} of {len(plan.shards)} shards are finished already")
    return missing


def _record_file(work: Path, number: int) -> Path:
    return work / f"{number:06d}.record"


def _write_shards(
    work: Path,
    missing: Mapping[int, tuple[Row, ...]],
    examples: Sequence[Example],
    media: Media,
    workers: int,
    meter: _Meter,
) -> None:
    if not missing:
        return
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="shard")
    try:
        jobs = [pool.submit(write_shard, work, n, rows, examples, media, meter.add) for n, rows in missing.items()]
        for job in as_completed(jobs):
            job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def write_shard(
    work: Path, number: int, rows: Sequence[Row], examples: Sequence[Example], media: Media, done: Callable[[], None]
) -> None:
    """Write one tar and, when it is on the disk, the record of what lies where in it."""
    tar_writer = _tar_writer()
    name = f"{number:06d}.tar"
    temporary = work / f"{name}.tmp"
    lines: list[Any] = []
    try:
        with temporary.open("wb") as file:
            stream = _Digesting(file)
            # Owner, time and mode are fixed: equal examples give equal bytes.
            with tar_writer(stream, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False) as tar:
                end = 0
                for row in rows:
                    members, origins = _members(row, examples[row.index], media)
                    tar.write({"__key__": row.key, **members})
                    places, end = _places(row.key, members, end)
                    lines.append([row.index, places["json"], _stored_places(row.key, origins, places)])
                    done()
                assert tar.tarstream.offset == end, "webdataset lays members out in another way than expected"
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, work / name)
    finally:
        temporary.unlink(missing_ok=True)
    shard = File(name, stream.num_bytes, stream.digest.hexdigest(), len(rows))
    _write_durably(_record_file(work, number), json.dumps({"shard": asdict(shard), "rows": lines}).encode())


def _tar_writer() -> Any:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise ConfigError(f"writing shards needs webdataset ({error}): pip install 'mtvl[shards]'") from None
    return TarWriter


class _Digesting(io.RawIOBase):
    """Passes bytes on to a file and counts and hashes them."""

    def __init__(self, file: Any) -> None:
        self._file, self.num_bytes, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)
        return len(data)


def _members(row: Row, example: Example, media: Media) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """(ending -> content of all members of a row, path -> endings that came from it)."""
    members = {"json": member_text(example, row.images, row.video)}
    origins: dict[str, list[str]] = {}
    for slot, path in row.stored:
        loaded = {slot + e: c for e, c in media.load(path, path == example.visual.video).items()}
        members |= loaded
        origins.setdefault(path, list(loaded))
    return members, origins


def _places(key: str, members: Mapping[str, bytes], start: int) -> tuple[dict[str, list[int]], int]:
    """Ending -> [offset, size] of the contents, which webdataset writes in order of ending, and the end of the last."""
    places = {}
    for ending in sorted(members):
        size = len(members[ending])
        if len(f"{key}.{ending}".encode()) > 100:
            raise DataError(f"expected a name of at most 100 bytes in a tar, found {key}.{ending}; rename the frames")
        places[ending] = [start + BLOCK, size]
        start += padded(size)
    return places, start


def _stored_places(key: str, origins: Mapping[str, list[str]], places: Mapping[str, list[int]]) -> list[Any]:
    """[path, offset, size, name] of every picture and video of a row; the frames of a folder are one range."""
    out = []
    for path, endings in origins.items():
        first, last = places[min(endings)], places[max(endings)]
        if endings[0].startswith(FRAMES.removesuffix("tar")):
            offset = first[0] - BLOCK
            out.append([path, offset, last[0] - BLOCK + padded(last[1]) - offset, f"{key}.{FRAMES}"])
        else:
            out.append([path, *first, f"{key}.{endings[0]}"])
    return out


def _write_index(work: Path, final: Path, plan: Plan, head: Index, examples: Sequence[Example]) -> Index:
    """Put the records of all shards together as `examples.jsonl` and `index.json`, and remove them."""
    shards: list[File] = []
    texts: dict[int, tuple[int, list[int]]] = {}
    media: dict[str, list[Any]] = {}
    for number in range(len(plan.shards)):
        record = json.loads(_record_file(work, number).read_text())
        shards.append(File(**record["shard"]))
        for index, text, stored in record["rows"]:
            texts[index] = (number, text)
            for path, *place in stored:
                # One place for a picture, however many copies there are: features are then computed once.
                media.setdefault(path, [number, *place])
    digest, size = hashlib.sha256(), 0
    with (work / EXAMPLES).open("wb") as file:
        for index, example in enumerate(examples):
            line = to_json(_line(index, example, texts[index], media), example) + b"\n"
            file.write(line)
            digest.update(line)
            size += len(line)
        file.flush()
        os.fsync(file.fileno())
    described = File(EXAMPLES, size, digest.hexdigest(), len(examples))
    index = Index(final, head.task, head.split, head.settings, head.towers, tuple(shards), described)
    _write_durably(work / INDEX, (json.dumps(index.as_json(), indent=1) + "\n").encode())
    for number in range(len(plan.shards)):
        _record_file(work, number).unlink()
    (work / "plan.txt").unlink()
    return index


def _line(index: int, example: Example, text: tuple[int, list[int]], media: Mapping[str, list[Any]]) -> dict[str, Any]:
    visual = example.visual
    return {
        "key": f"{index:09d}",
        "json": [text[0], *text[1]],
        "images": [media[path] for path in visual.images],
        "video": media[visual.video] if visual.video else None,
        "tuples": list(tuples_of(dict(example.references), [], example)),
        "text": text_fields(example),
    }


class _Meter:
    """Says now and then how far the writing is; called from several threads."""

    def __init__(self, name: str, done: int, total: int, num_bytes: int, say: Progress) -> None:
        self._name, self._first, self._done, self._total, self._num_bytes = name, done, done, total, num_bytes
        self._say, self._lock = say, threading.Lock()
        self._start = self._said = time.monotonic()

    def add(self) -> None:
        """One more example is written."""
        with self._lock:
            self._done += 1
            now = time.monotonic()
            if now - self._said < 2 and self._done < self._total:
                return
            self._said = now
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            speed = rate * self._num_bytes / self._total / 1e6
            left = round((self._total - self._done) / rate)
            self._say(f"{self._name}: {self._done}/{self._total} examples, {rate:,.0f}/s, {speed:,.1f} MB/s, "
                      f"ETA {left} s")  # fmt: skip


def _write_durably(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
