"""One micro-step of a model that has shapes and no values: what it keeps, what it computes, what it trains."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from mtvl.model import Model
from mtvl.types import Batch


@dataclass(frozen=True)
class Pass:
    """Forward and backward of one micro-batch of `task` on one device.

    `activation_bytes`: most bytes alive at once beside parameters and their gradients; `flops`: multiplications and
    additions of all matrix products, those of recompute included; `trained`: sizes of the parameters that got a gradient.
    """

    task: str
    rows: int
    activation_bytes: int
    flops: int
    trained: dict[str, int]


class _Live(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until the last tensor on it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave the tensor's storage out: a parameter, or the batch."""
        self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


def make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the parameters and buffers of a model on the meta device a make-believe place on the CPU, floats as `dtype`.

    On the CPU and not on meta, so that attention takes the fused kernel that a real device takes.
    """
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=wanted, device="cpu")

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:  # tied ones stay one
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), fake(buffer))


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, tensors have shapes and types and neither values nor memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def micro_step(model: Model, batch: Batch) -> Pass:
    """Forward and backward of `batch` within `fake_tensors`; every target position counts as a label."""
    backbone: Any = model.backbone
    model.set_task(batch.task)
    model.zero_grad(set_to_none=True)
    live, counter = _Live(), FlopCounterMode(display=False)
    for tensor in [*model.parameters(), *model.buffers(), *_tensors(batch)]:
        live.ignore(tensor)
    # Which positions are labels is a matter of values: all of them, as in the longest targets.
    backbone.label_logits = lambda memory, ids: backbone.decode(memory, ids).flatten(0, 1)
    try:
        with live, counter:
            logits = backbone.label_logits(backbone.encode(batch), batch.target_ids)
            loss = nn.functional.cross_entropy(logits.float(), batch.target_ids.flatten(), reduction="none").sum()
            loss.backward()
    finally:
        del backbone.label_logits
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    trained = {n: g.numel() for n, g in gradients.items()}
    own = sum(g.untyped_storage().nbytes() for g in gradients.values())
    return Pass(batch.task, len(batch.uids), live.peak - own, counter.get_total_flops(), trained)


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
