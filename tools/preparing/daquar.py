"""DAQUAR: human questions on indoor photos, as VQA v2 and GQA files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.errors import DataError
from preparing.files import csv_rows, read_text
from preparing.plan import SPLITS, Plan

FIRST_ID = 10_000_000  # picture ids of the sets never meet: COCO's own lie below 1,000,000
ANNOTATORS = 10
FILES, COLUMNS = ("data_train.csv", "data_eval.csv"), ("question", "answer", "image_id")

SPATIAL = re.compile(
    r"\b(left|right|behind|front|above|below|beneath|under|underneath|over|between|near|next to|besides?|on top"
    r"|top|bottom|close to|adjacent|inside|around|corner|side)\b"
)

NOTES = (
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


def read_daquar(src: Path) -> Plan:
    """DAQUAR as VQA v2 and GQA files, split by image."""
    splits = _daquar_splits(src)
    asked: Counter[str] = Counter()
    made: dict[str, list[_Asked]] = {split: [] for split in SPLITS}
    for place, row in (row for name in FILES for row in csv_rows(src / name, COLUMNS)):
        image = row["image_id"]
        if image not in splits:
            raise DataError(f"expected an image of the two lists, found {image!r}", file=place[0], row=place[1])
        number = (FIRST_ID + int(image.removeprefix("image"))) * 1000 + asked[image]
        asked[image] += 1
        answers = [a.strip().replace("_", " ") for a in row["answer"].split(",") if a.strip()]
        made[splits[image]].append(_Asked(number, image, row["question"], answers))
    plan = Plan(notes=NOTES, counts={"vqa": {}, "gqa": {}})
    spatial = {split: [q for q in questions if q.is_spatial] for split, questions in made.items()}
    for split in SPLITS:
        plan.files |= _vqa_files(split, made[split])
        gqa_split = "testdev" if split == "test" else split
        plan.files[f"gqa/{gqa_split}_balanced_questions.json"] = {str(q.number): _gqa_entry(q) for q in spatial[split]}
        plan.counts["vqa"][split], plan.counts["gqa"][split] = len(made[split]), len(spatial[split])
    plan.media = _daquar_pictures(src, splits, asked, {q.image for part in spatial.values() for q in part})
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
        images = read_text(file).split()
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
        "info": {"description": "DAQUAR in the files of VQA v2", "made_by": "tools/prepare.py", "notes": NOTES},
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
        number = FIRST_ID + int(image.removeprefix("image"))
        pictures[f"images/{subset}/COCO_{subset}_{number:012d}.jpg"] = src / "images" / f"{image}.jpg"
    for image in sorted(gqa):
        pictures[f"gqa/images/daquar_{image}.jpg"] = src / "images" / f"{image}.jpg"
    return pictures
