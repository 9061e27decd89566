"""Multiple-choice accuracy (TVQA, How2QA)."""

from __future__ import annotations

from collections.abc import Mapping

from mtvl.metrics.result import Result, check_ids

Choice = int | str


def score_qa(
    predictions: Mapping[str, Choice],
    references: Mapping[str, Choice],
    groups: Mapping[str, str] | None = None,
    allow_extra: bool = False,
) -> Result:
    """Accuracy in percent of chosen answers, overall and per group (the show, for TVQA).

    `references` maps each question id to the right choice (index or label); `groups` maps ids to a group name.
    How2QA demands exactly the ids of the split; TVQA ignores predictions for others (`allow_extra`). `details`:
    `correct`, `total`, `per_group` {name: {"correct", "total"}}. Raises DataError on missing (or extra) ids.

    *Source:* VALUE EvaluationTools, evaluate_tvqa.py and evaluate_how2qa.py.
    """
    check_ids(predictions.keys(), references.keys(), "question answering", allow_extra=allow_extra)
    per_item: dict[str, float] = {}
    per_group: dict[str, dict[str, int]] = {}
    for uid, truth in references.items():
        right = predictions[uid] == truth
        per_item[uid] = 100.0 * right
        if groups is not None:
            counts = per_group.setdefault(groups[uid], {"correct": 0, "total": 0})
            counts["correct"] += int(right)
            counts["total"] += 1
    correct = sum(value > 0 for value in per_item.values())
    details = {"correct": correct, "total": len(per_item), "per_group": per_group}
    return Result("accuracy", {"accuracy": 100 * correct / len(per_item)}, per_item, details)
