"""CLIP-BART: a BART language model that reads visual tokens appended to its text (VL-Adapter)."""

from __future__ import annotations

import re

import torch
from transformers import BartConfig, BartForConditionalGeneration

from mtvl.backbones.attention import ATTENTION
from mtvl.backbones.clip_bart_config import ClipBartConfig, text_config
from mtvl.backbones.clip_seq2seq import ClipSeq2Seq
from mtvl.backbones.tokenizers import load_bart_tokenizer
from mtvl.sites import Site

_LINEAR = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_LAYER = re.compile(r"bart\.model\.(encoder|decoder)\.layers\.(\d+)\.(.+)")


class ClipBart(ClipSeq2Seq):
    """BART with visual tokens, which follow the text behind its embedding norm."""

    family = "bart"
    Config = ClipBartConfig
    model_class = BartForConditionalGeneration
    text_name, core_path = "bart", "bart.model"
    forces_eos = True
    unsaved = ("final_logits_bias",)
    text_config = staticmethod(text_config)
    load_tokenizer = staticmethod(load_bart_tokenizer)

    def __init__(self, config: ClipBartConfig, text: BartConfig, widths: dict[str, int]) -> None:
        super().__init__(config, text, widths)
        for key in ("dropout", "attention_dropout", "activation_dropout"):
            setattr(text, key, config.dropout)
        text._attn_implementation = ATTENTION
        self.bart = BartForConditionalGeneration(text)
        self.bart.generation_config.forced_eos_token_id = None
        self.visual = self._visual_embedding(text.d_model)
        self.visual.apply(self.bart._init_weights)

    @property
    def tokenizer_rows(self) -> int:
        """Rows of the text: BART's own vocabulary has no sentinels."""
        return int(self.bart.config.vocab_size) - self.config.num_sentinels - self.config.num_slots

    @property
    def max_tokens(self) -> int:
        """Longest source or target text: the learned positions."""
        return int(self.bart.config.max_position_embeddings)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        encoder = self.bart.model.encoder
        return encoder.embed_tokens(ids) + encoder.embed_positions(ids)

    def _norm_text(self, text: torch.Tensor) -> torch.Tensor:
        return self.bart.model.encoder.layernorm_embedding(text)

    def _encoder_layers(self, hidden: torch.Tensor, attention: torch.Tensor | None, num_text: int) -> torch.Tensor:
        for layer in self.bart.model.encoder.layers:
            hidden = layer(hidden, attention)
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.bart.lm_head(hidden) + self.bart.final_logits_bias[0]

    def _site_kind(self, path: str) -> tuple[str, str, int]:
        if match := _LAYER.fullmatch(path):
            stack, layer, rest = match[1], int(match[2]), match[3]
            if rest.endswith("layer_norm"):
                return "norm", stack, layer
            if rest in ("fc1", "fc2"):
                return ("ffn.up" if rest == "fc1" else "ffn.down"), stack, layer
            block, _, projection = rest.partition(".")
            return f"{'cross_attn' if block == 'encoder_attn' else 'self_attn'}.{_LINEAR[projection]}", stack, layer
        stack = "decoder" if ".decoder." in path else "encoder"
        return ("norm" if path.endswith("layernorm_embedding") else "embedding"), stack, -1

    def _hooks(self) -> list[Site]:
        width = self.bart.config.d_model
        hooks = [Site("bart.model.encoder", "input", "encoder", -1, width, width)]
        for stack, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
            for layer in range(len(self.bart.get_submodule(f"model.{stack}.layers"))):
                for name in attentions:
                    kind = "cross_attn" if name == "encoder_attn" else "self_attn"
                    hooks.append(Site(f"bart.model.{stack}.layers.{layer}.{name}", kind, stack, layer, width, width))
        return hooks
