"""How long training stands still for a checkpoint: written beside training, and waited for, at BART-base size."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benches.result import Result, compare, interleaved
from benches.workers.own_step import build
from mtvl.engine import Engine
from mtvl.errors import MtvlError
from mtvl.saving import Saver
from mtvl.types import Batch

STEP, BESIDE, WAITING = "a step", "standstill, written in the background", "standstill, waited for"
AFTER = "a step beside a save"
MEGABYTE = 1e6


class Saves:
    """Steps of one engine, with saves of either kind between them."""

    def __init__(self, engine: Engine, batch: Batch, folder: Path) -> None:
        self.engine, self.batch, self.folder = engine, batch, folder
        self.savers = {
            name: Saver(folder / str(number), 1, background=name == BESIDE)
            for number, name in enumerate((BESIDE, WAITING))
        }
        self.done = 0
        self.after: list[float] = []  # steps that ran while a checkpoint was written

    def step(self) -> float:
        """Seconds of a training step."""
        begin = time.perf_counter()
        self.engine.train_step(self.done, [self.batch])
        self.done += 1
        return time.perf_counter() - begin

    def stall(self, name: str) -> float:
        """Seconds for which a save of this kind keeps training; a step follows at once."""
        saver = self.savers[name]
        saver.save(self.done, lambda: self.engine.snapshot().write, {}, {})
        seconds = saver.stall_seconds()
        beside = self.step()
        if name == BESIDE:
            self.after.append(beside)
        saver.wait()
        saver.stall_seconds()
        return seconds

    def bytes(self) -> int:
        """Size of a checkpoint."""
        newest = max(self.folder.rglob("step_*"), key=lambda p: p.stat().st_mtime)
        return sum(file.stat().st_size for file in newest.iterdir())

    def close(self) -> None:
        """End the threads."""
        for saver in self.savers.values():
            saver.close()


def measure(rounds: int) -> list[Result]:
    """Seconds, each against a step; and the size of a checkpoint."""
    return measure_saves(rounds)


def measure_saves(rounds: int, *changes: str) -> list[Result]:
    """The same with other settings of the engine."""
    engine, batch = build("adapter", *changes)
    with tempfile.TemporaryDirectory(prefix="mtvl-bench-") as folder:
        saves = Saves(engine, batch, Path(folder))
        try:
            sides = {STEP: saves.step, BESIDE: lambda: saves.stall(BESIDE), WAITING: lambda: saves.stall(WAITING)}
            values = interleaved("save", sides, rounds)
            size = saves.bytes() / MEGABYTE
        finally:
            saves.close()
    values[AFTER] = saves.after[1:]
    if size <= 0:
        raise MtvlError(f"save: the checkpoints in {folder} are empty")
    note = f"{engine.num_trainable:,} trained, ZeRO-{engine.zero_stage}"
    return [
        *compare(values, "s", baseline=STEP, notes={STEP: note}),
        Result("a checkpoint", size, "MB", 1, note="weights and moments in float32, with the rest of the state"),
    ]
