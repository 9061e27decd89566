"""A few training steps of a full-size recipe with random weights, by the trainer itself, and what must hold then."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.backbones.clip_config import BUNDLED, PUBLIC_PRESETS
from mtvl.config import RunConfig, load_run_config
from mtvl.engine import start
from mtvl.errors import ConfigError, near_names
from mtvl.model import Model
from mtvl.train import Run, carry_out, check_recipe
from mtvl.types import kind_owner
from recipe_checks.header import Header
from recipe_checks.world import VOCABULARY

ROWS = 2  # examples of a step, one in each of two micro-batches
EXAMPLES = 10  # of each task, so that a proportional mixture takes another task in each of the first steps


@dataclass(frozen=True)
class Outcome:
    """What a recipe did; it passes without `faults`. `moved`, `idle` and `frozen` count tensors."""

    name: str
    trained: int
    total: int
    losses: tuple[float, ...] = ()
    tasks: tuple[str, ...] = ()  # that took part in a step
    moved: int = 0
    idle: int = 0
    frozen: int = 0
    faults: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_gib: float = 0.0  # of the whole process, libraries included

    def line(self) -> str:
        """One line of text."""
        verdict = "FAIL" if self.faults else "PASS"
        losses = " ".join(f"{loss:.2f}" for loss in self.losses)
        return (
            f"{verdict} {self.name:38} {self.trained:>11,d} of {self.total:>11,d}  tensors moved {self.moved:4d}, idle "
            f"{self.idle:4d}, frozen {self.frozen:4d}  losses {losses:17}  {self.seconds:4.0f} s  "
            f"{self.cpu_seconds:4.0f} s of CPU  {self.peak_gib:4.1f} GiB  {','.join(self.tasks)}"
        )


def reads_pixels(config: RunConfig) -> bool:
    """True for a backbone that takes no stored features, and wants a root of pictures and videos."""
    return config.backbone["name"] == "blip"


def offline(recipe: Path) -> list[str]:
    """What has to change in `recipe` where there is no hub, no GPU and little memory; nothing that is counted or trained.

    Raises ConfigError for weights whose shapes no preset has.
    """
    config = load_run_config(recipe)
    weights = str(config.backbone.get("weights", ""))
    if reads_pixels(config):  # presets, not names of weights, say its sizes
        return [
            "backbone.weights=", f"train.global_batch={ROWS}", f"train.micro_batch={ROWS}", "train.validate_every=0",
            "checkpoint.keep_best=false", "data.workers=0", f"data.max_examples={EXAMPLES}",
        ]  # fmt: skip
    if weights not in PUBLIC_PRESETS:
        raise ConfigError(
            f"{recipe}: no preset is known for 'backbone.weights' {weights!r}; {near_names(weights, PUBLIC_PRESETS)}"
        )
    return [
        "backbone.weights=", f"backbone.preset={PUBLIC_PRESETS[weights]}", f"backbone.tokenizer={BUNDLED / 'tiny'}",
        "backbone.tower=stored", "backbone.tower_weights=", "backbone.frame_tower=stored",
        "backbone.frame_tower_weights=", f"train.global_batch={ROWS}", "train.micro_batch=1", "train.validate_every=0",
        "checkpoint.keep_best=false", "data.workers=0", f"data.max_examples={EXAMPLES}",
    ]  # fmt: skip


def smoke(header: Header, root: Path, folder: Path, *, steps: int = 3, changes: Sequence[str] = ()) -> Outcome:
    """Train the recipe of `header` for `steps` steps on the data root `root`, in the run folder `folder`.

    Everything is the recipe's but what `offline` says and `changes`. MtvlError subclasses are those of the trainer.
    """
    begin, cpu = time.perf_counter(), time.process_time()
    start("cpu")
    words = [f"backbone.tokenizer={root / VOCABULARY}"] if reads_pixels(load_run_config(header.recipe)) else []
    config = load_run_config(header.recipe, (), [
        *words, *offline(header.recipe), f"data.root={root}", f"data.cache={folder / 'cache'}", f"train.steps={steps}",
        f"checkpoint.every_steps={steps}", *changes,
    ])  # fmt: skip
    check_recipe(config)
    run = Run(config, folder)
    before = digests(run.model)
    result = carry_out(run, "never")
    changed = {name for name, digest in digests(run.model).items() if before[name] != digest}
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    expected = split_by_fate(run, records)
    faults = [
        *count_faults(header, run), *movement_faults(changed, expected, run, header.still), *loss_faults(records, steps),
        *([f"the run ended with code {result.code} at step {result.step}"] if (result.code, result.step) != (0, steps)
          else []),
    ]  # fmt: skip
    return Outcome(
        header.name, run.model.plan.num_trainable, run.model.plan.num_total, tuple(r["loss"] for r in records),
        tuple(task for task, seen in run.seen.items() if seen), len(changed - expected["idle"] - expected["frozen"]),
        len(expected["idle"]), len(expected["frozen"]), tuple(faults), time.perf_counter() - begin,
        time.process_time() - cpu, peak_gib(),
    )  # fmt: skip


def digests(model: Model) -> dict[str, str]:
    """Hash of every parameter and buffer by name."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pairs.")}  # queue and teacher
    return {
        name: hashlib.sha256(memoryview(tensor.detach().cpu().contiguous().view(-1).numpy()).cast("B")).hexdigest()
        for name, tensor in tensors.items()
    }


