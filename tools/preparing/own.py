"""One's own rows as a task below the data root: checks, splits, files and the task file.

Everything is read and checked first. Then the folder is made under a hidden name and renamed, so that a reader sees the
whole set or nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mtvl.data.media import open_image
from mtvl.errors import ConfigError, DataError, near_names
from mtvl.tasks import task_names
from mtvl.tasks.files import OWN_FOLDER
from preparing.files import Lines, place, write_json, write_lines, write_text
from preparing.media import Media, same_split
from preparing.plan import MANIFEST, SPLITS, read_manifest
from preparing.problems import Problems
from preparing.task_file import task_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # no dot: parameters and overrides are called after tasks
# Folders of the benchmarks below a data root.
RESERVED = ("coco", "GQA", "images", "nlvr", "subtitles", "tasks", "video", "videos", "vis_features", "VG", "COCO")


@dataclass(frozen=True)
class OwnRow:
    """One row as read: `outputs` are captions, answers or choices; `answer` is the index of the right choice."""

    place: str
    media: Media
    outputs: tuple[str, ...]
    text: str = ""
    answer: int | None = None
    uid: str = ""
    split: str = ""


@dataclass
class OwnSet:
    """A task to be: `kind` is that of the task file, `what` the key of `outputs` in the rows that are written."""

    name: str
    source: Path
    kind: str
    what: str
    rows: list[OwnRow]
    fractions: tuple[float, float, float] | None  # None: the rows say their splits
    num_rows: int  # of the source, those with faults too
    notes: list[str] = field(default_factory=list)


def check_name(name: str, dst: Path) -> None:
    """ConfigError for a name that no own task may have; DataError for a place that is taken."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"expected a name of letters, digits, _ and -, found {name!r}")
    if name in task_names() or name in RESERVED:
        raise ConfigError(f"the name {name!r} is taken by a benchmark or a folder of one; give --name another")
    owned = name in read_manifest(dst)["sets"]
    taken = [path for path in (dst / name, dst / OWN_FOLDER / f"{name}.yaml") if path.exists()]
    if taken and not owned:
        raise DataError(f"expected a free place for {name!r}, found something of another origin", file=taken[0])


def parse_fractions(text: str) -> tuple[float, float, float] | None:
    """ "0.8,0.1,0.1" as numbers; None when `text` is no such list. ConfigError unless they add up to 1."""
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return None
    if len(numbers) != 3 or min(numbers) < 0 or numbers[0] <= 0 or abs(sum(numbers) - 1) > 1e-6:
        raise ConfigError(f"--split expects a column or shares of train,val,test that add up to 1, found {text!r}")
    return numbers[0], numbers[1], numbers[2]


def write_own(own: OwnSet, dst: Path, problems: Problems) -> None:
    """Check the rows of `own` as a whole, write the task below `dst` and print what it holds.

    Raises DataError with everything that is wrong; nothing is left behind then.
    """
    check_name(own.name, dst)
    unique = _check_media(own, problems)
    problems.raise_if_any(own.num_rows)
    split_of = _splits(own, problems)
    problems.raise_if_any(own.num_rows)
    files = {split: Lines(_lines(own, [r for r in own.rows if split_of[r.media.path] == split])) for split in SPLITS}
    files = {split: lines for split, lines in files.items() if lines}
    counts = {split: len(lines) for split, lines in files.items()}
    text = task_text(own, counts, has_videos=next(iter(unique.values())).is_video)
    with _whole(own, dst, counts, text) as stage:
        for split, lines in files.items():
            write_lines(stage / f"{split}.jsonl", lines)
        links: dict[str, Path] = {}
        made: dict[str, Callable[[Path], None]] = {}
        for media in unique.values():
            folder = "videos" if media.is_video else "pictures"
            for path, source in media.files():
                if Path(path).suffix == source.suffix:
                    links[f"{folder}/{path}"] = source
                else:
                    made[f"{folder}/{path}"] = partial(_as_png, source)
        place(links, made, stage)
    noun = {"caption": next(iter(unique.values())).noun + "s"}.get(own.kind, "questions")
    print(f"{own.name}: {noun} " + ", ".join(f"{split} {number:,}" for split, number in counts.items()))
    print(f"train with: deepspeed launch/train.py --tasks {own.name} data.root={dst}")


def _check_media(own: OwnSet, problems: Problems) -> dict[Path, Media]:
    """Every picture or video once, by its path; those that cannot be read go to `problems` with their first row."""
    first = {}
    for row in own.rows:
        first.setdefault(row.media.path, row)
    names: dict[str, str] = {}
    for number, row in enumerate(first.values(), start=1):
        if fault := row.media.fault():
            problems.add(f"unreadable {row.media.noun}", row.place, fault)
        elif (other := names.setdefault(row.media.name, row.media.relative)) != row.media.relative:
            problems.add("two files of one name", row.place, f"{row.media.relative} and {other}")
        if number % 1000 == 0:
            print(f"opened {number:,} of {len(first):,}", file=sys.stderr)
    return {path: row.media for path, row in first.items()}


