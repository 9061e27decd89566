"""What CLIP-BART and CLIP-T5 share: a language model that reads visual tokens appended to its text (VL-Adapter)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import noop_context_fn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bart.modeling_bart import shift_tokens_right

from mtvl.backbones.clip_config import (
    VISUAL_KINDS,
    ClipConfig,
    bundle_settings,
    bundled_folder,
    by_preset,
    feature_widths,
    readable,
)
from mtvl.backbones.configured_tower import configured_tower, trained_tower
from mtvl.backbones.decoding import SearchSettings, beam, first_token_scores, greedy
from mtvl.backbones.frame_tower import FrameTower
from mtvl.backbones.tokenizers import TextTokenizer
from mtvl.backbones.towers import GridTower
from mtvl.backbones.visual import VisualEmbedding
from mtvl.errors import CheckpointError, ConfigError
from mtvl.sites import Site
from mtvl.types import Batch, Decoding


@dataclass
class Memory:
    """Encoder output: hidden (B, S+V, D) and mask (B, S+V), True where attended. `first` is the text's first place,
    behind learned prompts."""

    hidden: torch.Tensor
    mask: torch.Tensor
    first: int = 0

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Memory:
        return replace(self, **{k: change(v) for k, v in vars(self).items() if isinstance(v, torch.Tensor)})

    def repeat(self, times: int) -> Memory:
        """Each row `times` times in a row."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def select(self, rows: Sequence[int]) -> Memory:
        """The rows with these numbers."""
        return self._each(lambda tensor: tensor[list(rows)])


