"""Finding the picture files of rows below the data root, each folder scanned once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mtvl.data.formats.rows import Row
from mtvl.errors import ConfigError, DataError

EXTENSIONS = (".jpg", ".png", ".jpeg")  # in the order in which they are tried


class PictureIndex:
    """Looks pictures up in sets of file names: one `scandir` a folder instead of one `stat` a row."""

    def __init__(self, root: Path, patterns: Sequence[str]) -> None:
        if not patterns:
            raise ConfigError("expected at least one picture pattern, found none; mend `pictures` in the task file")
        self.root = root
        self.patterns = tuple(patterns)
        self._folders: dict[str, frozenset[str]] = {}
        self._resolved: dict[tuple[tuple[str, Any], ...], tuple[str, str | None]] = {}

    def find_all(self, rows: Sequence[Row]) -> list[tuple[str, ...]]:
        """Absolute paths of all pictures of all rows; one DataError with counts when any is missing."""
        wanted: set[str] = set()
        missing: dict[str, Row] = {}
        out = []
        for row in rows:
            paths = []
            for fields in row.pictures:
                name, path = self._resolve(row, fields)
                wanted.add(name)
                if path is None:
                    missing.setdefault(name, row)
                else:
                    paths.append(path)
            out.append(tuple(paths))
        if missing:
            raise self._missing_error(missing, len(wanted))
        return out

    def _resolve(self, row: Row, fields: Mapping[str, Any]) -> tuple[str, str | None]:
        key = tuple(fields.items())
        if key not in self._resolved:  # many rows share a picture
            candidates = self.candidates(row, fields)
            self._resolved[key] = (candidates[0], self._first(candidates))
        return self._resolved[key]

    def _missing_error(self, missing: Mapping[str, Row], expected: int) -> DataError:
        first = next(iter(missing.values()))
        examples = ", ".join(list(missing)[:3])
        folders = sorted({os.path.dirname(c) for c in self._all_candidates(first)})
        there = [f"{f} ({len(self._names(f))} files)" for f in folders]
        return DataError(
            f"expected {expected} pictures, found {expected - len(missing)}, missing {len(missing)}, e.g. {examples} "
            f"(.jpg, .png or .jpeg); looked below {self.root} in {', '.join(there)}; fetch or link the pictures, "
            "a split is never made smaller",
            file=first.file, row=first.place,
        )  # fmt: skip

    def _all_candidates(self, row: Row) -> list[str]:
        return [c for fields in row.pictures for c in self.candidates(row, fields)]

    def candidates(self, row: Row, fields: Mapping[str, Any]) -> list[str]:
        """Paths relative to the root, best first; DataError when an annotation tries to leave the root."""
        out = []
        for pattern in self.patterns:
            try:
                path = pattern.format_map(fields)
            except (KeyError, IndexError):
                raise ConfigError(
                    f"picture pattern {pattern!r} names a field that this format has not; it has {', '.join(fields)}"
                ) from None
            except ValueError as error:
                raise DataError(
                    f"picture pattern {pattern!r} does not fit {dict(fields)}: {error}", file=row.file, row=row.place
                ) from None
            out.append(_inside(path, row))
        return out

    def _first(self, candidates: Sequence[str]) -> str | None:
        for candidate in candidates:
            folder, name = os.path.split(candidate)
            names = self._names(folder)
            stem, extension = os.path.splitext(name)
            if extension.lower() not in EXTENSIONS:
                stem, extension = name, ""
            for trial in (name, *(stem + e for e in EXTENSIONS), *(stem + e.upper() for e in EXTENSIONS)):
                if trial in names and (extension or trial != name):
                    return str(self.root / folder / trial)
        return None

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._folders:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._folders[folder] = frozenset(e.name for e in entries if not e.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                self._folders[folder] = frozenset()
        return self._folders[folder]


def _inside(path: str, row: Row) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise DataError(
            f"expected a picture below the data root, found the path {path!r}", file=row.file, row=row.place
        )
    return str(parts)
