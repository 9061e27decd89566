"""One's own table: which columns are what, and rows that are checked one by one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.errors import ConfigError
from preparing.media import find_media
from preparing.own import OwnRow, OwnSet, write_own
from preparing.problems import Problems
from preparing.splits import parse_fractions, split_named
from preparing.tables import Table, read_table, texts_of

DEFAULT_SPLIT = "0.8,0.1,0.1"


@dataclass(frozen=True)
class Columns:
    """Names of columns. `split` is one too, or shares such as 0.8,0.1,0.1."""

    picture: str = ""
    video: str = ""
    text: str = ""
    answers: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    uid: str = ""
    split: str = DEFAULT_SPLIT
    separator: str = ""  # between several texts in one cell
    counts_from: int | None = None  # the answer is the number of a choice, the first being this

    def check(self) -> None:
        """ConfigError for columns that say no task."""
        if bool(self.picture) == bool(self.video):
            raise ConfigError("expected --picture COL or --video COL, found " + ("both" if self.picture else "neither"))
        if bool(self.answers) == bool(self.captions):
            raise ConfigError(
                "expected --answer COL or --caption COL, found " + ("both" if self.answers else "neither")
            )
        if self.captions and (self.text or self.choices or self.uid):
            raise ConfigError(
                "--caption goes without --text, --choices and --id: a caption belongs to its picture alone"
            )
        if self.answers and not self.text:
            raise ConfigError("--answer expects --text COL with the question")
        if self.choices and len(self.answers) != 1:
            raise ConfigError("--choices expects one column under --answer: the right choice")
        if self.counts_from is not None and not self.choices:
            raise ConfigError("--answer-counts-from belongs to --choices")

    @property
    def what(self) -> str:
        """The key of the texts that are learned, as `own_table` files call it."""
        return "captions" if self.captions else "choices" if self.choices else "answers"

    @property
    def split_column(self) -> str:
        """The column that holds splits; "" when shares were given."""
        return "" if parse_fractions(self.split) else self.split

    def all(self) -> list[str]:
        """Every column that the table must have."""
        single = (self.picture, self.video, self.text, self.uid, self.split_column)
        return [name for name in (*single, *self.answers, *self.captions, *self.choices) if name]


KINDS = {"captions": "caption", "answers": "answer", "choices": "choice"}


def prepare_table(file: Path, dst: Path, name: str, columns: Columns, media_folder: Path | None = None) -> None:
    """Turn the table `file` into the task `name` below `dst`; pictures lie below `media_folder` (default: its folder).

    Raises ConfigError for columns that contradict each other, DataError with all faults counted.
    """
    columns.check()
    problems = Problems(file)
    table = read_table(file, columns.all(), problems)
    rows = table_rows(table, columns, media_folder or file.parent, problems)
    own = OwnSet(name, file, KINDS[columns.what], columns.what, rows, parse_fractions(columns.split), table.num_rows)
    own.notes.append(f"From {file.name}.")
    write_own(own, dst, problems)


def table_rows(table: Table, columns: Columns, folder: Path, problems: Problems) -> list[OwnRow]:
    """The rows of `table` without faults; those of the others, repeated ids and unequal choices go to `problems`."""
    rows = [row for place, cells in table.rows if (row := _row(place, cells, columns, folder, problems)) is not None]
    seen: dict[str, str] = {}
    for row in rows:
        if row.uid and seen.setdefault(row.uid, row.place) != row.place:
            problems.add("repeated id", row.place, f"{row.uid!r}, first in {seen[row.uid]}")
        if columns.choices and len(row.outputs) != len(rows[0].outputs):
            found = f"{len(row.outputs)}, and {len(rows[0].outputs)} in {rows[0].place}"
            problems.add("another number of choices", row.place, found)
    return rows


def _row(place: str, cells: dict[str, Any], columns: Columns, folder: Path, problems: Problems) -> OwnRow | None:
    """One row, or None when something in it was added to `problems`."""
    faults: list[tuple[str, str]] = []
    media = None
    path = _single(cells, columns.picture or columns.video, faults)
    if path:
        try:
            media = find_media(folder, path, is_video=bool(columns.video))
        except ValueError as error:
            faults.append((error.args[0], error.args[1]))
    text = _single(cells, columns.text, faults) if columns.text else ""
    uid = _single(cells, columns.uid, faults) if columns.uid else ""
    split = ""
    if columns.split_column and (word := _single(cells, columns.split_column, faults)):
        try:
            split = split_named(word)
        except ValueError as error:
            faults.append(("unknown split", str(error)))
    outputs = _outputs(cells, columns.choices or columns.answers or columns.captions, columns.separator, faults)
    if len(columns.choices) > 1:  # each is a choice: without one, the numbers and names of the others would shift
        for name in columns.choices:
            _single(cells, name, faults)
    answer = _right(cells, columns, outputs, faults) if columns.choices else None
    for kind, detail in faults:
        problems.add(kind, place, detail)
    if faults or media is None:
        return None
    return OwnRow(place, media, tuple(outputs), text, answer, uid, split)


def _single(cells: dict[str, Any], column: str, faults: list[tuple[str, str]]) -> str:
    texts = texts_of(cells.get(column))
    if len(texts) != 1 or not texts[0]:
        faults.append((f"empty {column!r}" if len(texts) < 2 else f"several texts in {column!r}", ""))
        return ""
    return texts[0]


def _outputs(
    cells: dict[str, Any], names: tuple[str, ...], separator: str, faults: list[tuple[str, str]]
) -> list[str]:  # fmt: skip
    """The texts of all columns `names`. Where there are several columns some may be empty, but not all of them."""
    found = {name: texts_of(cells.get(name), separator) for name in names}
    texts = [text for part in found.values() for text in part if text]
    if not texts:
        faults.append((f"empty {' and '.join(map(repr, names))}", ""))
    elif any(text == "" and len(part) > 1 for part in found.values() for text in part):
        faults.append((f"empty entry in {' or '.join(map(repr, names))}", ""))
    return texts


def _right(cells: dict[str, Any], columns: Columns, choices: list[str], faults: list[tuple[str, str]]) -> int | None:
    """Index of the right choice: the answer is its text, the name of its column, or its number where that was said."""
    answer = _single(cells, columns.answers[0], faults)
    if len(choices) < 2 or len(set(choices)) != len(choices):
        faults.append(("choices that are not at least two different texts", ", ".join(choices)))
        return None
    if not answer:
        return None
    if columns.counts_from is not None:
        number = int(answer) - columns.counts_from if answer.isascii() and answer.isdigit() else -1
        found = {number} & set(range(len(choices)))
    else:
        names = columns.choices if len(columns.choices) == len(choices) else ()
        found = {list(texts).index(answer) for texts in (choices, names) if answer in texts}
    if len(found) == 1:
        return found.pop()
    if found:
        detail = f"{answer!r} is a choice here, and the column of {choices[columns.choices.index(answer)]!r}"
        faults.append(("answer that says two choices", f"{detail}; give the columns other names"))
    else:
        faults.append(("answer that is none of the choices", f"{answer!r} of {', '.join(choices)}"))
    return None
