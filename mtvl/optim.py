"""Optimizers that leave the parameters of absent tasks alone, and the learning rate as a function of the step.

A ZeRO optimizer hands flat buffers full of zeros to the inner optimizer where a task had no gradient, and moments and
weight decay would then still move that task's parameters. Here every task has its own parameter groups, the engine
names the groups of a step, and all others keep parameters, moments and step count bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adamw import adamw as torch_adamw

from mtvl.config import OptimConfig
from mtvl.errors import EngineError, near_names

GROUP_KEY, SCALE_KEY = "mtvl_group", "mtvl_scale"  # survive DeepSpeed's copies of the group dictionaries


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are optimised together. `names` are `named_parameters()` names; task None means shared.

    They step at `scale` times the learning rate. `is_tower`: of the visual tower, with the settings `optim.tower`.
    """

    name: str
    task: str | None
    decay: bool
    names: tuple[str, ...]
    scale: float = 1.0
    is_tower: bool = False


def learning_rate(step: int, config: OptimConfig, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up, then linear or by half a
    cosine to zero at `total_steps`, or constant.

    The first step of a warm-up has rate 0 and the warm-up lasts floor(warmup_ratio * total_steps) steps.
    *Source:* get_linear_schedule_with_warmup of transformers, as VL-Adapter uses it; BLIP has the cosine without warm-up,
    and takes a step of it once an epoch.
    """
    warmup_steps = int(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.lr * step / warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return config.lr * (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


# A private part behind a projection that starts at zero gets exact zeros until that projection has moved, and the first
# step of a warm-up has rate 0: only a group that has seen nothing for this many of its windows is taken for dead.
FIRST_WINDOWS = 5


class GroupOptimizer(torch.optim.Optimizer):
    """Base: one step count per group, and only the groups named by `begin` move.

    Works on plain parameters and on the flat partitions that DeepSpeed puts in their place: state is allocated by
    `allocate` after DeepSpeed has done so, and step counts rise in `commit`, since ZeRO calls `step` several times.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, groups: Sequence[Mapping[str, Any]], config: OptimConfig) -> None:
        super().__init__([dict(g) for g in groups], {"lr": config.lr, "weight_decay": config.weight_decay})
        self.betas = config.betas
        self.eps = config.eps
        self.counts: dict[str, int] = {g[GROUP_KEY]: 0 for g in self.param_groups}
        self.active: frozenset[str] = frozenset()
        self.touched: set[str] = set()  # groups that have seen a non-zero gradient (on this rank)

    def allocate(self, tensors: Iterable[torch.Tensor]) -> None:
        """Create zero moments for the tensors that `step` will be given."""
        for tensor in tensors:
            self.state[tensor] = {name: torch.zeros_like(tensor, requires_grad=False) for name in self.state_names}

    def begin(self, active: Iterable[str], lr: float) -> None:
        """Open a window: `active` groups may move, with rate `lr` times their scale."""
        self.active = frozenset(active)
        unknown = self.active - self.counts.keys()
        if unknown:
            raise EngineError(f"no parameter group {sorted(unknown)}; {near_names(sorted(unknown)[0], self.counts)}")
        for group in self.param_groups:
            group["lr"] = lr * group.get(SCALE_KEY, 1.0)

    def cancel(self) -> None:
        """Make the coming `step` calls of this window do nothing."""
        self.active = frozenset()

    def commit(self) -> None:
        """Count the window for its active groups; called once, after all `step` calls of the window."""
        for name in self.active:
            self.counts[name] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the active groups from the gradients that their tensors hold."""
        if closure is not None:
            raise EngineError("closures are not supported by the optimizers of this project")
        for group in self.param_groups:
            name = group[GROUP_KEY]
            params = [p for p in group["params"] if p.grad is not None] if name in self.active else []
            if not params:
                continue
            # Only looked at in a group's first windows: later it would cost a pass over the gradients for nothing.
            is_young = self.counts[name] < FIRST_WINDOWS and name not in self.touched
            if is_young and any(bool(torch.any(p.grad != 0)) for p in params):
                self.touched.add(name)
            self._update(params, [p.grad for p in params], self.counts[name] + 1, group["lr"], group["weight_decay"])

    def _moments(self, params: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
        return [self.state[p][name] for p in params]

    def _update(
        self, params: list[torch.Tensor], grads: list[torch.Tensor], count: int, lr: float, decay: float
    ) -> None:
        raise NotImplementedError


class AdamW(GroupOptimizer):
    """torch's AdamW, through torch's own functional form (hence equal to it bit for bit)."""

    state_names = ("exp_avg", "exp_avg_sq")

    def _update(
        self, params: list[torch.Tensor], grads: list[torch.Tensor], count: int, lr: float, decay: float
    ) -> None:
        torch_adamw(
            params,
            grads,
            self._moments(params, "exp_avg"),
            self._moments(params, "exp_avg_sq"),
            [],
            [torch.tensor(float(count - 1)) for _ in params],  # torch adds one before use
            foreach=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=decay,
            eps=self.eps,
            maximize=False,
        )


class ReferenceAdamW(GroupOptimizer):
    """AdamW as the published VL-Adapter runs used it.

    Differs from torch in two places: eps is added to sqrt(v) before the bias correction, and the decay lr * wd * p is
    taken from the parameter after the update. *Source:* AdamW of transformers 4.2.1.
    """

    state_names = ("exp_avg", "exp_avg_sq")

    def _update(
        self, params: list[torch.Tensor], grads: list[torch.Tensor], count: int, lr: float, decay: float
    ) -> None:
        beta1, beta2 = self.betas
        first, second = self._moments(params, "exp_avg"), self._moments(params, "exp_avg_sq")
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, self.eps)
        step_size = lr * math.sqrt(1 - beta2**count) / (1 - beta1**count)
        torch._foreach_addcdiv_(params, first, denominators, -step_size)
        if decay > 0:
            torch._foreach_add_(params, params, alpha=-lr * decay)


class SGD(GroupOptimizer):
    """Plain gradient descent without momentum; weight decay is added to the gradient, as in torch."""

    def _update(
        self, params: list[torch.Tensor], grads: list[torch.Tensor], count: int, lr: float, decay: float
    ) -> None:
        if decay:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        torch._foreach_add_(params, grads, alpha=-lr)


OPTIMIZERS: Mapping[str, type[GroupOptimizer]] = {"adamw": AdamW, "adamw_reference": ReferenceAdamW, "sgd": SGD}


def parameter_groups(
    trainable: Mapping[str, torch.Tensor],
    tasks: Mapping[str, str | None],
    config: OptimConfig,
    added: Collection[str] = (),
    tower: Collection[str] = (),
) -> list[ParameterGroup]:
    """One group per task, decay setting and rate of the `trainable` parameters; `tasks` names the owner of each.

    Parameters named in `tower` have groups of their own.

    adamw, sgd: biases and norms are not decayed. adamw_reference: only names with "bias" or "LayerNorm.weight" are not
    decayed, as in the reference; no norm of BART is called that (*Source:* VL-Adapter's trainer, measured). Parameters
    not in `added` came with the backbone and take `config.backbone_lr_scale`.
    """
    spared = ("bias", "LayerNorm.weight")
    grouped: dict[tuple[str, bool, bool, float], list[str]] = {}
    for name, parameter in trainable.items():
        is_spared = any(word in name for word in spared)
        decay = not is_spared if config.name == "adamw_reference" else parameter.ndim > 1
        scale = 1.0 if name in added else config.backbone_lr_scale
        if name in tower and config.tower.lr:
            scale = config.tower.lr / config.lr
        grouped.setdefault((tasks[name] or "", name in tower, decay, scale), []).append(name)
    groups = []
    for (task, is_tower, decay, scale), names in sorted(grouped.items()):
        kind = f"{'/tower' if is_tower else ''}/{'decay' if decay else 'no_decay'}"
        ending = "" if scale == 1 else f"/lr x {scale:g}"
        name = f"{task or 'shared'}{kind}{ending}"
        groups.append(ParameterGroup(name, task or None, decay, tuple(names), scale, is_tower))
    return groups


def check_groups(parameters: Mapping[str, torch.Tensor], groups: Sequence[ParameterGroup]) -> None:
    """Raise EngineError unless the groups hold exactly the parameters with `requires_grad`, each once."""
    trainable = {name for name, p in parameters.items() if p.requires_grad}
    if not trainable:
        raise EngineError(
            f"nothing to train: none of the {len(parameters)} parameters of the model has requires_grad; "
            "check the plan of the method ('mtvl plan' prints it)"
        )
    seen: dict[str, str] = {}
    if len({g.name for g in groups}) != len(groups):
        raise EngineError(f"parameter groups with one name: {sorted(g.name for g in groups)}")
    for group in groups:
        for name in group.names:
            if name in seen:
                raise EngineError(f"parameter {name} is in two groups, '{seen[name]}' and '{group.name}'")
            seen[name] = group.name
            if name not in parameters:
                raise EngineError(f"group '{group.name}' names a parameter that the model does not have: {name}")
            if name not in trainable:
                raise EngineError(f"group '{group.name}' names the frozen parameter {name} (requires_grad is False)")
    left = sorted(trainable - seen.keys())
    if left:
        raise EngineError(
            f"{len(left)} trainable parameters are in no group, the first is {left[0]}: "
            "the trainable set differs from the plan"
        )


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], groups: Sequence[ParameterGroup], config: OptimConfig
) -> GroupOptimizer:
    """The optimizer `config.name` over `groups` (empty groups are left out: ZeRO cannot flatten them)."""
    if config.name not in OPTIMIZERS:
        raise EngineError(f"unknown optimizer {config.name!r}; {near_names(config.name, OPTIMIZERS)}")
    tower_decay = config.tower.weight_decay if config.tower.weight_decay >= 0 else config.weight_decay
    dictionaries = [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": (tower_decay if group.is_tower else config.weight_decay) if group.decay else 0.0,
            GROUP_KEY: group.name,
            SCALE_KEY: group.scale,
        }
        for group in groups
        if group.names
    ]
    return OPTIMIZERS[config.name](dictionaries, config)
