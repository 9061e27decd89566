"""Captions, answers and comparisons in one step, and the ranking of a list of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mtvl.objectives.language import (
    IGNORED,
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
    model: Any, tokens: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, prompt_tokens: int = 0,
    counts: torch.Tensor | None = None,
) -> Scored:  # fmt: skip
    """The same from image tokens (B, N, P, D); captions without `counts` (B,) bool are not counted."""
    wanted = text_mask if counts is None else text_mask & counts[:, None]
    labels = language_labels(text_ids, wanted, prompt_tokens)
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
    decode: Callable[[Any, torch.Tensor], torch.Tensor], memory: Any, answers: Sequence[Sequence[int]], top: int,
    *, smoothing: float = SMOOTHING, chunk: int = 8, pass_common: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The `top` of a list of answers by their first token, scored by their whole log-likelihood.

    `decode(memory, ids (B, T)) -> logits (B, T, K)` teacher-forced, -100 where ignored; `memory.repeat(n)` has each row n
    times; `answers` are A wrapped targets. Tokens with which all answers begin are passed over; with `pass_common` off they are
    not, as in BLIP. Returns indices (B, top), scores (B, top) and chances (B, A) of first tokens. `chunk` answers of each row
    are decoded at a time, so that all ranks take as many passes.

    *Source:* BLIP's ranking, whose score is the smoothed loss, summed and not divided by length; `smoothing` 0 gives the
    likelihood itself.
    """
    device = memory.hidden.device
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(a) for a in answers], True, IGNORED).to(device)
    begin = 0
    while pass_common and begin < ids.shape[1] - 1 and bool((ids[:, begin] == ids[0, begin]).all()):
        begin += 1
    first = decode(memory, ids[:1, : begin + 1].expand(len(memory.hidden), -1))[:, begin]
    chances = torch.softmax(first.float(), 1)[:, ids[:, begin]]
    index = chances.topk(min(top, len(ids)), 1).indices
    scores = []
    for some in index.split(chunk, 1):
        wanted = ids[some.flatten()]
        logits = decode(memory.repeat(some.shape[1]), wanted)
        losses = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none",
            label_smoothing=smoothing,
        )  # fmt: skip
        scores.append(-losses.view_as(wanted).sum(1).view_as(some))
    return index, torch.cat(scores, 1), chances
