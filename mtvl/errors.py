"""Named errors. Every message says what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a disk that takes no more, or nothing at all


class MtvlError(Exception):
    """Base of all errors that a user can mend; the command line prints them without a traceback.

    `exit_code` is what the command then ends with.
    """

    exit_code = 2


class ConfigError(MtvlError):
    """A recipe, an override or a task file says something that cannot be run."""


class DataError(MtvlError):
    """A data file is missing, broken or inconsistent; names file and row."""

    def __init__(self, message: str, *, file: object = None, row: object = None) -> None:
        where = "" if file is None else f"{file}" + ("" if row is None else f", row {row}") + ": "
        super().__init__(where + message)
        self.file = file
        self.row = row


class PlanError(MtvlError):
    """A method cannot be placed on this backbone, or the placed model differs from its plan."""


class CheckpointError(MtvlError):
    """A checkpoint or export is incomplete, damaged, or belongs to another model."""


class EngineError(MtvlError):
    """Training cannot go on (ranks disagree, loss not finite, engine settings contradict the recipe)."""


class LostRankError(MtvlError):
    """Another rank ended, or cannot be reached any more; the same command goes on from the newest checkpoint."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def near_names(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'adapter'? known: adapter, full`` for an unknown `name`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}known: {', '.join(names) if names else '(none)'}"
