"""Names of BLIP's tensors: the original checkpoints <-> ours <-> transformers.

One table turns a name into another; the two things that are no renaming are the fused projections of the original vision
transformer and its patch convolution; the temperature has a dimension here. Every direction keeps all numbers as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]

TEMPERATURE = "temp"  # without dimensions there

# (ours, original): literal pieces, applied from the front. Numbers of layers stay.
_TOP = (
    ("vision.embed.cls", "visual_encoder.cls_token"),
    ("vision.embed.position", "visual_encoder.pos_embed"),
    ("vision.embed.patch.", "visual_encoder.patch_embed.proj."),
    ("vision.norm.", "visual_encoder.norm."),
    ("vision.blocks.", "visual_encoder.blocks."),
    ("decoder.head.dense.", "text_decoder.cls.predictions.transform.dense."),
    ("decoder.head.norm.", "text_decoder.cls.predictions.transform.LayerNorm."),
    ("decoder.head.bias", "text_decoder.cls.predictions.bias"),
    ("decoder.embed.", "text_decoder.bert.embeddings."),
    ("decoder.layers.", "text_decoder.bert.encoder.layer."),
    ("text.embed.", "text_encoder.embeddings."),
    ("text.layers.", "text_encoder.encoder.layer."),
    ("contrast.image.", "vision_proj."),
    ("contrast.text.", "text_proj."),
    ("match.", "itm_head."),
    ("compare.", "cls_head."),
    ("temperature.value", TEMPERATURE),
)
_EMBEDDING = {"tokens.": "word_embeddings.", "positions.": "position_embeddings.", "norm.": "LayerNorm."}
_TEXT_LAYER = {
    "attn.q.": "attention.self.query.", "attn.k.": "attention.self.key.", "attn.v.": "attention.self.value.",
    "attn.out.": "attention.output.dense.", "attn_norm.": "attention.output.LayerNorm.",
    "cross.q.": "crossattention.self.query.", "cross.k.": "crossattention.self.key.",
    "cross.v.": "crossattention.self.value.", "cross.out.": "crossattention.output.dense.",
    "cross.first.q.": "crossattention.self0.query.", "cross.first.k.": "crossattention.self0.key.",
    "cross.first.v.": "crossattention.self0.value.", "cross.first.out.": "crossattention.output.dense0.",
    "cross.second.q.": "crossattention.self1.query.", "cross.second.k.": "crossattention.self1.key.",
    "cross.second.v.": "crossattention.self1.value.", "cross.second.out.": "crossattention.output.dense1.",
    "cross.merge.": "crossattention.output.merge_layer.", "cross_norm.": "crossattention.output.LayerNorm.",
    "ffn.up.": "intermediate.dense.", "ffn.down.": "output.dense.", "ffn_norm.": "output.LayerNorm.",
}  # fmt: skip
_VISION_BLOCK = {
    "norm1.": "norm1.", "norm2.": "norm2.", "attn.out.": "attn.proj.", "ffn.up.": "mlp.fc1.", "ffn.down.": "mlp.fc2.",
    "attn.q.": "attn.qkv.", "attn.k.": "attn.qkv.", "attn.v.": "attn.qkv.",  # split and joined below
}  # fmt: skip
ALIASES = {  # second names that the original gives to a tensor
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
}
_NUMBER = re.compile(r"(\d+)\.(.+)")
_QKV = ("q", "k", "v")

# (original, transformers)
_HUB = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
)
_HUB_BLOCK = {"attn.qkv.": "self_attn.qkv.", "attn.proj.": "self_attn.projection.", "norm1.": "layer_norm1.",
              "norm2.": "layer_norm2."}  # fmt: skip


def original_name(ours: str) -> str:
    """Original name of one of our tensors; the three maps of a vision block share the name of the fused one.

    Raises KeyError for what has none.
    """
    for mine, other in _TOP:
        if ours.startswith(mine):
            rest = ours.removeprefix(mine)
            if mine.endswith((".blocks.", ".layers.")):
                match = _NUMBER.fullmatch(rest)
                table = _VISION_BLOCK if mine == "vision.blocks." else _TEXT_LAYER
                if match is None:
                    raise KeyError(ours)
                return f"{other}{match[1]}.{_swap(match[2], table, ours)}"
            return other + (_swap(rest, _EMBEDDING, ours) if mine.endswith(".embed.") else rest)
    raise KeyError(ours)


def _swap(rest: str, table: Mapping[str, str], whole: str) -> str:
    for mine, other in table.items():
        if rest.startswith(mine):
            return other + rest.removeprefix(mine)
    raise KeyError(whole)


def to_original(state: Mapping[str, torch.Tensor], patch: int) -> State:
    """Our tensors under the original names, projections fused; `patch` is the edge of a patch in pixels."""
    found: State = {}
    for name, tensor in state.items():
        original = original_name(name)
        if original.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            stem, leaf = name.rsplit(".", 2)[0], name.rsplit(".", 1)[1]
            tensor = torch.cat([state[f"{stem}.{part}.{leaf}"] for part in _QKV])
        elif original == "visual_encoder.patch_embed.proj.weight":
            tensor = tensor.reshape(len(tensor), 3, patch, patch)
        elif original == TEMPERATURE:
            tensor = tensor.reshape(())
        found[original] = tensor
    for alias, name in ALIASES.items():  # the original stores tied tensors under each of their names
        if name in found:
            found[alias] = found[name]
    return found


def from_original(original: Mapping[str, torch.Tensor], names: list[str]) -> tuple[State, set[str]]:
    """Tensors for those of our `names` that the original state holds, and the original names that were used."""
    found: State = {}
    used: set[str] = set()
    for name in names:
        source = original_name(name)
        if source not in original:
            continue
        tensor = original[source]
        used.add(source)
        if ".attn.qkv." in source:
            tensor = tensor.chunk(3)[_QKV.index(name.split(".")[-2])]
        elif source == "visual_encoder.patch_embed.proj.weight":
            tensor = tensor.flatten(1)
        elif source == TEMPERATURE:
            tensor = tensor.reshape(1)
        found[name] = tensor
    return found, used


def original_to_hub(name: str) -> str:
    """transformers' name of an original tensor (text and heads are called alike)."""
    return _across(name, _HUB, _HUB_BLOCK)


def hub_to_original(name: str) -> str:
    """Original name of one of transformers' tensors."""
    return _across(name, tuple((b, a) for a, b in _HUB), {b: a for a, b in _HUB_BLOCK.items()})


def _across(name: str, table: tuple[tuple[str, str], ...], block: Mapping[str, str]) -> str:
    for mine, other in table:
        if name.startswith(mine):
            rest = name.removeprefix(mine)
            match = _NUMBER.fullmatch(rest)
            if match is None:
                return other + rest
            for piece, swapped in block.items():
                if match[2].startswith(piece):
                    return f"{other}{match[1]}.{swapped}{match[2].removeprefix(piece)}"
            return f"{other}{rest}"
    return name
