"""Alternative layouts of a benchmark on disk: which one is there, and its rows with their pictures."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mtvl.data.formats import FORMATS
from mtvl.data.formats.pictures import FileIndex, PictureIndex, VideoIndex
from mtvl.data.formats.records import are_taken
from mtvl.data.formats.rows import Reader, Row
from mtvl.errors import ConfigError, DataError, near_names

CORE_SPLITS = ("train", "val", "test")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceConfig:
    """One layout: a format, files (split -> role -> all files to read, relative to the data root), path patterns.

    The patterns are those of `pictures` or those of `videos`, best first. `published` are the sizes that the benchmark's authors state, for checking one's copy. `hints` (split -> text)
    are added to the error when the files of a split are missing.
    """

    format: str
    files: dict[str, dict[str, tuple[str, ...]]]
    pictures: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    published: dict[str, int] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AdditionConfig(SourceConfig):
    """Rows for training beside those of the task's own source; their answers' weights are multiplied by `weight`."""

    weight: float = 1.0


class Source:
    """A layout on a data root. `without_subtitles`: split that was loaded -> its videos, and those without subtitles."""

    def __init__(self, task: str, config: SourceConfig, root: Path) -> None:
        self.task = task
        self.config = config
        self.root = root
        self.reader: Reader = FORMATS.load(config.format)()
        self.index: FileIndex = (
            VideoIndex(root, config.videos) if config.videos else PictureIndex(root, config.pictures)
        )
        self.without_subtitles: dict[str, tuple[int, int]] = {}
        for split, roles in config.files.items():
            self._check(split, roles)

    def _check(self, split: str, roles: dict[str, tuple[str, ...]]) -> None:
        where = f"{self.task}.sources ({self.config.format}).files.{split}"
        for role, names in roles.items():
            if role not in self.reader.roles:
                raise ConfigError(f"unknown key '{where}.{role}'; {near_names(role, self.reader.roles)}")
            for name in names:
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise ConfigError(f"'{where}.{role}' expects a path below the data root, found {name!r}")
        for role, is_required in self.reader.roles.items():
            if is_required and not roles.get(role):
                raise ConfigError(f"missing key '{where}.{role}'")

    def wanted(self, split: str) -> list[Path]:
        """Every file that must be there for `split`. A `choices` file may be absent: its measures are then left out."""
        roles = self.config.files.get(split, {})
        return [self.root / name for role, names in roles.items() if role not in _MAY_BE_ABSENT for name in names]

    def is_complete(self, split: str) -> bool:
        """True when all wanted files of `split` exist."""
        files = self.wanted(split)
        return bool(files) and all(f.is_file() for f in files)

    def rows(self, split: str) -> list[Any]:
        """Rows of `split` without looking for pictures; DataError when a file is missing or faulty."""
        if split not in self.config.files:
            raise DataError(
                f"task {self.task}: no split {split!r} in the layout {self.config.format}; "
                f"{near_names(split, self.config.files)}",
                file=self.root,
            )
        if not self.is_complete(split):
            raise DataError(
                f"task {self.task}: {self.lacking(split)}{self._hint(split)}; the other splits come from this layout "
                f"({self.config.format}), and layouts are not mixed",
                file=self.root,
            )
        roles = self.config.files[split]
        files = {role: [self.root / n for n in names] for role, names in roles.items()}
        there = {
            role: paths for role, paths in files.items()
            if role not in _MAY_BE_ABSENT or all(p.is_file() for p in paths)
        }  # fmt: skip
        return self.reader.read(there, split)

    def load(self, split: str) -> tuple[Sequence[Row], list[tuple[str, ...]]]:
        """Rows of `split` and the paths of their pictures or videos; DataError with counts when one is missing.

        Where the faults of rows are taken (`records.taking_faults`), rows without their files are faults too.
        """
        rows = self.rows(split)
        if not rows:
            raise DataError(
                f"task {self.task}: expected rows of split {split!r}, found none that can be used; see the log of what was "
                "left out", file=self.wanted(split)[0],
            )  # fmt: skip
        has_videos = rows[0].clip is not None
        if has_videos != bool(self.config.videos):
            wanted, found = ("videos", "pictures") if has_videos else ("pictures", "videos")
            raise ConfigError(
                f"'{self.task}.sources ({self.config.format})': rows of this format have {wanted}, "
                f"found patterns of {found}"
            )
        self._count_subtitles(split, rows)
        if are_taken():
            return self.index.find_usable(rows)
        return rows, self.index.find_all(rows)

    def _count_subtitles(self, split: str, rows: Sequence[Row]) -> None:
        """A video without a record in the subtitle file is legal, but not to be passed over in silence."""
        clips = {tuple(row.clip.fields.values()): row.clip for row in rows if row.clip}
        bare = sum(clip.subtitles is None for clip in clips.values())
        self.without_subtitles[split] = len(clips), bare
        if bare:
            _log.warning("task %s: %d of %d videos of split %s have no subtitles", self.task, bare, len(clips), split)

    def lacking(self, split: str) -> str:
        """Words on the files of `split`: expected, found, missing."""
        files = self.wanted(split)
        missing = [str(f.relative_to(self.root)) for f in files if not f.is_file()]
        return (
            f"split {split!r} expected {len(files)} files, found {len(files) - len(missing)}, "
            f"missing {', '.join(missing)}"
        )

    def _hint(self, split: str) -> str:
        hint = self.config.hints.get(split, "")
        return f"; {hint}" if hint else ""


# Roles that only add measures. GQA has no choices file for testdev; the official script then prints 0.
_MAY_BE_ABSENT = ("choices",)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection: it walks the millions of fresh rows over and over (half of the reading time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def choose_source(task: str, configs: Sequence[SourceConfig], root: Path) -> Source:
    """The layout with the most complete splits below `root`, the first one on a tie.

    One layout serves all splits: the Karpathy split of VQA v2, for one, trains on pictures that the official split
    validates on. DataError when no split of any layout is complete.
    """
    if not root.is_dir():
        raise DataError("expected the folder of data, found none; set `data.root`", file=root)
    sources = [Source(task, config, root) for config in configs]
    counts = [sum(source.is_complete(split) for split in CORE_SPLITS) for source in sources]
    best = max(range(len(sources)), key=lambda i: counts[i])
    if counts[best] == 0 and not any(s.is_complete(split) for s in sources for split in s.config.files):
        looked = "\n".join(
            f"  {s.config.format}: {s.lacking(split)}" for s in sources for split in CORE_SPLITS if s.wanted(split)
        )
        raise DataError(
            f"task {task}: expected the files of one of {len(sources)} layouts, found no complete split:\n{looked}\n"
            "see docs/data.md, or check the copy with tools/check_data.py",
            file=root,
        )
    if counts[best] == 0:
        best = next(i for i, s in enumerate(sources) if any(s.is_complete(split) for split in s.config.files))
    _log.info("task %s: layout %s below %s (%d of 3 splits)", task, configs[best].format, root, counts[best])
    return sources[best]
