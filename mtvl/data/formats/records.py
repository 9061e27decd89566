"""Reading JSON strictly: every fault becomes a DataError with file, row, expectation and finding.

Where the faults of single rows are taken (`taking_faults`), such a row is left out and reading goes on; a fault of a
whole file is an error all the same, since nobody can say what was lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mtvl.errors import DataError

Item = TypeVar("Item")
Made = TypeVar("Made")
Take = Callable[[str, DataError], None]  # id (or place) of a row, and what is wrong with it
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_take: ContextVar[Take | None] = ContextVar("take", default=None)


@contextmanager
def taking_faults(take: Take | None) -> Iterator[None]:
    """Hand the faults of single rows to `take` inside the body; None: they are errors, as everywhere else."""
    token = _take.set(take)
    try:
        yield
    finally:
        _take.reset(token)


def are_taken() -> bool:
    """Whether the faults of rows are taken here."""
    return _take.get() is not None


def fault(uid: str, error: DataError) -> None:
    """Leave the row `uid` out where faults are taken; otherwise raise `error`."""
    take = _take.get()
    if take is None:
        raise error
    take(uid, error)


def each(pairs: Iterable[tuple[str, Item]], make: Callable[[str, Item], Made]) -> Iterator[tuple[str, Made]]:
    """(id, `make(id, item)`) of every pair; a DataError of `make` is a fault of that row."""
    for uid, item in pairs:
        try:
            made = make(uid, item)
        except DataError as error:
            fault(uid, error)
            continue
        yield uid, made


def rows_of(pairs: Iterable[tuple[str, Item]], make: Callable[[str, Item], Made]) -> list[Made]:
    """What `each` makes."""
    return [made for _, made in each(pairs, make)]


def keyed(records: Iterable[Record], key: Callable[[Record], str], what: str) -> dict[str, Record]:
    """Records by their id, in order; one without an id or with that of an earlier one is a fault."""
    pairs = each(((record.place, record) for record in records), lambda _, record: (key(record), record))
    return dict(once_each((pair for _, pair in pairs), what))


def read_json(file: Path) -> Any:
    """Parse a UTF-8 JSON file; refuses NaN, infinities, halves of characters, keys that stand twice, and other encodings."""
    return _parse(_read_text(file), file, None)


def decode_utf8(data: bytes, file: Path, advice: str = "convert the file") -> str:
    """The text of `file`, whose bytes are `data`, without a byte order mark; DataError for another encoding."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8, found other bytes at position {error.start}; {advice}", file=file) from None


def read_json_list(file: Path) -> list[Record]:
    """Records of a JSON file that is one list of objects."""
    return records_of(read_json(file), file)


