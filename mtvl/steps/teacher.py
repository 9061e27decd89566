"""A slowly moving average of what is trained, as a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mtvl.errors import CheckpointError


class _Call(nn.Module):
    """Runs a function of a module as its forward, which is what `functional_call` can replace tensors for."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self, *inputs: Any) -> Any:
        """run(*inputs)."""
        return self._run(*inputs)


class Teacher(nn.Module):
    """Averages of some of a model's parameters; everything else it shares with the model.

    Tensors may be shared by sharing a module, not by two modules that hold one tensor. With a frozen backbone that is what the method adds, not a second backbone. *Source:* MoCo and BLIP, which average
    every parameter: the same teacher, since the average of a frozen tensor is the tensor.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] | None = None, momentum: float = 0.995) -> None:
        """`names` of the model's parameters; all that have a gradient when not given."""
        super().__init__()
        self.momentum = momentum
        own = dict(model.named_parameters())
        self.names = tuple(n for n, p in own.items() if p.requires_grad) if names is None else tuple(names)
        for i, name in enumerate(self.names):
            self.register_buffer(f"average_{i}", own[name].detach().clone())

    def averages(self) -> dict[str, torch.Tensor]:
        """The averaged tensors by the model's names."""
        return {name: self.get_buffer(f"average_{i}") for i, name in enumerate(self.names)}

    @torch.no_grad()
    def assign(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take over averages by name; CheckpointError unless they are exactly this teacher's."""
        if set(values) != set(self.names):
            differing = sorted(set(values) ^ set(self.names))
            raise CheckpointError(f"the teacher averages other tensors: {differing[:3]} are on one side only")
        for name, average in self.averages().items():
            average.copy_(values[name])

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average = momentum * average + (1 - momentum) * parameter, for all tensors in few kernels."""
        own = dict(model.named_parameters())
        averages = list(self.averages().values())
        current = [own[name].detach().to(a.dtype) for name, a in zip(self.names, averages, strict=True)]
        if averages:
            torch._foreach_mul_(averages, self.momentum)
            torch._foreach_add_(averages, current, alpha=1 - self.momentum)

    @torch.no_grad()
    def run(self, model: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        """function(*inputs) with the averages in place of the model's own tensors."""
        own = dict(model.named_parameters())  # averages may be kept in float32 beside a model in bfloat16
        replaced = {f"model.{name}": average.to(own[name].dtype) for name, average in self.averages().items()}
        # Without tie_weights: torch would swap a module that stands under two names twice, and give it back wrongly.
        return functional_call(_Call(model, function), replaced, inputs, tie_weights=False)
