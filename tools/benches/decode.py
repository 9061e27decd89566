"""Beam-5 captions at BART-base size: this project's search against transformers' `generate`, on the same encoder output."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from transformers.modeling_outputs import BaseModelOutput

from benches.result import Result, compare, interleaved
from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import ClipBartConfig
from mtvl.backbones.clip_config import BUNDLED
from mtvl.backbones.clip_seq2seq import Memory
from mtvl.errors import MtvlError
from mtvl.types import Decoding

ROWS, TOKENS = 16, 56
DECODING = Decoding(num_beams=5, max_tokens=20, no_repeat_ngram=3)
EOS_PUSH = 0.5
OURS, THEIRS = "beam 5", "transformers generate"


def measure(rounds: int) -> list[Result]:
    """Captions a second; MtvlError when the two searches do not give the same tokens."""
    config = ClipBartConfig(preset="base", tokenizer=str(BUNDLED / "tiny"), tower="rn101")
    return measure_backbone(ClipBart.build(config), rounds)


def measure_backbone(backbone: ClipBart, rounds: int, rows: int = ROWS) -> list[Result]:
    """The same for any CLIP-BART; random encoder output of `rows` samples."""
    backbone.eval()
    generator = torch.Generator().manual_seed(0)
    width = int(backbone.bart.config.d_model)
    memory = Memory(torch.randn(rows, TOKENS, width, generator=generator), torch.ones(rows, TOKENS, dtype=torch.bool))
    # Random weights hardly ever end a sentence, and with a larger push end all at once; this one ends some early.
    backbone.bart.final_logits_bias[0, backbone.bart.config.eos_token_id] = EOS_PUSH
    sides: dict[str, Callable[[], torch.Tensor]] = {
        THEIRS: partial(theirs, backbone, memory),
        OURS: partial(ours, backbone, memory),
    }
    expected, found = sides[THEIRS](), sides[OURS]()
    width = max(expected.shape[1], found.shape[1])
    pad = int(backbone.bart.config.pad_token_id)
    same = (_padded(expected, width, pad) == _padded(found, width, pad)).all(1)
    if not bool(same.all()):
        raise MtvlError(f"decode: {int((~same).sum())} of {rows} captions differ from transformers' generate")
    values = interleaved("decode", {name: partial(_rate, side, rows) for name, side in sides.items()}, rounds)
    lengths = (found != pad).sum(1)
    note = f"{rows} equal captions of {int(lengths.min())} to {int(lengths.max())} tokens"
    return compare(values, "captions/s", baseline=THEIRS, notes={OURS: note})


@torch.no_grad()
def ours(backbone: ClipBart, memory: Memory) -> torch.Tensor:
    """Token ids (rows, <= 20), without the start token."""
    return backbone.generate(memory, DECODING)[0]


@torch.no_grad()
def theirs(backbone: ClipBart, memory: Memory) -> torch.Tensor:
    """The same from the model's own `generate`."""
    return backbone.bart.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory.hidden), attention_mask=memory.mask.long(),
        num_beams=DECODING.num_beams, max_length=DECODING.max_tokens, no_repeat_ngram_size=DECODING.no_repeat_ngram,
        early_stopping=DECODING.early_stopping, do_sample=False, min_length=0, length_penalty=1.0,
        forced_eos_token_id=backbone.bart.config.eos_token_id,
    )  # fmt: skip


def _padded(ids: torch.Tensor, width: int, pad: int) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]), value=pad)


def _rate(side: Callable[[], torch.Tensor], rows: int) -> float:
    begin = time.perf_counter()
    side()
    return rows / (time.perf_counter() - begin)
