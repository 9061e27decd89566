"""Cells that are three steps of a method whose parameters do not sit in one place each, by the engine, against plain PyTorch.

Three steps of two slots each, in which tasks change inside a window and a task is idle, on whole slots in plain PyTorch.
On one rank every slot is split into two micro-batches, so that gradients are summed over both tasks and rows. Under ZeRO-3
every parameter is partitioned, however small.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

from mtvl import dist
from mtvl.config import EngineConfig, MixtureConfig, OptimConfig, RunConfig, TrainConfig
from mtvl.engine import Engine
from mtvl.errors import MtvlError
from mtvl.model import Model, build_model
from mtvl.optim import build_optimizer, parameter_groups
from mtvl.types import Batch
from stage_checks.cells import ADDS_NOTHING, STEPS, Cell, Row

TASKS = ("vqa", "gqa", "coco")
WINDOWS = (("vqa", "gqa"), ("gqa", "coco"), ("vqa", "vqa"))  # the tasks of each step
ROWS = 4
BACKBONES = {"t5": "clip_t5", "vil": "clip_vil", "blip": "blip"}  # by the begin of a method's name here


@functools.cache
def tiny_backbones() -> dict[str, Any]:
    """The tiny backbones that the tests are made with, so that a new one has one entry. MtvlError without pytest."""
    if importlib.util.find_spec("pytest") is None:
        raise MtvlError("three steps of a method train the tiny models of tests/conftest.py, which imports pytest; expected "
                        "an environment with the tests' packages, found none: run pip install -e '.[test]'")  # fmt: skip
    file = Path(__file__).resolve().parents[2] / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tests_of_mtvl", file)  # `conftest` is what pytest calls every one
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module.TINY_BACKBONES


def backbone_of(method: str) -> str:
    """The backbone that a method of the table is on."""
    return BACKBONES.get(method.partition("_")[0], "clip_bart")


def make_config(folder: Path, method: str, stage: int) -> RunConfig:
    """The run; with everything partitioned under ZeRO-3."""
    file = folder / f"zero{stage}-{dist.rank()}.json"
    settings = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    file.write_text(json.dumps({"zero_optimization": settings}))
    return recipe(method, str(file))


def recipe(method: str, engine: str) -> RunConfig:
    """The run, on the engine file that is named."""
    backbone = backbone_of(method)
    section = tiny_backbones()[backbone].section
    still: dict[str, Any] = {"dropout": 0.0}
    if backbone == "blip":
        still = {"text": {**section["text"], "dropout": 0.0}, "vision": {**section["vision"], "drop_path": 0.0}}
    return RunConfig(
        tasks=TASKS,
        paper_compat=True,  # nothing starts at zero: every part has a gradient from the first step on
        backbone={**section, **still},
        petl=STEPS[method],
        mixture=MixtureConfig(slots=2),
        train=TrainConfig(steps=len(WINDOWS), global_batch=ROWS, micro_batch=ROWS // 2),
        optim=OptimConfig(lr=0.01, weight_decay=0.1, warmup_ratio=0.0, schedule="constant", clip_norm=0.5),
        engine=EngineConfig(engine),
    )


def slot(task: str, seed: int, backbone: str) -> Batch:
    """All rows of a slot."""
    random, tiny = torch.Generator().manual_seed(seed), tiny_backbones()[backbone]
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


@functools.cache
def plain(method: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same training without DeepSpeed, on one process: whole slots, gradients None for absent tasks."""
    config = recipe(method, "")
    model = build_model(config).train()
    trainable, losses = model.trainable(), []
    groups = [g for g in parameter_groups(trainable, model.tasks_of_parameters(), config.optim) if g.names]
    optimizer = build_optimizer(trainable, groups, config.optim)
    optimizer.allocate(trainable.values())
    for step, tasks in enumerate(WINDOWS):
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


def own_share(engine: Engine, names: list[str]) -> dict[str, torch.Tensor]:
    """What this rank holds of the masters and moments of the named parameters. No collective: thousands would take long."""
    found = {}
    for state in ("weight", *engine.optimizer.state_names):
        for name in names:
            held = share_of(engine, engine.masters.parameters[name], state)
            if held is not None:
                found[f"{state}/{name}"] = held.detach().clone()
    return found


