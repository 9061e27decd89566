"""Trainings and evaluations as child processes, through the same files that users start."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mtvl.errors import ConfigError
from mtvl.signals import handled

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
POLL_SECONDS = 0.5


def train_command(
    recipe: Path, tasks: Sequence[str], run: Path, overrides: Sequence[str] = (), launcher: str = ""
) -> list[str]:
    """Command line that trains `run`, or goes on with it."""
    command = [*_start(launcher, "train.py"), "--recipe", str(recipe), "--tasks", ",".join(tasks), "--run", str(run)]
    return [*command, *overrides]


def evaluate_command(run: Path, tasks: Sequence[str], launcher: str = "") -> list[str]:
    """Command line that evaluates `run`."""
    return [*_start(launcher, "evaluate.py"), "--checkpoint", str(run), "--tasks", ",".join(tasks)]


def _start(launcher: str, script: str) -> list[str]:
    file = LAUNCH / script
    if not file.is_file():
        raise ConfigError(f"expected {file}: runs are started from a checkout; install it with 'pip install -e .'")
    return [*(shlex.split(launcher) or [sys.executable]), str(file)]


class Stop:
    """Asks for an orderly end: by SIGTERM or SIGINT, or when `minutes` are over. A second signal is not waited for."""

    def __init__(self, minutes: float | None = None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.signals = 0

    def _handle(self, _number: int, _frame: object) -> None:
        self.signals += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[Stop]:
        """Install the handlers for the duration of the runs."""
        with handled((signal.SIGTERM, signal.SIGINT), self._handle):
            yield self

    @property
    def is_set(self) -> bool:
        """True when no further work is wanted."""
        return self.signals > 0 or (self.deadline is not None and time.monotonic() >= self.deadline)


def run_child(
    command: Sequence[str], log: Path, *, stop: Stop | None = None, lock: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Run `command` with its output appended to `log`; its exit code (negative: the signal that ended it).

    A `stop` is handed on as SIGTERM, upon which a training saves. `tick` is called every half second. The descriptor
    `lock` stays open in the child: the lock then lasts as long as the child, also when this process is killed.
    """
    with log.open("a", encoding="utf-8") as output:
        print(f"$ {shlex.join(command)}", file=output, flush=True)
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, pass_fds=() if lock is None else (lock,)
        )
    try:
        if lock is not None:
            os.pwrite(lock, f"{child.pid:<10}".encode(), 0)
        asked = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=POLL_SECONDS)
            tick()
            if stop is not None and stop.is_set and not asked:
                child.terminate()
                asked = True
            if stop is not None and stop.signals > 1:
                child.kill()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold `folder` for one comparison; yields the descriptor of the lock. ConfigError when another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ".lock"
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = os.pread(descriptor, 20, 0).decode().strip() or "not known yet"
            raise ConfigError(
                f"{folder} is in use by another 'mtvl compare', or by a run that one left behind when it was killed (process "
                f"of the run: {process}); wait until it has ended, or end it"
            ) from None
        os.ftruncate(descriptor, 0)
        yield descriptor
    finally:
        os.close(descriptor)