def split_by_fate(run: Run, records: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Names of all tensors: "active" ones have to move, "idle" ones belong to what took no part, "free" ones may do
    either, the rest is "frozen".

    Free is what is zero still and stands before projections that have had one step only: they start at zero, and in
    their first step nothing gets a gradient through them. A task's own projections wait for that task's steps.
    """
    kinds = {
        task: {kind_owner("frame" if is_on_videos(run, task) else "grid"), kind_owner(run.workspace.tasks[task].loss)}
        for task in run.config.tasks
    }
    steps: Counter[str | None] = Counter()
    for record in records:
        tasks = record["losses"]
        steps.update({None, *tasks}.union(*(kinds[task] for task in tasks)))
    owners, trained = run.model.tasks_of_parameters(), run.model.trainable()
    idle = {name for name, owner in owners.items() if not steps[owner]}
    first = run.model.plan.is_task_private and max(steps[task] for task in run.config.tasks) == 1
    free = {n for n, owner in owners.items() if (first or steps[owner] == 1) and n not in idle and not trained[n].any()}
    everything = set(digests(run.model))
    return {"active": set(owners) - idle - free, "idle": idle, "free": free, "frozen": everything - set(owners)}


def is_on_videos(run: Run, task: str) -> bool:
    """True when the examples of `task` have videos rather than pictures."""
    return bool(run.workspace.examples(task, "train")[0].visual.video)


def movement_faults(changed: set[str], expected: Mapping[str, set[str]], run: Run, still: int) -> list[str]:
    """Tensors that moved and should not have, or the other way round; `still` parameters are said to have no part."""
    silent = expected["active"] - changed
    count = sum(parameter.numel() for name, parameter in run.model.trainable().items() if name in silent)
    wrong = {
        "frozen tensors moved": changed & expected["frozen"],
        "tensors of tasks that took no part moved": changed & expected["idle"],
        f"trained tensors stood still, {count:,} parameters where the header says {still:,}": silent
        if count != still
        else (),
    }
    faults = [f"{len(names)} {what}: {', '.join(sorted(names)[:3])}" for what, names in wrong.items() if names]
    return (
        faults
        if silent or not still
        else [*faults, f"the header says that {still:,} parameters stand still, all moved"]
    )


def count_faults(header: Header, run: Run) -> list[str]:
    """Where plan, model and engine do not count what the header says."""
    plan = run.model.plan
    found = {
        "the plan": (plan.num_trainable, plan.num_total),
        "the model": (
            sum(p.numel() for p in run.model.trainable().values()), sum(p.numel() for p in run.model.parameters())
        ),
        "the engine": (run.engine.num_trainable, header.total),
    }  # fmt: skip
    wanted = (header.trained, header.total)
    return [
        f"the header says {wanted[0]:,d} of {wanted[1]:,d}, {who} counts {count[0]:,d} of {count[1]:,d}"
        for who, count in found.items()
        if count != wanted
    ]


def loss_faults(records: Iterable[Mapping[str, Any]], steps: int) -> list[str]:
    """Steps that are not in the log, were skipped, or whose loss or gradient is not finite."""
    records = list(records)
    faults = [] if [r["step"] for r in records] == list(range(1, steps + 1)) else [f"expected {steps} logged steps"]
    for record in records:
        if record["skipped"] or not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
            faults.append(f"step {record['step']}: loss {record['loss']}, gradient norm {record['grad_norm']}")
    return faults


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20
