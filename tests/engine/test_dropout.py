"""Dropout from random bits: what it does to values and gradients, and where torch's own stays."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtvl.engine.dropout import dropout, fast_dropout, torch_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for_and_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 1001, dtype=dtype)
    with fast_dropout(CPU):
        y = F.dropout(x, p=p, training=True)
    dropped = (y == 0).float().mean().item()
    assert y.dtype == dtype and abs(dropped - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert y.unique().numel() == 2 and abs(y.max().item() * (1 - p) - 1) < (1e-4 if dtype == torch.float32 else 1e-2)
    draws = x.numel() // 4
    places = (y == 0).float().flatten()[: 4 * draws].view(-1, 4).mean(0)  # the four elements of a draw
    assert (places - p).abs().max() < 4 * (p * (1 - p) / draws) ** 0.5


def test_elements_of_one_draw_are_independent() -> None:
    torch.manual_seed(1)
    kept = (dropout(torch.ones(400_000), 0.5) > 0).float().view(-1, 4) - 0.5
    correlation = kept.T @ kept / len(kept) / 0.25
    assert (correlation - torch.eye(4)).abs().max() < 0.02


def test_gradient_is_that_of_the_mask_and_the_generator_gives_it_again() -> None:
    x = torch.randn(7, 13, requires_grad=True)
    state = torch.get_rng_state()
    y = dropout(x, 0.3)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0) and torch.allclose(x.grad * x, y)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.3), y) and not torch.equal(dropout(x, 0.3), y)


def test_recomputed_activations_have_the_same_mask() -> None:
    x = torch.randn(64, 64, requires_grad=True)

    def block(value: torch.Tensor) -> torch.Tensor:
        return F.dropout(value.exp(), 0.4, True).sin()

    gradients = []
    for run in (block, lambda value: checkpoint(block, value, use_reentrant=False)):
        torch.manual_seed(2)
        with fast_dropout(CPU):
            run(x).sum().backward()
        gradients.append(x.grad)
        x.grad = None
    assert torch.equal(*gradients)


@pytest.mark.parametrize("arguments", [(0.3, False), (0.0, True), (1e-6, True), (1.0, True), (0.3, True, True)])
def test_otherwise_torch_s_own(arguments: tuple) -> None:
    x = torch.randn(50)
    state = torch.get_rng_state()
    wanted = F.dropout(x.clone(), *arguments)
    torch.set_rng_state(state)
    with fast_dropout(CPU):
        assert torch.equal(F.dropout(x.clone(), *arguments), wanted)


def test_a_gpu_keeps_its_own_kernel() -> None:
    with fast_dropout(torch.device("cuda")):
        assert F.dropout is torch_dropout
    with pytest.raises(KeyError), fast_dropout(CPU):
        assert F.dropout is dropout
        raise KeyError
    assert F.dropout is torch_dropout
