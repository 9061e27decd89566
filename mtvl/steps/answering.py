"""Captions, answers and comparisons in one step, and the ranking of a list of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtvl.objectives.language import (
    SMOOTHING,
    answer_losses,
    caption_loss,
    language_labels,
    weighted_answers_loss,
)


@dataclass
class Scored:
    """A loss (scalar) with the logits that it was made of, and what further came out."""

    loss: torch.Tensor
    logits: torch.Tensor
    details: dict[str, torch.Tensor]


def caption_step(
    model: Any, pixels: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, prompt_tokens: int = 0
) -> Scored:
    """Language loss of captions (B, T) that begin with [CLS], the prompt's first `prompt_tokens` places not counted."""
    return caption_of(model, model.see(pixels), text_ids, text_mask, prompt_tokens)


def caption_of(
    model: Any, tokens: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, prompt_tokens: int = 0
) -> Scored:
    """The same from image tokens (B, N, P, D)."""
    labels = language_labels(text_ids, text_mask, prompt_tokens)
    logits = model.decode_states(text_ids, text_mask, tokens.flatten(1, 2))
    return Scored(caption_loss(logits, labels), logits, {"tokens": tokens, "labels": labels})


def answer_step(
    model: Any, pixels: torch.Tensor, question: tuple[torch.Tensor, torch.Tensor],
    answers: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor, per_question: torch.Tensor,
) -> Scored:  # fmt: skip
    """Several weighted answers for each question: `question` ids and mask (B, S), `answers` ids and mask (A, T), weights
    (A,), per_question (B,) adding up to A.

    *Source:* BLIP's VQA: losses are summed over an answer's tokens, and divided by the number of pictures.
    """
    tokens = model.see(pixels)
    states = model.fuse(*question, tokens)
    memory, mask = (x.repeat_interleave(per_question, 0, output_size=len(weights)) for x in (states, question[1]))
    logits = model.decode_states(*answers, memory, mask)
    losses = answer_losses(logits, language_labels(*answers))
    loss = weighted_answers_loss(losses, weights, len(tokens))
    return Scored(loss, logits, {"tokens": tokens, "states": states, "losses": losses})


def compare_step(
    model: Any, pixels: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, targets: torch.Tensor
) -> Scored:
    """True or false (targets (B,) of 1 or 0) of texts about two pictures (B, 2, 3, H, W)."""
    tokens = model.see(pixels)
    states = model.fuse(text_ids, text_mask, tokens)
    logits = model.compare(states[:, 0])
    return Scored(nn.functional.cross_entropy(logits.float(), targets), logits, {"tokens": tokens, "states": states})


@torch.no_grad()
def rank_answers(
    model: Any, states: torch.Tensor, mask: torch.Tensor, answers: tuple[torch.Tensor, torch.Tensor], top: int,
    *, smoothing: float = SMOOTHING, chunk: int = 512,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The `top` of a list of answers by their first token, scored by their whole log-likelihood.

    states (B, S, D) and mask (B, S) of the questions, answers' ids and mask (A, T) -> indices (B, top), scores
    (B, top), chances (B, A) of first tokens. `chunk` answers are decoded at a time.

    *Source:* BLIP's ranking, whose score is the smoothed loss, summed and not divided by length; `smoothing` 0 gives the
    likelihood itself.
    """
    ids, given = answers
    start = torch.full((len(states), 1), model.text_shape.dec_id, device=states.device)
    first = model.decode_states(start, torch.ones_like(start, dtype=torch.bool), states, mask)[:, 0]
    chances = torch.softmax(first.float(), 1)[:, ids[:, 1]]
    index = chances.topk(min(top, len(ids)), 1).indices
    flat = index.flatten()
    rows = torch.arange(len(states), device=states.device).repeat_interleave(index.shape[1])
    labels = language_labels(ids, given)
    scores = []
    for some, row in zip(flat.split(chunk), rows.split(chunk), strict=True):
        logits = model.decode_states(ids[some], given[some], states[row], mask[row])
        scores.append(-answer_losses(logits, labels[some], smoothing))
    return index, torch.cat(scores).view_as(index), chances
