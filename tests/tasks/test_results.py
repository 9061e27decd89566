"""Files for the public servers: their form, and that the official rules read the same scores from them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mtvl.config import EvaluateConfig
from mtvl.errors import DataError
from mtvl.metrics.captions import score_captions
from mtvl.metrics.gqa import score_gqa
from mtvl.metrics.nlvr2 import score_nlvr2
from mtvl.metrics.qa import score_qa
from mtvl.metrics.vqa import score_vqa
from mtvl.tasks import load_task
from mtvl.tasks.base import BaseTask
from mtvl.tasks.results import (
    coco_results,
    gqa_results,
    nlvr2_results,
    value_caption_results,
    value_qa_results,
    vqa_results,
)
from mtvl.types import Prediction


def test_vqa() -> None:
    file = vqa_results({"42001": "yes", "42002": "caf\u00e9"}, "vqa_test2015")
    assert file.name == "vqa_test2015_results.json"
    rows = json.loads(file.data)
    assert rows == [{"question_id": 42001, "answer": "yes"}, {"question_id": 42002, "answer": "caf\u00e9"}]
    answers = {"42001": {"answers": [{"answer": "yes", "answer_id": i} for i in range(10)]}}
    found = {str(row["question_id"]): row["answer"] for row in rows[:1]}
    assert score_vqa(found, answers).metrics["accuracy"] == 100


def test_ids_that_are_no_numbers_stay_as_they_are() -> None:
    rows = json.loads(coco_results({"0012": "a", "x1": "b", "-3": "c", "9": "d"}, "s").data)
    assert [row["image_id"] for row in rows] == ["0012", "x1", "-3", 9]


def test_gqa() -> None:
    file = gqa_results({"201": "red"}, "gqa_test")
    rows = json.loads(file.data)
    assert (file.name, rows) == ("gqa_test_results.json", [{"questionId": "201", "prediction": "red"}])
    question = {
        "question": "Is it?", "answer": "red", "isBalanced": True, "semantic": [], "groups": {"global": None},
        "types": {"structural": "query", "semantic": "attr", "detailed": "x"}, "entailed": [],
    }  # fmt: skip
    found = {row["questionId"]: row["prediction"] for row in rows}
    assert score_gqa(found, {"201": question}).metrics["accuracy"] == 100


def test_nlvr2() -> None:
    file = nlvr2_results({"test1-1-0-0": "true", "test1-1-1-0": "False"}, "nlvr2_test")
    assert (file.name, file.data) == ("nlvr2_test_results.csv", b"test1-1-0-0,True\ntest1-1-1-0,False\n")
    found = dict(line.split(",") for line in file.data.decode().splitlines())
    references = {uid: {"identifier": uid, "label": label} for uid, label in found.items()}
    assert score_nlvr2(found, references).metrics == {"accuracy": 100, "consistency": 100}


def test_value_questions(caplog: pytest.LogCaptureFixture) -> None:
    choices = ("a0", "a1", "a2", "a3")
    file = value_qa_results({"7": "a3", "8": "a0"}, choices, "how2qa_test")
    assert (file.name, json.loads(file.data)) == ("how2qa_test_predictions.json", {"7": 3, "8": 0})
    assert not caplog.records
    assert score_qa(json.loads(file.data), {"7": 3, "8": 1}).metrics["accuracy"] == 50
    with caplog.at_level(logging.WARNING):
        file = value_qa_results({"7": "a hat", "8": "a1"}, choices, "how2qa_test")
    assert json.loads(file.data) == {"7": 0, "8": 1}
    assert "1 of 2 answers are none of a0, a1, a2, a3 (e.g. 'a hat' for 7) and are written as a0" in caplog.text


def test_value_captions() -> None:
    texts = {"13447": "add the onions to the pan", "13448": "a line\nbreak \u2028 here now"}
    file = value_caption_results(texts, "yc2c_val")
    assert file.name == "yc2c_val_predictions.jsonl"
    rows = [json.loads(line) for line in file.data.decode().splitlines()]
    assert rows[0] == {"clip_id": 13447, "descs": [{"desc": "add the onions to the pan"}]}
    found = {str(row["clip_id"]): row["descs"][0]["desc"] for row in rows}
    assert found == texts
    scores = score_captions(found, {uid: [text] for uid, text in texts.items()}, tokenizer="python", ascii_only=True)
    assert scores.metrics["ROUGE_L"] == pytest.approx(100)


def test_the_published_samples_have_the_same_form(golden: Path) -> None:
    """Read a published submission, write it again: nothing changes but the spacing."""
    formats = golden / "formats"
    for name, count in (("tvqa/tvqa_val_predictions.json", 5), ("how2qa/how2qa_val_predictions.json", 4)):
        sample = json.loads((formats / name).read_text())
        choices = [f"a{i}" for i in range(count)]
        file = value_qa_results({uid: f"a{index}" for uid, index in sample.items()}, choices, Path(name).stem[:-12])
        assert (file.name, json.loads(file.data)) == (Path(name).name, sample)
    rows = [json.loads(line) for line in (formats / "tvc/tvc_val_predictions.jsonl").read_text().splitlines() if line]
    file = value_caption_results({str(r["clip_id"]): r["descs"][0]["desc"] for r in rows}, "tvc_val")
    assert [json.loads(line) for line in file.data.decode().splitlines()] == rows
    for name, form, key, value in (
        ("vqa/results.json", vqa_results, "question_id", "answer"),
        ("coco/results.json", coco_results, "image_id", "caption"),
        ("gqa/val_predictions.json", gqa_results, "questionId", "prediction"),
    ):
        sample = json.loads((formats / name).read_text())
        assert json.loads(form({str(row[key]): row[value] for row in sample}, "x").data) == sample
    table = (formats / "nlvr2/predictions.csv").read_text().split()
    assert nlvr2_results(dict(line.split(",") for line in table), "x").data.decode().split() == table


def test_official_scores_come_back_from_the_files(golden: Path) -> None:
    folder = golden / "metrics"
    expected = json.loads((folder / "how2qa/expected.json").read_text())
    sample = json.loads((folder / "how2qa/how2qa_val_predictions.json").read_text())
    file = value_qa_results({uid: f"a{i}" for uid, i in sample.items()}, ["a0", "a1", "a2", "a3"], "how2qa_val")
    lines = (folder / "how2qa/how2qa_val_release.jsonl").read_text().splitlines()
    truth = {str(row["qid"]): row["answer_idx"] for row in map(json.loads, lines)}
    assert round(score_qa(json.loads(file.data), truth).metrics["accuracy"], 2) == expected["accuracy"]


def nlvr2(root: Path) -> BaseTask:
    rows = [{"identifier": f"dev-5-{pair}-0", "sentence": "Two dogs.", "label": "True"} for pair in (0, 1)]
    (root / "nlvr2/images/dev").mkdir(parents=True)
    (root / "nlvr2/dev.json").write_text("\n".join(map(json.dumps, rows)))
    for pair in (0, 1):
        for i in (0, 1):
            (root / f"nlvr2/images/dev/dev-5-{pair}-img{i}.png").write_bytes(b"")
    return load_task("nlvr2", root=root, evaluate=EvaluateConfig())


def test_a_task_writes_its_own_form(tmp_path: Path) -> None:
    task = nlvr2(tmp_path)
    examples = task.examples("val")
    predictions = [Prediction(e.uid, "true") for e in reversed(examples)]
    file = task.result_file(predictions, examples, "val")
    assert file == ("nlvr2_val_results.csv", b"dev-5-0-0,True\ndev-5-1-0,True\n")
    with pytest.raises(DataError, match="one prediction for each of 2 examples: missing 1"):
        task.result_file(predictions[:1], examples, "val")
