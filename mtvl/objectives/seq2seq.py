"""Cross entropy of a sequence-to-sequence model and the two ways in which tasks average it."""

from __future__ import annotations

import torch
from torch import nn


def token_losses(logits: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    """Unreduced cross entropy (B, T) in float32 of logits (B, T, K); 0 where target_ids (B, T) is -100."""
    flat = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), target_ids.flatten(), ignore_index=-100, reduction="none"
    )
    return flat.view_as(target_ids)


def label_losses(logits: torch.Tensor, target_ids: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """`token_losses` (B, T) from the logits (N, K) of the positions of target_ids (B, T) that are not -100 alone.

    `smoothing` of the weight is spread over the whole vocabulary.
    """
    labels = target_ids != -100
    flat = nn.functional.cross_entropy(logits.float(), target_ids[labels], reduction="none", label_smoothing=smoothing)
    return torch.zeros(target_ids.shape, dtype=flat.dtype, device=flat.device).masked_scatter(labels, flat)


def sample_losses(losses: torch.Tensor, target_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over a row's target tokens, times its soft weight -> (B,).

    *Source:* VL-Adapter's VQA, GQA and NLVR2 steps (VQA multiplies by the score of the drawn answer).
    """
    counts = (target_ids != -100).sum(1).clamp(min=1)
    return losses.sum(1) / counts * weights


def answers_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """losses (A, T) of answers summed over tokens, times their weights (A,), summed over answers: scalar.

    *Source:* BLIP's VQA step, which teaches all answers of a question at once; the slot divides by its number of samples.
    """
    return (losses.sum(1) * weights).sum()


def loss_sum(losses: torch.Tensor, target_ids: torch.Tensor, weights: torch.Tensor, loss: str) -> torch.Tensor:
    """Numerator of a slot's loss over these rows: scalar.

    "sample_mean": sum of `sample_losses`; the slot divides by its number of samples.
    "token_mean": sum over tokens (long captions weigh more); the slot divides by its number of target tokens.
    """
    if loss == "sample_mean":
        return sample_losses(losses, target_ids, weights).sum()
    if loss == "token_mean":
        return (losses * weights[:, None]).sum()
    raise ValueError(f"unknown loss {loss!r}")
