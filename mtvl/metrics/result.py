"""What every scorer returns, and the id check that every scorer starts with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtvl.errors import DataError
from mtvl.types import Scores

SHOWN_IDS = 5


@dataclass(frozen=True)
class Result(Scores):
    """Scores on the papers' scale (0-100, CIDEr x 100, unrounded) with the finer figures in `details`."""

    details: Mapping[str, Any] = field(default_factory=dict)


def _some(ids: Collection[str]) -> str:
    shown = ", ".join(sorted(map(str, ids))[:SHOWN_IDS])
    return shown + (", ..." if len(ids) > SHOWN_IDS else "")


def check_ids(found: Collection[str], expected: Collection[str], what: str, *, allow_extra: bool = False) -> None:
    """Raise DataError unless the ids found are the expected ids (`allow_extra`: contain them).

    A scorer that averages over whatever is there would hide lost items, so every one of them checks.
    """
    if not expected:
        raise DataError(f"{what}: expected at least one item to score, found none; check the split")
    missing = set(expected) - set(found)
    extra = set() if allow_extra else set(found) - set(expected)
    if missing or extra:
        parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
        parts += [f"{len(extra)} that are not in the split ({_some(extra)})"] if extra else []
        raise DataError(
            f"{what}: expected one entry for each of {len(expected)} ids, found {'; '.join(parts)}; "
            "predict the whole split once and score it again"
        )


def mean(values: Collection[float]) -> float:
    """Plain left-to-right mean, as the official scripts add up; 0.0 for no values."""
    return float(sum(values)) / len(values) if values else 0.0
