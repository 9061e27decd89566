"""BLIP as one module: pictures and text in; features, matching scores, comparisons or text out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import noop_context_fn

from mtvl.backbones.blip.config import BlipConfig
from mtvl.backbones.blip.layers import KeyValues
from mtvl.backbones.blip.loading import LoadReport, load_weights
from mtvl.backbones.blip.med import TextModel
from mtvl.backbones.blip.recompute import Recompute
from mtvl.backbones.blip.sites import site_table
from mtvl.backbones.blip.tokens import VOCABULARIES, BlipText, load_blip_tokenizer, of_pieces
from mtvl.backbones.blip.unimodal import NAME as UNIMODAL
from mtvl.backbones.blip.unimodal import vocabulary
from mtvl.backbones.blip.vit import VisionTransformer
from mtvl.backbones.clip_config import BUNDLED
from mtvl.backbones.decoding import SearchSettings, beam, greedy
from mtvl.dist import is_main
from mtvl.errors import ConfigError
from mtvl.sites import Site


class Temperature(nn.Module):
    """The learned divisor of similarities: (1,), since DeepSpeed cannot broadcast a tensor without dimensions."""

    def __init__(self, value: float = 0.07) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), value))


class Contrast(nn.Module):
    """Maps of both towers' first tokens into one space of unit vectors."""

    def __init__(self, image_width: int, text_width: int, embed_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, embed_dim)
        self.text = nn.Linear(text_width, embed_dim)


