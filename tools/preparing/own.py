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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mtvl.data.media import open_image
from mtvl.errors import ConfigError, DataError
from mtvl.petl.plan import is_taken
from mtvl.tasks import task_names
from mtvl.tasks.files import OWN_FOLDER
from preparing import SETS
from preparing.files import Lines, place, write_json, write_lines, write_text
from preparing.media import Media, same_split
from preparing.plan import MANIFEST, SPLITS, read_manifest
from preparing.problems import Problems
from preparing.splits import RECORD, Fractions, by_shares, record_of, recorded
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
    fractions: Fractions | None  # None: the rows say their splits
    num_rows: int  # of the source, those with faults too
    notes: list[str] = field(default_factory=list)


def check_name(name: str, dst: Path) -> None:
    """ConfigError for a name that no own task may have; DataError for a place that is taken."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"expected a name of letters, digits, _ and -, found {name!r}")
    if name in task_names() or name in RESERVED:
        raise ConfigError(f"the name {name!r} is taken by a benchmark or a folder of one; give --name another")
    if name in SETS or is_taken(name):
        what = "set of tools/prepare.py" if name in SETS else "part of every model"
        raise ConfigError(f"the name {name!r} is taken by a {what}; give --name another")
    owned = name in read_manifest(dst)["sets"]
    taken = [path for path in (dst / name, dst / OWN_FOLDER / f"{name}.yaml") if path.exists()]
    if taken and not owned:
        raise DataError(f"expected a free place for {name!r}, found something of another origin", file=taken[0])


def write_own(own: OwnSet, dst: Path, problems: Problems) -> None:
    """Check the rows of `own` as a whole, write the task below `dst` and print what it holds.

    Raises DataError with everything that is wrong; nothing is left behind then.
    """
    check_name(own.name, dst)
    _check_texts(own, problems)
    unique = _check_media(own, problems)
    problems.raise_if_any(own.num_rows)
    digests = {path: media.digest() for path, media in unique.items()}
    split_of_digest = _splits(own, digests, dst, problems)
    problems.raise_if_any(own.num_rows)
    split_of = {path: split_of_digest[digest] for path, digest in digests.items()}
    files = {split: Lines(_lines(own, [r for r in own.rows if split_of[r.media.path] == split])) for split in SPLITS}
    files = {split: lines for split, lines in files.items() if lines}
    counts = {split: len(lines) for split, lines in files.items()}
    text = task_text(own, counts, has_videos=next(iter(unique.values())).is_video)
    with _whole(own, dst, counts, text) as stage:
        for split, lines in files.items():
            write_lines(stage / f"{split}.jsonl", lines)
        write_json(stage / RECORD, record_of(split_of_digest))
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


def _splits(own: OwnSet, digests: Mapping[Path, str], dst: Path, problems: Problems) -> dict[str, str]:
    """The split of each picture or video by its digest: two files with the same content are one picture.

    It is the same in all own tasks below `dst`, or what trains one task would test another.
    """
    entries = {name: entry for name, entry in read_manifest(dst)["sets"].items() if "task_file_sha256" in entry}
    known = recorded(dst, (name for name in entries if name != own.name))
    if own.fractions is None:
        same_split(((row.media, digests[row.media.path], row.split, row.place) for row in own.rows), problems)
        for row in own.rows:
            split, task = known.get(digests[row.media.path], (row.split, ""))
            if split != row.split:
                detail = f"{row.media.relative} is {row.split} here and {split} in the task {task}; another DST keeps them apart"
                problems.add(f"{row.media.noun} in another split than in another task", row.place, detail)
        return {digests[row.media.path]: row.split for row in own.rows}
    fixed = {digest: split for digest, (split, _) in known.items()}
    split_of = None
    if own.name in entries and entries[own.name].get("shares") == list(own.fractions):
        before = {digest: split for digest, (split, _) in recorded(dst, (own.name,)).items()}
        try:
            split_of = by_shares(digests.values(), own.fractions, fixed | before, own.source)
        except DataError:  # so many pictures were taken away that a split would be empty
            print(
                f"note: {own.name} is split anew: of the pictures that it had before, too few are left for all splits"
            )
    if split_of is None:
        split_of = by_shares(digests.values(), own.fractions, fixed, own.source)
    counts = ", ".join(f"{sum(s == split for s in split_of.values())} {split}" for split in SPLITS)
    own.notes.append(
        f"Own split by picture or video ({counts}): as in the own tasks that were there before, new ones in the order of the "
        "SHA-256 of their content until the shares are filled; files of equal content are one picture."
    )
    return split_of


def _check_texts(own: OwnSet, problems: Problems) -> None:
    """Half characters (JSON's \\ud83d alone, or a file name that is not UTF-8) cannot be written."""
    for row in own.rows:
        for text in (row.media.relative, row.text, row.uid, *row.outputs):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                problems.add("text that is not Unicode", ascii(row.place)[1:-1], ascii(text))


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
    manifest, record = read_manifest(dst), (dst / MANIFEST).read_text("utf-8") if (dst / MANIFEST).exists() else None
    is_moved = is_recorded = False
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
        is_recorded = True
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
        if is_recorded and record is not None:
            write_text(dst / MANIFEST, record)
        elif is_recorded:
            (dst / MANIFEST).unlink(missing_ok=True)
        if not was_there and dst.exists() and not any(dst.iterdir()):
            dst.rmdir()
        raise


def _record(own: OwnSet, counts: dict[str, int], text: str) -> dict[str, Any]:
    return {
        "files": sorted([*(f"{own.name}/{split}.jsonl" for split in counts), f"{OWN_FOLDER}/{own.name}.yaml"]),
        "counts": {own.name: counts},
        "notes": own.notes,
        "shares": None if own.fractions is None else list(own.fractions),
        "task_file_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _write_task_file(file: Path, text: str, written_before: str | None) -> None:
    """Write the task file, unless its owner has edited the one that was written before."""
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != written_before:
        print(f"kept: {file}, which was edited; delete it and prepare again to have it made anew")
        return
    write_text(file, text)
