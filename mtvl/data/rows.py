"""Single rows of a batch: taken out of the loss, shortened, told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mtvl.data.schedule import stable_bits
from mtvl.types import Batch, Visual

IGNORE = -100


def without_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch with `rows` that count for nothing, under either kind of loss: uid "", no target, weight 0."""
    target_ids, weights = batch.target_ids.clone(), batch.target_weights.clone()
    target_ids[list(rows)], weights[list(rows)] = IGNORE, 0.0
    scores = batch.answer_scores.clone()
    scores[list(rows)] = -1
    uids = tuple("" if row in rows else uid for row, uid in enumerate(batch.uids))
    choice_weights = batch.choice_weights.clone()
    choice_weights[list(rows)] = 0.0
    return replace(
        batch, uids=uids, target_ids=target_ids, target_weights=weights, answer_scores=scores,
        choice_weights=choice_weights,
    )  # fmt: skip


def shorten_video(rows: torch.Tensor, max_frames: int) -> torch.Tensor:
    """(T, P, F) -> (min(T, max_frames), P, F) by adaptive max pooling over time.

    *Source:* VL-Adapter's loader of video features, for videos of more than 64 frames.
    """
    frames, tokens, width = rows.shape
    if frames <= max_frames:
        return rows
    flat = rows.permute(1, 2, 0).reshape(1, tokens * width, frames)
    pooled = torch.nn.functional.adaptive_max_pool1d(flat, max_frames)
    return pooled.reshape(tokens, width, max_frames).permute(2, 0, 1)


def item_id(visual: Visual) -> int:
    """A number that rows with the same pictures or video share, and no others do (63 bits of a hash)."""
    return stable_bits("item", repr((visual.images, visual.video, visual.span))) >> 65
