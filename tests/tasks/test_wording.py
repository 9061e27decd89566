"""Texts as BLIP was given them, where a task asks for it: what the model reads and writes, and never what is scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtvl.errors import ConfigError
from mtvl.tasks import load_task
from mtvl.tasks.wording import plain_prose, plain_question
from mtvl.types import Example

CAPTION, QUESTION = 'A "Cat", (grey);  on a T.V. stand. ', 'Is this "Main St."?'


@pytest.mark.parametrize(
    ("given", "prose", "question"),
    [
        (CAPTION, "a cat , grey on a t v stand", "a cat, grey  on a tv stand"),
        (QUESTION, "is this main st ?", "is this main st?"),
        ("It's 10:30 ~ half-past!", "it's 10 30 half-past", "it's 1030  half-past"),
        ("...", "", ""),
    ],
)
def test_marks_become_spaces_in_prose_and_nothing_in_questions(given: str, prose: str, question: str) -> None:
    assert plain_prose(given) == prose and plain_question(given) == question


def examples(root: Path, task: str, split: str = "train", **overlay: Any) -> tuple[Example, ...]:
    return tuple(load_task(task, root=root, overlay=overlay).examples(split))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    asked = {
        "question_id": 7,
        "question": QUESTION,
        "image": "train2014/a.jpg",
        "answer": ["10:30"] * 10,
        "dataset": "vqa",
    }
    shown = {"image": "train2014/a.jpg", "caption": CAPTION, "image_id": "coco_1"}
    told = {"filepath": "train2014", "filename": "a.jpg", "cocoid": 1, "split": "train",
            "sentences": [{"raw": CAPTION, "sentid": 5}]}  # fmt: skip
    files = {"vqa/vqa_train": [asked], "flickr30k/flickr30k_train": [shown], "coco/dataset_coco": {"images": [told]}}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for folder in ("images", "flickr30k"):
        (tmp_path / folder / "train2014").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "train2014" / "a.jpg")
    return tmp_path


def test_a_retrieval_task_reads_plain_prose(root: Path) -> None:
    (raw,), (plain,) = examples(root, "flickr30k"), examples(root, "flickr30k", wording="plain")
    assert raw.segments[1].text.strip() == CAPTION.strip()
    assert plain.segments[1].text == plain.targets[0].text == plain_prose(CAPTION)
    assert plain.references == raw.references and plain.uid == raw.uid


def test_a_caption_is_written_plain_and_scored_as_it_is(root: Path) -> None:
    (plain,) = examples(root, "coco", wording="plain", prompt="A picture of: ")
    assert plain.targets[0].text == plain_prose(CAPTION) and plain.segments[0].text == "A picture of: "
    assert plain.references["captions"] == (CAPTION.strip(),)


def test_questions_are_plain_and_prompts_and_answers_as_they_are(root: Path) -> None:
    (raw,), (plain,) = (examples(root, "vqa", prompt="VQA: ", wording=w) for w in ("as_written", "plain"))
    assert [s.text for s in plain.segments] == ["VQA: ", plain_question(QUESTION)]
    assert plain.targets == raw.targets and plain.references == raw.references
    assert [s.priority for s in plain.segments] == [s.priority for s in raw.segments]


def test_an_unknown_wording_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown 'vqa.wording' 'plane'; did you mean 'plain'"):
        load_task("vqa", root=None, overlay={"wording": "plane"})
