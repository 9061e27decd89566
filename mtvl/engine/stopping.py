"""An orderly end that somebody asked for: signals to any rank, and launchers that died and left their ranks behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from mtvl import dist
from mtvl.signals import handled

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: Slurm's --signal=USR1@300
_NODE_LAUNCHER = "deepspeed.launcher.launch"  # started once a node by `deepspeed`, parent of the ranks
_LAUNCHERS = (_NODE_LAUNCHER, "torchrun", "torch.distributed.run")


class StopFlag:
    """SIGTERM, SIGUSR1 and SIGINT ask for a checkpoint and an orderly end; a second SIGINT interrupts at once.

    So does the death of the launcher. A SIGTERM to `deepspeed` ends that process alone: its children are never told, and
    would train on with nobody to look after them.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._launchers: tuple[tuple[int, int], ...] = ()

    def _handle(self, number: int, _frame: object) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[StopFlag]:
        """Install the handlers for the duration of the loop."""
        self._launchers = launchers()
        with handled(SIGNALS, self._handle):
            yield self

    def agreed(self) -> bool:
        """True on all ranks at the same step when any rank was signalled or has lost its launcher."""
        is_left_behind = any(parent_of(child) != parent for child, parent in self._launchers)
        return dist.sum_floats([float(self.is_set or is_left_behind)])[0] > 0


def launchers() -> tuple[tuple[int, int], ...]:
    """(process, its parent) as they are now, for every parent above this process that is a part of a launcher.

    Nothing is watched above a launcher that a user types: its shell may close while the run goes on (nohup, tmux).
    """
    own, parent = os.getpid(), os.getppid()
    words = _command_of(parent)
    if not any(name in words for name in _LAUNCHERS):
        return ()
    above = parent_of(parent)
    return ((own, parent), (parent, above)) if _NODE_LAUNCHER in words and above is not None else ((own, parent),)


def parent_of(process: int) -> int | None:
    """The parent's id of a process; None when there is no such process (or no /proc, as on macOS)."""
    if process == os.getpid():
        return os.getppid()
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()  # the name may hold blanks
    except OSError:
        return None
    return int(fields[1])


def _command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
