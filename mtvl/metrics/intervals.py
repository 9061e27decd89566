"""Mean, standard error and bootstrap interval of per-item scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mtvl.errors import DataError

_DRAWS_AT_ONCE = 4_000_000  # bounds the memory (32 MB); a constant, so that the figures do not depend on the machine


@dataclass(frozen=True)
class Interval:
    """Mean of `num_items` scores with its standard error and the bounds of a percentile bootstrap interval."""

    mean: float
    standard_error: float
    low: float
    high: float
    num_items: int


def bootstrap_interval(
    per_item: Iterable[float], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean, standard error (n - 1) and percentile bootstrap interval of per-item scores; the same for the same seed.

    The interval is that of the *mean of the items*: for a corpus metric (BLEU, METEOR) it stands beside a figure that
    is no such mean. Sort mappings by uid before passing their values where the order of items may differ between
    runs: resampling is by position. One item has standard error 0.

    Raises DataError for no items, for NaN or infinite scores, and for a level outside (0, 1).
    """
    values = np.asarray(list(per_item), dtype=np.float64)
    if values.size == 0:
        raise DataError("interval: expected at least one per-item score, found none; check the split")
    if not np.isfinite(values).all():
        raise DataError(f"interval: expected finite scores, found {int((~np.isfinite(values)).sum())} that are not")
    if not 0 < level < 1 or resamples < 1:
        raise DataError(f"interval: expected 0 < level < 1 and resamples >= 1, found {level} and {resamples}")
    num_items = values.size
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _DRAWS_AT_ONCE // num_items)
    means = np.empty(resamples)
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        means[start : start + rows] = values[generator.integers(0, num_items, (rows, num_items))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    error = float(values.std(ddof=1) / np.sqrt(num_items)) if num_items > 1 else 0.0
    return Interval(float(values.mean()), error, float(low), float(high), num_items)
