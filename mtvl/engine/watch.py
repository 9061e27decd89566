"""A step that does not end: every rank reports where it stands, and leaves with a code that says so."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch.distributed as torch_dist

from mtvl import dist
from mtvl.errors import LostRankError

T = TypeVar("T")
GRACE_SECONDS = 5.0  # from the report to the end: the other ranks notice at about the same time, and report as well
_NEVER_SECONDS = 86_400.0
_LATER_SECONDS = 10.0  # after that a thread without Python's lock ends a process whose lock is never given back
FOLDER = "stuck"
# What gloo and NCCL say when the other side is gone; gloo raises plain RuntimeErrors.
_GONE = ("closed by peer", "reset by peer", "Broken pipe", "gloo/transport", "NCCL error", "remote process exited")


class Watchdog:
    """Ends this process when `seconds` (0: never) pass without a `beat`.

    A rank that died without a word, or hangs, keeps the others waiting in a collective, for half an hour by default.
    Each rank watches itself, and since all work in step, all notice at once: each writes what it was doing and the stack
    of each of its threads to stderr and to `folder`/stuck/rank_R.txt, and ends with LostRankError's exit code within
    `GRACE_SECONDS`. `end` is what ends the process.
    """

    def __init__(self, seconds: float, folder: Path, end: Callable[[int], object] = os._exit) -> None:
        self.seconds, self.folder, self._end = seconds, folder, end
        self._doing, self._since = "starting", time.monotonic()
        self._ended = threading.Event()

    def beat(self, doing: str) -> None:
        """Something was finished; from now on this rank is busy with `doing`."""
        self._doing, self._since = doing, time.monotonic()
        if self.seconds and not self._ended.is_set():
            faulthandler.dump_traceback_later(
                self.seconds + GRACE_SECONDS + _LATER_SECONDS, exit=True, file=sys.__stderr__ or 2
            )

    def over(self, items: Iterable[T], doing: str) -> Iterator[T]:
        """`items`, with a beat before each and at the end."""
        self.beat(doing)
        for item in items:
            yield item
            self.beat(doing)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watchdog]:
        """Watch for the duration of the body. Collectives wait longer than this watchdog, from now on."""
        dist.wait_at_most(self.seconds + _LATER_SECONDS + 60 if self.seconds else _NEVER_SECONDS)
        self._ended.clear()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if self.seconds:
            self.beat(self._doing)
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            if self.seconds:
                faulthandler.cancel_dump_traceback_later()
                thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 10)):
            quiet = time.monotonic() - self._since
            if quiet > self.seconds:
                self._report(quiet)
                if not self._ended.wait(GRACE_SECONDS):
                    self._end(LostRankError.exit_code)
                return

    def _report(self, quiet: float) -> None:
        text = (
            f"mtvl: rank {dist.rank()} of {dist.world_size()} is stuck: '{self._doing}' has taken {quiet:.0f} s, more than "
            f"train.stuck_seconds ({self.seconds:g}); a rank without such a report is the one that hangs or is gone. "
            f"The run ends with code {LostRankError.exit_code}; the same command goes on from the newest checkpoint.\n"
        )
        sys.stderr.write(text)
        sys.stderr.flush()
        faulthandler.dump_traceback(file=sys.__stderr__ or 2)
        with contextlib.suppress(OSError):  # a full disk must not keep the process alive
            (self.folder / FOLDER).mkdir(parents=True, exist_ok=True)
            with (self.folder / FOLDER / f"rank_{dist.rank()}.txt").open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                faulthandler.dump_traceback(file=file)


@contextlib.contextmanager
def lost_ranks_named(advice: Callable[[], str]) -> Iterator[None]:
    """LostRankError in place of what a collective raises when another rank has ended; `advice` is added to it."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        is_gone = isinstance(error, torch_dist.DistError) or any(word in str(error) for word in _GONE)
        if dist.world_size() == 1 or not is_gone:
            raise
        raise LostRankError(
            f"rank {dist.rank()}: another rank has ended or cannot be reached ({first[:200]}); its own output says why. "
            + advice()
        ) from error
