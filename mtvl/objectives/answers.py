"""Losses over a fixed list of answers of which several may be right in part."""

from __future__ import annotations

import torch
from torch import nn


def soft_answer_losses(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy in float32, summed over the answers -> (B,).

    logits (B, K); scores (B, K) are soft weights in [0, 1], below 0 where an answer does not count: a row of a task sees
    the task's answers alone. A row without any counts for nothing.

    *Source:* CLIP-ViL and LXMERT on VQA and GQA (mean over the answers times their number, mean over the rows).
    """
    counts = scores >= 0
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits.float().masked_fill(~counts, 0.0), scores.clamp(min=0), reduction="none"
    )
    return (losses * counts).sum(1)
