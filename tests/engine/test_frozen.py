"""Products with frozen weights: values, gradients, and which products are left to torch."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtvl.engine import frozen
from mtvl.engine.frozen import FrozenLinear, packed_frozen_weights

pytestmark = pytest.mark.skipif(not frozen.is_available(), reason="this torch was built without oneDNN")
IN, OUT = 512, 640
# Worst of ten seeds, in parts of the largest value: 1.0e-6 in float32, the same bits in bfloat16.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that went through packed weights."""
    seen: list[tuple[int, ...]] = []
    real = FrozenLinear.apply
    monkeypatch.setattr(FrozenLinear, "apply", lambda *args: seen.append(tuple(args[0].shape)) or real(*args))
    return seen


def layer(dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=bias).to(dtype).requires_grad_(False)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, IN), (2, 5, IN), (1, 1, IN), (2, 2, 3, IN)])
def test_values_and_gradients_are_those_of_the_plain_product(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, calls: list
) -> None:
    module = layer(dtype, bias)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    expected = module(x)
    g = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad(expected, x, g)
    with packed_frozen_weights(True):
        found = module(x)
        (gradient,) = torch.autograd.grad(found, x, g)
    assert calls == [shape] and found.dtype == dtype
    assert far(found, expected) < LIMITS[dtype] and far(gradient, expected_gradient) < LIMITS[dtype]


def test_strided_rows_and_gradients(calls: list) -> None:
    module = layer()
    x = torch.randn(IN, 6, requires_grad=True)
    with packed_frozen_weights(True):
        y = module(x.t())
        y.t()[::2].sum().backward()
    assert calls and far(y, F.linear(x.t(), module.weight, module.bias)) < 1e-5
    chosen = torch.zeros(OUT)
    chosen[::2] = 1
    assert far(x.grad, (chosen @ module.weight)[:, None].expand(IN, 6)) < 1e-5


def test_a_trained_bias_gets_its_gradient(calls: list) -> None:
    module = layer()
    module.bias.requires_grad_(True)
    x = torch.randn(2, 3, IN)
    with packed_frozen_weights(True):
        module(x).square().sum().backward()
    expected = 2 * module(x).detach().sum((0, 1))
    assert calls and far(module.bias.grad, expected) < 1e-5 and module.weight.grad is None


def test_a_weight_that_was_written_to_is_laid_out_anew(calls: list) -> None:
    module = layer()
    x = torch.randn(4, IN)
    with packed_frozen_weights(True):
        before = module(x)
        with torch.no_grad():
            module.weight.mul_(2)
        twice = module(x)
        module.weight.data = module.weight.data / 4
        half = module(x)
    bias = module.bias
    assert far(twice - bias, 2 * (before - bias)) < 1e-5 and far(half - bias, (before - bias) / 2) < 1e-5


def test_layouts_go_with_their_weights() -> None:
    module = layer()
    with packed_frozen_weights(True):
        module(torch.randn(2, IN, requires_grad=True)).sum().backward()
    assert len(frozen._layouts) >= 1 and len(frozen._layouts[module.weight][1]) == 2
    count = len(frozen._layouts)
    del module
    gc.collect()
    assert len(frozen._layouts) == count - 1


def test_equal_rows_give_equal_bits_whatever_came_first() -> None:
    x = torch.randn(64, IN)
    answers = []
    for first in (1, 64, 500):
        module = layer()
        with packed_frozen_weights(True):
            module(torch.randn(first, IN))
            answers.append(module(x))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_recomputed_activations(calls: list) -> None:
    module = layer()
    x = torch.randn(4, IN, requires_grad=True)
    with packed_frozen_weights(True):
        checkpoint(lambda rows: module(rows).square(), x, use_reentrant=False).sum().backward()
    expected = 2 * module(x).detach() @ module.weight
    assert calls == [(4, IN)] * 2 and far(x.grad, expected) < 1e-5


def test_what_is_left_to_torch(calls: list) -> None:
    trained = layer().requires_grad_(True)
    small = nn.Linear(64, 64).requires_grad_(False)
    wide = layer()
    with packed_frozen_weights(True):
        trained(torch.randn(2, IN)).sum().backward()
        small(torch.randn(2, 64))
        F.linear(torch.randn(2, IN), wide.weight.data * 2)  # made on the way: gone with this call
        wide(torch.randn(0, IN))
        wide(torch.randn(IN))
        with torch.autocast("cpu", torch.bfloat16):
            assert wide(torch.randn(2, IN)).dtype == torch.bfloat16
    assert not calls and trained.weight.grad is not None


def test_off_and_after_an_error_torch_s_own_is_there(calls: list) -> None:
    own = F.linear
    with packed_frozen_weights(False):
        assert F.linear is own
    with pytest.raises(RuntimeError), packed_frozen_weights(True):
        assert F.linear is not own
        layer()(torch.randn(2, IN + 1))
    assert F.linear is own
