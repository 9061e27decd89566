"""What a CLIP-BART is made of beside what all backbones of its kind have: presets and the language model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import BartConfig

from mtvl.backbones.clip_config import ClipConfig, preset_values, readable

PRESETS: dict[str, dict[str, Any]] = {
    "base": {
        "vocab_size": 50265, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
        "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072,
        "max_position_embeddings": 1024,
    },
    "large": {
        "vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
        "max_position_embeddings": 1024,
    },
    "small": {
        "vocab_size": 4000, "d_model": 256, "encoder_layers": 3, "decoder_layers": 3,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024,
        "max_position_embeddings": 256,
    },
    "tiny": {
        "vocab_size": 600, "d_model": 128, "encoder_layers": 3, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512,
        "max_position_embeddings": 192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClipBartConfig(ClipConfig):
    """Options of the CLIP-BART backbone; `text` are BartConfig fields."""

    name: str = "clip_bart"


def text_config(config: ClipBartConfig) -> BartConfig:
    """The BartConfig without sentinel and slot rows."""
    values = preset_values(config, PRESETS, "bart")
    if values is None:
        with readable(config.weights):
            return BartConfig.from_pretrained(config.weights, **config.text)
    defaults = {
        "activation_function": "gelu", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "decoder_start_token_id": 2, "scale_embedding": False,
    }  # fmt: skip
    return BartConfig(**{**defaults, **values, **config.text})
