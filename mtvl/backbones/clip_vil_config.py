"""What a CLIP-ViL is made of beside what all backbones of its kind have: presets, its list of answers, its encoder's sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, BertConfig

from mtvl.backbones.answers import AnswerList
from mtvl.backbones.clip_config import ClipConfig, preset_values, readable
from mtvl.errors import CheckpointError, ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    "base": {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2,
    },
    "large": {
        "vocab_size": 30522, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "max_position_embeddings": 512, "type_vocab_size": 2,
    },
    "tiny": {
        "vocab_size": 2000, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 512, "max_position_embeddings": 192, "type_vocab_size": 2,
    },
}  # fmt: skip
_BOOKKEEPING = ("model_type", "architectures", "transformers_version", "dtype")
# Encoders of transformers with BERT's layers; of others nothing could be read.
READABLE = ("bert", "visual_bert", "lxmert")


@dataclass(frozen=True)
class ClipVilConfig(ClipConfig):
    """Options of the CLIP-ViL backbone; `text` are BertConfig fields.

    `answers` (task -> its answers, the most frequent first) are read from the training splits where they are not given,
    and are written into the run's config. `answer_files` (task -> JSON list, absolute or below `data.root`) gives lists in
    their place. `num_answers`: places of the head, 0 for as many as there are answers; where there are more, the most
    frequent are kept. `exclusive`: tasks with exactly one right answer (cross entropy; the others: binary cross entropy).
    `grid_positions`: rows and columns of cells that have an embedding.
    """

    name: str = "clip_vil"
    visual_tokens: int = 49
    num_sentinels: int = 0
    num_slots: int = 0
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    answer_files: dict[str, str] = field(default_factory=dict)
    num_answers: int = 0
    exclusive: tuple[str, ...] = ()
    grid_positions: int = 25


def answer_list(config: ClipVilConfig) -> AnswerList:
    """The list of answers; ConfigError when neither it nor its length is known, and when it is too long."""
    count = len({name for names in config.answers.values() for name in names})
    if not (config.num_answers or count):
        raise ConfigError(
            "the answers of clip_vil are not known before its training data are read; give 'backbone.num_answers', the "
            "places of its head, e.g. backbone.num_answers=3129"
        )
    if 0 < config.num_answers < count:
        raise ConfigError(f"'backbone.answers' holds {count} answers, 'backbone.num_answers' is {config.num_answers}")
    return AnswerList(config.answers, config.exclusive, config.num_answers)


def text_config(config: ClipVilConfig) -> BertConfig:
    """The BertConfig; ConfigError for weights whose layers are not BERT's."""
    values = preset_values(config, PRESETS, "vil")
    if values is None:
        with readable(config.weights):
            try:
                public = AutoConfig.from_pretrained(config.weights)
            except ValueError as error:  # a config.json of something else
                raise CheckpointError(f"'backbone.weights' {config.weights}: {str(error).splitlines()[0]}") from None
        if public.model_type not in READABLE:
            raise ConfigError(
                f"'backbone.weights' {config.weights}: an encoder of the type {public.model_type!r}; clip_vil reads "
                f"{', '.join(READABLE)}"
            )
        own = BertConfig().to_dict()
        values = {k: v for k, v in public.to_dict().items() if k in own and k not in _BOOKKEEPING}
        if public.model_type == "lxmert":  # whose depth is a mapping; its language layers are BERT's
            values["num_hidden_layers"] = public.l_layers
    return BertConfig(**{**values, **config.text})
