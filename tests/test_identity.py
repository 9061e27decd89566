"""What a checkpoint belongs to: options that change no shape are part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mtvl.config import RUN_ITEMS, AugmentConfig, DataConfig, MixtureConfig, RunConfig
from mtvl.data.schedule import Schedule
from mtvl.model import make_plan
from mtvl.train import identity_of


def identity(config: RunConfig, pairs: object = None) -> dict[str, str]:
    workspace = SimpleNamespace(tasks={}, tower_fingerprint="t")
    model = SimpleNamespace(plan=make_plan(config), pairs=pairs)
    run: Any = SimpleNamespace(base="b", workspace=workspace, model=model)
    return identity_of(config, run, Schedule({"vqa": 8}, MixtureConfig(), 4, 0), {})


@pytest.mark.parametrize(("option", "value", "items"), [("dropout", 0.2, {"petl"}), ("alpha", 64, {"petl", "plan"})])
def test_other_options_of_a_method_are_another_run(
    option: str, value: float, items: set[str], tiny_config: Callable[..., RunConfig]
) -> None:
    usual = identity(tiny_config({"name": "lora", "rank": 4, "share": "all"}))
    assert identity(tiny_config({"share": "all", "rank": 4, "name": "lora"})) == usual  # whatever their order
    other = identity(tiny_config({"name": "lora", "rank": 4, "share": "all", option: value}))
    assert {key for key in usual if usual[key] != other[key]} == items


def test_every_item_has_a_name_that_may_be_allowed(tiny_config: Callable[..., RunConfig]) -> None:
    config = replace(tiny_config(), data=DataConfig(augment=AugmentConfig(flip=0.5)))
    assert set(identity(config, pairs=object())) == set(RUN_ITEMS)
