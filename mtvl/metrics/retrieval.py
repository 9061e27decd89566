"""Retrieval: recall at k, median and mean rank, with a stated rule for ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtvl.errors import ConfigError, DataError, near_names
from mtvl.metrics.result import Result, check_ids

TIE_RULES = ("average", "optimistic", "pessimistic")
RECALLS = (1, 5, 10)


def ranks_of_truth(similarity: np.ndarray, is_truth: np.ndarray, ties: str = "average") -> np.ndarray:
    """1-based rank of the best ground truth of each query: (queries, items) float, (queries, items) bool -> (queries,).

    Rank = 1 + number of items with a strictly greater score + tie term; the tie term is (t - 1) / 2 for `average`,
    0 for `optimistic` and t - 1 for `pessimistic`, where t counts all items equal to the ground truth, itself
    included. With several ground truths the one with the smallest rank counts, which is the one with the best score.

    Public evaluators differ on ties: some add an entry per tie, some break them by sort order. A constant matrix
    scores R@1 of 100 percent under a careless rule; `average` gives the expected rank under random order.

    Raises DataError for NaN and for a query without a ground truth, ConfigError for an unknown rule.
    """
    if ties not in TIE_RULES:
        raise ConfigError(f"unknown tie rule {ties!r}; {near_names(ties, TIE_RULES)}")
    if similarity.ndim != 2 or similarity.shape != is_truth.shape:
        raise DataError(
            f"retrieval: expected two (queries, items) matrices, found {similarity.shape}, {is_truth.shape}"
        )
    if np.isnan(similarity).any():
        rows = np.flatnonzero(np.isnan(similarity).any(axis=1))
        raise DataError(
            f"retrieval: expected finite similarities, found NaN for {rows.size} of {similarity.shape[0]} queries "
            f"(first: {rows[0]}); a NaN compares as worst and best at once, so mend the embeddings"
        )
    without = np.flatnonzero(~is_truth.any(axis=1))
    if without.size:
        raise DataError(
            f"retrieval: expected a ground truth for every query, found none for {without.size} (first: {without[0]})"
        )
    best = np.where(is_truth, similarity, -np.inf).max(axis=1, keepdims=True)
    greater = (similarity > best).sum(axis=1)
    others = (similarity == best).sum(axis=1) - 1
    tie_term = {"average": others / 2, "optimistic": 0 * others, "pessimistic": others}[ties]
    return 1 + greater + tie_term


def rank_metrics(ranks: np.ndarray, recalls: Sequence[int] = RECALLS) -> dict[str, float]:
    """R@k in percent (`R1`, `R5` ...), median rank `MedR` and mean rank `MnR` of 1-based ranks (queries,)."""
    metrics = {f"R{k}": 100 * float(np.mean(ranks <= k)) for k in recalls}
    return metrics | {"MedR": float(np.median(ranks)), "MnR": float(np.mean(ranks))}


def score_retrieval(
    similarity: np.ndarray | Sequence[Sequence[float]],
    text_to_video: Sequence[int],
    ties: str = "average",
    recalls: Sequence[int] = RECALLS,
) -> Result:
    """Both directions of text-video (or text-image) retrieval.

    `similarity` is (texts, videos); `text_to_video` gives each text's video, so a video may own several texts: then
    video-to-text counts its best-ranked text among all texts. Metrics are `text_to_video/R1` ... `video_to_text/MnR`;
    `details` holds the ranks per direction; `per_item` is R@1 of each text in percent.

    Raises DataError for NaN, for indices outside the matrix and for a video without a text.
    """
    matrix = np.asarray(similarity)
    if matrix.dtype not in (np.float32, np.float64):
        # float16 makes ties that are not there (1,115 entries for 1,000 texts in one public evaluator).
        matrix = matrix.astype(np.float64)
    owner = np.asarray(text_to_video, dtype=np.int64)
    if matrix.ndim != 2 or matrix.shape[0] != owner.shape[0]:
        raise DataError(f"retrieval: expected one row per text, found {matrix.shape} for {owner.shape[0]} texts")
    if owner.size == 0 or owner.min() < 0 or owner.max() >= matrix.shape[1]:
        raise DataError(f"retrieval: expected video indices in 0..{matrix.shape[1] - 1} for at least one text")
    is_truth = owner[:, None] == np.arange(matrix.shape[1])[None, :]
    ranks = {
        "text_to_video": ranks_of_truth(matrix, is_truth, ties),
        "video_to_text": ranks_of_truth(matrix.T, is_truth.T, ties),
    }
    metrics = {f"{way}/{k}": v for way, found in ranks.items() for k, v in rank_metrics(found, recalls).items()}
    details = {"ties": ties, "ranks": {way: found.tolist() for way, found in ranks.items()}}
    per_item = {str(i): 100.0 * (rank <= 1) for i, rank in enumerate(ranks["text_to_video"].tolist())}
    return Result("text_to_video/R1", metrics, per_item, details)


def score_ranked_lists(
    predictions: Mapping[str, Sequence[int]], references: Mapping[str, int], recalls: Sequence[int] = (1, 5, 10, 100)
) -> Result:
    """Recall in percent from ranked lists of item indices per query (VALUE's video retrieval: lists of 100).

    `references` maps each query to its one ground truth. `details["rank"]` is the 1-based rank, None where the truth
    is not in the list. Raises DataError when ids differ or when a list names an item twice.

    *Source:* VALUE EvaluationTools, evaluate_yc2r.py (task VR).
    """
    check_ids(predictions.keys(), references.keys(), "ranked retrieval")
    rank: dict[str, int | None] = {}
    for uid, truth in references.items():
        ranked = list(predictions[uid])
        if len(set(ranked)) != len(ranked):
            raise DataError(f"ranked retrieval: expected distinct items for query {uid}, found repeated ones")
        rank[uid] = ranked.index(truth) + 1 if truth in ranked else None
    found = [r for r in rank.values() if r is not None]
    metrics = {f"R{k}": 100 * sum(r <= k for r in found) / len(rank) for k in recalls}
    per_item = {uid: 100.0 * (r is not None and r <= recalls[0]) for uid, r in rank.items()}
    return Result(f"R{recalls[0]}", metrics, per_item, {"rank": rank})
