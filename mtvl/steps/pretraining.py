"""The three losses of pre-training on one pass of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mtvl.steps.answering import Scored, caption_of
from mtvl.steps.retrieval import Negatives, RetrievalLosses, RetrievalOptions, RetrievalStep


def pretraining_options(queue_size: int = 57600, momentum: float = 0.995) -> RetrievalOptions:
    """Settings of contrast and matching as BLIP pre-trains: each pair alone is right, chances of negatives smoothed."""
    return RetrievalOptions(queue_size, momentum, targets="diagonal", smoothing=1e-4)


@dataclass
class PretrainingLosses:
    """Contrast and matching, captions, and their sum (scalar)."""

    pairs: RetrievalLosses
    captions: Scored
    total: torch.Tensor


def pretraining_step(
    model: Any, step: RetrievalStep, pixels: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, alpha: float,
    *, negatives: Negatives | None = None, generator: torch.Generator | None = None,
) -> PretrainingLosses:  # fmt: skip
    """Contrast + matching + language loss of B pictures with their texts. *Source:* BLIP, section 3.2; weights are 1."""
    ids = torch.arange(len(text_ids), device=text_ids.device)
    pairs = step(model, pixels, text_ids, text_mask, ids, alpha, negatives=negatives, generator=generator)
    captions = caption_of(model, pairs.details["own"].tokens, text_ids, text_mask)
    return PretrainingLosses(pairs, captions, pairs.total + captions.loss)
