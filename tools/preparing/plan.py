"""What a set becomes, and how it is written below the data root."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, read_json
from mtvl.errors import DataError
from preparing.files import Lines, place, write_json, write_lines

MANIFEST = "prepared.json"
COCO_FILE = "coco/dataset_coco.json"
SPLITS = ("train", "val", "test")


@dataclass
class Plan:
    """What a set becomes: annotation files, and pictures or videos, all relative to DST; notes and counts for people.

    `media` are links to files of the set; `made` are files that are drawn from them (path -> what writes it). `coco`
    are pictures of the one file that several sets may share.
    """

    files: dict[str, Any] = field(default_factory=dict)
    media: dict[str, Path] = field(default_factory=dict)
    made: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    coco: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def by_hash(names: Iterable[str]) -> list[str]:
    """`names` in the order of their SHA-256: no order of the source (season, album, number) leaks into a split."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def parted(order: Sequence[str], *, test: int, val: int) -> dict[str, str]:
    """The split of each of `order`: the first `test`, then `val`, the rest train."""
    return {name: "test" if i < test else "val" if i < test + val else "train" for i, name in enumerate(order)}


def write_plan(name: str, plan: Plan, dst: Path, *, append: bool = False) -> None:
    """Write `plan` of the set `name` below `dst` and print its counts.

    Raises DataError when a picture or video is missing, and when a file of another origin stands in the way; nothing is
    written then.
    """
    manifest = read_manifest(dst)
    if plan.coco:
        plan.files[COCO_FILE] = _coco_file(name, plan.coco, dst, manifest, append)
    _refuse_foreign(name, plan, dst, manifest)
    place(plan.media, plan.made, dst)
    manifest["sets"][name] = {"files": sorted(plan.files), "counts": plan.counts, "notes": list(plan.notes)}
    write_json(dst / MANIFEST, manifest)  # first: a broken-off run may be repeated
    for path, content in plan.files.items():
        (write_lines if isinstance(content, Lines) else write_json)(dst / path, content)
    for task, counts in plan.counts.items():
        print(f"{name} -> {task}: " + ", ".join(f"{split} {number:,}" for split, number in counts.items()))


def read_manifest(dst: Path) -> dict[str, Any]:
    """The record of what was prepared below `dst`; DataError when that or the file is something else."""
    if dst.exists() and not dst.is_dir():
        raise DataError("expected a folder to write into, found a file; use another DST", file=dst)
    file = dst / MANIFEST
    manifest = read_json(file) if file.exists() else {"made_by": "tools/prepare.py", "sets": {}}
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sets"), dict):
        raise DataError("expected the record of tools/prepare.py, found something else; use another DST", file=file)
    return manifest


def _refuse_foreign(name: str, plan: Plan, dst: Path, manifest: dict[str, Any]) -> None:
    # coco's file is shared on purpose and has been merged; any other file belongs to one set.
    owned = {
        path
        for other, entry in manifest["sets"].items()
        for path in entry["files"]
        if other == name or path == COCO_FILE
    }
    foreign = [path for path in plan.files if (dst / path).exists() and path not in owned]
    if foreign:
        raise DataError(
            f"expected a free place for {name}, found {', '.join(foreign)} of another origin; use another DST", file=dst
        )


def _coco_file(
    name: str, images: list[dict[str, Any]], dst: Path, manifest: dict[str, Any], append: bool
) -> dict[str, Any]:
    file = dst / COCO_FILE
    others = [s for s, entry in manifest["sets"].items() if s != name and COCO_FILE in entry["files"]]
    if others and not append:
        raise DataError(
            f"expected a free place for the captions of {name}, found those of {', '.join(others)}; "
            "--append merges them, another DST keeps them apart",
            file=file,
        )
    kept = []
    if others:
        kept = [r.values for r in Record(file, "", read_json(file)).records("images") if r.text("filepath") != name]
    merged = sorted(kept + images, key=lambda image: int(image["cocoid"]))
    if len({image["cocoid"] for image in merged}) != len(merged):
        raise DataError("expected different picture ids in the two sets, found clashes", file=file)
    for number, image in enumerate(merged):
        image["imgid"] = number
        for sentence in image["sentences"]:
            sentence["imgid"] = number
    return {
        "dataset": "coco",
        "info": {"made_by": "tools/prepare.py", "sets": sorted([*others, name])},
        "images": merged,
    }
