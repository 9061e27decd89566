"""Attention and feed-forward parts that BLIP's towers share, and the keys and values of a generation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class KeyValues:
    """Keys and values of one generation: those of self-attention grow, those of cross-attention are made once."""

    def __init__(self) -> None:
        self.own: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.across: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.length = 0  # tokens decoded so far

    def reorder(self, rows: torch.Tensor) -> None:
        """Keep the given rows of self-attention; beams of one sample share what cross-attention reads."""
        self.own = {name: (k.index_select(0, rows), v.index_select(0, rows)) for name, (k, v) in self.own.items()}


class Attention(nn.Module):
    """Scaled dot product attention with separate projections, over itself or over a memory of another width.

    Where a child `adapter` stands, that puts keys and values in front of its own (`mtvl.sites.Site`).
    """

    def __init__(self, width: int, heads: int, memory_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(memory_width or width, width)
        self.v = nn.Linear(memory_width or width, width)
        self.out = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _keys(
        self, x: torch.Tensor, memory: torch.Tensor | None, key_scale: torch.Tensor | None, cache: KeyValues | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if memory is not None and cache is not None and id(self) in cache.across:
            return cache.across[id(self)]
        source = x if memory is None else memory
        key, value = self.k(source), self.v(source)
        if key_scale is not None:
            key = key * key_scale[..., None]
        key, value = self._split(key), self._split(value)
        if cache is None:
            return key, value
        if memory is not None:
            cache.across[id(self)] = (key, value)
            return key, value
        if id(self) in cache.own:
            before = cache.own[id(self)]
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        cache.own[id(self)] = (key, value)
        return key, value

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None = None, mask: torch.Tensor | None = None,
        key_scale: torch.Tensor | None = None, cache: KeyValues | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """x (B, T, D), memory (B, S, Dm) or None for itself -> (B, T, D).

        mask (B or 1, 1, T or 1, S) is True where attended; key_scale (B, S) multiplies projected keys.
        """
        key, value = self._keys(x, memory, key_scale, cache)
        if (adapter := getattr(self, "adapter", None)) is not None:
            length = key.shape[2]
            key, value = adapter(key, value)
            if mask is not None:
                mask = nn.functional.pad(mask, (key.shape[2] - length, 0), value=True)
        mixed = nn.functional.scaled_dot_product_attention(
            self._split(self.q(x)), key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """down(gelu(up(x))), exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., D)."""
        return self.down(nn.functional.gelu(self.up(x)))


def tell_modality(linears: Iterable[nn.Module], modality: str) -> None:
    """Set `modality` on the adapters of these linear maps that ask for it.

    A block does so at the begin of its own forward: recompute runs that again, so the second run sees the same.
    """
    for linear in linears:
        adapter = getattr(linear, "adapter", None)
        if hasattr(adapter, "modality"):
            adapter.modality = modality  # type: ignore[union-attr]
