"""Task files below the data root, open-ended answers, and choices on pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtvl.config import DataConfig, RunConfig
from mtvl.errors import ConfigError, DataError
from mtvl.metrics.answers import score_answers
from mtvl.tasks import TASKS_DIR, load_task, task_names
from mtvl.tasks.baselines import constant_baseline
from mtvl.tasks.visual import visual_kinds, with_visual
from mtvl.train import check_recipe
from mtvl.types import Prediction, Target

ROWS = [
    {"id": "1", "picture": "a.png", "text": "What?", "answers": ["a dog", "dog"]},
    {"id": "2", "picture": "a.png", "text": "Who?", "answers": ["dog"]},
]
CHOICES = [{"id": "1", "picture": "a.png", "text": "Which?", "choices": ["red", "blue."], "answer": 0}]


def own_task(root: Path, kind: str = "answer", rows: Any = ROWS, name: str = "mine", **settings: Any) -> Path:
    """A task file below `root` with one picture and the same rows in every split."""
    source = {"format": "own_table", "files": {s: {"rows": [f"{name}/{s}.jsonl"]} for s in ("train", "val", "test")},
              "pictures": [f"{name}/pictures/{{name}}"]}  # fmt: skip
    (root / name / "pictures").mkdir(parents=True)
    (root / name / "pictures/a.png").write_bytes(b"")
    for split in ("train", "val", "test"):
        (root / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "tasks").mkdir(exist_ok=True)
    file = root / "tasks" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"kind": kind, "primary": "accuracy", "sources": [source], **settings}))
    return file


def test_a_task_file_below_the_data_root_is_found(tmp_path: Path) -> None:
    file = own_task(tmp_path)
    assert len(load_task("mine", root=tmp_path).examples("test")) == 2
    assert set(task_names(root=tmp_path)) == {*task_names(), "mine"}
    with pytest.raises(ConfigError, match=r"unknown task 'mne'; did you mean 'mine'\?.*own tasks are looked for in"):
        load_task("mne", root=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown task 'mine'.*own tasks need 'data\.root'"):
        load_task("mine", root=None)
    file.rename(tmp_path / "tasks/vqa.yaml")
    with pytest.raises(ConfigError, match="the task 'vqa' has two files"):
        load_task("vqa", root=tmp_path)
    assert load_task("vqa", root=TASKS_DIR.parent).name == "vqa"  # the checkout as data root: one file, found twice


def test_a_run_finds_its_own_task(tmp_path: Path) -> None:
    own_task(tmp_path)
    config = RunConfig(tasks=("mine",), data=DataConfig(root=str(tmp_path)))
    check_recipe(replace(config, checkpoint=replace(config.checkpoint, keep_best=False)))
    with pytest.raises(ConfigError, match="unknown task 'mine'"):
        check_recipe(replace(config, data=DataConfig()))
    assert with_visual(config, TASKS_DIR).backbone["visual"] == ["grid"]
    text = (tmp_path / "tasks/mine.yaml").read_text()
    (tmp_path / "tasks/mine.yaml").write_text(text + "video: {span: text}\n")
    assert with_visual(config, TASKS_DIR).backbone["visual"] == ["frame"]
    assert visual_kinds(["mine", "vqa"], TASKS_DIR, tmp_path / "tasks") == ("grid", "frame")


def test_open_answers(tmp_path: Path) -> None:
    own_task(tmp_path, prompt="q: ")
    task = load_task("mine", root=tmp_path)
    first, second = task.examples("train")
    assert [(s.name, s.text) for s in first.segments] == [("prompt", "q: "), ("question", "What?")]
    assert first.targets == (Target("a dog"), Target("dog")) and second.references == {"answers": ("dog",)}
    assert constant_baseline(task, task.examples("train"), task.examples("test")).metrics == {"accuracy": 100.0}
    scores = task.score([Prediction("1", "A  dog "), Prediction("2", "a dog")], task.examples("test"))
    assert scores.metrics == {"accuracy": 50.0} and scores.per_item == {"1": 100.0, "2": 0.0}


def test_open_answers_are_compared_as_a_whole() -> None:
    references = {"1": ["two dogs"], "2": ["yes"]}
    assert score_answers({"1": "Two\tdogs", "2": "yes it is"}, references).metrics == {"accuracy": 50.0}
    with pytest.raises(DataError, match="1 missing"):
        score_answers({"1": "x"}, references)


def test_hidden_answers_are_predicted_and_not_scored(tmp_path: Path) -> None:
    rows = [{"id": 7, "video_id": 3, "question": "what?"}]
    for split in ("train", "val", "test"):
        (tmp_path / "msrvtt_qa").mkdir(exist_ok=True)
        (tmp_path / f"msrvtt_qa/{split}_qa.json").write_text(json.dumps(rows))
    (tmp_path / "videos/msrvtt/video3").mkdir(parents=True)
    task = load_task("msrvtt_qa", root=tmp_path)
    (example,) = task.examples("test")
    assert "".join(s.text for s in example.segments) == "[Subs] [Q] what? msrvtt_qa: " and not example.references
    with pytest.raises(DataError, match="can be predicted but not scored"):
        task.score([Prediction("7", "x")], [example])
    with pytest.raises(DataError, match="expected answers for 1 training examples"):
        task.examples("train")


@pytest.mark.parametrize("mode", ["rank", "choose"])
def test_choices_on_pictures(mode: str, tmp_path: Path) -> None:
    decoding = {"mode": mode, "choices": ["a0", "a1"]}
    own_task(tmp_path, "choice", CHOICES, prompt="q: ", decoding=decoding)
    task = load_task("mine", root=tmp_path)
    (example,) = task.examples("test")
    assert "".join(s.text for s in example.segments) == "q: Which? [Choices] a0: red. a1: blue."
    assert example.visual.images and example.targets == (Target("red" if mode == "rank" else "a0"),)
    assert example.choices == (("red", "blue.") if mode == "rank" else ())
    assert task.score([Prediction("1", "a0")], [example]).metrics == {"accuracy": 100.0}
