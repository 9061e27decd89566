"""A training step at BART-base size: single adapter against full fine-tuning and against the peers' libraries.

Every side lives in a process of its own and they take turns. `peft` and `adapters` want other versions of transformers
than this project, so they run with the Python of an environment of their own, named by MTVL_BENCH_PEFT and
MTVL_BENCH_ADAPTERS (docs/performance.md says how to make them); a side that is not there is left out with a message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benches.result import Result, compare, interleaved
from mtvl.errors import MtvlError

WORKERS = Path(__file__).parent / "workers"
BF16 = ("train.precision=bf16", "engine.file=ds_configs/zero2_bf16.json")
PEAK = "matrix product"
FULL, ADAPTER, ADAPTER_BF16 = "full", "single adapter", "single adapter, bf16"
SIDES: dict[str, tuple[str, ...]] = {
    FULL: ("own_step.py", "full"),
    ADAPTER: ("own_step.py", "adapter"),
    ADAPTER_BF16: ("own_step.py", "adapter", *BF16),
    "stock BART, full": ("stock_step.py", "full"),
    "stock BART, nothing trained": ("stock_step.py", "frozen"),
    "peft LoRA r=128": ("stock_step.py", "peft"),
    "adapters": ("stock_step.py", "adapters"),
    PEAK: ("matrix_product.py",),
}
ENVIRONMENTS = {"peft LoRA r=128": "MTVL_BENCH_PEFT", "adapters": "MTVL_BENCH_ADAPTERS"}


@dataclass
class Worker:
    """A measured process, with some more variables. Raises MtvlError, with where to look, when it ends early."""

    command: list[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    operations: float = 0.0  # of a step's matrix products
    mebibytes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **self.variables}
        )

    def wait_until_prepared(self) -> None:
        """Read the note."""
        first = self._read()
        self.note, self.operations = str(first["note"]), float(first.get("operations", 0))

    def _read(self) -> dict[str, float | str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise MtvlError(f"{' '.join(self.command)} ended with exit code {self.process.wait()}; its output is above")
        return json.loads(line)

    def begin(self) -> None:
        """Have it make one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        """Time of the step that was begun; its peak memory is kept in `mebibytes`."""
        answer = self._read()
        self.mebibytes.append(float(answer["mebibytes"]))
        return float(answer["seconds"])

    def step(self) -> float:
        """Time of one step."""
        self.begin()
        return self.seconds()

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def command(side: str) -> list[str]:
    """How to start `side`, or nothing where its environment is not there."""
    script, *arguments = SIDES[side]
    python = os.environ.get(ENVIRONMENTS[side], "") if side in ENVIRONMENTS else sys.executable
    if not python:
        print(f"step: '{side}' is left out: {ENVIRONMENTS[side]} names no Python with that library")
        return []
    if not Path(python).is_file():
        raise MtvlError(f"{ENVIRONMENTS[side]} expects the path of a Python, found {python}")
    return [python, str(WORKERS / script), *arguments]


def measure(rounds: int) -> list[Result]:
    """Time and peak memory of one step, each against full fine-tuning in the same engine, and how near its matrix
    products come to the machine's peak in float32."""
    return measure_sides({side: found for side in SIDES if (found := command(side))}, rounds)


def measure_sides(commands: dict[str, list[str]], rounds: int) -> list[Result]:
    """The same for processes that speak the workers' protocol; the first is the baseline. Rates need the side PEAK."""
    workers: dict[str, Worker] = {}
    try:
        for side, arguments in commands.items():
            workers[side] = Worker(arguments)
            workers[side].wait_until_prepared()
        values = interleaved("step", {side: worker.step for side, worker in workers.items()}, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    baseline = next(iter(workers))
    memory = {side: worker.mebibytes[1:] for side, worker in workers.items() if side != PEAK}
    rates = {
        f"{side}: rate": [worker.operations / t / 1e9 for t in values[side]]
        for side, worker in workers.items()
        if PEAK in workers and worker.operations and side != ADAPTER_BF16
    }
    values.pop(PEAK, None)
    notes = {side: worker.note for side, worker in workers.items()}
    return [
        *compare(values, "s", baseline=baseline, notes=notes),
        *compare(
            {f"{s}: peak memory": m for s, m in memory.items()}, "MiB", baseline=f"{baseline}: peak memory"
        ),
        *compare(rates, "GFLOP/s", baseline=f"{PEAK}: rate"),
    ]  # fmt: skip
