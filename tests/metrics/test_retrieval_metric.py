from __future__ import annotations

import numpy as np
import pytest

from mtvl.errors import ConfigError, DataError
from mtvl.metrics.retrieval import score_ranked_lists, score_retrieval


def test_ranks_and_figures_without_ties() -> None:
    result = score_retrieval([[0.9, 0.1, 0.2], [0.8, 0.7, 0.0], [0.3, 0.2, 0.1]], [0, 1, 2])
    assert result.details["ranks"] == {"text_to_video": [1, 2, 3], "video_to_text": [1, 1, 2]}
    assert result.metrics["text_to_video/R1"] == pytest.approx(100 / 3)
    assert result.metrics["text_to_video/MedR"] == 2 and result.metrics["video_to_text/MnR"] == pytest.approx(4 / 3)
    assert result.per_item == {"0": 100, "1": 0, "2": 0}


@pytest.mark.parametrize(("ties", "rank"), [("average", 2.5), ("optimistic", 1), ("pessimistic", 4)])
def test_constant_scores(ties: str, rank: float) -> None:
    result = score_retrieval(np.zeros((4, 4)), range(4), ties)
    assert result.details["ranks"]["text_to_video"] == [rank] * 4
    assert result.metrics["text_to_video/R1"] == (100 if ties == "optimistic" else 0)


def test_several_texts_per_video_take_the_best() -> None:
    similarity = [[0.1, 0.9], [0.8, 0.2], [0.5, 0.6]]
    result = score_retrieval(similarity, [0, 0, 1])
    assert result.details["ranks"] == {"text_to_video": [2, 1, 1], "video_to_text": [1, 2]}


def test_half_precision_does_not_change_ranks_of_its_own_values() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 20)).astype(np.float16)
    half, double = score_retrieval(scores, range(20)), score_retrieval(scores.astype(np.float64), range(20))
    assert half.metrics == double.metrics


def test_nan_is_refused() -> None:
    with pytest.raises(DataError, match="found NaN for 1 of 2 queries"):
        score_retrieval([[1.0, float("nan")], [0.0, 1.0]], [0, 1])


def test_a_video_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="found none for 1"):
        score_retrieval([[1.0, 0.0], [0.0, 1.0]], [0, 0])


@pytest.mark.parametrize("owners", [[0, 2], [0, -1], [0], []])
def test_indices_outside_the_matrix_are_refused(owners: list[int]) -> None:
    with pytest.raises(DataError, match="retrieval: expected"):
        score_retrieval([[1.0, 0.0], [0.0, 1.0]], owners)


def test_unknown_tie_rule() -> None:
    with pytest.raises(ConfigError, match="did you mean 'average'"):
        score_retrieval([[1.0]], [0], "averge")


def test_ranked_lists() -> None:
    result = score_ranked_lists({"a": [3, 1, 2], "b": [5, 6]}, {"a": 1, "b": 9}, recalls=(1, 2))
    assert result.metrics == {"R1": 0, "R2": 50} and result.details["rank"] == {"a": 2, "b": None}


def test_ranked_lists_with_repeated_items_are_refused() -> None:
    with pytest.raises(DataError, match="distinct"):
        score_ranked_lists({"a": [1, 1]}, {"a": 1})
