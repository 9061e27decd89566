"""Sharing over tasks: which parts exist, and which of them runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mtvl.config import RunConfig
from mtvl.errors import ConfigError, PlanError
from mtvl.model import make_plan
from mtvl.petl.plan import SHARED, Part, is_taken
from mtvl.petl.share import ActiveTask, TaskBank, parts_over_tasks

TASKS = ("vqa", "gqa")
HALVES = {"down": (("weight", (2, 4)),), "up": (("weight", (4, 2)),)}


def bank_of(share: str, active: ActiveTask) -> TaskBank:
    """A bank of the down parts whose modules multiply by 1, 2, ..."""
    parts = [p for p in parts_over_tasks(HALVES, share, TASKS) if p.name == "down"]
    factors = iter(range(1, 9))

    def make(part: Part) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, next(factors))
        return layer

    return TaskBank(parts, active, make)


@pytest.mark.parametrize(
    ("share", "down", "up"),
    [
        ("all", [SHARED], [SHARED]),
        ("none", ["vqa", "gqa"], ["vqa", "gqa"]),
        ("down", [SHARED], ["vqa", "gqa"]),
        ("up", ["vqa", "gqa"], [SHARED]),
    ],
)
def test_parts_and_their_owners(share: str, down: list[str], up: list[str]) -> None:
    parts = parts_over_tasks(HALVES, share, TASKS)
    assert [p.owner for p in parts if p.name == "down"] == down
    assert [p.owner for p in parts if p.name == "up"] == up
    assert {p.shapes for p in parts if p.name == "up"} == {HALVES["up"]}


def test_unknown_share_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match="unknown 'petl.share' 'non'; did you mean 'none'"):
        parts_over_tasks(HALVES, "non", TASKS)


def test_the_bank_runs_the_active_tasks_module() -> None:
    active = ActiveTask(TASKS)
    bank, one = bank_of("none", active), torch.ones(1, 1)
    for task, factor in (("vqa", 1.0), ("gqa", 2.0), ("vqa", 1.0)):
        active.set(task)
        assert bank(one).item() == factor
    for unknown in ("coco", ""):
        active.set(unknown)
        with pytest.raises(PlanError, match=f"no adapter for task '{unknown}'; this model has vqa, gqa"):
            bank(one)


@pytest.mark.parametrize("share", ["all", "none"])
def test_tasks_called_like_an_attribute_are_refused_by_the_plan(
    share: str, tiny_config: Callable[..., RunConfig]
) -> None:
    """A bank keeps its modules as attributes; whatever it has of its own cannot be an owner."""
    bank = bank_of("none", ActiveTask(TASKS))
    for name in ("items", "values", "type", "train", "half"):
        config = tiny_config({"name": "adapter", "share": share}, tasks=("vqa", name))
        if share == "all":
            assert make_plan(config).tasks == ("vqa", name)
            continue
        with pytest.raises(PlanError, match=f"'{name}' cannot name a task with adapters of its own"):
            make_plan(config)
    for name in {*dir(bank), *vars(bank)} - set(TASKS):
        assert is_taken(name)
        with pytest.raises(PlanError, match="cannot name a task"):
            TaskBank([Part("down", name, ())], ActiveTask(TASKS), lambda _: nn.Identity())
    assert not is_taken("vqa") and is_taken(SHARED)


def test_a_shared_module_serves_any_task() -> None:
    active = ActiveTask(TASKS)
    bank = bank_of("all", active)
    active.set("never seen")
    assert bank(torch.ones(1, 1)).item() == 1.0


def test_the_active_task_is_no_part_of_the_state() -> None:
    active = ActiveTask(TASKS)
    assert set(bank_of("none", active).state_dict()) == {"vqa.weight", "gqa.weight"}
    assert set(bank_of("all", active).state_dict()) == {f"{SHARED}.weight"}


def test_a_recompute_runs_under_the_task_of_its_forward() -> None:
    active = ActiveTask(TASKS)
    active.set("vqa")
    first_run, recompute = active.recompute_contexts()
    with first_run:
        assert active.name == "vqa"
    active.set("gqa")
    for _ in range(2):
        with recompute:
            assert active.name == "vqa"
        assert active.name == "gqa"
    with pytest.raises(ZeroDivisionError), recompute:
        _ = 1 / 0
    assert active.name == "gqa"