def _as_png(source: Path, target: Path) -> None:
    open_image(str(source)).save(target, format="PNG")


def _splits(own: OwnSet, problems: Problems) -> dict[Path, str]:
    """The split of each picture or video. Two files with the same content count as one picture."""
    digests = {row.media.path: row.media.digest() for row in own.rows}
    if own.fractions is None:
        same_split(((row.media, digests[row.media.path], row.split, row.place) for row in own.rows), problems)
        return {row.media.path: row.split for row in own.rows}
    order = sorted(set(digests.values()))
    _, val_share, test_share = own.fractions
    test = max(1, round(len(order) * test_share)) if test_share else 0
    val = max(1, round(len(order) * val_share)) if val_share else 0
    if test + val >= len(order):
        raise DataError(
            f"expected at least {test + val + 1} different pictures or videos for train, val and test, found "
            f"{len(order)}; add some, or give --split other shares",
            file=own.source,
        )
    split_of = {d: "test" if i < test else "val" if i < test + val else "train" for i, d in enumerate(order)}
    own.notes.append(
        f"Own split by picture or video (ordered by the SHA-256 of its content: {test} test, {val} val, the rest train); "
        "files of equal content are one picture."
    )
    return {path: split_of[digest] for path, digest in digests.items()}


def _lines(own: OwnSet, rows: Sequence[OwnRow]) -> Iterator[dict[str, Any]]:
    """Rows as they are written: captions by picture, answers by picture and question, choices one by one."""
    numbers = {id(row): number for number, row in enumerate(own.rows, start=1)}
    groups: dict[tuple[Any, ...], list[OwnRow]] = {}
    for row in rows:
        alone = (row.uid,) if row.uid else (id(row),) if own.what == "choices" else ()
        groups.setdefault((row.media.name, row.text, *alone), []).append(row)
    for group in groups.values():
        first = group[0]
        outputs = [text for row in group for text in row.outputs]
        uid = first.uid or (first.media.name if own.what == "captions" else str(numbers[id(first)]))
        line: dict[str, Any] = {"id": uid, "video" if first.media.is_video else "picture": first.media.name}
        if own.what != "captions":
            line["text"] = first.text
        line[own.what] = list(dict.fromkeys(outputs)) if own.what == "answers" else outputs
        if first.answer is not None:
            line["answer"] = first.answer
        yield line


@contextmanager
def _whole(own: OwnSet, dst: Path, counts: dict[str, int], text: str) -> Iterator[Path]:
    """A hidden folder to write into that becomes `dst`/NAME at the end; on any fault all is as it was."""
    was_there = dst.exists()
    stage, old, final = dst / f".{own.name}.partial", dst / f".{own.name}.old", dst / own.name
    manifest, record = read_manifest(dst), (dst / MANIFEST).read_bytes() if (dst / MANIFEST).exists() else None
    is_moved = False
    if old.exists() and not final.exists():  # a run was killed between the two renames
        os.rename(old, final)
    try:
        for left in (stage, old):
            shutil.rmtree(left, ignore_errors=True)
        stage.mkdir(parents=True)
        yield stage
        before = manifest["sets"].get(own.name, {})
        manifest["sets"][own.name] = _record(own, counts, text)
        write_json(dst / MANIFEST, manifest)  # first: what a killed run leaves may be written over
        if final.exists():
            os.rename(final, old)
        os.rename(stage, final)
        is_moved = True
        _write_task_file(dst / OWN_FOLDER / f"{own.name}.yaml", text, before.get("task_file_sha256"))
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(final if is_moved else stage, ignore_errors=True)
        if old.exists():
            os.rename(old, final)
        if record is not None:
            (dst / MANIFEST).write_bytes(record)
        elif dst.exists():
            (dst / MANIFEST).unlink(missing_ok=True)
            if not was_there and not any(dst.iterdir()):
                dst.rmdir()
        raise


def _record(own: OwnSet, counts: dict[str, int], text: str) -> dict[str, Any]:
    return {
        "files": sorted([*(f"{own.name}/{split}.jsonl" for split in counts), f"{OWN_FOLDER}/{own.name}.yaml"]),
        "counts": {own.name: counts},
        "notes": own.notes,
        "task_file_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _write_task_file(file: Path, text: str, written_before: str | None) -> None:
    """Write the task file, unless its owner has edited the one that was written before."""
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != written_before:
        print(f"kept: {file}, which was edited; delete it and prepare again to have it made anew")
        return
    write_text(file, text)


SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_named(word: str) -> str:
    """The split that `word` calls; ValueError with near names otherwise."""
    found = SPLIT_WORDS.get(word.strip().lower())
    if found is None:
        raise ValueError(f"{word!r}; {near_names(word, SPLIT_WORDS)}")
    return found
