"""NLVR2 accuracy and consistency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtvl.errors import DataError
from mtvl.metrics.result import Result, check_ids


def group_of(identifier: str) -> str:
    """`split-set-pair-sentence` with its third field blanked: all pairs that carry one sentence.

    Grouping by sentence text would merge different sets (dev holds 2,018 groups but 2,004 distinct sentences).
    """
    fields = identifier.split("-")
    if len(fields) < 4:
        raise DataError(
            f"expected an NLVR2 identifier split-set-pair-sentence, found {identifier!r}; "
            "consistency cannot be computed without it"
        )
    fields[2] = ""
    return "-".join(fields)


def score_nlvr2(predictions: Mapping[str, str], references: Mapping[str, Mapping[str, Any]]) -> Result:
    """Accuracy and consistency in percent; labels `True`/`False` are compared without regard to case.

    `references` maps each uid to a row of the official file: `label` and `identifier` (the uid where absent).
    Consistency is the share of groups in which every pair is right. `details`: `correct`, `consistent_groups`,
    `groups`, `per_group` (1 or 0). Predictions for other ids are ignored; a missing one raises DataError.

    *Source:* lil-lab/nlvr, nlvr2/eval/metrics.py.
    """
    check_ids(predictions.keys(), references.keys(), "NLVR2", allow_extra=True)
    per_item: dict[str, float] = {}
    per_group: dict[str, int] = {}
    for uid, reference in references.items():
        right = predictions[uid].strip().lower() == str(reference["label"]).strip().lower()
        per_item[uid] = 100.0 * right
        group = group_of(str(reference.get("identifier", uid)))
        per_group[group] = min(per_group.get(group, 1), int(right))
    correct, consistent = sum(value > 0 for value in per_item.values()), sum(per_group.values())
    metrics = {"accuracy": 100 * correct / len(per_item), "consistency": 100 * consistent / len(per_group)}
    details = {
        "correct": correct,
        "consistent_groups": consistent,
        "groups": len(per_group),
        "per_group": per_group,
    }
    return Result("accuracy", metrics, per_item, details)