class Blip(nn.Module):
    """BLIP with the parts of `config.kind`.

    *Source:* Li et al. 2022 and the released models. Differences: queries, keys and values of the vision transformer are
    separate maps; attention is torch's fused one, which masks padding exactly in place of a large penalty (the same
    numbers, as no row is masked as a whole).
    """

    family = "blip"
    Config = BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config, self.parts = config, config.parts
        self.vision_shape, self.text_shape = config.shapes()
        seen, read, parts = self.vision_shape, self.text_shape, self.parts
        self.load_report = LoadReport()
        self.vision = VisionTransformer(seen)
        if parts.encoder:
            self.text = TextModel(read, seen.width, twin=parts.encoder == "two")
        if parts.decoder_reads:
            width = seen.width if parts.decoder_reads == "image" else read.width
            tied = self.text if parts.tied else None
            self.decoder = TextModel(read, width, is_causal=True, tied=tied)
        if parts.matching:
            self.contrast = Contrast(seen.width, read.width, config.embed_dim)
            self.match = nn.Linear(read.width, 2)
            self.temperature = Temperature()
        if parts.encoder == "two":
            self.compare = nn.Sequential(nn.Linear(read.width, read.width), nn.ReLU(), nn.Linear(read.width, 2))

    # ---- building -----------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, config: BlipConfig, *, meta: bool = False) -> Blip:
        """Build from a configuration, with weights where it names some; with `meta` only shapes.

        What a checkpoint does not hold stays as drawn from `init_seed`; `load_report`, printed to stderr, says what that is.
        """
        if meta:
            with torch.device("meta"):
                return cls(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)
            model = cls(config)
            model._draw()
        if config.weights:
            model.load_report = load_weights(model, config.weights)
            if is_main():
                print(model.load_report.text(), file=sys.stderr)
        return model

    def _draw(self) -> None:
        """BERT's and the vision transformer's own start: N(0, `init_std`), zero biases, norms of one."""
        std = self.config.init_std
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.vision.embed.cls, std=std)
        nn.init.trunc_normal_(self.vision.embed.position, std=std)

    def tokenizer(self) -> BlipText:
        """The tokenizer; its ids lie inside the token table, with [DEC] and [ENC] as its last two rows."""
        source = self.config.tokenizer or _own_tokenizer(self.config.weights)
        if not source:
            raise ConfigError(
                "'backbone.tokenizer' is needed, 'backbone.weights' hold none; give a folder with a vocabulary, a hub name, "
                "or tiny_blip"
            )
        bundled = BUNDLED / source
        if source == UNIMODAL:
            tokenizer = of_pieces(vocabulary())
        else:
            tokenizer = load_blip_tokenizer(str(bundled) if (bundled / "tokenizer.json").is_file() else source)
        found = (tokenizer.dec_id, tokenizer.enc_id, tokenizer.eos_id)
        wanted = (self.text_shape.dec_id, self.text_shape.enc_id, self.text_shape.eos_id)
        if found != wanted:
            raise ConfigError(
                f"tokenizer {source}: [DEC], [ENC] and [SEP] are {found}, this model has them at {wanted}; its token "
                f"table has {self.text_shape.vocab} rows: set 'backbone.text.vocab' and 'backbone.text.eos_id'"
            )
        return tokenizer

    def sites(self) -> list[Site]:
        """Every module with parameters, tied ones once, and the hooks."""
        return site_table(self)

    @property
    def has_pairs(self) -> bool:
        """True with heads of contrast and matching."""
        return self.parts.matching

    def parts_of_kinds(self) -> dict[str, str]:
        """Begin of the names of parameters that only one kind of batch trains -> that kind (of features, or of loss)."""
        return {"contrast.": "pairs", "match.": "pairs", "temperature.": "pairs"}

    def set_recompute(self, enabled: bool, contexts: Callable[[], tuple[Any, Any]] = noop_context_fn) -> None:
        """Switch activation recompute in every block; `contexts` is torch's `context_fn`."""
        for module in self.modules():
            if isinstance(module, Recompute):
                module.recomputes, module.contexts = enabled, contexts

    # ---- running ------------------------------------------------------------------------------------------------

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) or N pictures or frames of a row (B, N, 3, H, W) -> tokens (B, N, P, D)."""
        rows = pixels if pixels.dim() == 5 else pixels[:, None]
        tokens = self.vision(rows.flatten(0, 1))
        return tokens.unflatten(0, rows.shape[:2])

    def frame_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, P, D) -> unit vectors (B, N, E), one for each frame."""
        return nn.functional.normalize(self.contrast.image(tokens[:, :, 0]), dim=-1)

    def image_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, P, D) -> unit vectors (B, E): the mean over frames, projected."""
        return nn.functional.normalize(self.contrast.image(tokens[:, :, 0].mean(1)), dim=-1)

    def read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Text alone: ids (B, S) that begin with [CLS], mask (B, S) bool -> (B, S, D)."""
        return self.text(ids, mask)

    def text_features(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> unit vectors (B, E)."""
        return nn.functional.normalize(self.contrast.text(hidden[:, 0]), dim=-1)

    def fuse(
        self, ids: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor | None = None,
        key_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Text with pictures: ids (B, S), tokens (B, N, P, D), key_scale (B, N, P) -> (B, S, D); writes [ENC] first.

        `token_mask` (B, N) is False for missing pictures or frames. A two-picture encoder wants N = 2.
        """
        if self.parts.encoder == "two" and tokens.shape[1] != 2:
            raise ValueError(f"expected two pictures a row, found {tokens.shape[1]}")
        seen = None if token_mask is None else token_mask[..., None].expand(tokens.shape[:3]).flatten(1)
        scale = None if key_scale is None else key_scale.flatten(1)
        return self.text(_begin(ids, self.text_shape.enc_id), mask, tokens.flatten(1, 2), seen, scale)

    def decode_states(
        self, ids: torch.Tensor, mask: torch.Tensor, memory: torch.Tensor, memory_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Teacher-forced logits (B, T, K) of ids (B, T); writes [DEC] first. memory (B, S, Dm), mask (B, S) bool."""
        hidden = self.decoder(_begin(ids, self.text_shape.dec_id), mask, memory, memory_mask)
        return self.decoder.logits(hidden)

    def search(
        self, memory: torch.Tensor, memory_mask: torch.Tensor | None, settings: SearchSettings
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode from memory (B, S, Dm): ids (B, <= max_length), right-padded, and a beam search's scores (B,)."""
        rows, beams, device = len(memory), max(1, settings.num_beams), memory.device
        memory = memory.repeat_interleave(beams, 0)
        mask = None if memory_mask is None else memory_mask.repeat_interleave(beams, 0)
        cache = KeyValues()

        def step(new: torch.Tensor) -> torch.Tensor:
            so_far = torch.ones(len(new), cache.length + new.shape[1], dtype=torch.bool, device=device)
            hidden = self.decoder(new, so_far, memory, mask, None, cache)
            return self.decoder.logits(hidden[:, -1])

        if beams > 1:
            return beam(step, cache.reorder, rows, settings, device)
        return greedy(step, rows, settings, device), None


def _own_tokenizer(weights: str) -> str:
    """What of `backbone.weights` has a tokenizer: the packaged towers, or a folder with one beside the weights; else ""."""
    has_one = weights == UNIMODAL or any((Path(weights) / name).is_file() for name in VOCABULARIES)
    return weights if weights and has_one else ""


def _begin(ids: torch.Tensor, first: int) -> torch.Tensor:
    """A copy of ids (B, S) with another first token."""
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], 1)
