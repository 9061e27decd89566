from __future__ import annotations

import pytest

from mtvl.errors import DataError
from mtvl.metrics.nlvr2 import group_of, score_nlvr2
from mtvl.metrics.qa import score_qa

ROWS = {
    "dev-7-0-0": {"label": "True"},
    "dev-7-1-0": {"label": "False"},
    "dev-7-0-1": {"label": "False"},
    "dev-8-0-0": {"label": "True"},
}


def test_nlvr2_accuracy_and_consistency() -> None:
    predictions = {"dev-7-0-0": "true", "dev-7-1-0": "TRUE", "dev-7-0-1": "False", "dev-8-0-0": "True", "more": "x"}
    result = score_nlvr2(predictions, ROWS)
    assert result.metrics == pytest.approx({"accuracy": 75, "consistency": 200 / 3})
    assert result.details["per_group"] == {"dev-7--0": 0, "dev-7--1": 1, "dev-8--0": 1}
    assert result.per_item["dev-7-1-0"] == 0


def test_nlvr2_missing_prediction_is_an_error() -> None:
    with pytest.raises(DataError, match="4 missing"):
        score_nlvr2({}, ROWS)


def test_nlvr2_identifier_may_differ_from_the_uid() -> None:
    result = score_nlvr2({"u": "True"}, {"u": {"label": "True", "identifier": "test1-1-2-3"}})
    assert result.details["per_group"] == {"test1-1--3": 1}


def test_nlvr2_identifier_without_four_fields_is_an_error() -> None:
    with pytest.raises(DataError, match="split-set-pair-sentence"):
        group_of("dev-7-0")


def test_qa_by_show() -> None:
    result = score_qa({"1": 0, "2": 1, "3": 2}, {"1": 0, "2": 2, "3": 2}, groups={"1": "A", "2": "A", "3": "B"})
    assert result.metrics["accuracy"] == pytest.approx(200 / 3)
    assert result.details["per_group"] == {"A": {"correct": 1, "total": 2}, "B": {"correct": 1, "total": 1}}


def test_qa_extra_ids_only_where_allowed() -> None:
    assert score_qa({"1": 0, "x": 1}, {"1": 0}, allow_extra=True).metrics["accuracy"] == 100
    with pytest.raises(DataError, match="not in the split"):
        score_qa({"1": 0, "x": 1}, {"1": 0})
    with pytest.raises(DataError, match="1 missing"):
        score_qa({"x": 1}, {"1": 0}, allow_extra=True)


def test_qa_of_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="at least one item"):
        score_qa({}, {})
