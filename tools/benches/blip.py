"""A training step of BLIP on questions at ViT-B size, 224 pixels, batch 8, two threads, float32: UniAdapter (r=128) against
full fine-tuning, and UniTrans (r=64) against UniAdapter. Every side lives in a process of its own and they take turns."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benches.result import Result, compare, interleaved
from benches.step import WORKERS, Worker

FULL, UNIADAPTER, UNITRANS = "full", "UniAdapter r=128", "UniTrans r=64"
SIDES = {
    FULL: ("petl.name=full",),
    UNIADAPTER: ("petl.name=uniadapter", "petl.bottleneck=128"),
    UNITRANS: ("petl.name=unitrans", "petl.rank=64"),
}


def measure(rounds: int) -> list[Result]:
    """Time and peak memory of a step."""
    return measure_with((), rounds)


def measure_with(changes: Sequence[str], rounds: int) -> list[Result]:
    """The same with `changes` (key=value) of every side's recipe, for smaller models."""
    workers: dict[str, Worker] = {}
    try:
        for side, own in SIDES.items():
            workers[side] = Worker([sys.executable, str(WORKERS / "blip_step.py"), *changes, *own])
            workers[side].wait_until_prepared()
        seconds = interleaved("blip", {side: worker.step for side, worker in workers.items()}, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    memory = {side: worker.mebibytes[1:] for side, worker in workers.items()}
    notes = {side: worker.note for side, worker in workers.items()}
    return [
        *compare(seconds, "s", baseline=FULL, notes=notes),
        *_beside(seconds, "s", ""),
        *compare({f"{s}: peak memory": m for s, m in memory.items()}, "MiB", baseline=f"{FULL}: peak memory"),
        *_beside(memory, "MiB", ": peak memory"),
    ]


def _beside(values: dict[str, list[float]], unit: str, ending: str) -> list[Result]:
    """UniTrans with its ratio to UniAdapter."""
    names = {side: f"{side}{ending}" for side in (UNIADAPTER, UNITRANS)}
    found = compare({name: values[side] for side, name in names.items()}, unit, baseline=names[UNIADAPTER])
    return [result for result in found if result.name == names[UNITRANS]]
