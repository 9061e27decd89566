"""One micro-step of a model that has shapes and no values: what it keeps, what it computes, what it trains."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from mtvl.estimate.shapes import SPECIAL_TOKENS
from mtvl.model import Model
from mtvl.steps import retrieval
from mtvl.types import Batch


@dataclass(frozen=True)
class Pass:
    """Forward and backward of one micro-batch of `task` on one device.

    `activation_bytes`: most bytes alive at once beside parameters and their gradients; `flops`: multiplications and
    additions of all matrix products, those of recompute included; `trained`: sizes of the parameters that got a gradient;
    `exchanged_bytes`: what the loss itself sums or gathers over the ranks, in bytes of the results.
    """

    task: str
    rows: int
    activation_bytes: int
    flops: int
    trained: dict[str, int]
    exchanged_bytes: int = 0


class _Gathered(torch.autograd.Function):
    """The rows of `ranks` ranks where there is one: what `mtvl.dist.gather_rows` makes and sends, in numbers of bytes."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ranks: int, count: Callable[[int], None]) -> torch.Tensor:
        ctx.own, ctx.count = len(rows), count
        found = torch.cat([torch.empty_like(rows) for _ in range(ranks)])
        count(found.untyped_storage().nbytes())
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        ctx.count(2 * grad.untyped_storage().nbytes())  # an all-reduce sends its tensor twice
        return grad.contiguous()[: ctx.own], None, None


@contextlib.contextmanager
def _ranks(number: int) -> Iterator[list[int]]:
    """Inside, pairs are matched as among `number` ranks; yields the bytes that they exchange, tensor by tensor."""
    bytes_of: list[int] = []
    before = retrieval.gather_rows
    if number > 1:
        retrieval.gather_rows = lambda rows: _Gathered.apply(rows, number, bytes_of.append)
    try:
        yield bytes_of
    finally:
        retrieval.gather_rows = before


class _Live(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until the last tensor on it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # storage -> what ends its count

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave the tensor's storage out from now on: a parameter, the batch, or a gradient that is complete."""
        storage = tensor.untyped_storage()
        ends = self._known.get(storage)
        if ends is not None and ends.detach():
            self._free(storage.nbytes())
        self._known[storage] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self._known[storage] = weakref.finalize(storage, self._free, size)

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


def micro_step(model: Model, batch: Batch, ranks: int = 1) -> Pass:
    """Forward and backward of `batch` within `fake_tensors`, on one of `ranks` devices; every target position counts as a
    label."""
    model.set_task(batch.task)
    model.zero_grad(set_to_none=True)
    counter = FlopCounterMode(display=False)
    with _ranks(ranks) as exchanged, held_beside(model, batch) as live, counter:
        _loss(model, batch).backward()
    trained = {n: p.grad.numel() for n, p in model.named_parameters() if p.grad is not None}
    return Pass(batch.task, len(batch.uids), live.peak, counter.get_total_flops(), trained, sum(exchanged))


@contextlib.contextmanager
def held_beside(model: nn.Module, batch: Batch) -> Iterator[_Live]:
    """Inside, what is alive beside the model, its gradients and the batch is counted; real tensors and fake ones alike.

    A gradient counts until it is complete: from then on it lies in the room that a stage keeps for all of them, which is
    taken from the first one on. Only where all activations are gone would it be enough to subtract them at the end.
    """
    live = _Live()
    for tensor in [*model.parameters(), *model.buffers(), *_tensors(batch)]:
        live.ignore(tensor)
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: live.ignore(p.grad))  # type: ignore[arg-type]
        for p in model.parameters() if p.requires_grad
    ]  # fmt: skip
    try:
        with live:
            yield live
    finally:
        for hook in hooks:
            hook.remove()


def _loss(model: Model, batch: Batch) -> torch.Tensor:
    backbone: Any = model.backbone
    if model.pairs is not None and batch.loss == "pairs":
        return model.pairs(backbone, batch)
    # Which positions are labels is a matter of values: all of them, as in the longest targets.
    known = {"has_words": batch.source_ids.shape[1] > SPECIAL_TOKENS} if backbone.looks_for_words else {}
    memory, labels = backbone.encode(batch, **known), batch.target_ids
    if batch.loss == "answers":
        memory, labels = memory.repeat(batch.choice_ids.shape[1]), batch.choice_ids.flatten(0, 1)
    logits = backbone.decode(memory, labels).flatten(0, 1)
    return nn.functional.cross_entropy(logits.float(), labels.flatten(), reduction="none").sum()


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
