"""Binary cross entropy over a list of answers against torch's own, with answers and rows that do not count."""

from __future__ import annotations

import torch
from torch import nn

from mtvl.objectives.answers import soft_answer_losses

LOGITS = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3


def test_it_is_the_mean_times_the_number_of_answers() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.3, 0.0, 0.0], [0.0] * 5, [0.9, 0.0, 0.0, 0.0, 0.6]])
    found = soft_answer_losses(LOGITS, scores)
    for row in range(3):
        expected = nn.functional.binary_cross_entropy_with_logits(LOGITS[row], scores[row]) * 5
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-6)


def test_answers_of_other_tasks_and_rows_without_answers_count_for_nothing() -> None:
    scores = torch.tensor([[0.0, 1.0, -1.0, 0.3, -1.0], [-1.0] * 5, [0.0, -1.0, -1.0, -1.0, 1.0]])
    logits = LOGITS.masked_fill(scores < 0, -torch.inf).requires_grad_()
    found = soft_answer_losses(logits, scores)
    assert bool(torch.isfinite(found).all()) and float(found[1].detach()) == 0
    few = soft_answer_losses(LOGITS[:1, [0, 1, 3]], scores[:1, [0, 1, 3]])
    torch.testing.assert_close(found[:1], few, atol=1e-6, rtol=1e-6)
    found.sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad[scores < 0] == 0).all()) and bool((logits.grad[scores >= 0] != 0).all())


def test_half_precision_is_summed_in_single() -> None:
    scores = torch.zeros(3, 5)
    found = soft_answer_losses(LOGITS.bfloat16(), scores)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, soft_answer_losses(LOGITS.bfloat16().float(), scores))
