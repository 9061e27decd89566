#!/usr/bin/env python3
"""Turn a small set of real pictures into the official files of vqa, gqa and coco.

    tools/prepare.py daquar|coco_mini|flickr8k SRC DST [--append]

After `daquar` and `coco_mini` into one DST, `data.root=DST --tasks vqa,gqa,coco` trains on them. What was decided on
the way (splits, several answers) is written to DST/prepared.json and described in docs/data.md.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, read_json
from mtvl.errors import DataError, MtvlError

MANIFEST = "prepared.json"
FOLDERS = {"daquar": "daquar", "coco_mini": "coco_mini", "flickr8k": "flickr8k_1k"}
# Picture ids of the sets never meet: COCO's own lie below 1,000,000.
DAQUAR_IDS, FLICKR_IDS = 10_000_000, 20_000_000
ANNOTATORS = 10
SPLITS = ("train", "val", "test")

SPATIAL = re.compile(
    r"\b(left|right|behind|front|above|below|beneath|under|underneath|over|between|near|next to|besides?|on top"
    r"|top|bottom|close to|adjacent|inside|around|corner|side)\b"
)

DAQUAR_NOTES = (
    "DAQUAR has ONE answer a question. It is written ten times, so that the VQA score is 100 for it and 0 for any other.",
    "An answer that lists k things ('chair, table') has its ten entries dealt out over the things in turn; naming one "
    "of them scores (100 each for k = 2, 90 to 100 for k = 3). The official DAQUAR score wants all of them.",
    "'_' in answers became a space. Questions are unchanged.",
    "Test is the official split by image; val is every tenth block of ten neighbouring training images, because "
    "neighbours often show one room.",
    "gqa holds those vqa questions that ask about a position and have a single answer; types.structural is 'query'; "
    "types.semantic is 'attr' for colours and 'rel' otherwise; there are no programs, groups or entailments. "
    "Both files split by image in the same way.",
)


@dataclass
class Plan:
    """What a set becomes: JSON files and pictures, both relative to DST, with notes and counts for people."""

    files: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)
    coco: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Turn a small real set into official benchmark files.")
    parser.add_argument("set", choices=sorted(SETS), help="which set SRC holds")
    parser.add_argument("src", type=Path, help="folder of the set")
    parser.add_argument("dst", type=Path, help="data root to write into; sets add up")
    parser.add_argument("--append", action="store_true", help="add the captions to those of another set")
    args = parser.parse_args(argv)
    try:
        prepare(args.set, args.src, args.dst, append=args.append)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(name: str, src: Path, dst: Path, *, append: bool = False) -> Plan:
    """Read the set `name` from `src`, write it below `dst` and print the counts.

    Raises DataError when source files are missing or faulty, and when a file of another origin stands in the way.
    """
    if not src.is_dir():
        raise DataError(f"expected the folder of the set {name}, found none", file=src)
    nested = src / FOLDERS[name]
    plan = SETS[name](nested if nested.is_dir() else src)
    manifest = _read_manifest(dst)
    if plan.coco:
        plan.files["coco/dataset_coco.json"] = _coco_file(name, plan.coco, dst, manifest, append)
    _refuse_foreign(name, plan, dst, manifest)
    _place_pictures(plan.pictures, dst)
    manifest["sets"][name] = {"files": sorted(plan.files), "counts": plan.counts, "notes": list(plan.notes)}
    _write_json(dst / MANIFEST, manifest)  # first: a broken-off run may be repeated
    for path, content in plan.files.items():
        _write_json(dst / path, content)
    for task, counts in plan.counts.items():
        print(f"{name} -> {task}: " + ", ".join(f"{split} {number:,}" for split, number in counts.items()))
    return plan


def _read_manifest(dst: Path) -> dict[str, Any]:
    file = dst / MANIFEST
    manifest = read_json(file) if file.exists() else {"made_by": "tools/prepare.py", "sets": {}}
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sets"), dict):
        raise DataError("expected the record of tools/prepare.py, found something else; use another DST", file=file)
    return manifest


def _refuse_foreign(name: str, plan: Plan, dst: Path, manifest: dict[str, Any]) -> None:
    owned = {path for entry in manifest["sets"].values() for path in entry["files"]}
    foreign = [path for path in plan.files if (dst / path).exists() and path not in owned]
    if foreign:
        raise DataError(
            f"expected a free place for {name}, found {', '.join(foreign)} of another origin; use another DST", file=dst
        )


# ---------------------------------------------------------------------------------------------------------- daquar


def read_daquar(src: Path) -> Plan:
    """DAQUAR as VQA v2 and GQA files, split by image."""
    splits = _daquar_splits(src)
    asked: Counter[str] = Counter()
    made: dict[str, list[_Asked]] = {split: [] for split in SPLITS}
    for place, row in (row for name in ("data_train.csv", "data_eval.csv") for row in _csv_rows(src / name)):
        image = row["image_id"]
        if image not in splits:
            raise DataError(f"expected an image of the two lists, found {image!r}", file=place[0], row=place[1])
        number = (DAQUAR_IDS + int(image.removeprefix("image"))) * 1000 + asked[image]
        asked[image] += 1
        answers = [a.strip().replace("_", " ") for a in row["answer"].split(",") if a.strip()]
        made[splits[image]].append(_Asked(number, image, row["question"], answers))
    plan = Plan(notes=DAQUAR_NOTES, counts={"vqa": {}, "gqa": {}})
    spatial = {split: [q for q in questions if q.is_spatial] for split, questions in made.items()}
    for split in SPLITS:
        plan.files |= _vqa_files(split, made[split])
        gqa_split = "testdev" if split == "test" else split
        plan.files[f"gqa/{gqa_split}_balanced_questions.json"] = {str(q.number): _gqa_entry(q) for q in spatial[split]}
        plan.counts["vqa"][split], plan.counts["gqa"][split] = len(made[split]), len(spatial[split])
    plan.pictures = _daquar_pictures(src, splits, asked, {q.image for part in spatial.values() for q in part})
    return plan


@dataclass(frozen=True)
class _Asked:
    """One question of DAQUAR; `number` is its id in both tasks."""

    number: int
    image: str
    question: str
    answers: list[str]

    @property
    def is_spatial(self) -> bool:
        is_count = self.question.startswith("how many")
        return len(self.answers) == 1 and not is_count and SPATIAL.search(self.question) is not None


def _daquar_splits(src: Path) -> dict[str, str]:
    listed = {}
    for name in ("train", "test"):
        file = src / f"{name}_images_list.txt"
        images = _read_text(file).split()
        wrong = [i for i in images if not re.fullmatch(r"image\d+", i)]
        if not images or wrong:
            raise DataError(f"expected names like image42, found {wrong[:1] or 'nothing'}", file=file)
        listed[name] = sorted(images, key=lambda i: int(i.removeprefix("image")))
    both = set(listed["train"]) & set(listed["test"])
    if both:
        raise DataError(f"expected every image in one split, found {len(both)} in both, e.g. {min(both)}", file=src)
    splits = {image: "val" if (n // 10) % 10 == 9 else "train" for n, image in enumerate(listed["train"])}
    return splits | dict.fromkeys(listed["test"], "test")


def _vqa_annotation(asked: _Asked) -> dict[str, Any]:
    is_number = all(re.fullmatch(r"\d+", a) for a in asked.answers)
    return {
        "question_id": asked.number,
        "image_id": asked.number // 1000,
        "question_type": " ".join(asked.question.split()[:2]),
        "answer_type": "number" if is_number else "other",
        "multiple_choice_answer": asked.answers[0],
        "answers": [
            {"answer": asked.answers[i % len(asked.answers)], "answer_confidence": "yes", "answer_id": i + 1}
            for i in range(ANNOTATORS)
        ],
    }


def _vqa_files(split: str, asked: Sequence[_Asked]) -> dict[str, Any]:
    head = {
        "info": {"description": "DAQUAR in the files of VQA v2", "made_by": "tools/prepare.py", "notes": DAQUAR_NOTES},
        "data_type": "mscoco",
        "data_subtype": f"{split}2014",
    }
    questions = [{"image_id": q.number // 1000, "question": q.question, "question_id": q.number} for q in asked]
    annotations = [_vqa_annotation(q) for q in asked]
    return {
        f"vqa/v2_OpenEnded_mscoco_{split}2014_questions.json": head
        | {"task_type": "Open-Ended", "questions": questions},
        f"vqa/v2_mscoco_{split}2014_annotations.json": head | {"annotations": annotations},
    }


def _gqa_entry(asked: _Asked) -> dict[str, Any]:
    semantic = "attr" if re.search(r"\bcolou?rs?\b", asked.question) else "rel"
    return {
        "question": asked.question,
        "imageId": f"daquar_{asked.image}",
        "answer": asked.answers[0],
        "isBalanced": True,
        "types": {"structural": "query", "semantic": semantic, "detailed": None},
        "groups": {"global": None, "local": None},
        "semantic": [],
        "entailed": [],
        "equivalent": [str(asked.number)],
    }


def _daquar_pictures(src: Path, splits: dict[str, str], vqa: Iterable[str], gqa: Iterable[str]) -> dict[str, Path]:
    pictures = {}
    for image in sorted(vqa):
        subset = f"{splits[image]}2014"
        number = DAQUAR_IDS + int(image.removeprefix("image"))
        pictures[f"images/{subset}/COCO_{subset}_{number:012d}.jpg"] = src / "images" / f"{image}.jpg"
    for image in sorted(gqa):
        pictures[f"gqa/images/daquar_{image}.jpg"] = src / "images" / f"{image}.jpg"
    return pictures


# -------------------------------------------------------------------------------------------------------- captions


def read_coco_mini(src: Path) -> Plan:
    """390 COCO photos with their captions; ids and sentences as in COCO."""
    file = src / "captions.json"
    values = read_json(file)
    photos = []
    for name, value in Record(file, "", values).values.items():
        captions = Record(file, name, value).need("captions")
        photos.append((name, int(Path(name).stem), _checked_captions(captions, file, name)))
    return _caption_plan("coco_mini", src, photos, val=40, test=100)


def read_flickr8k(src: Path) -> Plan:
    """1,000 Flickr8k photos with five captions each."""
    file = src / "captions.txt"
    found: dict[str, list[str]] = {}
    for _, row in _csv_rows(file, ("image", "caption")):
        found.setdefault(row["image"], []).append(row["caption"])
    photos = [(name, FLICKR_IDS + n, found[name]) for n, name in enumerate(sorted(found))]
    return _caption_plan("flickr8k", src, photos, val=100, test=200)


def _checked_captions(values: Any, file: Path, place: str) -> list[str]:
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise DataError("expected a list of captions, found something else or an empty one", file=file, row=place)
    return values


def _caption_plan(name: str, src: Path, photos: list[tuple[str, int, list[str]]], *, val: int, test: int) -> Plan:
    # By hash of the file name: no order of the source (season, album, COCO split) leaks into the split.
    order = sorted(photos, key=lambda photo: hashlib.sha256(photo[0].encode()).hexdigest())
    if len(order) <= val + test:
        raise DataError(f"expected more than {val + test} photos for {name}, found {len(order)}", file=src)
    split_of = {p[0]: "test" if i < test else "val" if i < test + val else "train" for i, p in enumerate(order)}
    note = (
        f"{name}: own split by photo (ordered by the SHA-256 of the file name: {test} test, {val} val, the rest train); "
        "it is nobody's published split. Counts are photos."
    )
    plan = Plan(notes=(note,), counts={"coco": {s: sum(v == s for v in split_of.values()) for s in SPLITS}})
    for photo, number, captions in sorted(photos, key=lambda photo: photo[1]):
        sentences = [
            {"raw": text, "tokens": re.findall(r"[a-z0-9']+", text.lower()), "imgid": 0, "sentid": number * 100 + i}
            for i, text in enumerate(captions)
        ]
        plan.coco.append(
            {
                "filepath": name,
                "filename": photo,
                "cocoid": number,
                "imgid": 0,
                "split": split_of[photo],
                "sentids": [s["sentid"] for s in sentences],
                "sentences": sentences,
            }
        )
        plan.pictures[f"images/{name}/{photo}"] = src / "images" / photo
    return plan


def _coco_file(
    name: str, images: list[dict[str, Any]], dst: Path, manifest: dict[str, Any], append: bool
) -> dict[str, Any]:
    file = dst / "coco/dataset_coco.json"
    others = [s for s, entry in manifest["sets"].items() if s != name and "coco/dataset_coco.json" in entry["files"]]
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


# ------------------------------------------------------------------------------------------------------------ files


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError("expected this file of the set, found none; is SRC the set's folder?", file=file) from None
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8, found other bytes at position {error.start}", file=file) from None


def _csv_rows(
    file: Path, columns: tuple[str, ...] = ("question", "answer", "image_id")
) -> list[tuple[tuple[Path, str], dict[str, str]]]:
    reader = csv.DictReader(_read_text(file).splitlines())
    if tuple(reader.fieldnames or ()) != columns:
        raise DataError(f"expected the columns {', '.join(columns)}, found {reader.fieldnames}", file=file)
    rows = []
    for row in reader:
        place = f"line {reader.line_num}"
        if None in row or any(not (row[c] or "").strip() for c in columns):
            raise DataError(f"expected text in {', '.join(columns)}, found {list(row.values())}", file=file, row=place)
        rows.append(((file, place), {c: row[c].strip() for c in columns}))
    if not rows:
        raise DataError("expected rows, found none", file=file)
    return rows


def _place_pictures(pictures: dict[str, Path], dst: Path) -> None:
    missing = [p for p in pictures.values() if not p.is_file()]
    if missing:
        raise DataError(
            f"expected {len(pictures)} pictures, found {len(pictures) - len(missing)}, missing {len(missing)}, e.g. "
            f"{', '.join(p.name for p in missing[:3])}",
            file=missing[0].parent,
        )
    for done, (path, source) in enumerate(pictures.items(), start=1):
        _link_or_copy(source, dst / path)
        if done % 1000 == 0:
            print(f"{done:,} of {len(pictures):,} pictures", file=sys.stderr)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a disk or owner without hard links
        shutil.copyfile(source, target)


def _write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)


SETS: dict[str, Callable[[Path], Plan]] = {
    "daquar": read_daquar,
    "coco_mini": read_coco_mini,
    "flickr8k": read_flickr8k,
}

if __name__ == "__main__":
    sys.exit(main())
