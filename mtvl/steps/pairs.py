"""Contrast and matching as a loss of the trainer: a batch of pictures (or videos) with their texts, one number out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mtvl import dist
from mtvl.config import PairsConfig
from mtvl.errors import CheckpointError, ConfigError
from mtvl.objectives.contrast import TEMPERATURE_RANGE, ramped
from mtvl.steps.answering import caption_of
from mtvl.steps.retrieval import RetrievalOptions, RetrievalStep
from mtvl.types import Batch

_log = logging.getLogger(__name__)


class PairsLoss(nn.Module):
    """Owns queue, teacher and the count of batches. They are no parameters: resume states carry them, exports do not.

    Contrast is among the rows of a micro-batch and the queue, and the queue takes every micro-batch: other than with
    losses of answers, the size of a micro-batch is a setting of the loss. *Source:* BLIP's retrieval fine-tuning, and with
    `language` its pre-training.
    """

    count: torch.Tensor
    bounds = {"temperature.value": TEMPERATURE_RANGE}  # of the backbone's parameters

    def __init__(self, backbone: nn.Module, config: PairsConfig, rows: str = "") -> None:
        super().__init__()
        if config.language:
            _check_writer(backbone)
        options = RetrievalOptions(
            config.queue_size, config.momentum, config.targets, config.all_ranks, config.smoothing,
            backbone.config.frame_weights, config.agreement, config.agreement_temperature,  # type: ignore[union-attr, arg-type]
        )  # fmt: skip
        self.config, self.rows = config, rows
        self.step = RetrievalStep(backbone, options)
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self._batches = 0  # the same on the host

    def forward(self, backbone: Any, batch: Batch) -> torch.Tensor:
        """Sum over the rows of their losses: scalar. Rows without a uid, whose picture could not be read and which show
        another row's, are no pairs."""
        ids, mask = batch.source_ids, batch.source_mask
        if self.config.all_ranks:
            ids, mask = _as_wide_as_all(ids, backbone.text_shape.pad_id), _as_wide_as_all(mask, False)
        alpha = ramped(self.config.alpha, self._batches, self.config.ramp_steps)
        num_rows = sum(bool(uid) for uid in batch.uids)
        counts = None
        if num_rows < len(batch.uids):
            counts = torch.tensor([bool(uid) for uid in batch.uids], device=ids.device)
        losses = self.step(backbone, backbone.every_frame(batch), ids, mask, batch.item_ids, alpha, counts=counts)
        total = losses.total
        if self.config.language:
            tokens = losses.details["own"].tokens
            total = total + self.config.language * caption_of(backbone, tokens, ids, mask, counts=counts).loss
        self._batches += 1
        self.count.fill_(self._batches)
        return total * num_rows

    def resume(self, state: Mapping[str, torch.Tensor], rows: str = "") -> None:
        """Go on from a saved `state_dict`; CheckpointError unless it is of the same queue and teacher.

        Other `rows` of a micro-batch than it was saved with are warned of.
        """
        if rows and rows != self.rows and dist.is_main():
            _log.warning(
                "contrast and matching are among the rows of a micro-batch, which were %s and are %s now: losses are not those "
                "of a run that was never stopped", rows, self.rows,
            )  # fmt: skip
        own = self.state_dict()
        wrong = sorted({n for n in {*own, *state} if n not in own or n not in state or own[n].shape != state[n].shape})
        if wrong:
            raise CheckpointError(f"queue and teacher of the checkpoint are others than this run's, e.g. {wrong[:3]}")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self._batches = int(self.count)


def _check_writer(backbone: Any) -> None:
    """ConfigError for a backbone that cannot write a text from a picture's tokens."""
    reads, widths = backbone.parts.decoder_reads, (backbone.vision_shape.width, backbone.text_shape.width)
    if reads != "image" and (not reads or widths[0] != widths[1]):
        found = f"reads states of {widths[1]}, and image tokens are {widths[0]} wide" if reads else "is not there"
        raise ConfigError(
            f"'pairs.language' is the loss of writing a text from its picture, and the decoder of 'backbone.kind' "
            f"{backbone.config.kind!r} {found}; set backbone.kind=pretrain, or pairs.language=0"
        )


def _as_wide_as_all(rows: torch.Tensor, fill: int | bool) -> torch.Tensor:
    """(B, S) padded to the widest of all ranks: rows can be exchanged then."""
    width = max(dist.gather_objects(rows.shape[1]))
    return nn.functional.pad(rows, (0, width - rows.shape[1]), value=fill)
