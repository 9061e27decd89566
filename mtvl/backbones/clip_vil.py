"""CLIP-ViL: a BERT over text and visual tokens that chooses its answer from a list (VL-Adapter's discriminative variant)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModel, BertConfig, BertModel

from mtvl import dist
from mtvl.backbones.answers import NO_ANSWER, AnswerHead
from mtvl.backbones.attention import ATTENTION
from mtvl.backbones.clip_config import readable
from mtvl.backbones.clip_seq2seq import ClipSeq2Seq, Memory
from mtvl.backbones.clip_vil_config import ClipVilConfig, answer_list, text_config
from mtvl.backbones.tokenizers import load_bert_tokenizer
from mtvl.backbones.visual import GridEmbedding
from mtvl.errors import CheckpointError, ConfigError
from mtvl.sites import Site
from mtvl.types import Batch, Decoding

_log = logging.getLogger(__name__)
_SHOWN = 12  # modules in a message
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)")
_LINEAR = {
    "attention.self.query": "self_attn.q", "attention.self.key": "self_attn.k", "attention.self.value": "self_attn.v",
    "attention.output.dense": "self_attn.out", "intermediate.dense": "ffn.up", "output.dense": "ffn.down",
}  # fmt: skip


@dataclass
class AnswerMemory(Memory):
    """`allowed` (B, K): the answers among which a row's task chooses; None for all of them."""

    allowed: torch.Tensor | None = None


def _modules(names: Iterable[str]) -> str:
    """The modules of these tensors, the first dozen by name."""
    modules = sorted({name.rpartition(".")[0] for name in names})
    more = f" and {len(modules) - _SHOWN} more modules" if len(modules) > _SHOWN else ""
    return ", ".join(modules[:_SHOWN]) + more if modules else "none"


