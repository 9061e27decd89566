"""Retrieval over a whole split: every picture encoded once, its tokens read back block by block, the best scored again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtvl import dist
from mtvl.errors import ConfigError, EngineError
from mtvl.metrics.retrieval import ranks_of_truth
from mtvl.steps.reranking import OUTSIDE
from mtvl.steps.retrieval import Pairs, fuse_pairs
from mtvl.types import Batch, Decoding, Example, Prediction, Visual

BLOCK = 512  # queries whose scores stand in memory at once
PAIRS = 2**14  # pairs whose cosines are computed at once


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
    progress: Callable[[str], None] | None = None, beat: Callable[[], object] = lambda: None,
) -> list[Prediction]:  # fmt: skip
    """The best item of every text with the ranks that a retrieval task scores, for this rank's texts.

    Items (pictures or videos) are shared out over the ranks: each rank encodes its own once, keeps their tokens in a
    temporary file, and scores the pairs that they take part in; memory holds the tokens of one block, and no matrix of all
    items and texts. `batch`: items, texts or pairs of a block; `beat` is called after each.
    """
    items = list(dict.fromkeys(e.visual for e in examples))
    number = {visual: i for i, visual in enumerate(items)}
    owner = np.array([number[e.visual] for e in examples])
    own = np.arange(dist.rank(), len(items), dist.world_size())
    with tempfile.TemporaryDirectory(prefix="mtvl-tokens-") as folder:
        shown = {number[e.visual]: e for e in examples}
        with TokenFile(Path(folder) / "tokens") as tokens:
            (Path(folder) / "tokens").unlink()  # it lives while it is open: a killed run leaves no gigabytes behind
            vectors = _see(backbone, task, [shown[i] for i in own], collator, batch, device, tokens, beat)
            texts = _read(backbone, task, examples, collator, batch, device, beat)
            pictures = _merged(own, vectors, len(items))
            pairs, is_asked = _candidates(pictures, texts.vectors.numpy(), own, decoding.top)
            if progress is not None:
                progress(
                    f"{task}: {len(items):,} items, {len(examples):,} texts, {len(pairs):,} pairs to match on rank 0"
                )
            logits = _match(backbone, pairs, own, tokens, texts, batch, device, beat)
        scores = logits + decoding.beta * _cosines(pictures, texts.vectors.numpy(), pairs)
    parts = zip(*dist.gather_objects((pairs, is_asked, scores)), strict=True)
    pairs, is_asked, scores = (np.concatenate(part) for part in parts)
    of_items, of_texts = is_asked.T
    text_ranks, best = _ranks(pairs[of_texts, ::-1], scores[of_texts], owner, len(items))
    item_ranks, _ = _ranks(pairs[of_items], scores[of_items], owner, len(examples), by_text=False)
    return [
        Prediction(
            examples[i].uid, _name(items[best[i]]),
            {"text_rank": float(text_ranks[i]), "item_rank": float(item_ranks[owner[i]])},
        )
        for i in range(dist.rank(), len(examples), dist.world_size())
    ]  # fmt: skip


def need_heads(backbone: Any, task: str) -> None:
    """ConfigError for a backbone without heads of contrast and matching."""
    if not backbone.has_pairs:
        raise ConfigError(
            f"task '{task}' matches pictures with texts, for which this backbone has no heads; use backbone.name=blip "
            "with backbone.kind joint, retrieval or pretrain"
        )


def needs_whole_weights(task: str) -> EngineError:
    """What is said where weights are partitioned: ranks would wait for each other, or find tensors that are empty."""
    return EngineError(
        f"task '{task}' is answered over its whole split, and every rank needs whole weights for its own number of items and "
        "pairs; set evaluate.partitioned=false"
    )


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


class TokenFile:
    """Image tokens in a file, not in memory: rows of one shape, written in order and read by number."""

    def __init__(self, path: Path) -> None:
        # Without a buffer: what a full disk refuses is refused by the write, and not once more when it is closed.
        self._file = path.open("w+b", buffering=0)
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, tokens: torch.Tensor) -> None:
        """Rows (n, N, P, D), as float32, behind those before; EngineError where the disk takes no more."""
        self._shape = tuple(tokens.shape[1:])
        data = rest = memoryview(tokens.float().cpu().contiguous().numpy()).cast("B")
        self._file.seek(0, os.SEEK_END)
        try:
            while rest:  # a write takes 2 GiB at most
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise EngineError(
                f"image tokens cannot be written to {self._file.name} ({error}); a picture or video takes "
                f"{data.nbytes // len(tokens):,} bytes there until its split is scored: give a folder on a larger disk with the "
                "environment variable TMPDIR"
            ) from None

    def read(self, rows: Sequence[int]) -> torch.Tensor:
        """Rows (n, N, P, D) float32 with these numbers."""
        block = np.empty((len(rows), *self._shape), np.float32)
        size = block[:1].nbytes
        for place, row in enumerate(rows):
            self._file.seek(row * size)
            block[place] = np.frombuffer(self._file.read(size), np.float32).reshape(self._shape)
        return torch.from_numpy(block)


def _see(
    backbone: Any, task: str, shown: Sequence[Example], collator: Any, batch: int, device: Any, tokens: TokenFile,
    beat: Callable[[], object],
) -> np.ndarray:  # fmt: skip
    """Unit vectors (n, E) of these examples' items; their tokens (n, N, P, D) go into a file."""
    vectors = np.zeros((len(shown), backbone.config.embed_dim), np.float32)
    for first in range(0, len(shown), batch):
        some = collator.collate(task, shown[first : first + batch], training=False).to(device)
        found = backbone.see(backbone.every_frame(some))
        tokens.append(found)
        vectors[first : first + len(found)] = backbone.image_features(found).float().cpu().numpy()
        beat()
    return vectors


