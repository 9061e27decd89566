"""Peak memory and time of the evaluation of retrieval, for 1,000 and for 5,000 pictures with a text each.

A small BLIP with random weights on random pixels; its tokens of one picture take 64 KiB, so that pictures held in memory would
be seen: 62 MiB of them, or 312 MiB. What grows with their number is vectors and pairs alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benches.result import Result, compare, interleaved
from benches.step import WORKERS, Worker

PICTURES = (1000, 5000)


def measure(rounds: int) -> list[Result]:
    """One evaluation after the other, each side in a process of its own."""
    return measure_pictures(PICTURES, rounds)


def measure_pictures(counts: Sequence[int], rounds: int) -> list[Result]:
    """The same for other numbers of pictures; the first is the baseline."""
    workers: dict[str, Worker] = {}
    try:
        for count in counts:
            worker = workers[f"{count:,} pictures"] = Worker([sys.executable, str(WORKERS / "rerank.py"), str(count)])
            worker.wait_until_prepared()
        seconds = interleaved("rerank", {side: worker.step for side, worker in workers.items()}, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    first, notes = next(iter(workers)), {side: worker.note for side, worker in workers.items()}
    memory = {f"{side}: peak memory": worker.mebibytes[1:] for side, worker in workers.items()}
    return [
        *compare(seconds, "s", baseline=first, notes=notes),
        *compare(memory, "MiB", baseline=f"{first}: peak memory"),
    ]