def read_json_lines(file: Path) -> list[Record]:
    """Parse a file of one JSON object a line (blank lines are skipped); places are line numbers from 1."""
    lines = [(f"line {n}", line) for n, line in enumerate(_read_text(file).split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError("expected one JSON object a line, found an empty file", file=file)
    return rows_of(lines, lambda place, line: Record(file, place, _parse(line, file, place)))


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError("expected this file, found none; check `data.root`", file=file) from None
    except IsADirectoryError:
        raise DataError("expected a file, found a folder", file=file) from None
    return decode_utf8(data, file)


def _parse(text: str, file: Path, place: str | None) -> Any:
    def refuse(word: str) -> Any:
        if place is None and _take.get() is not None:
            return _NotFinite(word)  # refused with its row, where rows are made
        raise DataError(f"expected a finite number, found {word}; mend the file", file=file, row=place)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            names = [k for k, _ in pairs]
            twice = next(n for n in names if names.count(n) > 1)
            raise DataError(f"expected every key once, found {twice!r} twice; mend the file", file=file, row=place)
        return values

    try:
        values = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(
            f"expected JSON, found a fault in line {error.lineno} column {error.colno} of {len(text)} characters "
            f"({error.msg}); a file cut short ends like this: fetch it again",
            file=file, row=place,
        ) from None  # fmt: skip
    except RecursionError:
        raise DataError("expected JSON of ordinary depth, found hundreds of nested levels", file=file) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise DataError(f"expected numbers of ordinary length, found another ({error})", file=file, row=place) from None
    # With rows that may be left out it is a fault of its row; only an escape can bring half a character.
    if (place is not None or _take.get() is None) and _ESCAPE.search(text) and (found := _unusable(values)):
        raise DataError(f"expected whole characters, found {found}; mend the file", file=file, row=place)
    return values


class _NotFinite(float):
    """NaN or an infinity in a file of which rows may be left out."""


# Of a character that UTF-16 writes in two parts; texts that were cut between them are frequent, and no tokenizer takes them.
_HALF, _ESCAPE = re.compile("[\ud800-\udfff]"), re.compile(r"\\u[dD][89a-fA-F]")


def _unusable(value: Any) -> str:
    """What no row may hold, in words; "" when there is nothing of the kind."""
    if isinstance(value, (dict, list)):
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        return next(filter(None, map(_unusable, parts)), "")
    if isinstance(value, str) and not value.isascii() and (half := _HALF.search(value)):
        return f"half a character in {describe(value[max(0, half.start() - 20) : half.end() + 20])}"
    return "NaN or an infinity" if isinstance(value, _NotFinite) else ""


@dataclass(frozen=True)
class Record:
    """One JSON object and its place; the getters check presence and type."""

    file: Path
    place: str
    values: Any

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise self.error(f"expected an object of keys and values, found {describe(self.values)}")

    def error(self, message: str) -> DataError:
        """A DataError at this row."""
        return DataError(message, file=self.file, row=self.place)

    def has(self, key: str) -> bool:
        """True when `key` is present and not null."""
        return self.values.get(key) is not None

    def need(self, *keys: str) -> Any:
        """The value of the first of `keys` that is present."""
        for key in keys:
            if self.has(key):
                return self.values[key]
        found = ", ".join(sorted(map(str, self.values))) or "no field"
        raise self.error(f"expected the field {' or '.join(map(repr, keys))}, found {found}")

    def text(self, *keys: str) -> str:
        """A string that is not blank, stripped."""
        value = self.need(*keys)
        if not isinstance(value, str):
            raise self.error(f"expected text in {keys[0]!r}, found {describe(value)}")
        if not value.strip():
            raise self.error(f"expected text in {keys[0]!r}, found only blanks")
        return value.strip()

    def key(self, *keys: str) -> str:
        """An id: a whole number, or text that is not blank."""
        value = self.need(*keys)
        if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
            raise self.error(f"expected an id (whole number or text) in {keys[0]!r}, found {describe(value)}")
        return str(value).strip()

    def integer(self, key: str) -> int:
        """A whole number, or text that spells one."""
        value = self.key(key)
        if not _WHOLE.fullmatch(value):
            raise self.error(f"expected a whole number in {key!r}, found {value!r}")
        return int(value)

    def records(self, key: str) -> list[Record]:
        """A list of objects that is not empty."""
        values = self.need(key)
        if not isinstance(values, list) or not values:
            raise self.error(f"expected a list of rows in {key!r}, found {describe(values)}")
        # The rows of a file may be left out one by one, parts of a row may not.
        return records_of(values, self.file, f"{self.place}.{key}" if self.place else key, may_fail=not self.place)

    def optional_text(self, key: str) -> str | None:
        """Text, or None when absent or null."""
        if not self.has(key):
            return None
        value = self.values[key]
        if not isinstance(value, str):
            raise self.error(f"expected text or null in {key!r}, found {describe(value)}")
        return value


def records_of(values: Any, file: Path, place: str = "", *, may_fail: bool = True) -> list[Record]:
    """Wrap a list of objects; DataError when it is no list or empty. With `may_fail` a bad one is a fault of that row."""
    if not isinstance(values, list):
        raise DataError(f"expected a list of rows, found {describe(values)}", file=file, row=place or None)
    if not values:
        raise DataError("expected rows, found an empty list", file=file, row=place or None)
    if not may_fail or _take.get() is None:
        return [Record(file, f"{place}[{i}]", value) for i, value in enumerate(values)]
    return rows_of(((f"{place}[{i}]", value) for i, value in enumerate(values)), lambda p, v: finite_record(file, p, v))


def finite_record(file: Path, place: str, values: Any) -> Record:
    """A row of a file in which rows may be left out; DataError where it holds NaN, an infinity or half a character."""
    record = Record(file, place, values)
    if found := _unusable(values):
        raise record.error(f"expected finite numbers and whole characters, found {found}; mend the file")
    return record


def label_scores(record: Record, key: str = "label") -> dict[str, float]:
    """A mapping answer -> score in 0..1."""
    label = record.need(key)
    if not isinstance(label, dict):
        raise record.error(f"expected answers with scores in {key!r}, found {describe(label)}")
    for answer, score in label.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise record.error(f"expected a score for {answer!r}, found {describe(score)}")
        if not 0 <= score <= 1:
            raise record.error(f"expected a score in 0..1 for {answer!r}, found {score}")
    return {str(answer): float(score) for answer, score in label.items()}


def describe(value: Any) -> str:
    """Short words for a found value: type and beginning."""
    if value is None:
        return "null"
    kind = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}.get(type(value), "a number")
    text = repr(value)
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}"


def once_each(records: Iterable[tuple[str, Record]], what: str) -> Iterator[tuple[str, Record]]:
    """Pass (id, record) pairs on; the second row of an id is a fault, which names the first."""
    seen: dict[str, str] = {}
    for uid, record in records:
        where = f"{record.file.name} {record.place}"
        if uid in seen:
            fault(uid, record.error(f"expected every {what} once, found {uid} again (first at {seen[uid]})"))
            continue
        seen[uid] = where
        yield uid, record


def same_ids(
    expected: Iterable[str], found: Iterable[str], file: Path, what: str, *, extra_is_fault: bool
) -> Collection[str]:
    """The expected ids; DataError with counts unless every one is found (and, on wish, no other).

    Where faults are taken, those that are found; the others, and what was not expected, are faults.
    """
    wanted, there = list(expected), set(found)
    missing = [i for i in wanted if i not in there]
    extra = sorted(there - set(wanted)) if extra_is_fault else []
    if _take.get() is not None:
        for uid in missing:
            fault(uid, DataError(f"expected {what} for {uid}, found none", file=file))
        for uid in extra:
            fault(uid, DataError(f"expected no {what} for {uid}, found them without its row", file=file))
        return set(wanted) & there
    if missing or extra:
        examples = f"; missing e.g. {', '.join(missing[:3])}" if missing else ""
        examples += f"; not expected e.g. {', '.join(extra[:3])}" if extra else ""
        raise DataError(
            f"expected {what} for {len(wanted)} questions, found {len(wanted) - len(missing)}, missing {len(missing)}, "
            f"not expected {len(extra)}{examples}; questions and annotations must come from one release",
            file=file,
        )
    return wanted


def picture_fields(name: str) -> Mapping[str, Any]:
    """Pattern fields of a picture called `name`; ids like COCO_train2014_000000000009 also say their folder."""
    parts = name.split("_")
    folder = parts[1] if len(parts) == 3 and parts[0] == "COCO" else ""
    return {"name": name, "folder": folder}
