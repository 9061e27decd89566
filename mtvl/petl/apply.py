"""Turning a Plan into a model: the only place that edits modules and sets `requires_grad`."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import COMMON, SHARED, Common, Injection, Plan
from mtvl.petl.share import ActiveTask, TaskBank, bank_of
from mtvl.sites import Site


class Method(Protocol):
    """A way to adapt a backbone. `Config` is its own dataclass; `plan` is pure; `build` makes one adapter module.

    The adapter of a linear site has `forward(x, y) -> y'`: x (..., d_in) is the site's input, y (..., d_out) the base
    output. It may have `before(x) -> x'`, what the base is given in place of x, and `fold(weight, bias)`, base
    parameters that do the same without the adapter, or say in `cannot_merge` why not at this place. Where it looks at y alone
    it says so in `reads_output`, for pictures of what adapters are given. What the adapter of a
    hook site is called with stands at `Site`. Where a batch mixes tasks by row, the adapter of a linear site is called for
    the rows of each task by itself; that of a hook site does so with `TaskBank.by_task`.
    A method whose plan has common modules also has `build_common(common, part)`; its `build` is given a third argument,
    the banks of the common modules by name and part. An adapter must not register them as its own children.
    """

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Decide injections and unfrozen sites."""

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """The adapter module of one injection, with parameters named as the plan says."""


class AdaptedLinear(nn.Linear):
    """A Linear that keeps its base parameters (and their names) and passes its output through an adapter."""

    adapter: nn.Module
    _active: ActiveTask
    _before: Any = None
    _unmerged: tuple[nn.Parameter, nn.Parameter | None] | None = None

    @classmethod
    def wrap(cls, base: nn.Linear, adapter: nn.Module, active: ActiveTask) -> AdaptedLinear:
        """Share `base`'s parameters; `base` itself is dropped by the caller."""
        wrapped = cls.__new__(cls)
        nn.Module.__init__(wrapped)
        wrapped.in_features, wrapped.out_features = base.in_features, base.out_features
        wrapped.weight, wrapped.bias = base.weight, base.bias
        wrapped.adapter = adapter
        wrapped._before = getattr(adapter, "before", None)
        wrapped._active = active
        return wrapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_out)."""
        if self._unmerged is not None:
            return nn.functional.linear(x, self.weight, self.bias)
        by_task = self._active.by_task
        given = x if self._before is None else by_task(self._before, x)
        return by_task(self.adapter, x, nn.functional.linear(given, self.weight, self.bias))

    @torch.no_grad()
    def merge(self) -> None:
        """Put the active task's adapter into the base parameters until `unmerge`, which gives back the very same ones."""
        weight, bias = self.adapter.fold(self.weight, self.bias)
        self._unmerged = (self.weight, self.bias)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def unmerge(self) -> None:
        """Undo `merge` exactly."""
        if self._unmerged is not None:
            for kept in self._unmerged:
                if kept is not None:  # the module may have been moved meanwhile, and they were not among its parameters
                    kept.data = kept.data.to(self.weight.device, self.weight.dtype)
            self.weight, self.bias = self._unmerged  # type: ignore[assignment]
            self._unmerged = None


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def apply_plan(backbone: nn.Module, plan: Plan, method: Any, seed: int) -> ActiveTask:
    """Place the plan's adapters in `backbone` (in place), freeze the rest, and prove that the result is the plan.

    `seed` decides the adapters' random weights. Raises PlanError when the model and the plan differ.
    """
    active = ActiveTask(plan.tasks)
    adapters = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        common = _place_common(backbone, plan, method, active)
        for injection in plan.injections:
            adapter = method.build(injection, active, common) if common else method.build(injection, active)
            _place(backbone, injection.site, adapter, active)
            adapters.append(adapter)
    backbone.requires_grad_(False)
    for adapter in adapters:
        adapter.requires_grad_(True)
    if common:
        backbone.get_submodule(COMMON).requires_grad_(True)
    for site in plan.unfrozen:
        for parameter in backbone.get_submodule(site.path).parameters(recurse=False):
            parameter.requires_grad_(True)
    for site in plan.biases:
        backbone.get_parameter(f"{site.path}.bias").requires_grad_(True)
    check_plan(backbone, plan)
    return active


