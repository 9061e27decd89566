"""Methods whose parameters do not sit in one place each, on the ranks of one launch; writes what it measured as JSON.

For every ZeRO stage and method: three steps of two slots each, in which tasks change inside a window and a task is idle,
against plain PyTorch on whole slots. On one rank every slot is split into two micro-batches, so that gradients are summed
over both tasks and rows. Under ZeRO-3 every parameter is partitioned, however small.
Usage (started by tests/distributed.py): method_cells.py FOLDER [METHOD,... [STAGE,...]]
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import TINY_BACKBONES

from mtvl import dist
from mtvl.agreement import check_ranks
from mtvl.config import EngineConfig, MixtureConfig, OptimConfig, RunConfig, TrainConfig
from mtvl.engine import Engine, finish, start
from mtvl.errors import EngineError
from mtvl.model import Model, build_model
from mtvl.optim import build_optimizer, parameter_groups
from mtvl.types import Batch

FOLDER = Path(sys.argv[1])
TASKS = ("vqa", "gqa", "coco")
STEPS = (("vqa", "gqa"), ("gqa", "coco"), ("vqa", "vqa"))
ROWS = 4
METHODS: dict[str, dict[str, Any]] = {
    "adapter": {"name": "adapter", "bottleneck": 4, "share": "up"},
    "adapter_prompt": {"name": "adapter_prompt", "bottleneck": 4, "length": 3, "width": 7},
    "hyperformer": {"name": "hyperformer", "bottleneck": 4, "task_width": 6, "hidden": 5, "code": 3},
    "compacter": {"name": "compacter", "division": 4, "rank": 1, "share_rule": True, "bottleneck": 8, "share": "none"},
    "default_compacter": {"name": "compacter", "bottleneck": 8, "share": "none"},
    "prompt": {"name": "prompt", "length": 3, "width": 7, "share": "none"},
    "prefix": {"name": "prefix", "length": 3, "share": "none"},
    "lora": {"name": "lora", "rank": 3, "dropout": 0.0, "share": "down"},
    "ia3": {"name": "ia3", "share": "none"},
    "vcra": {"name": "vcra", "rank": 3, "share": "none"},
    # on CLIP-T5, whose table of positions is used outside the attention that holds it
    "t5_adapter": {"name": "adapter", "bottleneck": 4, "share": "none"},
    "t5_prefix": {"name": "prefix", "length": 3, "share": "none"},
    # on CLIP-ViL, whose head is trained with every method
    "vil_adapter": {"name": "adapter", "bottleneck": 4, "share": "none"},
    # on BLIP, whose banks are used by blocks of three towers
    "blip_uniadapter": {"name": "uniadapter", "bottleneck": 4, "share": "none"},
}
BACKBONES = {"t5": "clip_t5", "vil": "clip_vil", "blip": "blip"}  # by the begin of a method's name here


def backbone_of(method: str) -> str:
    """The backbone that a method of the table is on."""
    return BACKBONES.get(method.partition("_")[0], "clip_bart")


def make_config(method: str, stage: int) -> RunConfig:
    """The run; with everything partitioned under ZeRO-3."""
    file = FOLDER / f"zero{stage}-{dist.rank()}.json"
    settings = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    file.write_text(json.dumps({"zero_optimization": settings}))
    backbone = backbone_of(method)
    section = TINY_BACKBONES[backbone].section
    still: dict[str, Any] = {"dropout": 0.0}
    if backbone == "blip":
        still = {"text": {**section["text"], "dropout": 0.0}, "vision": {**section["vision"], "drop_path": 0.0}}
    return RunConfig(
        tasks=TASKS,
        paper_compat=True,  # nothing starts at zero: every part has a gradient from the first step on
        backbone={**section, **still},
        petl=METHODS[method],
        mixture=MixtureConfig(slots=2),
        train=TrainConfig(steps=len(STEPS), global_batch=ROWS, micro_batch=ROWS // 2),
        optim=OptimConfig(lr=0.01, weight_decay=0.1, warmup_ratio=0.0, schedule="constant", clip_norm=0.5),
        engine=EngineConfig(str(file)),
    )


def slot(task: str, seed: int, backbone: str) -> Batch:
    """All rows of a slot."""
    random, tiny = torch.Generator().manual_seed(seed), TINY_BACKBONES[backbone]
    return Batch(
        task=task,
        uids=tuple(f"{task}{seed}-{i}" for i in range(ROWS)),
        source_ids=torch.randint(5, tiny.text_rows, (ROWS, 6), generator=random),
        source_mask=torch.ones(ROWS, 6, dtype=torch.bool),
        features=torch.randn(ROWS, 1, *tiny.grid, generator=random),
        target_ids=torch.randint(5, tiny.text_rows, (ROWS, 4), generator=random),
        target_weights=torch.ones(ROWS),
        denominator=float(ROWS),
        loss_weight=0.5,
    )


def pieces(batch: Batch) -> list[Batch]:
    """This rank's rows, two to a micro-batch."""
    found = []
    for first in range(2 * dist.rank(), ROWS, 2 * dist.world_size()):
        rows = slice(first, first + 2)
        tensors = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        found.append(Batch(**{**vars(batch), **tensors, "uids": batch.uids[rows]}))
    return found


