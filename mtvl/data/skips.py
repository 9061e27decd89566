"""Rows, pictures and videos that cannot be used: written down, counted, and an end when there are too many."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

from mtvl.errors import DataError

REFUSE, SKIP = "refuse", "skip"
FILE = "skipped.jsonl"
_SHOWN = 3


class SkipLog:
    """The file RUN/skipped.jsonl: one record {"task", "split", "uid", "reason"} for each thing that was left out.

    A resumed run meets the same faults again and writes none twice. Ranks other than 0 write a file of their own, with
    what only they see: pictures that are read while training.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.file = folder / (FILE if rank == 0 else f"skipped_{rank}.jsonl")
        self.rank, self._lock = rank, threading.Lock()
        self._known: set[tuple[str, str, str]] = set()
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # cut off when the run died
                    record = json.loads(line)
                    self._known.add((record["task"], record["split"], record["uid"]))

    def write(self, task: str, split: str, uid: str, reason: str) -> None:
        """Add a record, once."""
        with self._lock:
            if (task, split, uid) in self._known:
                return
            self._known.add((task, split, uid))
            self.file.parent.mkdir(parents=True, exist_ok=True)
            record = {"task": task, "split": split, "uid": uid, "reason": reason}
            with self.file.open("ab+") as file:
                file.seek(max(0, file.tell() - 1))
                is_cut = file.read(1) not in (b"", b"\n")
                file.write((("\n" if is_cut else "") + json.dumps(record) + "\n").encode())


class Sieve:
    """Takes the faults of one split instead of ending at the first; `most` is the share of it that may be left out."""

    def __init__(self, task: str, split: str, most: float, log: SkipLog) -> None:
        self.task, self.split, self.most, self._log = task, split, most, log
        self.reasons: dict[str, str] = {}
        self.total = 0  # rows with and without a fault; known once all are read
        self._lock = threading.Lock()

    def take(self, uid: str, error: DataError) -> None:
        """Leave `uid` out because of `error`, as every rank does."""
        self.reasons.setdefault(uid, str(error))
        if self._log.rank == 0:
            self._log.write(self.task, self.split, uid, str(error))

    def take_here(self, uid: str, error: DataError) -> None:
        """The same for what this rank alone has seen; DataError above the limit. Safe in several threads."""
        with self._lock:
            self.reasons.setdefault(uid, str(error))
        self._log.write(self.task, self.split, uid, str(error))
        self.check(self.total)

    def check(self, total: int) -> None:
        """DataError when more than the share `most` of `total` rows are left out."""
        self.total = total
        count = len(self.reasons)
        if count > self.most * total:
            shown = "; ".join(list(self.reasons.values())[:_SHOWN])
            raise DataError(
                f"task {self.task}, split {self.split}: {count} of {total} cannot be used, expected at most "
                f"{self.most:.3%} ('task.{self.task}.bad_input.most'); all of them stand in {self._log.file}; "
                f"{shown}{' ...' if count > _SHOWN else ''}"
            )

    def summary(self) -> str:
        """Words on what was left out; "" when nothing was."""
        if not self.reasons:
            return ""
        return (f"{self.task}/{self.split}: {len(self.reasons)} of {self.total} cannot be used and were left out, see "
                f"{self._log.file}")  # fmt: skip
