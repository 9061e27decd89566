"""Batches that mix tasks by example, for inference from one bank of adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from mtvl.data.collate import Collator
from mtvl.data.rows import IGNORE
from mtvl.types import Batch, Example


def join(parts: Sequence[Batch], pad_id: int) -> Batch:
    """One batch of the rows of `parts`, in their order. Texts are padded to the longest; features stay in the parts.

    Parts may be of different tasks, with different numbers of pictures, and of pictures and videos.
    """
    if not parts:
        raise ValueError("a batch needs at least one part")

    def joined(name: str, fill: int | bool) -> torch.Tensor:
        tensors = [getattr(part, name) for part in parts]
        width = max(t.shape[1] for t in tensors)
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])

    uids = tuple(uid for part in parts for uid in part.uids)
    return Batch(
        task="", uids=uids, source_ids=joined("source_ids", pad_id), source_mask=joined("source_mask", False),
        features=torch.zeros(len(uids), 0, 0, 0), target_ids=joined("target_ids", IGNORE),
        target_weights=torch.cat([part.target_weights for part in parts]),
        answer_scores=joined("answer_scores", -1), parts=tuple(parts),
    )  # fmt: skip


def mixed_batches(
    collator: Collator, examples: Mapping[str, Sequence[Example]], batch_size: int, pad_id: int, rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of `rank` for all `examples` by task: every batch takes its share of every task, every example comes
    once over all ranks. Within a batch the rows of a task stand together."""
    spread = [
        ((i + 0.5) / len(rows), number, task, row)
        for number, (task, rows) in enumerate(examples.items())
        for i, row in enumerate(rows)
    ]
    own = [(task, row) for _, _, task, row in sorted(spread, key=lambda item: item[:2])][rank::world_size]
    for first in range(0, len(own), batch_size):
        by_task: dict[str, list[Example]] = {}
        for task, row in own[first : first + batch_size]:
            by_task.setdefault(task, []).append(row)
        yield join([collator.collate(task, rows, training=False) for task, rows in by_task.items()], pad_id)