def plain(config: RunConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training without DeepSpeed, on one process: whole slots, gradients None for absent tasks."""
    model = build_model(config).train()
    trainable, losses = model.trainable(), []
    groups = [g for g in parameter_groups(trainable, model.tasks_of_parameters(), config.optim) if g.names]
    optimizer = build_optimizer(trainable, groups, config.optim)
    optimizer.allocate(trainable.values())
    for step, tasks in enumerate(STEPS):
        model.zero_grad(set_to_none=True)
        losses.append(0.0)
        for index, task in enumerate(tasks):
            model.set_task(task)
            loss = model(slot(task, 10 * step + index, str(config.backbone["name"])))
            loss.backward()
            losses[-1] += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in trainable.values() if p.grad is not None], config.optim.clip_norm)
        optimizer.begin([g.name for g in groups if g.task in (None, *tasks)], config.optim.lr)
        optimizer.step()
        optimizer.commit()
    return {n: p.detach().clone() for n, p in trainable.items()}, losses


def snapshot(engine: Engine, names: list[str]) -> dict[str, torch.Tensor]:
    """Masters and moments of the named parameters."""
    states = (None, *engine.optimizer.state_names)
    return {f"{s or 'weight'}/{n}": engine.masters.get(n, s) for s in states for n in names}


def check(method: str, stage: int) -> dict[str, Any]:
    """Differences from plain training; what of idle tasks moved, and what of active ones did not."""
    config = make_config(method, stage)
    model: Model = build_model(config)
    owners = model.tasks_of_parameters()
    micro_steps = 2 * ROWS // (2 * dist.world_size())
    engine = Engine(model, parameter_groups(model.trainable(), owners, config.optim), config, micro_steps)
    idle_moved, active_stood, losses = [], [], []
    private = [n for n, owner in owners.items() if owner is not None]
    before = snapshot(engine, private)
    for step, tasks in enumerate(STEPS):
        batches = [
            piece
            for index, task in enumerate(tasks)
            for piece in pieces(slot(task, 10 * step + index, str(config.backbone["name"])))
        ]
        losses.append(engine.train_step(step, batches).loss)
        after = snapshot(engine, private)
        for key, value in after.items():
            owner, is_same = owners[key.partition("/")[2]], torch.equal(before[key], value)
            if owner not in tasks and not is_same:
                idle_moved.append(f"step {step}: {key}")
            if owner in tasks and is_same:
                active_stood.append(f"step {step}: {key}")
        before = after
    expected, expected_losses = plain(config)
    found = {n: engine.masters.get(n) for n in engine.masters.parameters}
    # A bias on the keys shifts all scores of a query alike: its gradient is 0 but for rounding (1e-9 here, 6e-3 and more
    # elsewhere), and Adam makes whole steps of what is rounded differently.
    compared = [n for n in expected if not n.endswith(".k_proj.bias")]
    return {
        "same_names": found.keys() == expected.keys(),
        "parameters": max(float((found[n] - expected[n]).abs().max()) for n in compared),
        "loss": max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True)),
        "idle_moved": idle_moved,
        "active_stood": active_stood,
        "private": len(private),
    }


def different_recipes() -> dict[str, Any]:
    """What ranks say that were given other tasks, then other sizes of the method; and how soon."""
    config, messages, started = make_config("adapter", 2), [], time.monotonic()
    tasks = replace(config, tasks=("vqa", ("gqa", "coco")[dist.rank() % 2]))
    petl = replace(config, petl={**config.petl, "bottleneck": 4 + dist.rank()})
    folder = replace(config, data=replace(config.data, cache=f"/rank{dist.rank()}"))
    for given in (tasks, petl, folder):
        try:
            check_ranks(given)
        except EngineError as error:
            messages.append(str(error))
    return {"messages": messages, "seconds": time.monotonic() - started}


def main() -> None:
    """Run everything; rank 0 writes the results."""
    torch.set_num_threads(1)
    start("cpu")
    methods = sys.argv[2].split(",") if len(sys.argv) > 2 else list(METHODS)
    stages = sys.argv[3].split(",") if len(sys.argv) > 3 else ["0", "1", "2", "3"]
    results = {f"{method}-zero{stage}": check(method, int(stage)) for method in methods for stage in stages}
    results["different_recipes"] = different_recipes()
    if dist.is_main():
        (FOLDER / "results.json").write_text(json.dumps(results, indent=1))
    finish(0)


if __name__ == "__main__":
    main()
