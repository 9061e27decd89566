"""Throughput of two processes with one thread each against twice that of one, on the same global batch."""

from __future__ import annotations

import os
import socket
import sys

from benches.result import Result, compare, interleaved
from benches.step import WORKERS, Worker
from mtvl.errors import MtvlError

SCRIPT = WORKERS / "rank_step.py"
# Rows of a step over all ranks, and the ratio that is promised.
SIZES = {"base": (16, 0.80), "tiny": (64, 0.60)}
SIZES_VARIABLE = "MTVL_BENCH_RANKS"
NAMES = {"base": "BART-base size", "tiny": "tiny default"}


class Ranks:
    """The processes of one run, which step together."""

    def __init__(self, size: str, rows: int, world: int) -> None:
        self.rows = rows
        shared = {
            "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port(), "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        command = [sys.executable, str(SCRIPT), size, str(rows)]
        self.workers = [
            Worker(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)
        ]

    def prepare(self) -> str:
        """Wait for all; their note."""
        for worker in self.workers:
            worker.wait_until_prepared()
        return self.workers[0].note

    def rate(self) -> float:
        """Samples a second of one step, which ends with the last rank."""
        for worker in self.workers:
            worker.begin()
        return self.rows / max([worker.seconds() for worker in self.workers])

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.close()


def measure(rounds: int) -> list[Result]:
    """Both sizes, or those that MTVL_BENCH_RANKS names; the ratio is that to twice one process."""
    names = [name for name in os.environ.get(SIZES_VARIABLE, ",".join(SIZES)).split(",") if name]
    if unknown := [name for name in names if name not in SIZES]:
        raise MtvlError(f"{SIZES_VARIABLE} names {unknown[0]!r}; known: {', '.join(SIZES)}")
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2:
        raise MtvlError("ranks: two processes want two cores, and this process may use one; run it on more")
    return [result for name in names for result in measure_size(name, rounds)]


def measure_size(size: str, rounds: int) -> list[Result]:
    """One size, the two runs in turns."""
    rows, wanted = SIZES[size]
    twice, two = f"{NAMES[size]}: twice one process", f"{NAMES[size]}: two processes"
    runs: dict[str, Ranks] = {}
    try:
        for name, world in ((twice, 1), (two, 2)):
            runs[name] = Ranks(size, rows, world)
        notes = {name: run.prepare() for name, run in runs.items()}
        sides = {twice: lambda: 2 * runs[twice].rate(), two: lambda: runs[two].rate()}
        values = interleaved("ranks", sides, rounds)
    finally:
        for run in runs.values():
            run.close()
    notes[two] = f"one thread each; at least {wanted:.2f} is promised"
    return compare(values, "samples/s", baseline=twice, notes=notes)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
