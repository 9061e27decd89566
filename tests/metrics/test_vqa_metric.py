from __future__ import annotations

import pytest

from mtvl.errors import ConfigError, DataError
from mtvl.metrics.vqa import (
    normalise,
    normalise_punctuation,
    normalise_words,
    question_accuracy,
    score_vqa,
    soft_targets,
)


def answers(matches: int) -> list[str]:
    return ["dog"] * matches + [f"other{i}" for i in range(10 - matches)]


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_accuracy_by_number_of_annotators(matches: int, expected: float) -> None:
    assert question_accuracy("dog", answers(matches)) == pytest.approx(expected)


@pytest.mark.parametrize("matches", range(1, 11))
def test_soft_target_is_the_accuracy_of_the_answer(matches: int) -> None:
    assert soft_targets(answers(matches))["dog"] == pytest.approx(question_accuracy("dog", answers(matches)))


def test_soft_targets_merge_what_normalises_alike_and_come_commonest_first() -> None:
    targets = soft_targets(["2"] + ["Two."] * 2 + ["the cats"] + ["cats"] * 6)
    assert list(targets.items()) == [("cats", 1.0), ("2", 0.9)]


def test_soft_target_of_which_normalisation_leaves_nothing_keeps_its_text() -> None:
    assert soft_targets(["a"] * 8 + ["b"] * 2) == {"a": 1.0, "b": 0.6}


def test_soft_targets_without_answers_are_refused() -> None:
    with pytest.raises(DataError, match="found none"):
        soft_targets([])


@pytest.mark.parametrize(
    ("text", "punctuation", "words", "both"),
    [
        ("1,000 dogs, cats", "1000 dogs cats", "1,000 dogs, cats", "1000 dogs cats"),
        ("t-shirt", "t shirt", "t-shirt", "t shirt"),
        ("a-b - c", "ab  c", "a-b - c", "ab c"),
        ("3.5", "3.5", "3.5", "3.5"),
        ("U.S.A.", "USA", "u.s.a.", "usa"),
        ("Isnt", "Isnt", "isn't", "isn't"),
        ("Im", "Im", "im", "im"),
        ("somebody'd", "somebody'd", "somebodyd", "somebodyd"),
        ("The two", "The two", "2", "2"),
    ],
)
def test_normalisation_steps(text: str, punctuation: str, words: str, both: str) -> None:
    assert (normalise_punctuation(text), normalise_words(text), normalise(text)) == (punctuation, words, both)


def test_only_32_periods_are_removed() -> None:
    assert normalise_punctuation("." * 40 + "x") == "." * 8 + "x"


@pytest.mark.parametrize(
    ("prediction", "truths", "expected"),
    [
        # unanimous: the current evaluator compares raw text
        ("Black.", ["black"] * 10, {"official": 0, "official_before_2021": 1, "always_normalised": 1}),
        # the older one never maps number words on the annotators' side
        ("2", ["two"] * 9 + ["3"], {"official": 1, "official_before_2021": 0, "always_normalised": 1}),
        ("black", [" black"] * 9 + ["black "], {"official": 1, "official_before_2021": 0, "always_normalised": 1}),
    ],
)
def test_variants_differ_where_they_should(prediction: str, truths: list[str], expected: dict[str, float]) -> None:
    assert {v: question_accuracy(prediction, truths, v) for v in expected} == expected


def test_score_by_type_and_question() -> None:
    references = {
        "1": {"answers": [{"answer": a} for a in answers(10)], "question_type": "what", "answer_type": "other"},
        "2": {"answers": answers(1), "question_type": "is", "answer_type": "yes/no"},
        "3": {"answers": answers(0), "question_type": "is", "answer_type": "yes/no"},
    }
    result = score_vqa({"1": "dog", "2": "dog", "3": "dog"}, references)
    assert result.metrics["accuracy"] == pytest.approx(130 / 3)
    assert result.metrics["accuracy/yes/no"] == pytest.approx(15)
    assert result.details["per_question_type"] == pytest.approx({"what": 100, "is": 15})
    assert result.per_item == pytest.approx({"1": 100, "2": 30, "3": 0})


@pytest.mark.parametrize("predictions", [{}, {"1": "dog", "2": "dog"}])
def test_ids_must_be_the_split(predictions: dict[str, str]) -> None:
    with pytest.raises(DataError, match="expected one entry for each of 1 ids"):
        score_vqa(predictions, {"1": {"answers": answers(10)}})


def test_unknown_variant_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match="official"):
        score_vqa({"1": "dog"}, {"1": {"answers": answers(10)}}, "oficial")
