"""Scaled dot product attention that looks for an adapter of keys and values; for every backbone made with transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "mtvl_sdpa"  # the name to set as `_attn_implementation`


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa attention. Where `module` has a child `adapter`, that puts keys and values before its own ones.

    query (B, heads, T, d), key and value (B, heads, S, d), mask (B or 1, 1, T, S) bool or added to the scores. Every
    position sees what is put in front, also under a causal mask. Keys in a cache are those without it.
    """
    adapter = getattr(module, "adapter", None)
    if adapter is not None:
        length = key.shape[2]
        if attention_mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
            # sdpa's own causal flag counts from the first key, and the added ones come before that
            attention_mask = query.new_ones(query.shape[2], length, dtype=torch.bool).tril()[None, None]
        key, value = adapter(key, value)
        added = key.shape[2] - length
        if attention_mask is not None:
            seen = True if attention_mask.dtype == torch.bool else 0.0
            attention_mask = nn.functional.pad(attention_mask, (added, 0), value=seen)
        if options.get("position_bias") is not None:
            options["position_bias"] = nn.functional.pad(options["position_bias"], (added, 0))
    if query.device.type == "cpu" and options.get("dropout") and options.get("position_bias") is None:
        return _attention_with_dropout(module, query, key, value, attention_mask, **options), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _attention_with_dropout(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    *, dropout: float, scaling: float | None = None, is_causal: bool | None = None, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """Attention written out, (B, T, heads, d): CPUs have no fused kernel with dropout, and torch's own way around that
    looks at every score once more for rows that attend to nothing. Such a row is the mean of all values here.
    """
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.transpose(-1, -2))
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and is_causal and query.shape[2] > 1:
        mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    chances = nn.functional.dropout(scores.softmax(-1), dropout)
    return torch.matmul(chances, value).transpose(1, 2)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