class ClipSeq2Seq(nn.Module):
    """Encoder and decoder of transformers with visual tokens: `encode`, `decode`, `generate`, `choose`, table of sites.

    The token table has `vocab_size + num_sentinels + num_slots` rows; the last `num_slots` are the visual slots. A
    subclass makes the language model and says how it embeds, what its modules are, and how it is read from a folder.
    """

    family: str
    Config: type[ClipConfig]
    model_class: type[PreTrainedModel]
    text_name: str  # attribute of the language model
    core_path: str  # module with the token table `shared`, `encoder` and `decoder`
    forces_eos: bool  # a beam search ends at its last position, whatever it holds
    unsaved: tuple[str, ...] = ()  # buffers that a checkpoint need not hold
    renewed: tuple[str, ...] = ("visual.features.",)  # what starts at random where a bundled checkpoint's does not fit
    pixel_kinds = ("grid",)  # of which `visual_tower`, where there is one, reads pixels
    has_pairs = False  # no heads of contrast and matching
    looks_for_words = False  # `encode` treats rows alike, with words or without
    encodes_parts = False  # a batch that mixes tasks is encoded in one go

    def __init__(self, config: ClipConfig, text: Any, widths: dict[str, int]) -> None:
        """`text`: the language model's configuration without added rows. `widths`: F of each kind of features, in the
        order of their projections."""
        super().__init__()
        self.config, self.widths = config, dict(widths)
        self.visual_tower: GridTower | None = None  # where it is trained with the model
        self.public_rows = int(text.vocab_size)  # of the token table: the rows after these are in no public checkpoint
        text.vocab_size += config.num_sentinels + config.num_slots

    def _visual_embedding(self, d_model: int, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> VisualEmbedding:
        tokens, slots = self.config.visual_tokens, self.config.num_slots
        return VisualEmbedding(self.widths, d_model, num_tokens=tokens, num_slots=slots, norm=norm)

    @property
    def text(self) -> Any:
        """The language model."""
        return getattr(self, self.text_name)

    @property
    def core(self) -> Any:
        """Token table, encoder and decoder of the language model."""
        return self.get_submodule(self.core_path)

    @property
    def token_table(self) -> torch.Tensor:
        """Embeddings of the tokens (K, D)."""
        return self.core.shared.weight

    # ---- what a family decides ----------------------------------------------------------------------------------

    @staticmethod
    def text_config(config: Any) -> Any:
        """The language model's configuration without sentinel and slot rows."""
        raise NotImplementedError

    @staticmethod
    def load_tokenizer(source: str) -> TextTokenizer:
        """The family's tokenizer from a folder or a hub name."""
        raise NotImplementedError

    @property
    def tokenizer_rows(self) -> int:
        """Ids that a tokenizer may give."""
        raise NotImplementedError

    @property
    def max_tokens(self) -> int:
        """Longest source or target text; 0: no limit."""
        raise NotImplementedError

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, S) -> (B, S, D), positions included where they are added."""
        raise NotImplementedError

    def _norm_text(self, text: torch.Tensor) -> torch.Tensor:
        """What is done to embedded text, prompts included, before visual tokens follow it."""
        raise NotImplementedError

    def _encoder_layers(self, hidden: torch.Tensor, attention: torch.Tensor | None, num_text: int) -> torch.Tensor:
        """hidden (B, S + V, D), of which `num_text` places are text, through all layers."""
        raise NotImplementedError

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Decoder output (..., D) -> (..., K)."""
        raise NotImplementedError

    def _site_kind(self, path: str) -> tuple[str, str, int]:
        """(kind, stack, layer) of a parameter-bearing module of the language model."""
        raise NotImplementedError

    def _hooks(self) -> list[Site]:
        """The places where `encode` and the attention function look for an adapter."""
        raise NotImplementedError

    # ---- building -----------------------------------------------------------------------------------------------

    @classmethod
    def build(cls, config: Any, *, meta: bool = False) -> Any:
        """Build from a configuration or a checkpoint; with `meta` only shapes, no weights and no memory."""
        folder = bundled_folder(config.weights)
        text, widths = cls.text_config(by_preset(config) if meta else config), feature_widths(config)
        if meta:
            with torch.device("meta"):
                model = cls(config, text, widths)
                model.visual_tower = trained_tower(config, widths, meta=True)
            return model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.init_seed)  # rows and projections that no checkpoint holds
            model = cls(config, text, widths)
        if folder is not None:
            model._load_bundle(folder)
        elif config.weights:
            model._load_public(config.weights)
        model.visual_tower = trained_tower(config, widths)
        return model

    def _tables(self) -> set[str]:
        """Names of the language model's tensors that have a row for each token."""
        core = f"{self.core_path}.".removeprefix(f"{self.text_name}.")
        inner = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
        return {f"{core}{name}.weight" for name in inner} | {"lm_head.weight"}

    def tied_names(self) -> set[str]:
        """Further names, in this model, of a tensor that has a name already."""
        return {f"{self.text_name}.{name}" for name in self._tables()} - {name for name, _ in self.named_parameters()}

    def _load_bundle(self, folder: Path) -> None:
        state = {k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()}
        # A run without videos needs no projection of frames, and that of another tower does not fit.
        for kind in VISUAL_KINDS:
            width = state.get(f"visual.features.{kind}.0.weight", torch.empty(0, 0)).shape[1]
            if width != self.widths.get(kind, 0):
                state = {k: v for k, v in state.items() if not k.startswith(f"visual.features.{kind}.")}
        missing, unexpected = self.load_state_dict(self._fitting(state), strict=False)
        # A projection of features that the checkpoint was not pretrained with starts at random, as with public weights.
        fresh = {k for k in missing if k.startswith(self.renewed)}
        absent = set(missing) - self.tied_names() - fresh - {f"{self.text_name}.{name}" for name in self.unsaved}
        if absent or unexpected:
            raise CheckpointError(f"{folder}: missing {sorted(absent)[:3]}, unexpected {unexpected[:3]}")

    def _fitting(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this model takes of a bundled checkpoint."""
        return state

    def _load_public(self, source: str) -> None:
        """Plain weights of the language model: their token rows are copied, the rows after them stay random."""
        with readable(source):
            plain = self.model_class.from_pretrained(source)
        own, tables = self.text.state_dict(), self._tables()
        for key, value in plain.state_dict().items():
            if key in tables:
                rows = min(len(value), len(own[key]))
                own[key][:rows].copy_(value[:rows])
                self.public_rows = rows
            elif own[key].shape == value.shape:
                own[key].copy_(value)
            elif key not in self.unsaved:
                raise CheckpointError(f"{source}: {key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}")

    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that belongs to the weights; its ids lie below the visual slots' rows."""
        source = self.config.tokenizer or self.config.weights
        if (folder := bundled_folder(source)) is not None:
            source = str(folder)
        if not source:
            raise ConfigError(
                "'backbone.tokenizer' is needed when 'backbone.weights' is empty; give a folder or hub name"
            )
        tokenizer = self.load_tokenizer(source)
        if len(tokenizer) > self.tokenizer_rows:
            raise ConfigError(
                f"tokenizer {source} has {len(tokenizer)} ids, the token table only {self.tokenizer_rows} text rows"
            )
        return tokenizer

    @property
    def max_frames(self) -> int:
        """Most frames of a video; a frame may give several tokens."""
        return self.config.frames or int(bundle_settings(self.config).get("frames", 64))

    def stored_grid(self, kind: str) -> tuple[int, int]:
        """(P, F) of stored features in place of a tower's: 7 x 7 cells of a picture, one row of a frame."""
        return (49 if kind == "grid" else 1), self.widths[kind]

    def tower(self, kind: str = "grid") -> GridTower | FrameTower | Any | None:
        """The frozen visual tower for one kind of features, as configured; None where all features are stored ones."""
        if kind == "grid" and self.visual_tower is not None:
            raise ConfigError(
                "the tower is trained with the model ('backbone.train_tower'): its features change with every step, so none "
                "can be computed ahead or stored"
            )
        return configured_tower(self.config, kind, self.widths.get(kind))

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
            if path.startswith(("visual.", "visual_tower.")):
                kind = stack = "visual" if path.startswith("visual.") else "tower"
                layer = -1
            else:
                kind, stack, layer = self._site_kind(path)
            d_in, d_out = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (0, 0)
            num_bias = sum(p.numel() for p in own if p is getattr(module, "bias", None))
            sites.append(Site(path, kind, stack, layer, d_in, d_out, sum(p.numel() for p in own), num_bias))
        return sites + self._hooks()

    def added_rows(self) -> dict[str, int]:
        """First row that no public checkpoint holds, by parameter name (at least the first visual slots follow it)."""
        tables = {f"{self.text_name}.{name}" for name in self._tables()}
        return {name: self.public_rows for name, _ in self.named_parameters() if name in tables}

    def parts_of_kinds(self) -> dict[str, str]:
        """Begin of the names of parameters that only one kind of batch trains -> that kind of features.

        In a model of pictures and videos each kind has a projection, and the tower is of pictures.
        """
        if len(self.widths) < 2:
            return {}
        return {**{f"visual.features.{kind}.": kind for kind in self.widths}, "visual_tower.": "grid"}

    # ---- running ------------------------------------------------------------------------------------------------

    def set_recompute(self, enabled: bool, contexts: Callable[[], tuple[Any, Any]] = noop_context_fn) -> None:
        """Switch activation recompute in every layer (non-reentrant: a frozen first layer must not cut gradients off).

        `contexts` is torch's `context_fn`: what has to hold again when a layer runs a second time.
        """
        if enabled:
            self.text.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
        elif any(getattr(module, "gradient_checkpointing", False) for module in self.core.encoder.modules()):
            self.text.gradient_checkpointing_disable()

    def encode(self, batch: Batch) -> Memory:
        """Joint encoding of text (B, S) and features (B, N, P, F) -> Memory over S + V positions; padded frames masked.

        A batch that was joined of several has the visual tokens of its parts, padded to the most of them and masked.
        """
        text, mask = self._embed(batch.source_ids), batch.source_mask
        if (adapter := getattr(self.core.encoder, "adapter", None)) is not None:
            text, mask = adapter(text, mask)
        hidden = self._norm_text(text)
        num_text = hidden.shape[1]
        tokens, is_there = self._visual_tokens(batch)
        if tokens.shape[1]:
            hidden = torch.cat([hidden, tokens.to(hidden.dtype)], dim=1)
            mask = torch.cat([mask, is_there], dim=1)
        hidden = nn.functional.dropout(hidden, p=self.config.dropout, training=self.training)
        attention = create_bidirectional_mask(config=self.text.config, inputs_embeds=hidden, attention_mask=mask)
        return Memory(self._encoder_layers(hidden, attention, num_text), mask, num_text - batch.source_mask.shape[1])

    def _visual_tokens(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens (B, V, D) and their mask (B, V), True where attended; V = 0 without pictures and videos."""
        if batch.parts:
            found = [self._visual_tokens(part) for part in batch.parts]
            most = max(tokens.shape[1] for tokens, _ in found)
            tokens = [nn.functional.pad(tokens, (0, 0, 0, most - tokens.shape[1])) for tokens, _ in found]
            masks = [nn.functional.pad(mask, (0, most - mask.shape[1])) for _, mask in found]
            return torch.cat(tokens), torch.cat(masks)
        rows, table = len(batch.source_mask), self.token_table
        if not batch.features.shape[1]:
            return table.new_zeros(rows, 0, table.shape[1]), batch.source_mask.new_ones(rows, 0)
        features = batch.features
        if self.visual_tower is not None and batch.feature_kind == "grid":
            features = self.visual_tower.grids(features)
        tokens = self.visual(features, table, batch.feature_kind)
        if batch.feature_kind == "frame":
            return tokens, batch.feature_mask.flatten(1)
        return tokens, batch.source_mask.new_ones(tokens.shape[:2])

    def decode(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits (B, T, K) for target_ids (B, T), -100 where ignored."""
        return self._logits(self._target_states(memory, target_ids))

    def label_logits(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced logits (N, K) of the N positions of target_ids (B, T) that are not -100, row after row.

        A loss needs no others, and the vocabulary makes them the widest tensor of a step.
        """
        return self._logits(self._target_states(memory, target_ids)[target_ids != -100])

    def _target_states(self, memory: Memory, target_ids: torch.Tensor) -> torch.Tensor:
        """Decoder output (B, T, D)."""
        config = self.text.config
        inputs = shift_tokens_right(target_ids, config.pad_token_id, config.decoder_start_token_id)
        out = self.core.decoder(
            input_ids=inputs, encoder_hidden_states=memory.hidden, encoder_attention_mask=memory.mask, use_cache=False
        )
        return out.last_hidden_state

    def generate(self, memory: Memory, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (B, <= max_tokens), right-padded, and the sequence scores (B,) of a beam search."""
        config, rows, device = self.text.config, memory.hidden.shape[0], memory.hidden.device
        settings = SearchSettings(
            start_id=config.decoder_start_token_id, eos_id=config.eos_token_id, pad_id=config.pad_token_id,
            max_length=decoding.max_tokens, num_beams=decoding.num_beams, no_repeat_ngram=decoding.no_repeat_ngram,
            early_stopping=decoding.early_stopping, force_eos=self.forces_eos, min_length=decoding.min_tokens,
        )  # fmt: skip
        if decoding.num_beams > 1:
            memory = memory.repeat(decoding.num_beams)
        depth = self.core.decoder.config  # T5 gives its stacks configurations of their own
        cache = EncoderDecoderCache(DynamicCache(config=depth), DynamicCache(config=depth))

        def step(last: torch.Tensor) -> torch.Tensor:
            out = self.core.decoder(
                input_ids=last, encoder_hidden_states=memory.hidden, encoder_attention_mask=memory.mask,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            return self._logits(out.last_hidden_state[:, -1])

        if decoding.num_beams > 1:
            # rows of one sample share their encoder memory: only the self-attention cache has to follow the beams
            return beam(step, cache.self_attention_cache.reorder_cache, rows, settings, device)
        return greedy(step, rows, settings, device), None

    @torch.no_grad()
    def choose(self, memory: Memory, choices: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probability (B, C) of each choice's first token that tells the choices apart.

        `choices` are wrapped target ids. *Source:* VL-Adapter's NLVR2 rule ("true" against "false", behind BART's `<s>`).
        """
        return first_token_scores(partial(self.decode, memory), memory.hidden, choices)
