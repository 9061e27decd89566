"""The loss against closed forms computed in float64 with plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from mtvl.objectives.seq2seq import label_losses, loss_sum, sample_losses, token_losses

# float32 inside, values up to 6: measured worst case 2.1e-7
TOLERANCE = 1e-6
IGNORED = -100
TARGETS = torch.tensor([[3, 0, 4, 1], [2, 2, IGNORED, IGNORED], [IGNORED] * 4])
WEIGHTS = torch.tensor([1.0, 0.3, 0.6])


@pytest.fixture
def logits() -> torch.Tensor:
    return 2 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(logits: torch.Tensor) -> list[list[float]]:
    """-log softmax at the target, row by row; 0 where ignored."""
    table = []
    for row, targets in zip(logits.tolist(), TARGETS.tolist(), strict=True):
        losses = []
        for scores, target in zip(row, targets, strict=True):
            total = math.log(sum(math.exp(s) for s in scores))
            losses.append(0.0 if target == IGNORED else total - scores[target])
        table.append(losses)
    return table


def test_token_losses(logits: torch.Tensor) -> None:
    losses = token_losses(logits, TARGETS)
    assert losses.shape == TARGETS.shape and losses.dtype == torch.float32
    assert losses.tolist() == [pytest.approx(row, abs=TOLERANCE) for row in by_hand(logits)]
    assert bool((losses[TARGETS == IGNORED] == 0).all())


def test_losses_of_label_positions_are_the_same_bits(logits: torch.Tensor) -> None:
    whole, picked = (logits.clone().requires_grad_() for _ in range(2))
    expected, found = token_losses(whole, TARGETS), label_losses(picked[TARGETS != IGNORED], TARGETS)
    assert torch.equal(found, expected)
    for losses in (expected, found):
        (losses.sum(1) * WEIGHTS).sum().backward()
    assert torch.equal(whole.grad, picked.grad)
    nothing = label_losses(picked[TARGETS == 99], torch.full_like(TARGETS, IGNORED))
    assert nothing.shape == TARGETS.shape and float(nothing.detach().sum()) == 0.0


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    losses = token_losses(torch.zeros(3, 4, 5, dtype=torch.bfloat16), TARGETS)
    assert losses[0].tolist() == pytest.approx([math.log(5)] * 4, abs=TOLERANCE)


def test_sample_mean(logits: torch.Tensor) -> None:
    rows = by_hand(logits)
    want = [sum(rows[0]) / 4 * 1.0, sum(rows[1]) / 2 * 0.3, 0.0]
    losses = token_losses(logits, TARGETS)
    weights = WEIGHTS.tolist()
    assert weights[1] == pytest.approx(0.3, abs=1e-7)
    assert sample_losses(losses, TARGETS, WEIGHTS).tolist() == pytest.approx(want, abs=TOLERANCE)
    assert float(loss_sum(losses, TARGETS, WEIGHTS, "sample_mean")) == pytest.approx(sum(want), abs=TOLERANCE)


def test_token_mean(logits: torch.Tensor) -> None:
    rows = by_hand(logits)
    want = sum(rows[0]) * 1.0 + sum(rows[1]) * 0.3
    got = loss_sum(token_losses(logits, TARGETS), TARGETS, WEIGHTS, "token_mean")
    assert float(got) == pytest.approx(want, abs=TOLERANCE)


@pytest.mark.parametrize("loss", ["sample_mean", "token_mean"])
def test_a_slot_may_be_cut_anywhere(loss: str, logits: torch.Tensor) -> None:
    """The numerators of micro-batches add up to the numerator of the slot."""
    losses = token_losses(logits, TARGETS).double()
    weights = WEIGHTS.double()
    whole = loss_sum(losses, TARGETS, weights, loss)
    for cut in (1, 2):
        parts = [slice(0, cut), slice(cut, 3)]
        total = sum(loss_sum(losses[p], TARGETS[p], weights[p], loss) for p in parts)
        assert float(total) == pytest.approx(float(whole), abs=1e-14)


def test_the_gradient_is_softmax_minus_target(logits: torch.Tensor) -> None:
    logits = logits.float().requires_grad_(True)
    loss_sum(token_losses(logits, TARGETS), TARGETS, WEIGHTS, "sample_mean").backward()
    gradient = logits.grad
    assert gradient is not None
    want = torch.softmax(logits.detach().double(), -1)
    for row, position in ((0, 2), (1, 1)):
        want[row, position, TARGETS[row, position]] -= 1
        scale = (1.0 / 4, 0.3 / 2)[row]
        assert gradient[row, position].tolist() == pytest.approx((want[row, position] * scale).tolist(), abs=1e-7)
    assert float(gradient[1, 2:].abs().max()) == 0.0 and float(gradient[2].abs().max()) == 0.0


def test_a_row_without_targets_costs_nothing_and_stays_finite(logits: torch.Tensor) -> None:
    losses = token_losses(logits[2:], TARGETS[2:])
    for loss in ("sample_mean", "token_mean"):
        assert float(loss_sum(losses, TARGETS[2:], WEIGHTS[2:], loss)) == 0.0


def test_unknown_loss(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="unknown loss 'mean'"):
        loss_sum(token_losses(logits, TARGETS), TARGETS, WEIGHTS, "mean")
