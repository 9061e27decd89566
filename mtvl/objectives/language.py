"""Losses of a decoder whose inputs are its own targets: captions, answers with weights, scores of answers.

*Source:* BLIP; label smoothing of 0.1 is spread over the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

SMOOTHING = 0.1
IGNORED = -100


def language_labels(ids: torch.Tensor, mask: torch.Tensor, prompt_tokens: int = 0) -> torch.Tensor:
    """ids (B, T), mask (B, T) bool -> labels (B, T), -100 at padding and at the first `prompt_tokens` places."""
    labels = ids.masked_fill(~mask.bool(), IGNORED)
    if prompt_tokens:
        labels[:, :prompt_tokens] = IGNORED
    return labels


def next_token_losses(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Cross entropy (B, T - 1) in float32 of logits (B, T, K) against the labels (B, T) one place on; 0 where ignored."""
    wanted = labels[:, 1:]
    flat = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none",
        label_smoothing=smoothing,
    )  # fmt: skip
    return flat.view_as(wanted)


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Mean over all target tokens of the batch: scalar."""
    count = (labels[:, 1:] != IGNORED).sum()
    return next_token_losses(logits, labels, smoothing).sum() / count.clamp(min=1)


def answer_losses(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = SMOOTHING) -> torch.Tensor:
    """Summed, not averaged, over an answer's tokens -> (A,) for logits (A, T, K)."""
    return next_token_losses(logits, labels, smoothing).sum(1)


def weighted_answers_loss(losses: torch.Tensor, weights: torch.Tensor, num_images: int) -> torch.Tensor:
    """Sum of an answer's loss (A,) times its weight (A,), over the number of pictures: scalar."""
    return (losses * weights).sum() / num_images
