"""BLIP's text side: one BERT that encodes text, encodes text with pictures, and decodes."""

from __future__ import annotations

import torch
from torch import nn

from mtvl.backbones.blip.config import TextShape
from mtvl.backbones.blip.layers import Attention, FeedForward, KeyValues, tell_modality
from mtvl.backbones.blip.recompute import Recompute
from mtvl.sites import BlockStates

MERGES_FROM = 6  # first layer of a two-picture encoder that merges its branches by a learned map


class TextEmbedding(nn.Module):
    """norm(token + position)."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.width)
        self.positions = nn.Embedding(shape.positions, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.dropout = nn.Dropout(shape.dropout)

    def embed(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        """ids (B, S), the first at position `start` -> (B, S, D) before the norm."""
        places = torch.arange(start, start + ids.shape[1], device=ids.device)
        return self.tokens(ids) + self.positions(places)

    def forward(self, summed: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.dropout(self.norm(summed))


class TwinCross(nn.Module):
    """A branch of cross-attention for each of two pictures with the same queries; their outputs are averaged or merged.

    *Source:* BLIP's NLVR2 model: the mean in layers 0-5, a linear map of both without activation from layer 6 on.
    """

    def __init__(self, shape: TextShape, memory_width: int, *, merges: bool) -> None:
        super().__init__()
        self.first, self.second = (Attention(shape.width, shape.heads, memory_width, shape.dropout) for _ in range(2))
        self.merge = nn.Linear(2 * shape.width, shape.width) if merges else None

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor | None,
        key_scale: torch.Tensor | None = None, cache: KeyValues | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """x (B, T, D), memory (B, 2P, Dm): the tokens of both pictures one after the other -> (B, T, D)."""
        masks = (None, None) if mask is None else mask.chunk(2, -1)
        pair = zip((self.first, self.second), memory.chunk(2, 1), masks, strict=True)
        outs = [attention(x, tokens, given, None, cache) for attention, tokens, given in pair]
        return (outs[0] + outs[1]) / 2 if self.merge is None else self.merge(torch.cat(outs, -1))


class TextLayer(nn.Module):
    """Self-attention, cross-attention where a memory is given, feed-forward; a norm follows each with its residual."""

    def __init__(
        self, shape: TextShape, memory_width: int, *, twin: bool = False, merges: bool = False,
        tied: TextLayer | None = None,
    ) -> None:  # fmt: skip
        """`tied`: the layer whose modules this one has, but for self-attention and its norm."""
        super().__init__()
        self.attn = Attention(shape.width, shape.heads, dropout=shape.dropout)
        self.attn_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.dropout = nn.Dropout(shape.dropout)
        if tied is not None:
            self.cross, self.cross_norm, self.ffn, self.ffn_norm = tied.cross, tied.cross_norm, tied.ffn, tied.ffn_norm
            return
        if twin:
            self.cross: nn.Module = TwinCross(shape, memory_width, merges=merges)
        else:
            self.cross = Attention(shape.width, shape.heads, memory_width, shape.dropout)
        self.cross_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.ffn = FeedForward(shape.width, shape.ffn)
        self.ffn_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, memory: torch.Tensor | None, memory_mask: torch.Tensor | None,
        key_scale: torch.Tensor | None, side: torch.Tensor | None, cache: KeyValues | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """x (B, S, D), memory (B, V, Dm) or None -> (B, S, D) and the hooks' side stream."""
        tell_modality((self.attn.q, self.attn.k, self.attn.v), "text" if memory is None else "fusion")
        query = self.attn_norm(x + self.dropout(self.attn(x, None, mask, None, cache)))
        stream = query
        if memory is not None:
            stream = self.cross_norm(query + self.dropout(self.cross(query, memory, memory_mask, key_scale, cache)))
        out = self.ffn_norm(stream + self.dropout(self.ffn(stream)))
        if (adapter := getattr(self, "adapter", None)) is None:
            return out, side
        return adapter(BlockStates(x, None if memory is None else query, stream, out, side))


class LanguageHead(nn.Module):
    """Hidden states to logits: a map, a norm, the token table, a bias."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.width, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.bias = nn.Parameter(torch.zeros(shape.vocab))

    def forward(self, hidden: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """(..., D), token table (K, D) -> (..., K)."""
        return nn.functional.linear(self.norm(nn.functional.gelu(self.dense(hidden))), table, self.bias)


class TextModel(Recompute):
    """Encoder of text, with or without a memory, or with `is_causal` a decoder.

    Where a child `adapter` stands (hook "input"), it lengthens embedded text; what it added in front is left out of the
    result, whose first place is the first token again.
    """

    def __init__(
        self, shape: TextShape, memory_width: int, *, is_causal: bool = False, twin: bool = False,
        tied: TextModel | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.is_causal = shape, is_causal
        self.embed = TextEmbedding(shape) if tied is None else tied.embed
        self.layers = nn.ModuleList(
            TextLayer(shape, memory_width, twin=twin, merges=twin and i >= MERGES_FROM,
                      tied=None if tied is None else tied.layers[i])  # type: ignore[arg-type]
            for i in range(shape.layers)
        )  # fmt: skip
        self.head = LanguageHead(shape) if is_causal else None

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, memory: torch.Tensor | None = None,
        memory_mask: torch.Tensor | None = None, key_scale: torch.Tensor | None = None, cache: KeyValues | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """ids (B, S), mask (B, S) bool, memory (B, V, Dm), memory_mask (B, V) bool, key_scale (B, V) -> (B, S, D).

        With a cache, `ids` are the new ones and `mask` covers all so far. The first layer's weights see ids as given:
        the caller writes [ENC] or [DEC].
        """
        summed = self.embed.embed(ids, cache.length if cache is not None else 0)
        added = 0
        if (adapter := getattr(self, "adapter", None)) is not None:
            summed, mask = adapter(summed, mask)
            added = summed.shape[1] - ids.shape[1]
        hidden, side = self.embed(summed), None
        attended = self._mask(mask, hidden.shape[1])
        seen = None if memory_mask is None else memory_mask[:, None, None, :]
        for layer in self.layers:
            hidden, side = self.run(layer, hidden, attended, memory, seen, key_scale, side, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        return hidden[:, added:]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., K)."""
        if self.head is None:
            raise TypeError("this text model encodes and has no language head")
        return self.head(hidden, self.embed.tokens.weight)

    def _mask(self, mask: torch.Tensor, new: int) -> torch.Tensor:
        """(B, S) of all places -> (B, 1, T or 1, S) for the last `new` of them."""
        if not self.is_causal:
            return mask[:, None, None, :]
        length = mask.shape[1]
        order = torch.ones(new, length, dtype=torch.bool, device=mask.device).tril(length - new)
        return mask[:, None, None, :] & order
