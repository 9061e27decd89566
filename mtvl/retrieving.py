"""Retrieval over a whole split: every picture encoded once, its tokens read back block by block, the best scored again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtvl import dist
from mtvl.metrics.retrieval import ranks_of_truth
from mtvl.steps.reranking import OUTSIDE
from mtvl.steps.retrieval import Pairs, fuse_pairs
from mtvl.types import Batch, Decoding, Example, Prediction, Visual

BLOCK = 512  # queries whose scores stand in memory at once


@dataclass
class Texts:
    """All texts of a split: ids and mask (C, S), unit vectors (C, E) and first states (C, D)."""

    ids: torch.Tensor
    mask: torch.Tensor
    vectors: torch.Tensor
    first: torch.Tensor


@torch.no_grad()
def retrieve(
    backbone: Any, task: str, decoding: Decoding, examples: Sequence[Example], collator: Any, batch: int, device: Any,
    progress: Callable[[str], None] | None = None,
) -> list[Prediction]:  # fmt: skip
    """The best item of every text with the ranks that a retrieval task scores, for this rank's texts.

    Items (pictures or videos) are shared out over the ranks: each rank encodes its own once, keeps their tokens in a
    temporary file, and scores the pairs that they take part in; memory holds the tokens of one block. `batch`: items, texts
    or pairs of a block.
    """
    items = list(dict.fromkeys(e.visual for e in examples))
    number = {visual: i for i, visual in enumerate(items)}
    owner = np.array([number[e.visual] for e in examples])
    own = np.arange(dist.rank(), len(items), dist.world_size())
    with tempfile.TemporaryDirectory(prefix="mtvl-tokens-") as folder:
        shown = {number[e.visual]: e for e in examples}
        tokens, vectors = _see(backbone, task, [shown[i] for i in own], collator, batch, device, Path(folder))
        texts = _read(backbone, task, examples, collator, batch, device)
        pictures = _merged(own, vectors, len(items))
        similarity = pictures @ texts.vectors.cpu().numpy().T
        pairs = _candidates(similarity, own, decoding.top)
        if progress is not None:
            progress(f"{task}: {len(items):,} items, {len(examples):,} texts, {len(pairs):,} pairs to match on rank 0")
        logits = _match(backbone, pairs, own, tokens, texts, batch, device)
    parts = dist.gather_objects((pairs, logits))
    pairs, logits = np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts])
    is_own = owner[:, None] == np.arange(len(items))[None]
    swapped = pairs[:, ::-1]
    text_ranks, best = _ranks(similarity.T, swapped, logits, decoding, is_own)
    item_ranks, _ = _ranks(similarity, pairs, logits, decoding, is_own.T)
    return [
        Prediction(
            examples[i].uid, _name(items[best[i]]),
            {"text_rank": float(text_ranks[i]), "item_rank": float(item_ranks[owner[i]])},
        )
        for i in range(dist.rank(), len(examples), dist.world_size())
    ]  # fmt: skip


@torch.no_grad()
def score_pairs(backbone: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine (B,) of every row's text with its picture or video, and the logits (B, 2) of the matching head."""
    tokens = backbone.see(backbone.every_frame(batch))
    ids, mask = batch.source_ids, batch.source_mask
    hidden = backbone.read(ids, mask)
    image, text = backbone.image_features(tokens), backbone.text_features(hidden)
    frames = backbone.frame_features(tokens)
    states = fuse_pairs(
        backbone, Pairs(tokens, ids, mask, hidden[:, 0], image, text, frames, batch.item_ids), backbone.config.frame_weights
    )  # fmt: skip
    return (image * text).sum(1).float(), backbone.match(states[:, 0]).float()


def _name(visual: Visual) -> str:
    return Path(visual.video or (visual.images or ("",))[0]).name


def _see(
    backbone: Any, task: str, shown: Sequence[Example], collator: Any, batch: int, device: Any, folder: Path
) -> tuple[np.ndarray | None, np.ndarray]:
    """Tokens (n, N, P, D) of these examples' items in a file, None without any, and unit vectors (n, E)."""
    tokens: np.ndarray | None = None
    vectors = np.zeros((len(shown), backbone.config.embed_dim), np.float32)
    for first in range(0, len(shown), batch):
        some = collator.collate(task, shown[first : first + batch], training=False).to(device)
        found = backbone.see(backbone.every_frame(some))
        if tokens is None:
            shape = (len(shown), *found.shape[1:])
            tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.float32, shape)
        tokens[first : first + len(found)] = found.float().cpu().numpy()
        vectors[first : first + len(found)] = backbone.image_features(found).float().cpu().numpy()
    return tokens, vectors