def _read(
    backbone: Any, task: str, examples: Sequence[Example], collator: Any, batch: int, device: Any,
    beat: Callable[[], object],
) -> Texts:  # fmt: skip
    """All texts, each rank reading its share."""
    bare = collator.collate(task, [replace(e, visual=Visual()) for e in examples], training=False)
    own = torch.arange(dist.rank(), len(examples), dist.world_size())
    vectors, first = [], []
    for rows in own.split(batch):
        hidden = backbone.read(bare.source_ids[rows].to(device), bare.source_mask[rows].to(device))
        vectors.append(backbone.text_features(hidden).float().cpu())
        first.append(hidden[:, 0].float().cpu())
        beat()
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


def _candidates(
    pictures: np.ndarray, vectors: np.ndarray, own: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Pairs (n, 2) of own items and texts, of which one is among the best `top` of the other, by item; and (n, 2) whether
    the text is among those of the item, and the item among those of the text."""
    count = len(vectors)
    by_item = (own[:, None] * count + _best(pictures, vectors, top)[own]).ravel()
    best = _best(vectors, pictures, top)
    texts = np.broadcast_to(np.arange(count)[:, None], best.shape)
    is_own = np.zeros(len(pictures), bool)
    is_own[own] = True
    by_text = (best * count + texts)[is_own[best]]
    both = np.unique(np.concatenate([by_item, by_text]))
    is_asked = np.stack([np.isin(both, by_item), np.isin(both, by_text)], 1)
    return np.stack([both // count, both % count], 1), is_asked


def _best(queries: np.ndarray, others: np.ndarray, top: int) -> np.ndarray:
    """Numbers (Q, top) of the nearest `others` (n, E) of each query (Q, E). Blocks are the same on every rank, or equal
    cosines might be told apart by rounding."""
    blocks = (torch.from_numpy(queries[i : i + BLOCK] @ others.T) for i in range(0, len(queries), BLOCK))
    return np.concatenate([block.topk(min(top, len(others)), 1).indices.numpy() for block in blocks])


def _cosines(pictures: np.ndarray, vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(n,) of pairs of items and texts."""
    found = np.zeros(len(pairs), np.float32)
    for first in range(0, len(pairs), PAIRS):
        items, texts = pairs[first : first + PAIRS].T
        found[first : first + PAIRS] = (pictures[items] * vectors[texts]).sum(1)
    return found


def _match(
    backbone: Any, pairs: np.ndarray, own: np.ndarray, tokens: TokenFile, texts: Texts, batch: int, device: Any,
    beat: Callable[[], object],
) -> np.ndarray:  # fmt: skip
    """Matching logits (n,) of pairs of own items and texts; tokens of a block's items alone are in memory."""
    place = {int(item): i for i, item in enumerate(own)}
    logits = np.zeros(len(pairs), np.float32)
    dtype = backbone.match.weight.dtype
    for first in range(0, len(pairs), batch):
        items, rows = pairs[first : first + batch].T
        distinct, back = np.unique(items, return_inverse=True)
        block = tokens.read([place[int(i)] for i in distinct]).to(device, dtype)
        shown, text = block[torch.from_numpy(back).to(device)], torch.from_numpy(rows)
        given = [texts.ids[text], texts.mask[text], texts.first[text].to(dtype)]
        vectors = texts.vectors[text].to(device, dtype)
        ids, mask, leading = (x.to(device) for x in given)
        chosen = Pairs(shown, ids, mask, leading, vectors, vectors, backbone.frame_features(shown), text)
        states = fuse_pairs(backbone, chosen, backbone.config.frame_weights)
        logits[first : first + len(rows)] = backbone.match(states[:, 0])[:, 1].float().cpu().numpy()
        beat()
    return logits


def _ranks(
    pairs: np.ndarray, scores: np.ndarray, owner: np.ndarray, others: int, *, by_text: bool = True
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Rank of each query's best truth and number of its best item, from pairs (n, 2) of queries and their best items.

    `owner` is the item of each text; queries are texts, or else items, and there are so many `others`. What is not among a
    query's best scores OUTSIDE. Block by block of queries.
    """
    queries = len(owner) if by_text else int(owner.max()) + 1
    order = np.argsort(pairs[:, 0], kind="stable")
    pairs, scores = pairs[order], scores[order]
    ranks, best = np.zeros(queries), np.zeros(queries, np.int64)
    for first in range(0, queries, BLOCK):
        rows = np.arange(first, min(first + BLOCK, queries))
        start, stop = np.searchsorted(pairs[:, 0], [first, first + len(rows)])
        found = np.full((len(rows), others), OUTSIDE, np.float32)
        found[pairs[start:stop, 0] - first, pairs[start:stop, 1]] = scores[start:stop]
        is_truth = owner[rows][:, None] == np.arange(others) if by_text else owner[None] == rows[:, None]
        ranks[rows] = ranks_of_truth(found, is_truth)
        best[rows] = found.argmax(1)
    return ranks, best
