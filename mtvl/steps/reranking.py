"""Retrieval in two rounds: all pairs by cosine, the best of each query again by the matching head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

OUTSIDE = -100.0  # score of what is not among a query's best


@torch.no_grad()
def rerank(
    model: Any, tokens_of: Callable[[torch.Tensor], torch.Tensor], texts: tuple[torch.Tensor, torch.Tensor],
    similarity: torch.Tensor, top: int, *, by_text: bool, beta: float = 1.0, chunk: int = 64,
) -> torch.Tensor:  # fmt: skip
    """Scores of each query's `top` items: matching logit + beta * cosine; OUTSIDE elsewhere.

    texts: ids and mask (C, S). similarity (I, C) are cosines of pictures and texts. `tokens_of(indices)` gives the image
    tokens (n, N, P, D) of some pictures: they are asked for a chunk of pairs at a time, in order of the pictures, so no
    more than that has to be in memory. With `by_text` the texts are the queries and the result is (C, I), else (I, C).

    *Source:* BLIP's retrieval evaluation; UniAdapter's has beta 0.
    """
    queries = similarity.T if by_text else similarity
    values, items = queries.topk(min(top, queries.shape[1]), 1)
    rows = torch.arange(len(queries), device=queries.device)[:, None].expand_as(items)
    flat_rows, flat_items, cosines = rows.flatten(), items.flatten(), values.flatten()
    order = torch.argsort(flat_items if by_text else flat_rows, stable=True)
    result = torch.full_like(queries, OUTSIDE)
    ids, mask = texts
    for some in order.split(chunk):
        query, item = flat_rows[some], flat_items[some]
        pictures, captions = (item, query) if by_text else (query, item)
        distinct, place = pictures.unique(return_inverse=True)
        states = model.fuse(ids[captions], mask[captions], tokens_of(distinct)[place])
        logits = model.match(states[:, 0])[:, 1].float()
        result[query, item] = (logits + beta * cosines[some]).to(result.dtype)
    return result
