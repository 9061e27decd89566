"""What a CLIP-T5 is made of beside what all backbones of its kind have: presets and the language model's sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import T5Config

from mtvl.backbones.clip_config import ClipConfig, preset_values, readable

PIECES = 32_000  # sentencepiece's, in all English T5 checkpoints
PRESETS: dict[str, dict[str, Any]] = {
    "base": {
        "vocab_size": PIECES, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12,
        "num_heads": 12,
    },
    "large": {
        "vocab_size": PIECES, "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24,
        "num_heads": 16,
    },
    "tiny": {
        "vocab_size": 600, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 4,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClipT5Config(ClipConfig):
    """Options of the CLIP-T5 backbone; `text` are T5Config fields.

    `pieces`: text rows of the token table before the sentinels, 0 for `text.vocab_size` or, with public weights, for
    T5's 32,000. Their table has 32,128 rows: pieces, 100 sentinels and 28 without use, which become rows of the
    highest visual slots.
    """

    name: str = "clip_t5"
    pieces: int = 0


def text_config(config: ClipT5Config) -> T5Config:
    """The T5Config without sentinel and slot rows."""
    values = preset_values(config, PRESETS, "t5")
    if values is None:
        with readable(config.weights):
            public = T5Config.from_pretrained(config.weights, **config.text)
        public.vocab_size = config.pieces or min(PIECES, public.vocab_size)
        return public
    text = T5Config(**{"decoder_start_token_id": 0, **values, **config.text})
    text.vocab_size = config.pieces or text.vocab_size
    return text
