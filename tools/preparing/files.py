"""Reading the files of sets, and writing below the data root: whole files only, links where the disk allows them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import decode_utf8
from mtvl.errors import DataError


class Lines(list[dict[str, Any]]):
    """Content of a file with one JSON object a line."""


def read_text(file: Path) -> str:
    """A UTF-8 file of a set; DataError when it is not there or in another encoding."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError("expected this file of the set, found none; is SRC the set's folder?", file=file) from None
    return decode_utf8(data, file)


def plain_name(name: str, file: Path, row: object = None) -> str:
    """`name`, which `file` gives to a file of the set; DataError for one that would lead to another folder."""
    if name != Path(name).name or "\0" in name or "\\" in name:
        raise DataError(f"expected the plain name of a file, found {name!r}", file=file, row=row)
    return name


def csv_rows(file: Path, columns: tuple[str, ...]) -> list[tuple[tuple[Path, str], dict[str, str]]]:
    """((file, line), row) of a CSV file with exactly these columns, none of them empty."""
    reader = csv.DictReader(read_text(file).splitlines())
    if tuple(reader.fieldnames or ()) != columns:
        raise DataError(f"expected the columns {', '.join(columns)}, found {reader.fieldnames}", file=file)
    rows = []
    for row in reader:
        line = f"line {reader.line_num}"
        if None in row or any(not (row[c] or "").strip() for c in columns):
            raise DataError(f"expected text in {', '.join(columns)}, found {list(row.values())}", file=file, row=line)
        rows.append(((file, line), {c: row[c].strip() for c in columns}))
    if not rows:
        raise DataError("expected rows, found none", file=file)
    return rows


def place(media: Mapping[str, Path], made: Mapping[str, Callable[[Path], None]], dst: Path) -> None:
    """Link (or copy) `media` below `dst` and write what is `made`; DataError before anything when files are missing."""
    missing = [source for source in media.values() if not source.is_file()]
    if missing:
        raise DataError(
            f"expected {len(media)} pictures, found {len(media) - len(missing)}, missing {len(missing)}, e.g. "
            f"{', '.join(p.name for p in missing[:3])}",
            file=missing[0].parent,
        )
    total = len(media) + len(made)
    for done, (path, source) in enumerate({**media, **made}.items(), start=1):
        if isinstance(source, Path):
            link_or_copy(source, dst / path)
        else:
            (dst / path).parent.mkdir(parents=True, exist_ok=True)
            source(dst / path)
        if done % 1000 == 0:
            print(f"{done:,} of {total:,} pictures", file=sys.stderr)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where there are no hard links."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a disk or owner without hard links
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.copyfile(source, part)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write JSON to `file`, whole or not at all."""
    write_text(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_lines(file: Path, rows: Lines) -> None:
    """Write one JSON object a line to `file`, whole or not at all."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file`, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    data = text.encode("utf-8")
    try:
        part.write_bytes(data)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
