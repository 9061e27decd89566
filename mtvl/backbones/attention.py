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
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
