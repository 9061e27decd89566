"""A training step of BLIP on questions at ViT-B size, 224 pixels, batch 8, two threads, float32: UniAdapter (r=128) against
full fine-tuning, then UniTrans (r=64) against UniAdapter. Two processes take turns at a time: three of them together fill
24 GiB, and a machine that swaps or drops its file cache measures that."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benches.result import Result
from benches.step import WORKERS, measure_sides

FULL, UNIADAPTER, UNITRANS = "full", "UniAdapter r=128", "UniTrans r=64"
SIDES = {
    FULL: ("petl.name=full",),
    UNIADAPTER: ("petl.name=uniadapter", "petl.bottleneck=128"),
    UNITRANS: ("petl.name=unitrans", "petl.rank=64"),
}
PAIRS = ((FULL, UNIADAPTER), (UNIADAPTER, UNITRANS))


def measure(rounds: int) -> list[Result]:
    """Time and peak memory of a step."""
    return measure_with((), rounds)


def measure_with(changes: Sequence[str], rounds: int) -> list[Result]:
    """The same with `changes` (key=value) of every side's recipe, for smaller models."""
    worker = [sys.executable, str(WORKERS / "blip_step.py"), *changes]
    return [
        result for pair in PAIRS for result in measure_sides({side: [*worker, *SIDES[side]] for side in pair}, rounds)
    ]
