"""Cells that are whole runs of a recipe, by the project's own trainer, and the plain runs that they are held against."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from mtvl import dist
from mtvl.config import RunConfig, load_run_config
from mtvl.train import train
from stage_checks.cells import RUNS, Cell, Row
from stage_checks.plain import train_plainly

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["vqa", "gqa", "nlvr2", "coco"]
GLOBAL_BATCH = 16
EXPORT = Path("export") / "adapter.safetensors"


def configuration(method: str, stage: int, micro: int, steps: int, overrides: Sequence[str]) -> RunConfig:
    """The recipe of a cell: fp32, no dropout, generative tasks that take turns, two a step."""
    recipe, own = RUNS[method]
    return load_run_config(
        ROOT / recipe, TASKS,
        [f"engine.file=ds_configs/zero{stage}.json", f"train.steps={steps}", f"train.micro_batch={micro}",
         f"train.global_batch={GLOBAL_BATCH}", "checkpoint.every_steps=1000000", "checkpoint.keep_best=false",
         "data.max_examples=400", "mixture.law=equal", "mixture.slots=2", "optim.lr=1e-3", *own, *overrides],
    )  # fmt: skip


def plain_folder(folder: Path, method: str) -> Path:
    """Where the plain run of a method is."""
    return folder / f"{method}-plain"


def run_plainly(folder: Path, method: str, steps: int, overrides: Sequence[str]) -> None:
    """The plain run of a method, unless it is there."""
    target = plain_folder(folder, method)
    if not (target / EXPORT).is_file():
        shutil.rmtree(target, ignore_errors=True)
        train_plainly(configuration(method, 0, GLOBAL_BATCH, steps, overrides), target)


def run(folder: Path, cell: Cell, steps: int, overrides: Sequence[str]) -> None:
    """Train a cell on the ranks of this launch, from the start: what an interrupted one left is no part of it."""
    if dist.is_main():
        shutil.rmtree(folder / cell.name, ignore_errors=True)
    dist.barrier()
    config = configuration(cell.method, cell.stage, cell.micro, steps, overrides)
    if code := train(config, folder / cell.name, resume="never").code:
        raise SystemExit(code)  # stopped by a signal: no whole run to compare


def compare(folder: Path, cell: Cell) -> Row:
    """Largest differences of a cell from the plain run of its method."""
    run, plain = folder / cell.name, plain_folder(folder, cell.method)
    losses, expected = (
        [json.loads(x)["loss"] for x in (f / "log.jsonl").read_text().splitlines()] for f in (run, plain)
    )
    tensors, wanted = (load_file(str(f / EXPORT)) for f in (run, plain))
    trained = {name for name in tensors if not name.startswith("rows/")}
    if trained != set(wanted):
        found = f"trained {len(trained)} tensors, the plain run {len(wanted)}: {sorted(trained ^ set(wanted))[:3]}"
        return Row(cell.name, float("nan"), float("nan"), losses[-1], (found,))
    worst = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    drift = max(float((wanted[k] - tensors[k]).abs().max()) for k in wanted)
    return Row(cell.name, worst, drift, losses[-1])
