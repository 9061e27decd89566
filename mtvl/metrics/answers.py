"""Open-ended answers that are compared as a whole with those that count as right (MSRVTT-QA and its like)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtvl.metrics.result import Result, check_ids


def plain(text: str) -> str:
    """`text` as it is compared: lower case, blanks between words and none around them."""
    return " ".join(text.lower().split())


def score_answers(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Result:
    """Accuracy in percent: a prediction is right when it equals one of the question's answers (`plain`).

    `references` maps each uid to its answers. `details`: `correct`, `total`. Raises DataError unless the ids agree.

    *Source:* the top-1 accuracy of MSRVTT-QA, whose answers are lower-case words; other texts need the lower case.
    """
    check_ids(predictions.keys(), references.keys(), "open answers")
    per_item = {
        uid: 100.0 * (plain(predictions[uid]) in {plain(answer) for answer in answers})
        for uid, answers in references.items()
    }
    correct = sum(value > 0 for value in per_item.values())
    details = {"correct": correct, "total": len(per_item)}
    return Result("accuracy", {"accuracy": 100 * correct / len(per_item)}, per_item, details)
