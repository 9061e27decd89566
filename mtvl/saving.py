"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtvl import dist
from mtvl.checkpoint import retain, write_checkpoint
from mtvl.errors import CheckpointError

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, on rank 0, in a thread of its own; with `background` off it waits for each.

    The state is copied while training stands still, and written, flushed, listed and renamed afterwards. At most one
    checkpoint is on its way: the next waits for it. All ranks know of it and of its failure, which `poll`, `wait` and the
    next `save` raise on all of them. The thread takes part in no collective, and a process that is killed meanwhile
    leaves what any killed save leaves.
    """

    def __init__(self, run: Path, keep_last: int, *, background: bool) -> None:
        self.run, self.keep_last, self.background = run, keep_last, background
        self.newest = -1  # step of the last checkpoint that was begun
        self._is_pending = False  # the same on all ranks
        self._future: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._stall_seconds = 0.0

    def save(
        self,
        step: int,
        take: Callable[[], Callable[[Path], None]],
        fingerprints: Mapping[str, str],
        progress: Mapping[str, Any],
        protected: Iterable[int] = (),
    ) -> None:
        """Begin the checkpoint of `step`; then only the last `keep_last` ones and the steps `protected` are kept.

        `take()` runs on all ranks and copies the state; what it returns on rank 0 is called once, in the thread, with the
        folder to be filled. Collective; CheckpointError when the checkpoint before has failed (or this one, without
        `background`).
        """
        with self._standing_still():
            self._settle()
            writer = take()
            self.newest, self._is_pending = step, True
            if dist.is_main():
                self._future = self._thread.submit(
                    self._write, step, writer, dict(fingerprints), copy.deepcopy(dict(progress)), tuple(protected)
                )
            if not self.background:
                self._settle()

    def _write(
        self,
        step: int,
        writer: Callable[[Path], None],
        fingerprints: Mapping[str, str],
        progress: Mapping[str, Any],
        protected: tuple[int, ...],
    ) -> None:
        write_checkpoint(self.run, step, writer, fingerprints, progress)
        try:
            retain(self.run, self.keep_last, protected, newest=step)
        except OSError as error:
            raise CheckpointError(
                f"old checkpoints of {self.run} cannot be deleted ({error}); that of step {step} is there"
            ) from error

    def poll(self) -> None:
        """Raise CheckpointError on all ranks once the checkpoint on its way has failed; never waits. Collective."""
        if self._is_pending:
            is_done = self._future is not None and self._future.done()
            if dist.sum_floats([float(is_done)])[0] > 0:
                self._settle()

    def wait(self) -> None:
        """Until the checkpoint on its way is complete; CheckpointError on all ranks when it failed. Collective."""
        if self._is_pending:
            with self._standing_still():
                self._settle()

    def _settle(self) -> None:
        if not self._is_pending:
            return
        failure = None
        if self._future is not None:
            error = self._future.exception()
            if error is not None and not isinstance(error, CheckpointError):
                raise error
            failure = None if error is None else str(error)
        self._is_pending, self._future = False, None
        failure = dist.broadcast_object(failure)
        if failure is not None:
            raise CheckpointError(failure)

    def close(self) -> None:
        """Wait for the thread, whatever else has gone wrong; its own failure is then a warning. On every rank by itself."""
        if self._future is not None and (error := self._future.exception()) is not None:
            log.warning("%s", error)
        self._is_pending, self._future = False, None
        self._thread.shutdown()

    def stall_seconds(self) -> float:
        """How long training has stood still for checkpoints since this was last asked."""
        seconds, self._stall_seconds = self._stall_seconds, 0.0
        return seconds

    @contextlib.contextmanager
    def _standing_still(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._stall_seconds += time.perf_counter() - begin
