"""Lists of answers: counted, limited, read from files, and refused where answers are free text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mtvl.errors import ConfigError, DataError
from mtvl.tasks.answer_lists import answer_lists, read_answers
from mtvl.types import Decoding, Example, Target, Visual


class _Task:
    """A task with the given answers of its training examples."""

    def __init__(self, answers: Sequence[Sequence[str]], decoding: Decoding | None = None) -> None:
        self.decoding = decoding or Decoding()
        self._examples = [
            Example(str(i), "t", (), Visual(), tuple(Target(text, 0.3 if text else 0.0) for text in texts))
            for i, texts in enumerate(answers)
        ]

    def examples(self, split: str) -> list[Example]:
        assert split == "train"
        return self._examples


VQA = _Task([["yes"], ["yes", "yep"], ["red"], ["no", "yes"], ["no"], ["red", "no"], [""], ["yep"]])
GQA = _Task([["red"], ["red"], ["left"], ["left"], ["red"], ["left"], ["left"]])
LABELS = _Task([], Decoding(mode="choose", choices=("true", "false")))
NOWHERE = Path("/nonexistent")


def test_the_most_frequent_come_first() -> None:
    lists = answer_lists({"vqa": VQA, "gqa": GQA, "nlvr": LABELS}, {}, NOWHERE)
    assert lists.of_task == {"vqa": ("no", "yes", "red", "yep"), "gqa": ("left", "red"), "nlvr": ("true", "false")}
    assert lists.exclusive == ("nlvr",)
    assert lists.remarks[0] == "answers of vqa: 4 of 4; 87.5% of the training examples have one of them"


def test_a_limit_keeps_fixed_choices_and_the_most_frequent_of_all_tasks() -> None:
    lists = answer_lists({"vqa": VQA, "gqa": GQA, "nlvr": LABELS}, {}, NOWHERE, limit=5)
    assert lists.of_task == {"vqa": ("no", "red"), "gqa": ("left", "red"), "nlvr": ("true", "false")}
    with pytest.raises(ConfigError, match=r"only 25% of the training examples of task 'vqa'.*backbone\.num_answers"):
        answer_lists({"vqa": VQA, "gqa": GQA}, {}, NOWHERE, limit=1)
    with pytest.raises(ConfigError, match="the tasks' choices and the answers of files alone are 2"):
        answer_lists({"nlvr": LABELS}, {}, NOWHERE, limit=1)


def test_files_give_lists_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "ans.json").write_text(json.dumps(["", "yes", "no", "red", "yes"]))
    for name in ("ans.json", str(tmp_path / "ans.json")):
        assert answer_lists({"vqa": VQA}, {"vqa": name}, tmp_path, limit=3).of_task == {"vqa": ("yes", "no", "red")}
    with pytest.raises(
        ConfigError, match=r"'backbone\.answer_files\.vqaa' is not one of the tasks; did you mean 'vqa'"
    ):
        answer_lists({"vqa": VQA}, {"vqaa": "ans.json"}, tmp_path)
    faults = {'{"yes": 1}': "expected a JSON list of texts", **dict.fromkeys(("[", "[" * 100_000), "list of answers")}
    for content, words in faults.items():
        (tmp_path / "ans.json").write_text(content)
        with pytest.raises(DataError, match=words):
            read_answers(tmp_path / "ans.json")
    with pytest.raises(DataError, match=r"none\.json.*backbone\.answer_files"):
        answer_lists({"vqa": VQA}, {"vqa": "none.json"}, tmp_path)


def test_what_is_no_list_of_answers_is_refused() -> None:
    captions = _Task([["a dog"], ["a dog"], *([f"caption {i}"] for i in range(3))])
    with pytest.raises(ConfigError, match="'coco': of 5 training examples only 2 have an answer that .* free text"):
        answer_lists({"coco": captions}, {}, NOWHERE)
    ranked = _Task([["a"], ["a"]], Decoding(mode="rank", choices=("a0", "a1")))
    with pytest.raises(ConfigError, match=r"ranks each row's own choices.*task\.tvqa\.decoding\.mode=generate"):
        answer_lists({"tvqa": ranked}, {}, NOWHERE)
