"""Toys on every ZeRO stage that are killed and go on: with dropout, accumulation, epochs that a kill cuts, and checkpoints.

Usage (started by tests/distributed.py): killed_job.py FOLDER HOW, with HOW one of
all STEP   every stage trains until STEP; in the middle of the last stage's next step all ranks are killed
save STEP  the same, but rank 0 alone is killed, with half of the last stage's checkpoint of STEP written
end        every stage trains to its end
Before the first kill every stage is trained in one piece, into FOLDER/straight.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from engine_cells import STAGES, make_config
from toy_model import TASKS, Toy, split, toy_groups, toy_slot

from mtvl import checkpoint, dist
from mtvl.config import MixtureConfig
from mtvl.data.schedule import Schedule
from mtvl.engine import Engine, finish, lost_ranks_named, start, state
from mtvl.errors import LostRankError
from mtvl.report import JsonLines
from mtvl.saving import Saver
from mtvl.types import Batch

STEPS, EVERY, ROWS, SLOTS, MICRO = 8, 2, 8, 2, 2
SIZES = {"a": 11, "b": 7, "c": 5}  # epochs end inside slots
SCHEDULE = Schedule(SIZES, MixtureConfig(law="equal", slots=SLOTS, block=7), ROWS, 3)
IDENTITY = {"schedule": SCHEDULE.fingerprint}
DATA = {task: toy_slot(40 + number, task, SIZES[task]) for number, task in enumerate(TASKS)}


def slots_of(step: int) -> list[Batch]:
    """The rows that the schedule names."""
    found = []
    for slot in SCHEDULE.slots(step):
        whole, ids = DATA[slot.task], list(slot.ids)
        rows = {k: v[ids] for k, v in vars(whole).items() if isinstance(v, torch.Tensor)}
        uids = tuple(whole.uids[i] for i in ids)
        found.append(replace(whole, **rows, uids=uids, denominator=float(ROWS), loss_weight=1.0 / SLOTS))
    return found


def die() -> None:
    """Nothing of ours runs after it."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_together(engine: Engine) -> Callable[[Batch], torch.Tensor]:
    """A micro-step that is one, or on its second call the end of all ranks, in the middle of a window."""
    inner, calls = engine.micro_step, 0

    def micro_step(batch: Batch) -> torch.Tensor:
        nonlocal calls
        if (calls := calls + 1) == 2:
            dist.barrier()
            die()
        return inner(batch)

    return micro_step


def die_with_half_a_file() -> None:
    """From now on the thread that writes a checkpoint gets half through the tensors."""
    inner = state.save_file

    def save_file(tensors: dict[str, torch.Tensor], file: str) -> None:
        inner(tensors, file)
        if file.endswith(state.TENSORS):
            os.truncate(file, os.path.getsize(file) // 2)
            die()

    state.save_file = save_file  # type: ignore[assignment]


def train(stage: str, run: Path, how: str = "end", stop: int = STEPS, is_last: bool = False) -> None:
    """Train a stage from its newest checkpoint on, until `stop`."""
    model = Toy(dropout=0.3)
    engine = Engine(model, toy_groups(model), make_config(stage, slots=SLOTS), SLOTS * MICRO)
    torch.manual_seed(50 + dist.rank())
    checkpoint.remove_unfinished(run)
    found, first, seen = checkpoint.resolve_resume("auto", run), 0, Counter[str]()
    if found is not None:
        engine.load(found[0])
        first, seen = found[1], Counter(checkpoint.read_state(found[0], IDENTITY)["progress"]["samples"])
    log = JsonLines(run / "log.jsonl", keep_below_step=first) if dist.is_main() else None
    saver = Saver(run, 2, background=True)
    print(f"{stage} from step {first}", flush=True)
    for step in range(first, STEPS):
        if step == stop:
            saver.wait()  # a kill while saving is another case
            if is_last and how == "all":
                engine.micro_step = die_together(engine)  # type: ignore[method-assign]
            elif not is_last:
                return  # in no orderly way; the process ends in the last stage
        if is_last and how == "save" and step + 1 == stop:
            die_with_half_a_file()
        report = engine.train_step(step, split(slots_of(step), dist.rank(), dist.world_size(), MICRO))
        seen.update(report.num_examples)
        if log is not None:
            log.write({"step": step + 1, "loss": report.loss, "norm": report.grad_norm, "samples": dict(seen)})
        if (step + 1) % EVERY == 0 or step + 1 == STEPS:
            saver.save(step + 1, lambda: writer_of(engine), IDENTITY, {"samples": dict(seen)}, [first])
        saver.poll()
    saver.close()


def writer_of(engine: Engine) -> Callable[[Path], None]:
    """What a checkpoint holds, copied."""
    return engine.snapshot().write


def main(folder: Path, how: str, stop: int, number: int) -> None:
    """One start of all runs; another stage comes last each time."""
    torch.set_num_threads(1)
    start("cpu")
    if number == 0:
        for stage in STAGES:
            train(stage, folder / "straight" / stage)
    order = [*STAGES[number:], *STAGES[:number]][::-1]
    try:
        with lost_ranks_named(lambda: "go on"):
            for stage in order:
                train(stage, folder / "killed" / stage, how, stop, is_last=stage == order[-1])
    except LostRankError as error:
        print(error, flush=True)
        os._exit(error.exit_code)
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]
    finish(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