def share_of(engine: Engine, parameter: Any, state: str) -> torch.Tensor | None:
    """A rank's piece of one master or moment; None when all of it is on other ranks."""
    if engine.zero_stage == 0:
        return parameter if state == "weight" else engine.optimizer.state[parameter][state]
    if engine.zero_stage == 3:
        if state == "weight":
            return safe_get_local_fp32_param(parameter)
        return safe_get_local_optimizer_state(parameter, state)
    if (piece := parameter._hp_mapping) is None:
        return None
    return piece.get_hp_fragment() if state == "weight" else piece.get_optim_state_fragment(state)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, bool]:
    """Whether a master or a moment is another one now, on whatever rank. Collective."""
    own = {key: not torch.equal(before[key], tensor) for key, tensor in after.items()}
    found: dict[str, bool] = {}
    for rank in dist.gather_objects(own):
        found.update({key: found.get(key, False) or moved for key, moved in rank.items()})
    return found


def check(folder: Path, cell: Cell) -> Row:
    """Train a cell on the ranks of this launch. Rank 0 compares; on the others the differences are 0."""
    config = make_config(folder, cell.method, cell.stage)
    model: Model = build_model(config)
    owners = model.tasks_of_parameters()
    micro_steps = 2 * ROWS // (2 * dist.world_size())
    engine = Engine(model, parameter_groups(model.trainable(), owners, config.optim), config, micro_steps)
    private = [n for n, owner in owners.items() if owner is not None]
    is_wrong = bool(private) == (cell.method in ADDS_NOTHING)
    problems, losses = ["parameters of single tasks: " + (", ".join(private[:3]) or "none")] if is_wrong else [], []
    before = own_share(engine, private)
    for step, tasks in enumerate(WINDOWS):
        batches = [
            piece
            for index, task in enumerate(tasks)
            for piece in pieces(slot(task, 10 * step + index, str(config.backbone["name"])))
        ]
        losses.append(engine.train_step(step, batches).loss)
        after = own_share(engine, private)
        moved = changed(before, after)
        if len(moved) != len(private) * (1 + len(engine.optimizer.state_names)):
            problems.append(f"{len(moved)} masters and moments found of {len(private)} parameters")
        for key, has_moved in moved.items():
            owner = owners[key.partition("/")[2]]
            if owner not in tasks and has_moved:
                problems.append(f"idle, and moved in step {step}: {key}")
            if owner in tasks and not has_moved and not waits(cell.method, str(owner), step, key):
                problems.append(f"active, and stood still in step {step}: {key}")
        before = after
    found = {n: engine.masters.get(n) for n in engine.masters.parameters}
    if not dist.is_main():
        return Row(cell.name, 0.0, 0.0, losses[-1], tuple(problems))
    return compared(cell, found, losses, problems)


def waits(method: str, task: str, step: int, key: str) -> bool:
    """Whether a task's part has no gradient yet: the change of vcra starts at zero, one factor waits for the other. No row
    here is text alone, so vectors for that wait for ever."""
    if method not in ("vcra", "blip_unitrans"):
        return False
    return ".text_up." in key or step == next(i for i, tasks in enumerate(WINDOWS) if task in tasks)


def compared(cell: Cell, found: dict[str, torch.Tensor], losses: list[float], problems: list[str]) -> Row:
    """Differences of what was trained, and of its losses, from plain PyTorch."""
    expected, expected_losses = plain(cell.method)
    if found.keys() != expected.keys():
        return Row(cell.name, float("nan"), float("nan"), losses[-1], (*problems, "other names than in the plain run"))
    # A bias on the keys shifts all scores of a query alike: its gradient is 0 but for rounding (1e-9 here, 6e-3 and more
    # elsewhere), and Adam makes whole steps of what is rounded differently.
    names = [n for n in expected if not n.endswith(".k_proj.bias")]
    drift = max(float((found[n] - expected[n]).abs().max()) for n in names)
    worst = max(abs(a - b) for a, b in zip(losses, expected_losses, strict=True))
    return Row(cell.name, worst, drift, losses[-1], tuple(problems))
