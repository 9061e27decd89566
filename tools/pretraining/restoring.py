"""The loop of tools/pretrain_small.py, and its measure of whether the model looks at what it is shown."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mtvl.backbones.clip_bart import ClipBart
from mtvl.data.collate import Collator
from mtvl.objectives.seq2seq import sample_losses, token_losses
from mtvl.types import Batch, Example
from pretraining.clock import Clock, cosine
from pretraining.damage import Reader
from pretraining.text import float32_attention

PEAK = 1e-3  # of the learning rate


def restore(
    clock: Clock, model: ClipBart, reader: Reader, collator: Collator, *, rows: int, share_seen: float
) -> None:  # fmt: skip
    """Train every parameter; what a step reads and how it is damaged is a function of the reader's seed and the step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    recent: dict[str, list[float]] = defaultdict(list)
    model.train()
    while clock.share < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine(clock.share, PEAK)
        is_seen = bool(reader.seen) and random.Random(f"{reader.seed} kind {clock.step}").random() < share_seen
        batch = batch_of(collator, reader.batch(clock.step, rows, is_seen=is_seen))
        with torch.autocast("cpu", torch.bfloat16), float32_attention():
            logits = model.decode(model.encode(batch), batch.target_ids).float()
        losses = token_losses(logits, batch.target_ids)
        loss = sample_losses(losses, batch.target_ids, batch.target_weights).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        recent["seen" if is_seen else "text"].append(float(loss.detach()))
        clock.step += 1
        clock.report(50, **{k: float(np.mean(v[-50:])) for k, v in recent.items()})
    model.eval()


def batch_of(collator: Collator, examples: Sequence[Example]) -> Batch:
    """Examples of one kind, padded."""
    return collator.collate(examples[0].task, examples, training=False)


@torch.no_grad()
def validation_losses(
    model: ClipBart, collator: Collator, examples: Sequence[Example], rows: int
) -> dict[str, float]:  # fmt: skip
    """Nats a token of held-back captions: with their pictures and videos, and with zeros in place of the features."""
    sums, tokens = defaultdict(float), 0
    by_kind: dict[tuple[int, bool], list[Example]] = defaultdict(list)
    for example in examples:
        by_kind[len(example.visual.images), bool(example.visual.video)].append(example)
    for kind in by_kind.values():
        for start in range(0, len(kind), rows):
            batch = batch_of(collator, kind[start : start + rows])
            blank = replace(batch, features=torch.zeros_like(batch.features))
            for name, shown in (("val_loss_seen", batch), ("val_loss_unseen", blank)):
                logits = model.decode(model.encode(shown), shown.target_ids)
                sums[name] += float(token_losses(logits, shown.target_ids).sum())
            tokens += int((batch.target_ids >= 0).sum())
    return {name: sums[name] / max(1, tokens) for name in ("val_loss_seen", "val_loss_unseen")}
