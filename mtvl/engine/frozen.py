"""Products with frozen weights on CPUs: a weight that never changes is laid out for the processor once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

SMALLEST = 2**18  # elements of a weight; below, a call from Python costs what the layout saves
DTYPES = (torch.float32, torch.bfloat16)

_layouts = WeakIdKeyDictionary()  # weight -> (its state, {transposed: its layout})


def is_available() -> bool:
    """True where torch was built with oneDNN, whose layouts these are."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _layout(weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The weight (or its transpose) as oneDNN wants it, made anew when the weight was written to or moved."""
    state = (weight._version, weight.data_ptr(), weight.dtype)
    known = _layouts.get(weight)
    if known is None or known[0] != state:
        known = (state, {})
        _layouts[weight] = known
    if transposed not in known[1]:
        # No number of rows is named: the layout, and with it the last bit of a sum, must not hang on the first batch.
        plain = weight.detach().t().contiguous() if transposed else weight.detach()
        known[1][transposed] = torch.ops.mkldnn._reorder_linear_weight(plain, None)
    return known[1][transposed]


def _product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows.contiguous(), _layout(weight, transposed), bias, "none", [], "")


class FrozenLinear(torch.autograd.Function):
    """`input` (..., n), a frozen weight (m, n) and a bias (m) or None -> (..., m); no gradient for the weight."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight  # neither an input that may change nor an output: nothing to guard
        return _product(input, weight, None if bias is None else bias.detach(), False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        below = _product(gradient, ctx.weight, None, True) if ctx.needs_input_grad[0] else None
        bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return below, None, bias


def _is_frozen(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return (
        isinstance(weight, torch.nn.Parameter)
        and not weight.requires_grad
        and weight.numel() >= SMALLEST
        and weight.device.type == "cpu"
        and weight.dtype in DTYPES
        and input.dtype == weight.dtype
        and (bias is None or bias.dtype == weight.dtype)
        and input.dim() > 1
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


@contextlib.contextmanager
def packed_frozen_weights(is_on: bool) -> Iterator[None]:
    """The scope of a micro-step in which `torch.nn.functional.linear` takes large frozen weights by their layout.

    Its backward belongs inside: there activations may be computed again. Sums are those of torch's own products but
    for rounding. Layouts live as long as their weights and hold the same bytes, a second time where a gradient
    passes through. Whatever function of that name stands there, torch's or another library's, gets all other calls.
    """
    if not is_on or not is_available():
        yield
        return
    others: Callable[..., torch.Tensor] = F.linear

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if _is_frozen(input, weight, bias):
            return FrozenLinear.apply(input, weight, bias)
        return others(input, weight, bias)

    F.linear = linear
    try:
        yield
    finally:
        F.linear = others
