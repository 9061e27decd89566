"""A training epoch at BART-base size: features from the store against the tower online, in one engine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benches.result import Result, compare, interleaved
from mtvl.backbones.clip_config import BUNDLED
from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import load_run_config
from mtvl.data.collate import Collator, FeatureSource
from mtvl.data.media import open_image
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.data.schedule import Schedule
from mtvl.engine import Engine
from mtvl.loader import Loader
from mtvl.train import Run
from mtvl.types import ImageEncoder

TASKS = ("vqa",)
BATCH, STEPS = 16, 2  # examples of a step, steps of a round
EXAMPLES = 64
BASE = (  # random weights cost the same time; ids of the small tokenizer lie within BART's
    "backbone.preset=base", f"backbone.tokenizer={BUNDLED / 'tiny'}", "backbone.weights=", "backbone.tower=rn101",
    "petl.reduction=8",
)  # fmt: skip
ONLINE, STORE = "tower online", "features stored"


class Online:
    """Features computed by the tower whenever they are asked for."""

    def __init__(self, tower: ImageEncoder) -> None:
        self.grid, self._tower = tower.grid, tower

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        """(len(paths), P, F) float32."""
        return self._tower.encode([open_image(path) for path in paths])


def measure(rounds: int) -> list[Result]:
    """Samples a second of whole training steps, in turns; the ratio is that of the time of an epoch."""
    return measure_epoch(rounds, BASE)


def measure_epoch(rounds: int, changes: Sequence[str], batch: int = BATCH, examples: int = EXAMPLES) -> list[Result]:
    """The same for the default recipe with `changes`."""
    with tempfile.TemporaryDirectory(prefix="mtvl-bench-") as folder:
        root = ensure_miniworld(Path(folder) / "miniworld", size="tiny")
        config = load_run_config(DEFAULT_RECIPE, TASKS, [
            *changes, f"data.root={root}", f"data.cache={Path(folder) / 'cache'}", f"data.max_examples={examples}",
            "data.workers=0", f"train.steps={(rounds + 1) * 2 * STEPS}", f"train.global_batch={batch}",
            f"train.micro_batch={batch}",
        ])  # fmt: skip
        run = Run(config, Path(folder) / "run")
        trainer = Trainer(run.engine, loaders_of(run))
        sides = {name: partial(trainer.rate, name, batch) for name in (ONLINE, STORE)}
        values = interleaved("epoch", sides, rounds)
        run.loader.close()
    tower = run.model.backbone.tower("grid").name
    note = (
        f"{run.model.backbone.config.preset} size, {run.engine.num_trainable:,} trained, batch {batch}, tower {tower}"
    )
    return compare(values, "samples/s", baseline=ONLINE, notes={STORE: note})


def loaders_of(run: Run) -> dict[str, Loader]:
    """The run's own loader, and one whose collator asks the tower."""
    space, config = run.workspace, run.config
    limits = {name: task.limits for name, task in space.tasks.items()}
    online: FeatureSource = Online(run.model.backbone.tower("grid"))
    collator = Collator(space.tokenizer, online, limits, seed=config.seed)
    examples = {task: space.examples(task, "train") for task in config.tasks}
    sizes = {task: len(rows) for task, rows in examples.items()}
    schedule = Schedule(sizes, config.mixture, config.train.global_batch, config.seed)
    return {ONLINE: Loader(examples, space.tasks, schedule, collator, config, 0, 1), STORE: run.loader}


class Trainer:
    """The training loop without reports, over the loader of either side."""

    def __init__(self, engine: Engine, loaders: Mapping[str, Loader]) -> None:
        self.engine, self.loaders, self.next_step = engine, loaders, 0

    def rate(self, side: str, batch: int) -> float:
        """Samples a second over STEPS training steps."""
        begin = time.perf_counter()
        for step, batches in self.loaders[side].iterate(self.next_step, self.next_step + STEPS):
            self.engine.train_step(step, batches)
        self.next_step += STEPS
        return STEPS * batch / (time.perf_counter() - begin)
