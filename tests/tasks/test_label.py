"""SNLI-VE from its JSON lines to a score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mtvl.errors import DataError
from mtvl.tasks import load_task
from mtvl.types import Prediction, Target

LABELS = ("entailment", "neutral", "contradiction")


def write(root: Path, **change: str) -> Path:
    """A root with three rows a split on one picture each."""
    for split in ("train", "dev", "test"):
        rows = [
            {"pairID": f"{split}{i}.jpg#0r1", "Flickr30K_ID": f"{split}{i}", "sentence1": "No caption is read.",
             "sentence2": f"Sentence {i}.", "gold_label": label, **change}
            for i, label in enumerate(LABELS)
        ]  # fmt: skip
        (root / "snli_ve").mkdir(parents=True, exist_ok=True)
        (root / "snli_ve" / f"snli_ve_{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        (root / "flickr30k/images").mkdir(parents=True, exist_ok=True)
        for i in range(3):
            (root / f"flickr30k/images/{split}{i}.jpg").write_bytes(b"")
    return root


def test_examples_and_score(tmp_path: Path) -> None:
    task = load_task("snli_ve", root=write(tmp_path))
    assert (task.decoding.mode, task.decoding.choices) == ("choose", LABELS)
    examples = task.examples("val")
    first = examples[0]
    assert "".join(s.text for s in first.segments) == "snli_ve: Sentence 0."
    assert first.targets == (Target("entailment"),) and first.references == {"label": "entailment"}
    assert [Path(e.visual.images[0]).name for e in examples] == ["dev0.jpg", "dev1.jpg", "dev2.jpg"]
    scores = task.score([Prediction(e.uid, "neutral") for e in examples], examples)
    assert scores.metrics["accuracy"] == pytest.approx(100 / 3) and scores.metrics["accuracy_neutral"] == 100


def test_a_label_outside_the_three_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: expected entailment, neutral, contradiction in 'gold_label', found"):
        load_task("snli_ve", root=write(tmp_path, gold_label="-")).examples("train")
    task = load_task("snli_ve", root=write(tmp_path), overlay={"decoding": {"choices": ["yes", "no"]}})
    with pytest.raises(DataError, match=r"'decoding\.choices' \(yes, no\), found the label 'entailment'"):
        task.examples("train")


def test_hidden_labels_are_predicted_and_not_trained_on(tmp_path: Path) -> None:
    root = write(tmp_path)
    for split in ("train", "test"):
        file = root / "snli_ve" / f"snli_ve_{split}.jsonl"
        file.write_text(file.read_text().replace("gold_label", "hidden"))
    task = load_task("snli_ve", root=root)
    assert all(not e.targets and not e.references for e in task.examples("test"))
    with pytest.raises(DataError, match="expected answers for 3 training examples"):
        task.examples("train")
    assert dataclasses.replace(task.config, prompt="").kind == "label"
