"""CLIP-T5: a T5 language model that reads visual tokens appended to its text (VL-Adapter)."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from mtvl.backbones.attention import ATTENTION
from mtvl.backbones.clip_seq2seq import ClipSeq2Seq
from mtvl.backbones.clip_t5_config import ClipT5Config, text_config
from mtvl.backbones.tokenizers import load_t5_tokenizer
from mtvl.errors import ConfigError
from mtvl.sites import Site

_LINEAR = {"q": "q", "k": "k", "v": "v", "o": "out", "wi": "up", "wi_0": "up", "wi_1": "up", "wo": "down"}
_BLOCKS = {"SelfAttention": "self_attn", "EncDecAttention": "cross_attn", "DenseReluDense": "ffn"}
_LAYER = re.compile(r"t5\.(encoder|decoder)\.block\.(\d+)\.layer\.\d\.(?:(\w+)\.)?(\w+)")


class ClipT5(ClipSeq2Seq):
    """T5 with visual tokens. Only pairs of text tokens have a relative position; the bias of all others is zero.

    Its visual embedding has T5's norms, without biases, and starts as torch starts linear maps and tables.
    *Source:* VL-Adapter's CLIP-T5, which follows VL-T5.
    """

    family = "t5"
    Config = ClipT5Config
    model_class = T5ForConditionalGeneration
    text_name, core_path = "t5", "t5"
    forces_eos = False
    text_config = staticmethod(text_config)
    load_tokenizer = staticmethod(load_t5_tokenizer)

    def __init__(self, config: ClipT5Config, text: T5Config, widths: dict[str, int]) -> None:
        if not T5ForConditionalGeneration._supports_sdpa:
            raise ConfigError("CLIP-T5 needs a transformers whose T5 takes attention functions: 5.23 or newer")
        super().__init__(config, text, widths)
        text.dropout_rate = config.dropout
        text._attn_implementation = ATTENTION
        self.t5 = T5ForConditionalGeneration(text)
        self.visual = self._visual_embedding(text.d_model, norm=T5LayerNorm)

    @property
    def tokenizer_rows(self) -> int:
        """Rows of the text and of the sentinels, which T5's own vocabulary has."""
        return int(self.t5.config.vocab_size) - self.config.num_slots

    @property
    def max_tokens(self) -> int:
        """0: relative positions have no end."""
        return 0

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.t5.encoder.embed_tokens(ids)

    def _norm_text(self, text: torch.Tensor) -> torch.Tensor:
        return text

    def _encoder_layers(self, hidden: torch.Tensor, attention: torch.Tensor | None, num_text: int) -> torch.Tensor:
        encoder = self.t5.encoder
        visual = hidden.shape[1] - num_text
        # The first layer's table serves all layers; a bias that is handed in keeps it from being asked for all places.
        bias = encoder.block[0].layer[0].SelfAttention.compute_bias(num_text, num_text, device=hidden.device)
        bias = nn.functional.pad(bias, (0, visual, 0, visual))
        for block in encoder.block:
            hidden = block(hidden, attention, bias)[0]
        return encoder.dropout(encoder.final_layer_norm(hidden))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.t5.config.scale_decoder_outputs:
            hidden = hidden * self.t5.config.d_model**-0.5
        return self.t5.lm_head(hidden)

    def _site_kind(self, path: str) -> tuple[str, str, int]:
        if match := _LAYER.fullmatch(path):
            stack, layer, block, name = match[1], int(match[2]), match[3], match[4]
            if name == "layer_norm":
                return "norm", stack, layer
            if name == "relative_attention_bias":  # the first layer's, used by all of them
                return "embedding", stack, -1
            return f"{_BLOCKS[block]}.{_LINEAR[name]}", stack, layer
        stack = "decoder" if ".decoder." in path else "encoder"
        return ("norm" if path.endswith("final_layer_norm") else "embedding"), stack, -1

    def sites(self) -> list[Site]:
        """As of every backbone. The reference asks for the language model's norms to be trained and misses T5's."""
        return [replace(s, frozen_in_paper=True) if s.kind == "norm" else s for s in super().sites()]

    def _hooks(self) -> list[Site]:
        config = self.t5.config
        inner = config.num_heads * config.d_kv
        hooks = [Site("t5.encoder", "input", "encoder", -1, config.d_model, config.d_model)]
        places = {"encoder": ("SelfAttention",), "decoder": ("SelfAttention", "EncDecAttention")}
        for stack, attentions in places.items():
            for layer in range(len(self.t5.get_submodule(stack).block)):
                for number, name in enumerate(attentions):
                    path = f"t5.{stack}.block.{layer}.layer.{number}.{name}"
                    hooks.append(Site(path, _BLOCKS[name], stack, layer, inner, inner))
        return hooks
