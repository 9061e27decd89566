from __future__ import annotations

from typing import Any

import pytest

from mtvl.errors import DataError
from mtvl.metrics.gqa import distribution_distance, entailed_ids, grounding_score, num_steps, score_gqa


def question(answer: str, structural: str = "query", **fields: Any) -> dict[str, Any]:
    return {
        "question": "What is it ?",
        "answer": answer,
        "isBalanced": True,
        "imageId": "i",
        "types": {"structural": structural, "semantic": "attr", "detailed": "color"},
        "groups": {"global": None},
        "semantic": [{"operation": "select", "argument": "it"}, {"operation": "query", "argument": "name"}],
        "entailed": [],
        **fields,
    }


QUESTIONS = {
    "1": question("red", entailed=["1", "2", "3"], groups={"global": "color"}),
    "2": question("yes", "verify", isBalanced=False),
    "3": question("no", "verify", isBalanced=False),
    "4": question("yes", "verify", entailed=["1"]),
    "5": question("blue", groups={"global": "color"}),
}
PREDICTIONS = {"1": "red", "2": "yes", "3": "yes", "4": "no", "5": "red"}


def test_overall() -> None:
    result = score_gqa(PREDICTIONS, QUESTIONS)
    assert result.metrics["accuracy"] == pytest.approx(100 / 3)
    assert result.metrics["open"] == 50 and result.metrics["binary"] == 0
    # question 1 is right; of its two entailed questions one is; question 4 is wrong and does not count
    assert result.metrics["consistency"] == 50
    # red: (2 - 1)^2 / 1, blue: (0 - 1)^2 / 1
    assert result.metrics["distribution"] == pytest.approx(0.02)
    assert result.per_item == {"1": 100, "4": 0, "5": 0}
    assert result.details["per_structural_type"]["query"] == {"accuracy": 50, "count": 2}
    assert not {"validity", "plausibility", "grounding"} & result.metrics.keys()


def test_consistency_needs_the_entailed_questions() -> None:
    balanced = {uid: q for uid, q in QUESTIONS.items() if q["isBalanced"]}
    assert "consistency" not in score_gqa(PREDICTIONS, balanced).metrics
    with pytest.raises(DataError, match="2 of 3 missing"):
        score_gqa(PREDICTIONS, balanced, consistency=True)


def test_choices_and_their_common_exception() -> None:
    common = question("color", types={"structural": "query", "semantic": "attr", "detailed": "twoCommon"})
    questions = {"1": question("red"), "2": common}
    choices = {"1": {"valid": ["red", "blue"], "plausible": ["blue"]}, "2": {"valid": [], "plausible": []}}
    metrics = score_gqa({"1": "red", "2": "shape"}, questions, choices=choices).metrics
    assert metrics["validity"] == 100 and metrics["plausibility"] == 50


def test_equality_is_exact() -> None:
    assert score_gqa({"1": "Red"}, {"1": question("red")}).metrics["accuracy"] == 0


def test_a_form_without_questions_has_no_figure() -> None:
    assert "binary" not in score_gqa({"1": "red"}, {"1": question("red")}).metrics


def test_a_missing_prediction_is_an_error() -> None:
    with pytest.raises(DataError, match="1 missing"):
        score_gqa({}, {"1": question("red")})


def test_without_balanced_questions_is_an_error() -> None:
    with pytest.raises(DataError, match="found none among 1"):
        score_gqa({"1": "red"}, {"1": question("red", isBalanced=False)})


def test_choices_must_cover_the_questions() -> None:
    with pytest.raises(DataError, match="GQA choices"):
        score_gqa({"1": "red"}, {"1": question("red")}, choices={"2": {"valid": [], "plausible": []}})


def test_steps_leave_the_asking_out() -> None:
    assert num_steps(question("x")) == 1


def test_entailed_leaves_itself_out() -> None:
    assert entailed_ids("1", QUESTIONS["1"]) == ["2", "3"]


def test_distribution_weighs_groups_by_size() -> None:
    gold = {"color": {"red": 2, "blue": 2}, "size": {"big": 1}}
    predicted = {"color": {"red": 4}, "size": {"small": 1}}
    # color: (2^2 / 2 + 2^2 / 2) = 4 weighted 4; size: 1 weighted 1
    assert distribution_distance(gold, predicted) == pytest.approx((4 * 4 + 1) / 5 / 100)


def test_grounding_sums_attention_over_covered_cells() -> None:
    scene = {"width": 4, "height": 4, "objects": {"o": {"x": 0, "y": 0, "w": 2, "h": 1}}}
    asked = question("x", annotations={"question": {"1": "o"}, "fullAnswer": {}})
    # two cells a side: the object covers the upper half of the cell at x = 0, y = 0
    assert grounding_score(asked, scene, [[0.6, 0.1], [0.2, 0.1]]) == pytest.approx(0.3)
    metrics = score_gqa(
        {"1": "x"}, {"1": asked}, attentions={"1": [[0.6, 0.1], [0.2, 0.1]]}, scene_graphs={"i": scene}
    ).metrics
    assert metrics["grounding"] == pytest.approx(30)
