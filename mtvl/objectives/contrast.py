"""Pictures and texts in one space: contrast with soft targets and a queue, hard negatives, agreement of rankings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

NO_ID = -100  # of places in a queue that nothing was written to, and of rows that count for nothing
TEMPERATURE_RANGE = (0.001, 0.5)


class FeatureQueue(nn.Module):
    """The last `size` pairs of a teacher's unit vectors with the ids of their pictures: a ring, of any batch size.

    It starts with random unit vectors, which count as negatives until they are overwritten. *Source:* BLIP, whose own
    wants its size to be a multiple of the batch.
    """

    image: torch.Tensor
    text: torch.Tensor
    ids: torch.Tensor
    place: torch.Tensor

    def __init__(self, size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        for name in ("image", "text"):
            drawn = nn.functional.normalize(torch.randn(size, width, generator=random), dim=1)
            self.register_buffer(name, drawn)
        self.register_buffer("ids", torch.full((size,), NO_ID))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, image: torch.Tensor, text: torch.Tensor, ids: torch.Tensor) -> None:
        """Write features (B, E) and ids (B,) behind the last ones, round the end; of too many the last are kept.

        A row of NO_ID leaves its place as it was (taking it out would ask the host how many there are), and so does one that
        is not finite: the engine skips such a step, and a queue that keeps it would spoil all that follow.
        """
        size = len(self.ids)
        first = max(0, len(ids) - size)
        places = (self.place + torch.arange(first, len(ids), device=self.place.device)) % size
        image, text, ids = image[first:], text[first:], ids[first:]
        counts = (ids != NO_ID) & image.isfinite().all(1) & text.isfinite().all(1)
        self.image[places] = torch.where(counts[:, None], image.to(self.image.dtype), self.image[places])
        self.text[places] = torch.where(counts[:, None], text.to(self.text.dtype), self.text[places])
        self.ids[places] = torch.where(counts, ids, self.ids[places])
        self.place.copy_((self.place + first + len(ids)) % size)


@dataclass
class Contrast:
    """Loss (scalar), similarities over temperature (B, C) and soft targets (B, C) of both directions.

    The columns are the teacher's features of the batch, then the queue.
    """

    loss: torch.Tensor
    image_to_text: torch.Tensor
    text_to_image: torch.Tensor
    image_targets: torch.Tensor
    text_targets: torch.Tensor


def clamp_temperature(temperature: torch.Tensor) -> None:
    """Keep the learned divisor in its range, in place. *Source:* BLIP does so before each step."""
    with torch.no_grad():
        temperature.clamp_(*TEMPERATURE_RANGE)


def ramped(alpha: float, step: int, ramp_steps: int) -> float:
    """The teacher's share, growing from 0 to `alpha` over `ramp_steps`. *Source:* BLIP ramps over the first epoch of
    retrieval and the first two of pre-training."""
    return alpha * min(1.0, step / ramp_steps) if ramp_steps else alpha


def hard_targets(ids: torch.Tensor, all_ids: torch.Tensor) -> torch.Tensor:
    """Rows of equal shares over all columns with the row's id: (B,), (C,) -> (B, C). The batch's own come first."""
    same = (ids[:, None] == all_ids[None, :]).float()
    return same / same.sum(1, keepdim=True)


def contrast_loss(
    features: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor], queue: FeatureQueue,
    hard: torch.Tensor, temperature: torch.Tensor, alpha: float, counts: torch.Tensor | None = None,
) -> Contrast:  # fmt: skip
    """Cross entropy in both directions against alpha * the teacher's softmax + (1 - alpha) * `hard` (B, B + Q).

    `features`, `teacher`: pictures' and texts' unit vectors (B, E). Rows without `counts` (B,) bool are no rows of the mean
    and no columns of others. *Source:* BLIP's image-text contrastive loss.
    """
    (image, text), (image_m, text_m) = features, teacher
    all_images = torch.cat([image_m, queue.image.to(image_m.dtype)]).detach()
    all_texts = torch.cat([text_m, queue.text.to(text_m.dtype)]).detach()

    def among(one: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        similarity = one @ others.T / temperature
        if counts is None:
            return similarity
        out = nn.functional.pad(~counts, (0, len(others) - len(counts)))
        return similarity.masked_fill(out, torch.finfo(similarity.dtype).min)

    rows = []
    for one, one_m, others in ((image, image_m, all_texts), (text, text_m, all_images)):
        with torch.no_grad():
            target = alpha * torch.softmax(among(one_m, others), 1) + (1 - alpha) * hard
        similarity = among(one, others)
        losses = -(torch.log_softmax(similarity.float(), 1) * target).sum(1)
        rows.append((mean_of(losses, counts), similarity, target))
    (loss_i, image_to_text, image_targets), (loss_t, text_to_image, text_targets) = rows
    return Contrast((loss_i + loss_t) / 2, image_to_text, text_to_image, image_targets, text_targets)


def mean_of(losses: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Mean of losses (B,) over the rows that count, all when not given; 0 where none does."""
    if counts is None:
        return losses.mean()
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)


