"""BLIP as the rest of the system sees it: a batch of any task in, logits, text or choices out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from mtvl.backbones.answers import NO_ANSWER, AnswerList
from mtvl.backbones.blip.config import VisionShape
from mtvl.backbones.blip.model import Blip
from mtvl.backbones.clip_config import VISUAL_KINDS
from mtvl.backbones.decoding import SearchSettings, first_token_scores
from mtvl.backbones.towers import square_pixels
from mtvl.errors import ConfigError, near_names
from mtvl.types import Batch, Decoding

IGNORED = -100
NUM_SPECIAL = 2  # tokens of a source without words: [CLS] and [SEP]


@dataclass
class Memory:
    """What the decoder reads: hidden (B, M, D) and mask (B, M), True where attended; and ids that begin every answer."""

    hidden: torch.Tensor
    mask: torch.Tensor
    prefix: tuple[int, ...] = ()

    def repeat(self, times: int) -> Memory:
        """Each row `times` times in a row."""
        return Memory(self.hidden.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), self.prefix)

    def select(self, rows: Sequence[int]) -> Memory:
        """The rows with these numbers."""
        return Memory(self.hidden[list(rows)], self.mask[list(rows)], self.prefix)

    @staticmethod
    def join(memories: Sequence[Memory]) -> Memory:
        """The rows of all, padded to the longest; ConfigError where their answers begin differently."""
        if len({m.prefix for m in memories}) > 1:
            raise ConfigError(
                "tasks whose answers begin with different prompts cannot share a batch; set evaluate.mixed=false"
            )
        most = max(m.mask.shape[1] for m in memories)
        pad = torch.nn.functional.pad
        hidden = [pad(m.hidden, (0, 0, 0, most - m.hidden.shape[1])) for m in memories]
        masks = [pad(m.mask, (0, most - m.mask.shape[1])) for m in memories]
        return Memory(torch.cat(hidden), torch.cat(masks), memories[0].prefix)


class TrueOrFalse(AnswerList):
    """What the head that compares two pictures says, whatever the task. *Source:* the order of its columns is BLIP's."""

    def __init__(self) -> None:
        super().__init__({"": ("false", "true")})

    def encode(self, text: str) -> list[int]:
        """The column; ConfigError for another answer."""
        if not (found := super().encode(text)):
            raise ConfigError(
                f"'backbone.kind' 'nlvr2' says true or false of two pictures and nothing else, found the answer {text!r}; set "
                "backbone.kind=joint"
            )
        return found

    def are_exclusive(self, task: str) -> bool:
        """True: one of two."""
        return True


TRUE_OR_FALSE = TrueOrFalse()


@dataclass(frozen=True)
class PixelReader:
    """How pictures and frames become pixels. It stands where other backbones have a tower that trains."""

    config: VisionShape

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL pictures -> (n, 3, H, W) float32. *Source:* BLIP in evaluation: a bicubic squash, CLIP's normalisation."""
        return square_pixels(images, self.config.image_size)

    @property
    def fixed_fingerprint(self) -> str:
        """Changes with the preprocessing; what the vision transformer makes of it is a part of the model."""
        return f"pixels-{self.config.image_size}-bicubic-square-clip-mean"


