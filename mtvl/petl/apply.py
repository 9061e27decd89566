"""Turning a Plan into a model: the only place that edits modules and sets `requires_grad`."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import SHARED, Injection, Plan
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


class Method(Protocol):
    """A way to adapt a backbone. `Config` is its own dataclass; `plan` is pure; `build` makes one adapter module.

    An adapter module has `forward(x, y) -> y'`: x (..., d_in) is the site's input, y (..., d_out) the base output.
    """

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Decide injections and unfrozen sites."""

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """The adapter module of one injection, with parameters named as the plan says."""


class AdaptedLinear(nn.Linear):
    """A Linear that keeps its base parameters (and their names) and passes its output through an adapter."""

    adapter: nn.Module

    @classmethod
    def wrap(cls, base: nn.Linear, adapter: nn.Module) -> AdaptedLinear:
        """Share `base`'s parameters; `base` itself is dropped by the caller."""
        wrapped = cls.__new__(cls)
        nn.Module.__init__(wrapped)
        wrapped.in_features, wrapped.out_features = base.in_features, base.out_features
        wrapped.weight, wrapped.bias = base.weight, base.bias
        wrapped.adapter = adapter
        return wrapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_out)."""
        return self.adapter(x, nn.functional.linear(x, self.weight, self.bias))


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def apply_plan(backbone: nn.Module, plan: Plan, method: Any, seed: int) -> ActiveTask:
    """Place the plan's adapters in `backbone` (in place), freeze the rest, and prove that the result is the plan.

    `seed` decides the adapters' random weights. Raises PlanError when the model and the plan differ.
    """
    active = ActiveTask(plan.tasks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for injection in plan.injections:
            parent, name = _parent(backbone, injection.site.path)
            base = getattr(parent, name)
            if type(base) is not nn.Linear:
                raise PlanError(f"{injection.site.path} holds a {type(base).__name__}, expected an unadapted Linear")
            adapter = method.build(injection, active)
            adapter.to(device=base.weight.device, dtype=base.weight.dtype)
            setattr(parent, name, AdaptedLinear.wrap(base, adapter))
    backbone.requires_grad_(False)
    for injection in plan.injections:
        _parent(backbone, injection.site.path)[0].get_submodule(
            injection.site.path.rpartition(".")[2] + ".adapter"
        ).requires_grad_(True)
    for site in plan.unfrozen:
        for parameter in backbone.get_submodule(site.path).parameters(recurse=False):
            parameter.requires_grad_(True)
    check_plan(backbone, plan)
    return active


def check_plan(backbone: nn.Module, plan: Plan) -> None:
    """PlanError unless names, shapes and number of trainable parameters are exactly the plan's."""
    trainable = {n: tuple(p.shape) for n, p in backbone.named_parameters() if p.requires_grad}
    added = {n: tuple(s) for i in plan.injections for n, s, _ in i.parameters()}
    for name, shape in added.items():
        if trainable.get(name) != shape:
            raise PlanError(f"planned parameter {name} {shape}, found {trainable.get(name, 'nothing')}")
    unplanned = [n for n in trainable if ".adapter." in n and n not in added]
    count = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    if unplanned or count != plan.num_trainable:
        raise PlanError(
            f"the plan trains {plan.num_trainable:,} parameters, the model {count:,}; not planned: {unplanned[:3]}"
        )


def owner_of(plan: Plan) -> dict[str, str | None]:
    """Task of every added parameter; None where it is shared."""
    return {name: (None if owner == SHARED else owner) for name, owner in plan.owners().items()}
