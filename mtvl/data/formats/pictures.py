"""Finding the picture and video files of rows below the data root, each folder scanned once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mtvl.data.formats.records import rows_of
from mtvl.data.formats.rows import Row
from mtvl.errors import ConfigError, DataError

# In the order in which they are tried.
PICTURE_ENDINGS = (".jpg", ".png", ".jpeg")
VIDEO_ENDINGS = (".mp4", ".webm", ".mkv", ".avi", ".mov")
STRIP_ENDINGS = (".jpg", ".png")  # one wide picture that holds the frames of a video side by side
# Only where a pattern asks for them: features belong to one tower, and a picture found beside them goes first.
STORED_ENDINGS = (".npz", ".h5")


_STRIP = re.compile(r"(.+)\.\d+x1(\.\w+)$")  # clip.8x1.jpg says that it holds 8 frames


def without_count(name: str) -> str:
    """The name of a strip without the number of its frames: clip.8x1.jpg -> clip.jpg."""
    return _STRIP.sub(r"\1\2", name)


class _Listing(NamedTuple):
    files: dict[str, str]  # name under which a file is found -> its name
    folders: set[str]


class FileIndex:
    """Looks files up in sets of names: one `scandir` a folder instead of one `stat` a row.

    Patterns are paths below `root` with fields of the rows, best first. One that ends in .npz or .h5 names stored
    features and is taken as it is; any other is tried with each ending in `endings`.
    """

    what = ""  # in messages; with an s also the key of the patterns in the task file
    endings: tuple[str, ...] = ()
    folders_count = False  # a folder of that name counts too

    def __init__(self, root: Path, patterns: Sequence[str]) -> None:
        if not patterns:
            raise ConfigError(
                f"expected at least one {self.what} pattern, found none; mend `{self.what}s` in the task file"
            )
        self.root = root
        self.patterns = tuple(patterns)
        self._listings: dict[str, _Listing] = {}
        self._resolved: dict[tuple[tuple[str, Any], ...], tuple[str, str | None]] = {}

    def fields_of(self, row: Row) -> Sequence[Mapping[str, Any]]:
        """One mapping of pattern fields for each file that the row wants."""
        raise NotImplementedError

    def plain_name(self, name: str) -> str:
        """The name under which the file `name` is looked for."""
        return name

    def find_usable(self, rows: Sequence[Row]) -> tuple[list[Row], list[tuple[str, ...]]]:
        """Those rows whose files are there, with their paths; the others are faults (`records.taking_faults`)."""

        def paths_of(_uid: str, row: Row) -> tuple[Row, tuple[str, ...]]:
            found = [(fields, self._resolve(row, fields)) for fields in self.fields_of(row)]
            missing = {name: row for _, (name, path) in found if path is None}
            if missing:
                raise self._missing_error(missing, len(found))
            return row, tuple(str(path) for _, (_, path) in found)

        pairs = rows_of(((row.uid, row) for row in rows), paths_of)
        return [row for row, _ in pairs], [paths for _, paths in pairs]

    def find_all(self, rows: Sequence[Row]) -> list[tuple[str, ...]]:
        """Absolute paths of all files of all rows; one DataError with counts when any is missing."""
        wanted: set[str] = set()
        missing: dict[str, Row] = {}
        out = []
        for row in rows:
            paths = []
            for fields in self.fields_of(row):
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
        if key not in self._resolved:  # many rows share a file
            candidates = self.candidates(row, fields)
            self._resolved[key] = (candidates[0], self._first(candidates))
        return self._resolved[key]

    def _missing_error(self, missing: Mapping[str, Row], expected: int) -> DataError:
        first = next(iter(missing.values()))
        examples = ", ".join(list(missing)[:3])
        folders = sorted(
            {os.path.dirname(c) for fields in self.fields_of(first) for c in self.candidates(first, fields)}
        )
        there = [f"{f} ({self._count(f)} files)" for f in folders]
        accepted = f"{', '.join(self.endings[:-1])} or {self.endings[-1]}"
        if self.folders_count:
            accepted += ", or a folder of frames"
        return DataError(
            f"expected {expected} {self.what}s, found {expected - len(missing)}, missing {len(missing)}, e.g. {examples} "
            f"({accepted}); looked below {self.root} in {', '.join(there)}; fetch or link the {self.what}s, "
            "a split is never made smaller",
            file=first.file, row=first.place,
        )  # fmt: skip

    def _count(self, folder: str) -> int:
        listing = self._listing(folder)
        return len(listing.files) + (len(listing.folders) if self.folders_count else 0)

    def candidates(self, row: Row, fields: Mapping[str, Any]) -> list[str]:
        """Paths relative to the root, best first; DataError when an annotation tries to leave the root."""
        out = []
        for pattern in self.patterns:
            try:
                path = pattern.format_map(fields)
            except (KeyError, IndexError):
                raise ConfigError(
                    f"{self.what} pattern {pattern!r} names a field that this format has not; "
                    f"it has {', '.join(fields)}"
                ) from None
            except ValueError as error:
                raise DataError(
                    f"{self.what} pattern {pattern!r} does not fit {dict(fields)}: {error}",
                    file=row.file,
                    row=row.place,
                ) from None
            out.append(self._inside(path, row))
        return out

    def _inside(self, path: str, row: Row) -> str:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
            raise DataError(
                f"expected a {self.what} below the data root, found the path {path!r}", file=row.file, row=row.place
            )
        return str(parts)

    def _first(self, candidates: Sequence[str]) -> str | None:
        for pattern, candidate in zip(self.patterns, candidates, strict=True):
            folder, name = os.path.split(candidate)
            listing = self._listing(folder)
            for trial in self._trials(pattern, name):
                if trial in listing.files:
                    return str(self.root / folder / listing.files[trial])
            if self.folders_count and not pattern.endswith(STORED_ENDINGS) and name in listing.folders:
                return str(self.root / folder / name)
        return None

    def _trials(self, pattern: str, name: str) -> list[str]:
        """File names that stand for `name`; a name without an ending is no file."""
        if pattern.endswith(STORED_ENDINGS):
            return [name]
        stem, ending = os.path.splitext(name)
        has_ending = ending.lower() in self.endings
        stem = stem if has_ending else name
        return [
            *([name] if has_ending else []),
            *(stem + e for e in self.endings),
            *(stem + e.upper() for e in self.endings),
        ]

    def _listing(self, folder: str) -> _Listing:
        if folder not in self._listings:
            listing = _Listing({}, set())
            try:
                with os.scandir(self.root / folder) as entries:
                    for entry in entries:
                        if entry.is_dir():
                            listing.folders.add(entry.name)
                        else:
                            listing.files[self.plain_name(entry.name)] = entry.name
            except (FileNotFoundError, NotADirectoryError):
                pass  # nothing is there; what is missing is counted by the caller
            self._listings[folder] = listing
        return self._listings[folder]


class PictureIndex(FileIndex):
    """Pictures, or stored features in their place."""

    what, endings = "picture", PICTURE_ENDINGS

    def fields_of(self, row: Row) -> Sequence[Mapping[str, Any]]:
        """The fields of each picture of the row."""
        return row.pictures


class VideoIndex(FileIndex):
    """Videos; in the place of one also a folder of frame pictures, a strip of frames, or stored features."""

    what, endings = "video", (*VIDEO_ENDINGS, *STRIP_ENDINGS)
    folders_count = True

    def fields_of(self, row: Row) -> Sequence[Mapping[str, Any]]:
        """The fields of the row's video."""
        return (row.clip.fields,) if row.clip else ()

    def plain_name(self, name: str) -> str:
        """A strip's name without the number of its frames."""
        return without_count(name)