def negative_weights(similarity: torch.Tensor, is_same: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Chances (B, C) of each column to be drawn as a row's negative; all zero in a row that has none.

    similarity (B, C) over temperature, is_same (B, C) bool marks columns of the row's own picture. Equal to softmax plus
    `smoothing` with those set to zero, normalised. Masking comes before the softmax, in float32: a row cannot underflow
    to zeros while it has a negative, as the published rule can.
    """
    scores = similarity.detach().float()
    allowed = ~is_same
    kept = torch.softmax(scores.masked_fill(is_same, -torch.inf), 1).nan_to_num(0.0)
    if smoothing:
        mass = (torch.softmax(scores, 1) * allowed).sum(1, keepdim=True)
        kept = kept + allowed * (smoothing / mass.clamp(min=torch.finfo(mass.dtype).tiny))
        kept = kept.nan_to_num(posinf=torch.finfo(mass.dtype).max)
        kept = kept / kept.amax(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
    return kept / kept.sum(1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)


def draw_negatives(
    weights: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One column a row by its chances (B, C): indices (B,) and whether the row has any negative (B,) bool.

    A column wins with the largest chance over an exponential draw, which follows the chances exactly, needs no round trip
    to the host, and cannot fail for a row of zeros.
    """
    race = weights / torch.empty_like(weights).exponential_(generator=generator).clamp(min=1e-30)
    return race.argmax(1), weights.sum(1) > 0


def matching_loss(
    logits: torch.Tensor, has_negative: torch.Tensor, counts: torch.Tensor | None = None
) -> torch.Tensor:  # fmt: skip
    """Mean cross entropy of logits (3B, 2): B pairs that match, B with another picture, B with another text.

    has_negative (2B,): pairs that could not be drawn are left out; so is all of rows without `counts` (B,).
    """
    labels = matching_labels(has_negative)
    if counts is None:
        return nn.functional.cross_entropy(logits.float(), labels)
    labels = labels.masked_fill(~counts.repeat(3), -100)
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return mean_of(losses, labels != -100)


def matching_labels(has_negative: torch.Tensor) -> torch.Tensor:
    """1 for the first B pairs, then 0, or -100 where there is no negative: (2B,) bool -> (3B,)."""
    positives = has_negative.new_ones(len(has_negative) // 2, dtype=torch.long)
    return torch.cat([positives, torch.where(has_negative, 0, -100)])


def rankings(
    image: torch.Tensor, text: torch.Tensor, temperature: float | torch.Tensor, counts: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-chances (B, B) of every text for each picture, and of every picture for each text; features of any length.

    Rows without `counts` (B,) bool are nobody's candidates.
    """
    at_least = torch.promote_types(image.dtype, torch.float32)
    image, text = (nn.functional.normalize(x.to(at_least), dim=1) for x in (image, text))
    similarity = image @ text.T / temperature
    both = similarity, similarity.T
    if counts is not None:  # the same candidates in both, so that their log-chances are as far below everything
        both = tuple(one.masked_fill(~counts, torch.finfo(one.dtype).min) for one in both)  # type: ignore[assignment]
    return torch.log_softmax(both[0], 1), torch.log_softmax(both[1], 1)


def ranking_agreement(
    image: torch.Tensor, text: torch.Tensor, temperature: float | torch.Tensor, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Jensen-Shannon divergence (B,) between each picture's distribution over texts and its text's over pictures.

    Features (B, E) of pairs, of any length. It has no parameters; rows are at most ln 2.
    *Source:* UniTrans, Eq. 8 and 9 (MCAM), with one temperature for both; the paper sums over rows.
    """
    first, second = rankings(image, text, temperature, counts)
    middle = torch.logaddexp(first, second) - math.log(2)
    return ((first.exp() * (first - middle)).sum(1) + (second.exp() * (second - middle)).sum(1)) / 2
