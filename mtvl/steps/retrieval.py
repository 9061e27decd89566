"""Contrast and matching of pictures (or videos) and texts in one training step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mtvl.dist import gather_rows
from mtvl.errors import ConfigError
from mtvl.objectives.contrast import (
    NO_ID,
    Contrast,
    FeatureQueue,
    clamp_temperature,
    contrast_loss,
    draw_negatives,
    hard_targets,
    matching_loss,
    mean_of,
    negative_weights,
    ranking_agreement,
)
from mtvl.objectives.frames import check_frame_weights, frame_weights, key_scales, weigh_frames
from mtvl.steps.teacher import Teacher

UNTAUGHT = ("match.", "temperature.", "decoder.", "compare.")  # no part of the features that a teacher gives

UNSEEING = ("text.", "contrast.")  # no part of what makes image tokens


@dataclass(frozen=True)
class RetrievalOptions:
    """Settings of the step.

    `targets`: "ids" counts all pairs of one picture as right, "diagonal" the pair alone (pre-training).
    `all_ranks`: negatives come from the batch of all ranks. `smoothing` of the chances of negatives (pre-training:
    1e-4). `frame_weights`: a rule of `mtvl.objectives.frames`. `agreement`: weight of UniTrans' MCAM loss (0: none), at
    the fixed `agreement_temperature`, or at the learned one where that is 0.
    """

    queue_size: int = 57600
    momentum: float = 0.995
    targets: str = "ids"
    all_ranks: bool = False
    smoothing: float = 0.0
    frame_weights: str = "off"
    agreement: float = 0.0
    agreement_temperature: float = 0.0

    def __post_init__(self) -> None:
        check_frame_weights(self.frame_weights)
        if self.targets not in ("ids", "diagonal"):
            raise ConfigError(f"'targets' is ids or diagonal, found {self.targets!r}")
        if self.targets == "diagonal" and self.all_ranks:
            raise ConfigError("'all_ranks' tells pairs of one picture by their ids: it wants 'targets' to be ids")
        if self.queue_size < 1 or not 0 <= self.momentum < 1:
            raise ConfigError(f"'queue_size' must be at least 1 and 'momentum' lie in [0, 1), found {self}")


@dataclass
class Pairs:
    """B pictures with their texts through both towers.

    tokens (B, N, P, D), text_ids and text_mask (B, S), text_first (B, D) the texts' first states, image and text unit
    vectors (B, E), frames (B, N, E) or None, ids (B,) of the pictures.
    """

    tokens: torch.Tensor
    text_ids: torch.Tensor
    text_mask: torch.Tensor
    text_first: torch.Tensor
    image: torch.Tensor
    text: torch.Tensor
    frames: torch.Tensor
    ids: torch.Tensor


@dataclass
class RetrievalLosses:
    """Losses (scalars), and what they were made of, for tests and reports."""

    contrast: torch.Tensor
    matching: torch.Tensor
    agreement: torch.Tensor
    total: torch.Tensor
    details: dict[str, Any] = field(default_factory=dict)


Negatives = tuple[torch.Tensor, torch.Tensor]  # picture for each text, text for each picture


class RetrievalStep(nn.Module):
    """Owns the queue and the teacher of a backbone with contrast and matching heads; the backbone is handed in.

    *Source:* BLIP's retrieval fine-tuning and pre-training steps. The teacher moves first, then gives the features of
    this step; the queue takes them after the targets are made.
    """

    def __init__(self, model: nn.Module, options: RetrievalOptions, taught: Iterable[str] | None = None) -> None:
        """`taught`: names of parameters that the teacher averages; the trained ones of both towers when not given."""
        super().__init__()
        self.options = options
        width = model.config.embed_dim  # type: ignore[union-attr]
        self.queue = FeatureQueue(options.queue_size, width)  # type: ignore[arg-type]
        if taught is None:
            trained = [n for n, p in model.named_parameters() if p.requires_grad]
            taught = [n for n in trained if not n.startswith(UNTAUGHT)]
        self.teacher = Teacher(model, taught, options.momentum)

    def look(
        self, model: Any, pixels: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, ids: torch.Tensor
    ) -> Pairs:
        """Both towers on pixels (B, 3, H, W) or (B, N, 3, H, W) and texts that begin with [CLS]."""
        tokens, hidden = model.see(pixels), model.read(text_ids, text_mask)
        return Pairs(
            tokens, text_ids, text_mask, hidden[:, 0], model.image_features(tokens), model.text_features(hidden),
            model.frame_features(tokens), ids,
        )  # fmt: skip

    def teach(
        self, model: Any, pixels: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor,
        tokens: torch.Tensor | None = None,
    ) -> Negatives:  # fmt: skip
        """The teacher's unit vectors (B, E) of pictures and texts.

        `tokens`: the model's own image tokens of the same pictures, which are the teacher's too where it averages nothing that
        they hang on.
        """
        if tokens is not None and self.sees_alike(model):

            def features(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return model.image_features(inputs[0]), model.text_features(model.read(*inputs[1:]))

            return self.teacher.run(model, features, tokens.detach(), text_ids, text_mask)

        def all_features(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return model.image_features(model.see(inputs[0])), model.text_features(model.read(*inputs[1:]))

        return self.teacher.run(model, all_features, pixels, text_ids, text_mask)

    def sees_alike(self, model: Any) -> bool:
        """True when the model's image tokens are its teacher's bit for bit: what is averaged stands in the text tower and
        the heads (adapters of the vision tower, and modules that towers share, do not), and no path is dropped at random."""
        return not model.vision_shape.drop_path and all(name.startswith(UNSEEING) for name in self.teacher.names)

    def forward(
        self, model: Any, pixels: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor, ids: torch.Tensor,
        alpha: float, *, negatives: Negatives | None = None, generator: torch.Generator | None = None,
        counts: torch.Tensor | None = None,
    ) -> RetrievalLosses:  # fmt: skip
        """Losses of this rank's B pairs; `negatives` sets what is drawn otherwise.

        All ranks' features go into the queue, so it stays the same everywhere. With `all_ranks` the texts of all ranks
        have to be padded to one length. Rows without `counts` (B,) bool, all when not given, are no pairs: they are in no
        loss, are nobody's negatives on any rank, and do not go into the queue.
        """
        if counts is not None:
            ids = ids.masked_fill(~counts, NO_ID)  # what other ranks see of it
        clamp_temperature(model.temperature.value)
        self.teacher.update(model)
        own = self.look(model, pixels, text_ids, text_mask, ids)
        taught = self.teach(model, pixels, text_ids, text_mask, own.tokens)
        everyone = own
        if self.options.all_ranks:
            everyone = Pairs(**{name: gather_rows(value) for name, value in vars(own).items()})
        losses = self.losses(model, own, taught, everyone, alpha, negatives, generator, counts)
        self.queue.push(gather_rows(taught[0]), gather_rows(taught[1]), gather_rows(ids))
        return losses

    def losses(
        self, model: Any, own: Pairs, taught: Negatives, everyone: Pairs, alpha: float,
        negatives: Negatives | None = None, generator: torch.Generator | None = None,
        counts: torch.Tensor | None = None,
    ) -> RetrievalLosses:  # fmt: skip
        """Losses of `own` pairs with negatives from `everyone`; changes neither queue nor teacher."""
        temperature = model.temperature.value
        hard = self._hard(own.ids)
        contrast = contrast_loss((own.image, own.text), taught, self.queue, hard, temperature, alpha, counts)
        weights = self._weights(own, everyone, contrast, temperature)
        if negatives is None:
            drawn = [draw_negatives(w, generator) for w in weights]
        else:
            drawn = [(index, torch.ones_like(index, dtype=torch.bool)) for index in negatives]
        logits, positive, negative = self.match(model, own, everyone, drawn[0][0], drawn[1][0])
        matching = matching_loss(logits, torch.cat([drawn[0][1], drawn[1][1]]), counts)
        agreement = contrast.loss.new_zeros(())
        if self.options.agreement:
            tau = self.options.agreement_temperature or temperature
            counted = everyone.ids != NO_ID  # of all ranks
            found = ranking_agreement(everyone.image, everyone.text, tau, counted)
            agreement = self.options.agreement * mean_of(found, counted)
        details = {"contrast": contrast, "weights": weights, "logits": logits, "positive": positive,
                   "negative": negative, "own": own}  # fmt: skip
        return RetrievalLosses(contrast.loss, matching, agreement, contrast.loss + matching + agreement, details)

    def _hard(self, ids: torch.Tensor) -> torch.Tensor:
        if self.options.targets == "ids":
            return hard_targets(ids, torch.cat([ids, self.queue.ids]))
        size = len(ids) + len(self.queue.ids)
        return torch.eye(len(ids), size, device=ids.device)

    def _weights(
        self, own: Pairs, everyone: Pairs, contrast: Contrast, temperature: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chances (B, C) of pictures for each text, and of texts for each picture.

        From the features themselves; in pre-training from the similarities to the teacher's.
        """
        if self.options.targets == "ids":
            is_same = own.ids[:, None] == everyone.ids[None, :]
        else:
            is_same = torch.eye(len(own.ids), len(everyone.ids), dtype=torch.bool, device=own.ids.device)
        is_same = is_same | (everyone.ids == NO_ID)
        rows = len(own.ids)
        for_text, for_image = contrast.text_to_image[:, :rows], contrast.image_to_text[:, :rows]
        if self.options.targets == "ids":
            with torch.no_grad():
                for_text = own.text @ everyone.image.T / temperature
                for_image = own.image @ everyone.text.T / temperature
        smoothing = self.options.smoothing
        return negative_weights(for_text, is_same, smoothing), negative_weights(for_image, is_same, smoothing)

    def match(
        self, model: Any, own: Pairs, everyone: Pairs, images: torch.Tensor, texts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (3B, 2) and the states of positives (B, S, D) and negatives (2B, S, D).

        images (B,) and texts (B,) index `everyone`. One pass of 2B beside one of B, as published: the order of the
        rows is positives, (negative picture, text), (picture, negative text).
        """
        both = torch.cat
        negatives = Pairs(
            both([everyone.tokens[images], own.tokens]), both([own.text_ids, everyone.text_ids[texts]]),
            both([own.text_mask, everyone.text_mask[texts]]), both([own.text_first, everyone.text_first[texts]]),
            both([everyone.image[images], own.image]), both([own.text, everyone.text[texts]]),
            both([everyone.frames[images], own.frames]), both([own.ids, own.ids]),
        )  # fmt: skip
        positive, negative = (fuse_pairs(model, pairs, self.options.frame_weights) for pairs in (own, negatives))
        return model.match(both([positive[:, 0], negative[:, 0]])), positive, negative


def check_frame_rule(backbone: Any, rule: str) -> None:
    """ConfigError for an unknown rule of frame weights, and for one that this backbone has not the parts for."""
    check_frame_weights(rule)
    if rule != "off" and backbone.parts.encoder != "one":
        raise ConfigError(
            f"'backbone.frame_weights' {rule} asks a text that is encoded which frames it wants, and 'backbone.kind' "
            f"{backbone.config.kind!r} encodes none by itself; set backbone.frame_weights=off, or use the kind joint"
        )
    if rule == "paper" and backbone.vision_shape.width != backbone.text_shape.width:
        raise ConfigError(
            f"'backbone.frame_weights' paper multiplies class tokens of {backbone.vision_shape.width} and of "
            f"{backbone.text_shape.width} numbers; use cosine, which compares their projections"
        )
    if rule not in ("off", "paper") and not backbone.has_pairs:
        raise ConfigError(
            f"'backbone.frame_weights' {rule} compares projections, which 'backbone.kind' {backbone.config.kind!r} does not "
            "have; use paper, or the kind joint"
        )


def weights_of_frames(model: Any, hidden: torch.Tensor, tokens: torch.Tensor, rule: str) -> torch.Tensor:
    """Weights (B, N) that texts alone (B, S, D) give to frames (B, N, P, D)."""
    text, frames = _compared(model, hidden, tokens, rule)
    return frame_weights(frames, text, rule)


def _compared(
    model: Any, hidden: torch.Tensor, tokens: torch.Tensor, rule: str
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What a rule compares of texts, and of frames: the paper class tokens as they are, the others their projections."""
    if rule == "paper":
        return hidden[:, 0], tokens[:, :, 0]
    return model.text_features(hidden), model.frame_features(tokens)


def ground(model: Any, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, rule: str) -> torch.Tensor:
    """Texts (B, S) with frames (B, N, P, D), weighted by `rule`, all of which are there -> (B, S, D)."""
    hidden = model.read(ids, mask)
    text, frames = _compared(model, hidden, tokens, rule)
    return fuse_pairs(model, Pairs(tokens, ids, mask, hidden[:, 0], text, text, frames, ids[:, 0]), rule)


def fuse_pairs(model: Any, pairs: Pairs, rule: str) -> torch.Tensor:
    """Texts with pictures (B, S, D); by `rule` frames are weighted by how near they are to the text alone."""
    tokens, ids, mask = pairs.tokens, pairs.text_ids, pairs.text_mask
    if rule == "off":
        return model.fuse(ids, mask, tokens)
    if rule == "paper":
        return model.fuse(ids, mask, weigh_frames(tokens, frame_weights(tokens[:, :, 0], pairs.text_first, rule)))
    weights = frame_weights(pairs.frames, pairs.text, rule)
    if rule == "cosine":
        return model.fuse(ids, mask, weigh_frames(tokens, weights))
    return model.fuse(ids, mask, tokens, None, key_scales(weights, tokens.shape[2]))
