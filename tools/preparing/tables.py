"""Reading one's own table, CSV or JSON lines, into rows of cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import decode_utf8, read_json_lines
from mtvl.errors import DataError, near_names
from preparing.problems import Problems

CSV_ENDINGS, JSON_ENDINGS = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson")
DELIMITERS = ",;\t|"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Table:
    """The columns of a file, and its rows with the place of each. A cell is text (CSV) or any JSON value."""

    file: Path
    columns: tuple[str, ...]
    rows: list[tuple[str, dict[str, Any]]]
    num_rows: int  # in the file, those with a wrong number of cells too


def read_table(file: Path, wanted: Sequence[str], problems: Problems) -> Table:
    """Read `file` and check that it has the columns `wanted`.

    Raises DataError for a file that is missing, in another encoding or empty, and for a column that is not there (with
    near names). Rows with too many or too few cells are added to `problems`.
    """
    ending = file.suffix.lower()
    if ending not in (*CSV_ENDINGS, *JSON_ENDINGS):
        raise DataError(
            f"expected a table that ends in {', '.join(CSV_ENDINGS + JSON_ENDINGS)}, found {ending or 'no ending'}",
            file=file,
        )
    table = _read_csv(file, wanted, problems) if ending in CSV_ENDINGS else _read_json(file)
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        hints = "; ".join(f"{name!r}: {near_names(name, table.columns)}" for name in missing)
        raise DataError(f"expected the columns {', '.join(wanted)}, found {len(missing)} of them missing; {hints}",
                        file=file)  # fmt: skip
    if not table.num_rows:
        raise DataError("expected rows below the header, found none", file=file)
    return table


def _read_json(file: Path) -> Table:
    _read_bytes(file)
    records = read_json_lines(file)
    columns = tuple(dict.fromkeys(str(key) for record in records for key in record.values))
    return Table(file, columns, [(record.place, dict(record.values)) for record in records], len(records))


def _read_bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError("expected this table, found none", file=file) from None
    except IsADirectoryError:
        raise DataError(
            "expected a table, found a folder; for pictures with captions: prepare.py folder", file=file
        ) from None
    except PermissionError:
        raise DataError("expected a table that can be read, found one without permission", file=file) from None
    if data.startswith(_UTF_16):
        raise DataError("expected UTF-8, found UTF-16; save it as 'CSV UTF-8'", file=file)
    return data


def _read_csv(file: Path, wanted: Sequence[str], problems: Problems) -> Table:
    text = decode_utf8(_read_bytes(file), file, "convert the file, e.g. iconv -f WINDOWS-1252 -t UTF-8")
    if not text.strip():
        raise DataError("expected a header and rows, found an empty file", file=file)
    rows, start, num_rows = [], 1, 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, wanted), strict=True)
        columns = tuple(name.strip() for name in next(reader))
        if len(set(columns)) != len(columns):
            raise DataError(f"expected every column once in the header, found {', '.join(columns)}", file=file)
        start = reader.line_num + 1
        for cells in reader:
            place, start = f"line {start}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            num_rows += 1
            if len(cells) != len(columns):
                problems.add(
                    "wrong number of cells", place, f"{len(cells)} for {len(columns)} columns; quotes missing?"
                )
                continue
            rows.append((place, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"expected CSV, found a fault ({error}); is a quote left open?", file=file, row=f"line {start}"
        ) from None
    return Table(file, columns, rows, num_rows)


def _delimiter(text: str, wanted: Sequence[str]) -> str:
    """The delimiter under which the header holds the most of the columns `wanted`, then the most columns."""

    def fit(delimiter: str) -> tuple[int, int]:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        names = {name.strip() for name in header}
        return sum(name in names for name in wanted), len(header)

    return max(DELIMITERS, key=fit)


def texts_of(cell: Any, separator: str = "") -> list[str]:
    """The texts of a cell, stripped: of a list each entry, of a text its parts at `separator` when one is given.

    Numbers are written out; a missing cell has none, and an empty text stays an empty entry for the caller to count.
    """
    if cell is None:
        return []
    if isinstance(cell, (list, tuple)):
        return [part for entry in cell for part in texts_of(entry) or [""]]
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        return [""]
    text = str(cell)
    return [part.strip() for part in (text.split(separator) if separator else [text])]
