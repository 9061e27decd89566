from __future__ import annotations

import time

import numpy as np
import pytest

from mtvl.errors import DataError
from mtvl.metrics.intervals import bootstrap_interval


def test_mean_error_and_bounds_of_a_known_sample() -> None:
    values = np.random.default_rng(1).normal(50, 10, 2000)
    interval = bootstrap_interval(values)
    assert interval.num_items == 2000 and interval.mean == pytest.approx(values.mean())
    assert interval.standard_error == pytest.approx(values.std(ddof=1) / 2000**0.5)
    assert interval.low == pytest.approx(interval.mean - 1.96 * interval.standard_error, abs=0.05)
    assert interval.high == pytest.approx(interval.mean + 1.96 * interval.standard_error, abs=0.05)


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        interval = bootstrap_interval(generator.binomial(1, 0.3, 200), resamples=300, seed=seed)
        hits += interval.low <= 0.3 <= interval.high
    assert 180 <= hits <= 199


def test_same_seed_same_interval_another_seed_another() -> None:
    values = list(np.random.default_rng(3).normal(size=300))
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)


def test_a_thousand_resamples_of_5000_items_are_quick() -> None:
    start = time.process_time()
    bootstrap_interval(np.arange(5000.0), resamples=1000)
    assert time.process_time() - start < 1


def test_one_item_has_no_spread() -> None:
    interval = bootstrap_interval([40.0])
    assert (interval.low, interval.high, interval.standard_error) == (40, 40, 0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError):
        bootstrap_interval(values)


def test_a_level_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(DataError, match="0 < level < 1"):
        bootstrap_interval([1.0, 2.0], level=95)