class BlipBackbone(Blip):
    """BLIP that answers: `encode`, `decode`, `generate`, `choose`, for tasks on pictures and on videos.

    What the decoder reads hangs on the row and on `config.kind`, never on the task:

    - a question, statement or other text is encoded with the tokens of all pictures or frames of its row, and the decoder
      reads its states (BLIP's VQA model); without pictures the text is encoded alone;
    - a row without words, as a caption has, has nothing to encode, and the decoder reads the image tokens themselves
      (BLIP's captioning model, without a prompt, as it was pre-trained);
    - of the kinds whose decoder reads image tokens (caption, pretrain) the source is what every answer begins with;
    - the kind nlvr2 has no decoder: a statement about two pictures is true or false by a head on its first state.

    Several pictures of a row are told apart by a fixed code added to the tokens of all but the first (`picture_order`).
    *Source:* Li et al. 2022; differences: the code, and, but for the kind nlvr2, two pictures without a second branch of
    cross-attention.
    """

    grounding: Callable[..., torch.Tensor] | None = (
        None  # text with weighted frames, where a rule for that is handed in
    )
    pixel_kinds = VISUAL_KINDS  # kinds of visual input of which `visual_tower` reads pixels
    looks_for_words = True  # `encode` looks at its rows, unless it is told
    encodes_parts = True  # tasks that share a batch are encoded one by one: they differ inside the vision transformer

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each kind of visual input, in a fixed order."""
        kinds = self.config.visual or VISUAL_KINDS[:1]
        if unknown := [kind for kind in kinds if kind not in VISUAL_KINDS]:
            raise ConfigError(
                f"unknown kind {unknown[0]!r} in 'backbone.visual'; {near_names(unknown[0], VISUAL_KINDS)}"
            )
        return dict.fromkeys(kinds, 3)

    @property
    def answers(self) -> AnswerList | None:
        """The answers of a kind that writes none."""
        return TRUE_OR_FALSE if self.parts.encoder == "two" else None

    @property
    def visual_tower(self) -> PixelReader:
        """What turns pictures into what `encode` takes."""
        return PixelReader(self.vision_shape)

    @property
    def max_frames(self) -> int:
        """Frames of a video."""
        return self.config.frames

    @property
    def max_tokens(self) -> int:
        """Longest source or target text: the learned positions."""
        return self.text_shape.positions

    def stored_grid(self, kind: str) -> tuple[int, int]:
        """(P, F) of a picture or frame: its pixels."""
        return self.vision_shape.image_size**2, 3

    def tower(self, kind: str = "grid") -> Any:
        """ConfigError: there is no tower apart from the model."""
        raise ConfigError(
            "BLIP's vision transformer is a part of the model and is adapted with it: its features change with every step, "
            "so none can be computed ahead or stored"
        )

    def added_rows(self) -> dict[str, int]:
        """None: every row of a table is in the public checkpoints."""
        return {}

    # ---- running ------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch, *, has_words: bool | None = None) -> Memory:
        """What the decoder reads of text (B, S) and pixels (B, N, H * W, 3), or frames (B, 1, N * H * W, 3).

        `has_words`: whether all rows have words, or none, where there are shapes and no values. ConfigError where this kind
        of model cannot answer such rows.
        """
        if batch.parts:
            return Memory.join([self.encode(part) for part in batch.parts])
        if self.parts.encoder == "two":
            return self._compared(batch)
        if not self.parts.decoder_reads:
            raise ConfigError(
                f"'backbone.kind' {self.config.kind!r} has no decoder, so it answers no questions and writes no captions; set "
                "backbone.kind=joint"
            )
        ids, mask = batch.source_ids, batch.source_mask
        if self.parts.decoder_reads == "image":
            tokens, is_there = self.look(batch)
            return Memory(*_flat(tokens, is_there), _common_prefix(ids, mask) if has_words is None else ())
        if not batch.features.shape[1]:
            return Memory(self.read(ids, mask), mask)
        tokens, is_there = self.look(batch)
        asks = mask.sum(1) > NUM_SPECIAL
        if has_words or (has_words is None and bool(asks.all())):
            return Memory(self._ground(batch, tokens, is_there), mask)
        self._check_widths()
        seen, seen_mask = _flat(tokens, is_there)
        if has_words is False or not bool(asks.any()):
            return Memory(seen, seen_mask)
        states = self._ground(batch, tokens, is_there)
        asks = asks[:, None]
        return Memory(torch.cat([states, seen], 1), torch.cat([mask & asks, seen_mask & ~asks], 1))

    def look(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Image tokens (B, N, P, D) of a batch's pictures or frames, and which of them are there (B, N)."""
        pixels, is_there = self.pixels(batch)
        if self.grounding is not None:  # weights are over frames that are all there
            pixels = self.every_frame(batch)
            is_there = is_there.new_ones(pixels.shape[:2])
        tokens = self.see(pixels)
        scale = self.config.frame_order if batch.feature_kind == "frame" else self.config.picture_order
        if scale and tokens.shape[1] > 1 and self.parts.encoder != "two":  # whose branches tell its pictures apart
            code = order_code(tokens.shape[1], tokens.shape[3], tokens.device) * scale
            tokens = tokens + code.to(tokens.dtype)[None, :, None]
        return tokens, is_there

    def pixels(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures or frames (B, N, 3, H, W) of a batch, and which of them are there (B, N).

        ConfigError for features that are no pixels of this model's size.
        """
        side, features = self.vision_shape.image_size, batch.features
        rows, cells = len(features), side * side
        if features.shape[3] != 3 or features.shape[2] % cells or not features.shape[1]:
            raise ConfigError(
                f"BLIP reads the pixels of pictures of {side} x {side} ({cells}, 3), found features "
                f"{tuple(features.shape[1:])}; give it tasks with pictures or videos, and no stored features"
            )
        square = features.reshape(rows, -1, side, side, 3).permute(0, 1, 4, 2, 3)
        is_there = batch.feature_mask.reshape(rows, -1, cells)[..., 0]
        return square.to(self.vision.embed.cls.dtype), is_there

    def every_frame(self, batch: Batch) -> torch.Tensor:
        """Pictures (B, N, 3, H, W) of a batch; of a video `config.frames`, where it has fewer each several times.

        Contrast takes the mean over frames and matching reads them all, for which no frame may be missing.
        """
        pixels, is_there = self.pixels(batch)
        if batch.feature_kind != "frame":
            return pixels
        places = torch.arange(self.config.frames, device=pixels.device)
        index = places[None] * is_there.sum(1, keepdim=True) // self.config.frames
        return pixels[torch.arange(len(pixels), device=pixels.device)[:, None], index]

    def _ground(self, batch: Batch, tokens: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
        """Text with pictures or frames -> (B, S, D). Pictures are all there: no mask, for faster attention."""
        is_padded = batch.feature_kind == "frame"
        if is_padded and self.grounding is not None:
            return self.grounding(self, batch.source_ids, batch.source_mask, tokens)
        return self.fuse(batch.source_ids, batch.source_mask, tokens, is_there if is_padded else None)

    def _compared(self, batch: Batch) -> Memory:
        """States of statements with their two pictures."""
        tokens, is_there = self.look(batch)
        if tokens.shape[1] != 2 or batch.feature_kind == "frame":
            raise ConfigError(
                f"'backbone.kind' 'nlvr2' judges statements about two pictures, task '{batch.task}' shows {tokens.shape[1]} "
                f"{'frames' if batch.feature_kind == 'frame' else 'of them'}; set backbone.kind=joint"
            )
        return Memory(self._ground(batch, tokens, is_there), batch.source_mask)

    def answer_logits(self, memory: Memory) -> torch.Tensor:
        """Scores (B, 2) of false and true."""
        return self.compare(memory.hidden[:, 0])

    def _check_widths(self) -> None:
        if self.vision_shape.width != self.text_shape.width:
            raise ConfigError(
                f"the decoder reads states of {self.text_shape.width}, image tokens are {self.vision_shape.width} wide, so a "
                "caption has to be the answer to a text; give the task a prompt: task.NAME.prompt='a picture of '"
            )

    def decode(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits (B, T, K) for target_ids (B, T), -100 where ignored; of answers the same at every place."""
        if self.answers is not None:
            return self.answer_logits(memory)[:, None].expand(-1, target_ids.shape[1], -1)
        return self.decoder.logits(self._target_states(memory, target_ids))

    def label_logits(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits (N, K) of the N positions of target_ids (B, T) that are not -100, row after row."""
        if self.answers is not None:
            return self.answer_logits(memory)[(target_ids != IGNORED).nonzero()[:, 0]]
        return self.decoder.logits(self._target_states(memory, target_ids)[target_ids != IGNORED])

    def _target_states(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Decoder output (B, T, D): the place before a token of the target, behind [DEC] and the prefix."""
        given = target_ids.masked_fill(target_ids == IGNORED, self.text_shape.pad_id)[:, :-1]
        begin = given.new_tensor([self.text_shape.dec_id, *memory.prefix]).expand(len(given), -1)
        inputs = torch.cat([begin, given], 1)
        hidden = self.decoder(inputs, torch.ones_like(inputs, dtype=torch.bool), memory.hidden, memory.mask)
        return hidden[:, len(memory.prefix) :]

    def generate(self, memory: Memory, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (B, <= max_tokens), right-padded, without the prefix, and the scores (B,) of a beam search."""
        if self.answers is not None:
            best = self.answer_logits(memory).argmax(-1, keepdim=True)
            return torch.cat([torch.full_like(best, NO_ANSWER), best], 1), None
        length = len(memory.prefix)
        if decoding.max_tokens <= length + 1:
            raise ConfigError(
                f"'decoding.max_tokens' {decoding.max_tokens} counts the start and the prompt of {length} tokens that every "
                "answer begins with, and leaves no room for an answer"
            )
        settings = SearchSettings(
            start_id=self.text_shape.dec_id, eos_id=self.text_shape.eos_id, pad_id=self.text_shape.pad_id,
            max_length=decoding.max_tokens, num_beams=decoding.num_beams, no_repeat_ngram=decoding.no_repeat_ngram,
            early_stopping=decoding.early_stopping, force_eos=False, prompt=memory.prefix,
            min_length=decoding.min_tokens,
        )  # fmt: skip
        ids, scores = self.search(memory.hidden, memory.mask, settings)
        return torch.cat([ids[:, :1], ids[:, 1 + length :]], 1), scores

    @torch.no_grad()
    def choose(self, memory: Memory, choices: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probability (B, C) of each choice's (wrapped target ids') first token that tells the choices apart."""
        return first_token_scores(partial(self.decode, memory), memory.hidden, choices)


def order_code(number: int, width: int, device: torch.device) -> torch.Tensor:
    """A fixed code (number, width) of places in a row: sines and cosines of the place, zero for the first."""
    rates = 10000 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(number, device=device)[:, None] * rates
    code = torch.stack([angles.sin(), angles.cos() - 1], 2)
    return code.flatten(1)[:, :width]


def _flat(tokens: torch.Tensor, is_there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N, P, D) and (B, N) -> the tokens of all pictures one after the other and their mask (B, N * P)."""
    return tokens.flatten(1, 2), is_there[..., None].expand(tokens.shape[:3]).flatten(1)


def _common_prefix(ids: torch.Tensor, mask: torch.Tensor) -> tuple[int, ...]:
    """The words of sources (B, S) that are one and the same; ConfigError when they differ."""
    found = {tuple(row[given].tolist()[1:-1]) for row, given in zip(ids, mask, strict=True)}
    if len(found) > 1:
        raise ConfigError(
            "this kind of BLIP has a decoder on image tokens alone: it writes captions behind one prompt, and answers no "
            "questions; set backbone.kind=joint or vqa"
        )
    return found.pop()