def _place_common(backbone: nn.Module, plan: Plan, method: Any, active: ActiveTask) -> dict[str, dict[str, TaskBank]]:
    """The modules that several sites use, by name and part; they stand at COMMON in the backbone."""

    def banks_of(common: Common) -> dict[str, TaskBank]:
        make = partial(method.build_common, common)
        return {name: bank_of(common.parts, name, active, make) for name in dict.fromkeys(p.name for p in common.parts)}

    found = {common.name: banks_of(common) for common in plan.common}
    if found:
        parent, name = COMMON.split(".")
        if hasattr(backbone, parent):
            raise PlanError(f"the backbone holds {parent!r} already, expected an unadapted one")
        like = next(backbone.parameters())
        banks = nn.ModuleDict({key: nn.ModuleDict(parts) for key, parts in found.items()})
        backbone.add_module(parent, nn.ModuleDict({name: banks}).to(device=like.device, dtype=like.dtype))
    return found


def _place(backbone: nn.Module, site: Site, adapter: nn.Module, active: ActiveTask) -> None:
    """Put `adapter` at `site`: around a linear map, or as the child that the backbone looks for at a hook."""
    parent, name = _parent(backbone, site.path)
    base = getattr(parent, name)
    if site.is_hook:
        if hasattr(base, "adapter"):
            raise PlanError(f"{site.path} holds an adapter already, expected an unadapted {type(base).__name__}")
        like = next(base.parameters())
        base.add_module("adapter", adapter.to(device=like.device, dtype=like.dtype))
        return
    if type(base) is not nn.Linear:
        raise PlanError(f"{site.path} holds a {type(base).__name__}, expected an unadapted Linear")
    adapter.to(device=base.weight.device, dtype=base.weight.dtype)
    setattr(parent, name, AdaptedLinear.wrap(base, adapter, active))


def check_plan(backbone: nn.Module, plan: Plan) -> None:
    """PlanError unless names, shapes and number of trainable parameters are exactly the plan's."""
    trainable = {n: tuple(p.shape) for n, p in backbone.named_parameters() if p.requires_grad}
    added = {n: tuple(s) for n, s, _ in plan.added()}
    for name, shape in added.items():
        if trainable.get(name) != shape:
            raise PlanError(f"planned parameter {name} {shape}, found {trainable.get(name, 'nothing')}")
    unplanned = [n for n in trainable if ".adapter." in n and n not in added]
    count = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    if unplanned or count != plan.num_trainable:
        raise PlanError(
            f"the plan trains {plan.num_trainable:,} parameters, the model {count:,}; not planned: {unplanned[:3]}"
        )


def merge_plan(backbone: nn.Module, plan: Plan) -> None:
    """Fold the active task's adapters into the base parameters.

    Raises PlanError, and changes nothing, when the method's cannot be folded or weights are partitioned (ZeRO-3).
    """
    sites = [backbone.get_submodule(i.site.path) for i in plan.injections]
    if stuck := [i.site.path for i, s in zip(plan.injections, sites, strict=True) if not _can_merge(s)]:
        raise PlanError(
            f"adapters of the method {plan.method!r} cannot be merged into the backbone: they are no change of a linear "
            f"map's own parameters, e.g. at {stuck[0]}"
        )
    for injection, site in zip(plan.injections, sites, strict=True):
        if reason := getattr(site.adapter, "cannot_merge", ""):
            raise PlanError(f"the adapter at {injection.site.path} cannot be merged into the backbone: {reason}")
        if any(p.numel() == 0 for p in site.parameters()):
            raise PlanError(
                f"expected whole weights to merge, found partitioned ones at {injection.site.path}; load the export into a "
                "model of its own and merge that"
            )
    for site in sites:
        site.merge()  # type: ignore[operator]  # checked above


def _can_merge(module: nn.Module) -> bool:
    return isinstance(module, AdaptedLinear) and hasattr(module.adapter, "fold")


def unmerge_plan(backbone: nn.Module, plan: Plan) -> None:
    """Undo `merge_plan` exactly."""
    for injection in plan.injections:
        backbone.get_submodule(injection.site.path).unmerge()  # type: ignore[operator]


def owner_of(plan: Plan) -> dict[str, str | None]:
    """Task of every added parameter; None where it is shared."""
    return {name: (None if owner == SHARED else owner) for name, owner in plan.owners().items()}
