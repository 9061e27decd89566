"""CLIP-BART: a BART language model that reads visual tokens appended to its text (VL-Adapter)."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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

from mtvl.backbones.decoding import SearchSettings, beam, greedy
from mtvl.backbones.tokenizers import BartText, load_bart_tokenizer
from mtvl.backbones.towers import TOWERS, GridTower
from mtvl.backbones.visual import VisualEmbedding
from mtvl.errors import CheckpointError, ConfigError, near_names
from mtvl.sites import Site
from mtvl.types import Batch, Decoding

BUNDLED = Path(__file__).parent / "weights"  # small checkpoints that ship with the package
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
    "tiny": {
        "vocab_size": 600, "d_model": 128, "encoder_layers": 3, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512,
        "max_position_embeddings": 128,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClipBartConfig:
    """Options of the CLIP-BART backbone.

    `weights`: a bundled name ("tiny"), a local folder, a hub name ("facebook/bart-base"), or "" for random weights of
    the `preset` with `text` overrides (BartConfig fields). `tower_weights`: safetensors file or open_clip tag.
    """

    name: str = "clip_bart"
    weights: str = ""
    preset: str = "base"
    text: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    tower: str = ""  # "" -> rn101, or the bundled checkpoint's own
    tower_weights: str = ""
    feature_width: int = 0  # 0 -> the tower's; another width can only be fed with features that are handed in
    visual_tokens: int = 36
    num_sentinels: int = 100
    num_slots: int = 100
    dropout: float = 0.1
    init_seed: int = 0


@dataclass
class Memory:
    """Encoder output: hidden (B, S+V, D) and mask (B, S+V), True where attended."""

    hidden: torch.Tensor
    mask: torch.Tensor


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

    def __init__(self, config: ClipBartConfig, text: BartConfig, feature_width: int) -> None:
        super().__init__()
        self.config = config
        text.vocab_size += config.num_sentinels + config.num_slots
        for key in ("dropout", "attention_dropout", "activation_dropout"):
            setattr(text, key, config.dropout)
        text._attn_implementation = "sdpa"
        self.bart = BartForConditionalGeneration(text)
        self.bart.generation_config.forced_eos_token_id = None
        self.visual = VisualEmbedding({"grid": feature_width}, text.d_model, num_tokens=config.visual_tokens)
        self.visual.apply(self.bart._init_weights)
        self.feature_width = feature_width

    # ---- building -----------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, config: ClipBartConfig, *, meta: bool = False) -> ClipBart:
        """Build from a configuration or a checkpoint; with `meta` only shapes, no weights and no memory."""
        folder = bundled_folder(config.weights)
        text, tower = text_config(config), tower_name(config)
        width = config.feature_width or TOWERS[tower].grid[1]
        if meta:
            with torch.device("meta"):
                return cls(config, text, width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)  # rows and projections that no checkpoint holds
            model = cls(config, text, width)
        if folder is not None:
            model._load_bundle(folder)
        elif config.weights:
            model._load_bart(config.weights)
        return model

    def _load_bundle(self, folder: Path) -> None:
        state = {k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()}
        missing, unexpected = self.load_state_dict(state, strict=False)
        tied = {"bart.model.encoder.embed_tokens.weight", "bart.model.decoder.embed_tokens.weight",
                "bart.lm_head.weight", "bart.final_logits_bias"}  # fmt: skip
        if set(missing) - tied or unexpected:
            raise CheckpointError(f"{folder}: missing {sorted(set(missing) - tied)[:3]}, unexpected {unexpected[:3]}")

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

    def tower(self) -> GridTower:
        """The frozen visual tower that this backbone was configured with."""
        width = TOWERS[tower_name(self.config)].grid[1]
        if width != self.feature_width:
            raise ConfigError(
                f"'backbone.feature_width' is {self.feature_width}, the tower {tower_name(self.config)} gives {width}"
            )
        folder = bundled_folder(self.config.weights)
        weights = self.config.tower_weights
        if not weights and folder is not None and not self.config.tower:
            weights = str(folder / "tower.safetensors")
        if not weights and self.config.weights:
            raise ConfigError(
                f"'backbone.weights' is {self.config.weights} but 'backbone.tower_weights' is empty: the tower "
                f"{tower_name(self.config)} would be random; give a safetensors file or an open_clip tag such as openai"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.init_seed)  # a random tower must be the same on all ranks and in evaluation
            return GridTower(tower_name(self.config), weights)

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
            sites.append(Site(path, kind, stack, layer, d_in, d_out, sum(p.numel() for p in own)))
        return sites

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
        """Joint encoding of text (B, S) and pictures (B, N, P, F) -> Memory over S + V positions."""
        encoder = self.bart.model.encoder
        text = encoder.embed_tokens(batch.source_ids)
        text = text + encoder.embed_positions(batch.source_ids)
        hidden, mask = encoder.layernorm_embedding(text), batch.source_mask
        if batch.features.shape[1]:
            tokens = self.visual(batch.features, self.bart.model.shared.weight)
            hidden = torch.cat([hidden, tokens.to(hidden.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1)
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
            memory = Memory(*(t.repeat_interleave(decoding.num_beams, dim=0) for t in (memory.hidden, memory.mask)))
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


def bundled_folder(weights: str) -> Path | None:
    """Folder of a checkpoint in our own layout: bundled by name, or any folder with a backbone.json."""
    for folder in (BUNDLED / weights, Path(weights)):
        if weights and (folder / "backbone.json").is_file():
            return folder
    return None


def bundle_settings(config: ClipBartConfig) -> dict[str, Any]:
    """backbone.json of a bundled checkpoint ({} when there is none)."""
    folder = bundled_folder(config.weights)
    return json.loads((folder / "backbone.json").read_text()) if folder else {}


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn what transformers raises about `source` into an error that says what would have been accepted."""
    bundled = [p.parent.name for p in BUNDLED.glob("*/backbone.json")]
    if not Path(source).is_dir() and source.count("/") != 1:
        raise ConfigError(
            f"'backbone.weights' is {source!r}: no folder, no hub name of the form owner/name, and not bundled; "
            f"{near_names(source, bundled)}"
        )
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"'backbone.weights' {source}: cannot be loaded ({str(error).splitlines()[0]})") from None


def text_config(config: ClipBartConfig) -> BartConfig:
    """The BartConfig without sentinel and slot rows."""
    bundle = bundle_settings(config)
    if bundle:
        values = bundle["text"]
    elif config.weights:
        with readable(config.weights):
            return BartConfig.from_pretrained(config.weights, **config.text)
    elif config.preset in PRESETS:
        values = PRESETS[config.preset]
    else:
        raise ConfigError(f"unknown 'backbone.preset' {config.preset!r}; {near_names(config.preset, PRESETS)}")
    defaults = {
        "activation_function": "gelu", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "decoder_start_token_id": 2, "scale_embedding": False,
    }  # fmt: skip
    return BartConfig(**{**defaults, **values, **config.text})


def tower_name(config: ClipBartConfig) -> str:
    """The tower's name: as configured, else the bundled checkpoint's, else RN101."""
    name = config.tower or bundle_settings(config).get("tower", "rn101")
    if name not in TOWERS:
        raise ConfigError(f"unknown 'backbone.tower' {name!r}; {near_names(name, TOWERS)}")
    return str(name)