def _read(backbone: Any, task: str, examples: Sequence[Example], collator: Any, batch: int, device: Any) -> Texts:
    """All texts, each rank reading its share."""
    bare = collator.collate(task, [replace(e, visual=Visual()) for e in examples], training=False)
    own = torch.arange(dist.rank(), len(examples), dist.world_size())
    vectors, first = [], []
    for rows in own.split(batch):
        hidden = backbone.read(bare.source_ids[rows].to(device), bare.source_mask[rows].to(device))
        vectors.append(backbone.text_features(hidden).float().cpu())
        first.append(hidden[:, 0].float().cpu())
    mine = (own.numpy(), *(torch.cat(v).numpy() if v else None for v in (vectors, first)))
    merged = [_put_together([(rows, v[i]) for rows, *v in dist.gather_objects(mine)], len(examples)) for i in range(2)]
    return Texts(bare.source_ids, bare.source_mask, *(torch.from_numpy(m) for m in merged))


def _merged(own: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """All ranks' rows in order."""
    return _put_together(dist.gather_objects((own, rows)), count)


def _put_together(parts: Sequence[tuple[np.ndarray, np.ndarray | None]], count: int) -> np.ndarray:
    """(numbers, rows) of every rank -> (count, ...)."""
    width = next(rows.shape[1:] for _, rows in parts if rows is not None and len(rows))
    whole = np.zeros((count, *width), np.float32)
    for numbers, rows in parts:
        if rows is not None and len(rows):
            whole[numbers] = rows
    return whole


def _candidates(similarity: np.ndarray, own: np.ndarray, top: int) -> np.ndarray:
    """Pairs (n, 2) of own items and texts, of which one is among the best `top` of the other, by item."""
    count = similarity.shape[1]
    cosines = torch.from_numpy(similarity)
    of_items = cosines[torch.from_numpy(own)].topk(min(top, count), 1).indices.numpy()
    of_texts = cosines.T.topk(min(top, len(cosines)), 1).indices.numpy()
    is_own = np.zeros(len(similarity), bool)
    is_own[own] = True
    texts = np.broadcast_to(np.arange(count)[:, None], of_texts.shape)
    codes = [(own[:, None] * count + of_items).ravel(), (of_texts * count + texts)[is_own[of_texts]]]
    both = np.unique(np.concatenate(codes))
    return np.stack([both // count, both % count], 1)


def _match(
    backbone: Any, pairs: np.ndarray, own: np.ndarray, tokens: np.ndarray | None, texts: Texts, batch: int, device: Any
) -> np.ndarray:
    """Matching logits (n,) of pairs of own items and texts; tokens of a block's items alone are in memory."""
    place = {int(item): i for i, item in enumerate(own)}
    logits = np.zeros(len(pairs), np.float32)
    dtype = backbone.match.weight.dtype
    for first in range(0, len(pairs), batch):
        items, rows = pairs[first : first + batch].T
        distinct, back = np.unique(items, return_inverse=True)
        assert tokens is not None  # there are no pairs of no items
        block = torch.from_numpy(tokens[[place[int(i)] for i in distinct]]).to(device, dtype)
        shown, text = block[torch.from_numpy(back).to(device)], torch.from_numpy(rows)
        given = [texts.ids[text], texts.mask[text], texts.first[text].to(dtype)]
        vectors = texts.vectors[text].to(device, dtype)
        ids, mask, leading = (x.to(device) for x in given)
        chosen = Pairs(shown, ids, mask, leading, vectors, vectors, backbone.frame_features(shown), text)
        states = fuse_pairs(backbone, chosen, backbone.config.frame_weights)
        logits[first : first + len(rows)] = backbone.match(states[:, 0])[:, 1].float().cpu().numpy()
    return logits


def _ranks(
    similarity: np.ndarray, pairs: np.ndarray, logits: np.ndarray, decoding: Decoding, is_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each query's best truth and number of its best item: similarity and is_truth (queries, items).

    An item among a query's best `top` scores its logit + beta * cosine, another one OUTSIDE. Block by block of queries.
    """
    order = np.argsort(pairs[:, 0], kind="stable")
    pairs, logits = pairs[order], logits[order]
    ranks, best = np.zeros(len(similarity)), np.zeros(len(similarity), np.int64)
    for first in range(0, len(similarity), BLOCK):
        rows = slice(first, min(first + BLOCK, len(similarity)))
        cosines = similarity[rows]
        start, stop = np.searchsorted(pairs[:, 0], [rows.start, rows.stop])
        query, item = pairs[start:stop, 0] - first, pairs[start:stop, 1]
        scored = np.full(cosines.shape, np.nan, np.float32)
        scored[query, item] = logits[start:stop] + decoding.beta * cosines[query, item]
        top = torch.from_numpy(cosines).topk(min(decoding.top, cosines.shape[1]), 1).indices.numpy()
        scores = np.full(cosines.shape, OUTSIDE, np.float32)
        np.put_along_axis(scores, top, np.take_along_axis(scored, top, 1), 1)
        ranks[rows] = ranks_of_truth(scores, is_truth[rows])
        best[rows] = scores.argmax(1)
    return ranks, best
