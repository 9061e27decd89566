"""Plain rows that readers yield, with the place where each was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class SubtitleLine(NamedTuple):
    """What is said between two instants (seconds) of a video."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Clip:
    """The video of a row: `fields` to fill the path patterns with, and the seconds that matter.

    `ts` is the time span as the model reads it ("" without one), `span` the same as numbers. `subtitles` are those of
    the whole video in the order of the file; None where the subtitle file has no record of the video.
    """

    fields: Mapping[str, Any]
    ts: str = ""
    span: tuple[float, float] | None = None
    subtitles: tuple[SubtitleLine, ...] | None = ()


@dataclass(frozen=True)
class Row:
    """What every row has: where it stands, its id, and its visual input.

    That is one mapping a picture to fill the path patterns with, or one video. `is_held_out` marks rows on something
    that training data lack, in sets that say so.
    """

    file: Path
    place: str
    uid: str
    pictures: tuple[Mapping[str, Any], ...] = ()
    clip: Clip | None = None
    is_held_out: bool | None = None


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
class LabelRow(Row):
    """A statement about pictures with one label out of a few. `label` is None where the file hides it."""

    statement: str = ""
    label: str | None = None


@dataclass(frozen=True)
class ChoiceRow(Row):
    """A question with its possible answers. `answer` is the index of the right one, None where the file hides it.

    `group` is what scores are broken down by (the show), "" without one.
    """

    question: str = ""
    choices: tuple[str, ...] = ()
    answer: int | None = None
    group: str = ""


@dataclass(frozen=True)
class CaptionRow(Row):
    """A picture or video with its captions as (caption id, text); none where the file hides them."""

    captions: tuple[tuple[str, str], ...] = ()
    split: str = ""


class Reader(Protocol):
    """A format: which files it wants, and how they become rows."""

    roles: Mapping[str, bool]

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[Any]:
        """Rows of `split` in file order; DataError with file and row on the first fault."""
