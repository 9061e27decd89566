"""CLIP-BART: a BART language model that reads visual tokens appended to its text (VL-Adapter)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import noop_context_fn
from transformers import BartConfig, BartForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bart.modeling_bart import shift_tokens_right

from mtvl.backbones.attention import ATTENTION
from mtvl.backbones.clip_bart_config import (
    STORED,
    VISUAL_KINDS,
    ClipBartConfig,
    bundle_settings,
    bundled_folder,
    feature_widths,
    frame_tower_name,
    readable,
    text_config,
    tower_name,
)
from mtvl.backbones.decoding import SearchSettings, beam, greedy
from mtvl.backbones.frame_tower import FRAME_TOWERS, FrameTower
from mtvl.backbones.tokenizers import BartText, load_bart_tokenizer
from mtvl.backbones.towers import TOWERS, GridTower
from mtvl.backbones.visual import VisualEmbedding
from mtvl.errors import CheckpointError, ConfigError
from mtvl.sites import Site
from mtvl.types import Batch, Decoding


@dataclass
class Memory:
    """Encoder output: hidden (B, S+V, D) and mask (B, S+V), True where attended."""

    hidden: torch.Tensor
    mask: torch.Tensor

    def repeat(self, times: int) -> Memory:
        """Each row `times` times in a row."""
        return Memory(self.hidden.repeat_interleave(times, dim=0), self.mask.repeat_interleave(times, dim=0))


_LINEAR = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_LAYER = re.compile(r"bart\.model\.(encoder|decoder)\.layers\.(\d+)\.(.+)")


def _site_kind(path: str) -> tuple[str, str, int]:
    """(kind, stack, layer) of a parameter-bearing module of this backbone."""
    if path.startswith("visual."):
        return "visual", "visual", -1
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


class ClipBart(nn.Module):
    """BART with visual tokens: `encode`, `decode`, `generate`, `choose`, and the table of its sites.

    The token table has `vocab_size + num_sentinels + num_slots` rows; the last `num_slots` are the visual slots.
    """

    family = "bart"
    Config = ClipBartConfig

    def __init__(self, config: ClipBartConfig, text: BartConfig, widths: dict[str, int]) -> None:
        """`widths`: F of each kind of features, in the order of their projections."""
        super().__init__()
        self.config, self.widths = config, dict(widths)
        text.vocab_size += config.num_sentinels + config.num_slots
        for key in ("dropout", "attention_dropout", "activation_dropout"):
            setattr(text, key, config.dropout)
        text._attn_implementation = ATTENTION
        self.bart = BartForConditionalGeneration(text)
        self.bart.generation_config.forced_eos_token_id = None
        self.visual = VisualEmbedding(
            self.widths, text.d_model, num_tokens=config.visual_tokens, num_slots=config.num_slots
        )
        self.visual.apply(self.bart._init_weights)

    # ---- building -----------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, config: ClipBartConfig, *, meta: bool = False) -> ClipBart:
        """Build from a configuration or a checkpoint; with `meta` only shapes, no weights and no memory."""
        folder = bundled_folder(config.weights)
        text, widths = text_config(config), feature_widths(config)
        if meta:
            with torch.device("meta"):
                return cls(config, text, widths)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)  # rows and projections that no checkpoint holds
            model = cls(config, text, widths)
        if folder is not None:
            model._load_bundle(folder)
        elif config.weights:
            model._load_bart(config.weights)
        return model

    def _load_bundle(self, folder: Path) -> None:
        state = {k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()}
        for kind in set(VISUAL_KINDS) - set(self.widths):  # a run without videos needs no projection of frames
            state = {k: v for k, v in state.items() if not k.startswith(f"visual.features.{kind}.")}
        missing, unexpected = self.load_state_dict(state, strict=False)
        tied = {"bart.model.encoder.embed_tokens.weight", "bart.model.decoder.embed_tokens.weight",
                "bart.lm_head.weight", "bart.final_logits_bias"}  # fmt: skip
        # A projection of features that the checkpoint was not pretrained with starts at random, as with public weights.
        fresh = {k for k in missing if k.startswith("visual.features.")}
        if set(missing) - tied - fresh or unexpected:
            raise CheckpointError(
                f"{folder}: missing {sorted(set(missing) - tied - fresh)[:3]}, unexpected {unexpected[:3]}"
            )

    def _load_bart(self, source: str) -> None:
        """Plain BART weights: their token rows are copied, sentinel and slot rows stay random."""
        with readable(source):
            plain = BartForConditionalGeneration.from_pretrained(source)
        table = "model.shared.weight"
        own, state = self.bart.state_dict(), plain.state_dict()
        tied = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
        for key, value in state.items():
            if key == table:
                own[key][: value.shape[0]].copy_(value)
            elif own[key].shape == value.shape:
                own[key].copy_(value)
            elif key not in tied and key != "final_logits_bias":
                raise CheckpointError(f"{source}: {key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}")
        self.bart.load_state_dict(own)

    def tokenizer(self) -> BartText:
        """The tokenizer that belongs to the weights; its ids lie below the sentinel rows."""
        folder = bundled_folder(self.config.weights)
        source = self.config.tokenizer or (str(folder) if folder else self.config.weights)
        if not source:
            raise ConfigError(
                "'backbone.tokenizer' is needed when 'backbone.weights' is empty; give a folder or hub name"
            )
        tokenizer = load_bart_tokenizer(source)
        limit = self.bart.config.vocab_size - self.config.num_sentinels - self.config.num_slots
        if len(tokenizer) > limit:
            raise ConfigError(f"tokenizer {source} has {len(tokenizer)} ids, the token table only {limit} text rows")
        return tokenizer

    @property
    def max_tokens(self) -> int:
        """Longest source or target text: the learned positions."""
        return int(self.bart.config.max_position_embeddings)

    @property
    def max_frames(self) -> int:
        """Most frames of a video; a frame may give several tokens."""
        return self.config.frames or int(bundle_settings(self.config).get("frames", 64))

    def stored_grid(self, kind: str) -> tuple[int, int]:
        """(P, F) of stored features in place of a tower's: 7 x 7 cells of a picture, one row of a frame."""
        return (49 if kind == "grid" else 1), self.widths[kind]

    def tower(self, kind: str = "grid") -> GridTower | FrameTower | None:
        """The frozen visual tower for one kind of features, as configured; None where all features are stored ones."""
        settings, folder = self.config, bundled_folder(self.config.weights)
        if kind == "grid":
            name, weights, key = tower_name(settings), settings.tower_weights, "tower"
            configured = settings.tower
            width = self.widths[kind] if name == STORED else TOWERS[name].grid[1]
        else:
            name, weights, key = frame_tower_name(settings), settings.frame_tower_weights, "frame_tower"
            configured = settings.frame_tower
            width = self.widths[kind] if name == STORED else FRAME_TOWERS[name].grid[1]
        if name == STORED:
            return None
        if kind in self.widths and width != self.widths[kind]:
            option = "feature_width" if kind == "grid" else "frame_width"
            raise ConfigError(f"'backbone.{option}' is {self.widths[kind]}, the tower {name} gives {width}")
        if not weights and folder is not None and not configured:
            weights = str(folder / f"{key}.safetensors")
        if not weights and settings.weights:
            raise ConfigError(
                f"'backbone.weights' is {settings.weights} but 'backbone.{key}_weights' is empty: the tower {name} would "
                "be random; give a safetensors file or an open_clip tag such as openai"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.init_seed)  # a random tower must be the same on all ranks and in evaluation
            return GridTower(name, weights) if kind == "grid" else FrameTower(name, weights)

    # ---- what methods see ---------------------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """Every module with parameters, tied ones once: the places that a method may adapt or unfreeze."""
        seen: set[int] = set()
        sites = []
        for path, module in self.named_modules():
            own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            if not own or ".adapter." in path:
                continue
            seen.update(id(p) for p in own)
            kind, stack, layer = _site_kind(path)
            d_in, d_out = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (0, 0)
            num_bias = sum(p.numel() for p in own if p is getattr(module, "bias", None))
            sites.append(Site(path, kind, stack, layer, d_in, d_out, sum(p.numel() for p in own), num_bias))
        return sites + self._hooks()

    def _hooks(self) -> list[Site]:
        """The places where `encode` and the attention function look for an adapter."""
        width = self.bart.config.d_model
        hooks = [Site("bart.model.encoder", "input", "encoder", -1, width, width)]
        for stack, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
            for layer in range(len(self.bart.get_submodule(f"model.{stack}.layers"))):
                for name in attentions:
                    kind = "cross_attn" if name == "encoder_attn" else "self_attn"
                    hooks.append(Site(f"bart.model.{stack}.layers.{layer}.{name}", kind, stack, layer, width, width))
        return hooks

    def added_rows(self) -> dict[str, int]:
        """First row that no public checkpoint holds, by parameter name (sentinels and visual slots follow it)."""
        return {
            "bart.model.shared.weight": self.bart.config.vocab_size - self.config.num_sentinels - self.config.num_slots
        }

    # ---- running ------------------------------------------------------------------------------------------------

    def set_recompute(self, enabled: bool, contexts: Callable[[], tuple[Any, Any]] = noop_context_fn) -> None:
        """Switch activation recompute in every layer (non-reentrant: a frozen first layer must not cut gradients off).

        `contexts` is torch's `context_fn`: what has to hold again when a layer runs a second time.
        """
        if enabled:
            self.bart.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        elif self.bart.model.encoder.gradient_checkpointing:
            self.bart.gradient_checkpointing_disable()

    def encode(self, batch: Batch) -> Memory:
        """Joint encoding of text (B, S) and features (B, N, P, F) -> Memory over S + V positions; padded frames masked."""
        encoder = self.bart.model.encoder
        text = encoder.embed_tokens(batch.source_ids)
        text = text + encoder.embed_positions(batch.source_ids)
        mask = batch.source_mask
        if (adapter := getattr(encoder, "adapter", None)) is not None:
            text, mask = adapter(text, mask)
        hidden = encoder.layernorm_embedding(text)
        if batch.features.shape[1]:
            tokens = self.visual(batch.features, self.bart.model.shared.weight, batch.feature_kind)
            is_there = mask.new_ones(tokens.shape[:2])
            if batch.feature_kind == "frame":
                is_there = batch.feature_mask.flatten(1)
            hidden = torch.cat([hidden, tokens.to(hidden.dtype)], dim=1)
            mask = torch.cat([mask, is_there], dim=1)
        hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=self.training)
        attention = create_bidirectional_mask(config=self.bart.config, inputs_embeds=hidden, attention_mask=mask)
        for layer in encoder.layers:
            hidden = layer(hidden, attention)
        return Memory(hidden, mask)

    def decode(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits (B, T, K) for target_ids (B, T), -100 where ignored."""
        config = self.bart.config
        inputs = shift_tokens_right(target_ids, config.pad_token_id, config.decoder_start_token_id)
        out = self.bart.model.decoder(
            input_ids=inputs, encoder_hidden_states=memory.hidden, encoder_attention_mask=memory.mask, use_cache=False
        )
        return self.bart.lm_head(out.last_hidden_state) + self.bart.final_logits_bias

    def generate(self, memory: Memory, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (B, <= max_tokens), right-padded, and the sequence scores (B,) of a beam search."""
        config, rows, device = self.bart.config, memory.hidden.shape[0], memory.hidden.device
        settings = SearchSettings(
            start_id=config.decoder_start_token_id, eos_id=config.eos_token_id, pad_id=config.pad_token_id,
            max_length=decoding.max_tokens, num_beams=decoding.num_beams, no_repeat_ngram=decoding.no_repeat_ngram,
            early_stopping=decoding.early_stopping,
        )  # fmt: skip
        if decoding.num_beams > 1:
            memory = memory.repeat(decoding.num_beams)
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))

        def step(last: torch.Tensor) -> torch.Tensor:
            out = self.bart.model.decoder(
                input_ids=last, encoder_hidden_states=memory.hidden, encoder_attention_mask=memory.mask,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            return self.bart.lm_head(out.last_hidden_state[:, -1]) + self.bart.final_logits_bias[0]

        if decoding.num_beams > 1:
            # rows of one sample share their encoder memory: only the self-attention cache has to follow the beams
            return beam(step, cache.self_attention_cache.reorder_cache, rows, settings, device)
        return greedy(step, rows, settings, device), None

    @torch.no_grad()
    def choose(self, memory: Memory, choices: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probability (B, C) of each choice's first token that tells the choices apart.

        `choices` are wrapped target ids. *Source:* VL-Adapter's NLVR2 rule ("true" against "false" after `<s>`).
        """
        prefix = 0
        while len({tuple(c[: prefix + 1]) for c in choices}) == 1:
            prefix += 1
        first = [c[prefix] for c in choices]
        if len(set(first)) != len(first):
            raise ConfigError(f"choices {choices} do not differ in one token after a common start")
        target = torch.tensor([list(choices[0][: prefix + 1])], device=memory.hidden.device)
        logits = self.decode(memory, target.expand(memory.hidden.shape[0], -1))[:, prefix]
        return torch.log_softmax(logits.float(), dim=-1)[:, first]
