"""One label out of a few: accuracy over all items, and over those of each label."""

from __future__ import annotations

from collections.abc import Mapping

from mtvl.metrics.result import Result, check_ids


def score_labels(predictions: Mapping[str, str], references: Mapping[str, str]) -> Result:
    """Accuracy in percent, and "accuracy_LABEL" over the items that have LABEL; texts are compared without regard to case.

    `references` maps each uid to its label. `details`: `correct`, `total`, and `confusion` {label: {predicted: count}}.
    Raises DataError unless the ids agree.

    *Source:* the accuracy of SNLI-VE.
    """
    check_ids(predictions.keys(), references.keys(), "labels")
    per_item: dict[str, float] = {}
    confusion: dict[str, dict[str, int]] = {}
    for uid, label in references.items():
        text = predictions[uid].strip().lower()
        per_item[uid] = 100.0 * (text == label.lower())
        row = confusion.setdefault(label, {})
        row[text] = row.get(text, 0) + 1
    correct = sum(value > 0 for value in per_item.values())
    metrics = {"accuracy": 100 * correct / len(per_item)}
    for label, row in confusion.items():
        metrics[f"accuracy_{label}"] = 100 * row.get(label.lower(), 0) / sum(row.values())
    details = {"correct": correct, "total": len(per_item), "confusion": confusion}
    return Result("accuracy", metrics, per_item, details)
