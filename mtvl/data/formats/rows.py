"""Plain rows that readers yield, with the place where each was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """What every row has: where it stands, its id, and one mapping a picture to fill the path patterns with."""

    file: Path
    place: str
    uid: str
    pictures: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class QuestionRow(Row):
    """A question. `answers` are the annotators' dicts, `label` holds soft scores, `details` official fields."""

    question: str = ""
    answers: tuple[Mapping[str, Any], ...] = ()
    label: Mapping[str, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StatementRow(Row):
    """A statement about pictures. `label` is None where the file hides it."""

    statement: str = ""
    label: bool | None = None


@dataclass(frozen=True)
class CaptionRow(Row):
    """A picture with its captions as (caption id, text)."""

    captions: tuple[tuple[str, str], ...] = ()
    split: str = ""


class Reader(Protocol):
    """A format: which files it wants, and how they become rows."""

    roles: Mapping[str, bool]

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[Any]:
        """Rows of `split` in file order; DataError with file and row on the first fault."""
