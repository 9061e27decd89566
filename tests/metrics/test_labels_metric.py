"""Accuracy over labels, counted by hand."""

from __future__ import annotations

import pytest

from mtvl.errors import DataError
from mtvl.metrics.labels import score_labels

TRUTH = {"a": "neutral", "b": "neutral", "c": "entailment", "d": "contradiction"}


def test_accuracy_overall_and_by_label() -> None:
    result = score_labels({"a": "Neutral ", "b": "entailment", "c": "entailment", "d": "no idea"}, TRUTH)
    assert result.metrics == {
        "accuracy": 50, "accuracy_neutral": 50, "accuracy_entailment": 100, "accuracy_contradiction": 0,
    }  # fmt: skip
    assert result.per_item == {"a": 100, "b": 0, "c": 100, "d": 0} and result.primary == "accuracy"
    assert result.details["confusion"]["neutral"] == {"neutral": 1, "entailment": 1}


def test_ids_must_agree() -> None:
    with pytest.raises(DataError, match="1 missing"):
        score_labels({"a": "neutral"}, {"a": "neutral", "b": "neutral"})
    with pytest.raises(DataError, match="not in the split"):
        score_labels({**TRUTH, "e": "neutral"}, TRUTH)
