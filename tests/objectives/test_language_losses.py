"""Losses of a decoder over its own inputs."""

from __future__ import annotations

import pytest
import torch

from mtvl.objectives.language import (
    answer_losses,
    caption_loss,
    language_labels,
    next_token_losses,
    weighted_answers_loss,
)

IDS = torch.tensor([[9, 5, 6, 3], [9, 4, 3, 0]])
MASK = IDS != 0
LOGITS = torch.randn(2, 4, 10, generator=torch.Generator().manual_seed(0))


def test_labels_leave_out_padding_and_prompt() -> None:
    assert language_labels(IDS, MASK).tolist() == [[9, 5, 6, 3], [9, 4, 3, -100]]
    assert language_labels(IDS, MASK, 2).tolist() == [[-100, -100, 6, 3], [-100, -100, 3, -100]]


def test_each_place_predicts_the_next_token_with_smoothing() -> None:
    losses = next_token_losses(LOGITS, language_labels(IDS, MASK))
    scores = torch.log_softmax(LOGITS, -1)
    for row, place, token in ((0, 0, 5), (0, 2, 3), (1, 1, 3)):
        expected = -(0.9 * scores[row, place, token] + 0.1 * scores[row, place].mean())
        assert float(losses[row, place]) == pytest.approx(float(expected), rel=1e-5)
    assert float(losses[1, 2]) == 0.0


def test_captions_average_over_tokens_and_answers_sum() -> None:
    labels = language_labels(IDS, MASK)
    losses = next_token_losses(LOGITS, labels)
    assert torch.allclose(caption_loss(LOGITS, labels), losses.sum() / 5)
    assert torch.allclose(answer_losses(LOGITS, labels), losses.sum(1))
    weights = torch.tensor([0.3, 0.7])
    assert torch.allclose(weighted_answers_loss(losses.sum(1), weights, 4), (losses.sum(1) * weights).sum() / 4)
    nothing = torch.full_like(labels, -100)
    assert float(caption_loss(LOGITS, nothing)) == 0.0