class ClipVil(ClipSeq2Seq):
    """One stream of text and visual tokens, and a head over a list of answers in place of a decoder.

    It offers what a backbone that writes offers: its only target token is an answer's place in the list, the same at every
    position, so that choosing, ranking and generating are one look at the scores.
    *Source:* CLIP-ViL in its single-stream form (12 layers of BERT), which VL-Adapter's Table 7 adapts. There the tower is
    RN50x4 on large pictures; here it is the one of the features.
    """

    family = "vil"
    Config = ClipVilConfig
    model_class = BertModel
    text_name, core_path = "bert", "bert"
    forces_eos = False
    renewed = ("visual.", "head.")
    text_config = staticmethod(text_config)
    load_tokenizer = staticmethod(load_bert_tokenizer)

    def __init__(self, config: ClipVilConfig, text: BertConfig, widths: dict[str, int]) -> None:
        if "frame" in widths:
            raise ConfigError(
                "clip_vil reads pictures; for tasks on videos take 'backbone.name' clip_bart or clip_t5, or leave them out"
            )
        super().__init__(config, text, widths)
        self.answers = answer_list(config)
        text.hidden_dropout_prob = text.attention_probs_dropout_prob = config.dropout
        text._attn_implementation = ATTENTION
        self.bert = BertModel(text, add_pooling_layer=False)
        self.visual = GridEmbedding(
            widths, text.hidden_size, num_tokens=config.visual_tokens, num_positions=config.grid_positions,
            eps=text.layer_norm_eps,
        )  # fmt: skip
        self.head = AnswerHead(text.hidden_size, self.answers.size, text.layer_norm_eps)
        for module in (self.visual, self.head):
            module.apply(self.bert._init_weights)

    @property
    def token_table(self) -> torch.Tensor:
        """Embeddings of the tokens (K, D)."""
        return self.bert.embeddings.word_embeddings.weight

    @property
    def tokenizer_rows(self) -> int:
        """All rows: nothing is added to BERT's vocabulary."""
        return int(self.bert.config.vocab_size)

    @property
    def max_tokens(self) -> int:
        """Longest source text: the learned positions."""
        return int(self.bert.config.max_position_embeddings)

    def _tables(self) -> set[str]:
        return {"embeddings.word_embeddings.weight"}

    def added_rows(self) -> dict[str, int]:
        """None: every token is a public one."""
        return {}

    def _fitting(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Without the last layer of the head: places of another list mean other answers."""
        own = self.state_dict()
        other = {n for n, v in state.items() if n.startswith("visual.") and n in own and own[n].shape != v.shape}
        return {n: v for n, v in state.items() if not n.startswith("head.out.") and n not in other}

    def _load_public(self, source: str) -> None:
        """The encoder of a public checkpoint, and its pooler where it has one; what is left out on either side is said.

        Raises CheckpointError when something of the text or of a layer is not there.
        """
        with readable(source):
            model, told = AutoModel.from_pretrained(source, output_loading_info=True)
        drawn = set(told["missing_keys"])  # what transformers has filled at random, e.g. a pooler that was not saved
        public = {name: value for name, value in model.state_dict().items() if name not in drawn}
        own = {f"bert.{name}": value for name, value in self.bert.state_dict().items()}
        own |= {f"head.pool.{name}": value for name, value in self.head.pool.state_dict().items()}
        names = {f"bert.{name}": name for name in public} | {
            f"head.pool.{n}": f"pooler.dense.{n}" for n in ("weight", "bias")
        }
        found = {ours: public[theirs] for ours, theirs in names.items() if ours in own and theirs in public}
        other = [n for n, v in found.items() if v.shape != own[n].shape]
        absent = sorted(n for n in own if n not in found and not n.startswith("head."))
        if other or absent:
            shapes = [f"{n} {tuple(found[n].shape)}, expected {tuple(own[n].shape)}" for n in other[:3]]
            raise CheckpointError(f"{source}: missing {absent[:3]}, of other shapes {shapes}")
        with torch.no_grad():
            for name, value in found.items():
                own[name].copy_(value)
        missing = [n for n in self.state_dict() if n not in found]
        unused = (set(public) - {names[n] for n in found}) | set(told["unexpected_keys"])
        if dist.is_main():
            _log.warning(
                "%s: %d tensors read; missing, starting at random: %s; unexpected, not used: %s", source, len(found),
                _modules(missing), _modules(unused),
            )  # fmt: skip

    # ---- what the common encoder asks ---------------------------------------------------------------------------

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        tables, places = self.bert.embeddings, torch.arange(ids.shape[1], device=ids.device)
        text = tables.word_embeddings(ids) + tables.token_type_embeddings(torch.zeros_like(ids))
        return text + tables.position_embeddings(places)

    def _norm_text(self, text: torch.Tensor) -> torch.Tensor:
        return self.bert.embeddings.LayerNorm(text)

    def _encoder_layers(self, hidden: torch.Tensor, attention: torch.Tensor | None, num_text: int) -> torch.Tensor:
        for layer in self.bert.encoder.layer:
            hidden = layer(hidden, attention)
        return hidden

    def _site_kind(self, path: str) -> tuple[str, str, int]:
        if path.startswith("head."):
            return "answers", "encoder", -1
        if match := _LAYER.fullmatch(path):
            return _LINEAR.get(match[2], "norm"), "encoder", int(match[1])
        return ("norm" if path.endswith("LayerNorm") else "embedding"), "encoder", -1

    def _hooks(self) -> list[Site]:
        width = self.bert.config.hidden_size
        hooks = [Site("bert.encoder", "input", "encoder", -1, width, width)]
        for layer in range(len(self.bert.encoder.layer)):
            path = f"bert.encoder.layer.{layer}.attention.self"
            hooks.append(Site(path, "self_attn", "encoder", layer, width, width))
        return hooks

    # ---- running ------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> AnswerMemory:
        """Joint encoding as of every backbone, and the answers that the rows' tasks have."""
        memory = super().encode(batch)
        allowed = batch.answer_scores >= 0 if batch.answer_scores.shape[1] else None
        return AnswerMemory(memory.hidden, memory.mask, memory.first, allowed)

    def answer_logits(self, memory: AnswerMemory) -> torch.Tensor:
        """Scores (B, K) of all answers, -inf for those that a row's task does not have."""
        logits = self.head(memory.hidden[:, memory.first])
        if memory.allowed is None:
            return logits
        has_any = memory.allowed.any(1, keepdim=True)  # a filler row of a short slot has none
        return logits.masked_fill(~memory.allowed & has_any, -torch.inf)

    def decode(self, memory: AnswerMemory, target_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The same scores at each of T positions (B, T, K); only the shape of target_ids (B, T) counts."""
        return self.answer_logits(memory)[:, None].expand(-1, target_ids.shape[1], -1)

    def label_logits(self, memory: AnswerMemory, target_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Scores (N, K) for the N positions of target_ids (B, T) that are not -100, row after row."""
        return self.answer_logits(memory)[(target_ids != -100).nonzero()[:, 0]]

    @torch.no_grad()
    def generate(self, memory: AnswerMemory, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor | None]:  # type: ignore[override]
        """The best answer behind a start id (B, 2); with beams also its log-probability over the length of two."""
        best, places = self.answer_logits(memory).float().log_softmax(-1).max(-1)
        ids = torch.stack([torch.full_like(places, NO_ANSWER), places], dim=1)
        return ids, best / ids.shape[1] if decoding.num_beams > 1 else None

    @torch.no_grad()
    def choose(self, memory: AnswerMemory, choices: Sequence[Sequence[int]]) -> torch.Tensor:  # type: ignore[override]
        """Log-probability (B, C) of each choice among the answers; ConfigError for one that is none of them."""
        if not all(choices):
            raise ConfigError(
                "a choice of this task is none of the answers that the model was trained with; train on this task too"
            )
        return super().choose(memory, choices)
