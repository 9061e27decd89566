"""Pretraining of the tiny language model: masked statements, descriptions, restored sentences, and masked regions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mtvl.backbones.clip_bart import ClipBart
from mtvl.data.miniworld.scene import COLOURS, SHAPES, SIZES, TEXTURES
from mtvl.objectives.seq2seq import sample_losses, token_losses
from mtvl.types import Batch
from pretraining.clock import Clock, cosine
from pretraining.stream import Stream


def region_loss(
    states: torch.Tensor, table: torch.Tensor, words: list[torch.Tensor], labels: torch.Tensor
) -> torch.Tensor:
    """Masked-region classification in word space: a visual token on an object should be near its attributes' words.

    states (B, V, D), table (K, D) token embeddings, words: ids of the words of each attribute, labels (B, V, 4).
    It ties pictures to words from the first steps on; without it this small model does not begin to look at the picture
    within an hour on two cores.
    """
    used = labels[..., 0] > 0
    parts = [
        nn.functional.cross_entropy(states[used] @ table[ids].T, labels[..., i][used] - 1)
        for i, ids in enumerate(words)
    ]
    return torch.stack(parts).mean()


@contextmanager
def float32_attention() -> Iterator[None]:
    """Attention in float32 inside bfloat16 autocast: on a CPU its bfloat16 backward takes half of a step (1.5x in all)."""
    plain = nn.functional.scaled_dot_product_attention

    def attention(q, k, v, attn_mask=None, **options):
        if attn_mask is not None and attn_mask.dtype != torch.bool:
            attn_mask = attn_mask.float()
        with torch.autocast("cpu", enabled=False):
            return plain(q.float(), k.float(), v.float(), attn_mask=attn_mask, **options).to(q.dtype)

    nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = plain


def losses_of(
    model: ClipBart, batch: Batch, labels: torch.Tensor, words: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text loss, region loss (at the encoder's input and output), and the logits."""
    table = model.bart.model.shared.weight
    with torch.autocast("cpu", torch.bfloat16), float32_attention():
        memory = model.encode(batch)
        logits = model.decode(memory, batch.target_ids).float()
    losses = token_losses(logits, batch.target_ids)
    loss = sample_losses(losses, batch.target_ids, batch.target_weights).mean()
    if not batch.features.shape[1]:
        return loss, loss.new_zeros(()), logits
    seen = memory.hidden[:, batch.source_ids.shape[1] :].float()
    given = model.visual(batch.features, table, batch.feature_kind)
    return loss, region_loss(seen, table, words, labels) + region_loss(given, table, words, labels), logits


SAVE_EVERY = 250
LISTS = (
    "all",
    "text",
    "story video",
    "relate",
    "relate two",
    "judge",
    "judge two",
    "glance",
)  # long answers: their loss is shown, not whole hits
Recent = dict[str, list[float]]  # figures of the last batches of each kind


def save(
    file: Path, clock: Clock, model: ClipBart, optimizer: torch.optim.Optimizer, stream: Stream, recent: Recent
) -> None:  # fmt: skip
    """Write all that is needed to go on."""
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state(),
        "step": clock.step, "seconds": clock.seconds, "recent": {k: v[-100:] for k, v in recent.items()},
    }  # fmt: skip
    torch.save(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


def go_on(
    file: Path, clock: Clock, model: ClipBart, optimizer: torch.optim.Optimizer, stream: Stream, recent: Recent
) -> None:  # fmt: skip
    """Take up what `save` wrote."""
    state = torch.load(file, weights_only=False)  # our own file
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    stream.load(state["stream"])
    clock.resume(state["step"], state["seconds"])
    recent.update(state["recent"])
    print(f"resumed at step {clock.step}", flush=True)


def begin(model: ClipBart) -> None:
    """Sizes at which training from random weights begins."""
    with torch.no_grad():  # at BART's deviation of 0.02 the slot rows would drown in the normalised features
        model.bart.model.shared.weight[-model.config.num_slots :].normal_(std=0.3)
        for projection in model.visual.features.values():
            projection[1].weight.fill_(0.5)


def pretrain_text(clock: Clock, model: ClipBart, stream: Stream, file: Path, peak: float = 1e-3) -> dict[str, float]:
    """Train every parameter of the language model and the visual embedding; means of the last batches of each kind.

    `file` holds the state every SAVE_EVERY steps; when it is there already, training goes on from it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    model.train()
    words = [torch.tensor([stream.word(w) for w in names]) for names in (COLOURS, SHAPES, SIZES, TEXTURES)]
    recent: Recent = defaultdict(list)
    if file.is_file():
        go_on(file, clock, model, optimizer, stream, recent)
    while clock.share < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine(clock.share, peak)
        batch, labels = stream.batch(clock.share)
        loss, regions, logits = losses_of(model, batch, labels, words)
        optimizer.zero_grad()
        (loss + 0.3 * regions).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if batch.task in LISTS:
            recent[batch.task].append(float(loss.detach()))
        else:  # share of wholly right answers
            hits = ((logits.argmax(-1) == batch.target_ids) | (batch.target_ids < 0)).all(-1)
            recent[batch.task].append(float(hits.float().mean()))
        clock.step += 1
        if clock.step % SAVE_EVERY == 0:
            save(file, clock, model, optimizer, stream, recent)
        clock.report(50, **{k.replace(" ", "_"): float(np.mean(v[-100:])) for k, v in recent.items()})
    model.eval()
    return {name: float(np.mean(found[-100:])) for name, found in recent.items()}
