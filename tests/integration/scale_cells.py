"""Runs on the ranks of one launch; writes what it measured as JSON.

Usage (started by tests/distributed.py): scale_cells.py WORLD FOLDER PART, with PART one of
first  validation and evaluation under ZeRO-2 and ZeRO-3, and the first third of a run that changes ranks and stages
last   the last third of that run
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mtvl import dist
from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import RunConfig, load_run_config
from mtvl.engine import Engine, finish, start
from mtvl.errors import MtvlError
from mtvl.evaluate import evaluate
from mtvl.train import train

TASKS = ["vqa", "nlvr2", "coco"]
STEPS = 6


def config(world: Path, folder: Path, stage: str, *overrides: str) -> RunConfig:
    """A short run on the smallest miniworld."""
    small = [
        f"data.root={world}", f"data.cache={folder / 'cache'}", "data.max_examples=24", f"train.steps={STEPS}",
        "train.global_batch=6", "train.micro_batch=3", "mixture.slots=2", "checkpoint.keep_best=false",
        "evaluate.captions_tokenizer=python", "evaluate.bootstrap=10", f"engine.file=ds_configs/{stage}.json",
    ]  # fmt: skip
    return load_run_config(DEFAULT_RECIPE, TASKS, [*small, *overrides])


def train_until(stop: int, run: RunConfig, folder: Path) -> int:
    """Train, with a signal to the last rank in step `stop` (from 0); exit code of the run."""
    step = Engine.train_step

    def interrupted(engine: Engine, number: int, batches: list[Any]) -> Any:
        if number == stop and dist.rank() == dist.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, number, batches)

    Engine.train_step = interrupted  # type: ignore[method-assign]
    try:
        return train(run, folder).code
    finally:
        Engine.train_step = step  # type: ignore[method-assign]


def validated(world: Path, folder: Path) -> dict[str, Any]:
    """Metrics of validation in training, and of evaluations of one export, whole and partitioned, by stage."""
    # 3 rows in batches of 1: rank 0 has two batches, rank 1 has one.
    uneven = [
        "train.steps=2", "train.validate_every=1", "train.validate_examples=3", "evaluate.batch=1", "checkpoint.keep_best=true",
    ]  # fmt: skip
    found: dict[str, Any] = {}
    for stage in ("zero2", "zero3"):
        found[stage] = train(config(world, folder, stage, *uneven), folder / f"validated_{stage}").metrics
    overrides = ["data.max_examples=5", "evaluate.batch=2", "engine.file=ds_configs/zero3.json"]
    for name in ("false", "true"):
        results = evaluate(
            folder / "validated_zero2", out=folder / f"eval_{name}" / "eval.json",
            overrides=[*overrides, f"evaluate.partitioned={name}"],
        )  # fmt: skip
        lines = [(folder / f"eval_{name}" / "predictions" / f"{t}.jsonl") for t in TASKS]
        found[f"partitioned {name}"] = results, [file.read_text() for file in lines] if dist.is_main() else []
    for key, more in (("mixed", ["evaluate.mixed=true"]), ("stage", ["engine.file=ds_configs/zero2.json"])):
        try:
            evaluate(folder / "validated_zero2", overrides=[*overrides, "evaluate.partitioned=true", *more])
        except MtvlError as error:
            found[key] = str(error)
    return found


def main() -> None:
    """Run the part; rank 0 writes the results."""
    world, folder, part = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    start("cpu")
    results: dict[str, Any] = {}
    if part == "first":
        results = validated(world, folder)
        results["code"] = train_until(1, config(world, folder, "zero2"), folder / "moving")
    else:
        results["code"] = train(config(world, folder, "zero1"), folder / "moving").code
    if dist.is_main():
        (folder / f"{part}.json").write_text(json.dumps(results))
    finish(0)


if __name__ == "__main__":
    main()
