"""What a benchmark returns, and the one way in which sides are compared: round after round, every side in each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mtvl.report import Progress


@dataclass(frozen=True)
class Result:
    """One measured number: the median over `rounds`, in `unit`; `ratio` = median / median of the result `baseline`."""

    name: str
    median: float
    unit: str
    rounds: int
    baseline: str = ""
    ratio: float = 0.0
    note: str = ""


def interleaved(name: str, sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Values of every side, measured in turns, so that a machine that grows busy slows all sides alike.

    Every second round goes backwards: what comes after a side that fills caches and memory is not always the same one.
    Every side runs once more before the first round, unmeasured: imports, caches and page faults belong to nobody.
    """
    progress = Progress(name, (rounds + 1) * len(sides))
    values: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for i, (side, run) in enumerate(list(sides.items())[:: -1 if turn % 2 else 1]):
            value = run()
            if turn:
                values[side].append(value)
            progress.update(turn * len(sides) + i + 1, side)
    return values


def compare(
    values: Mapping[str, list[float]], unit: str, *, baseline: str = "", notes: Mapping[str, str] | None = None
) -> list[Result]:
    """A result for every side, with its ratio to the side `baseline` (0.0 where that median is 0)."""
    medians = {side: statistics.median(found) for side, found in values.items()}
    below = medians.get(baseline, 0.0)
    return [
        Result(
            side,
            median,
            unit,
            len(values[side]),
            baseline,
            median / below if below else 0.0,
            (notes or {}).get(side, ""),
        )
        for side, median in medians.items()
    ]
