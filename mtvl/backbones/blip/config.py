"""Sizes of BLIP and the parts that each use of it has."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mtvl.errors import ConfigError, near_names


@dataclass(frozen=True)
class VisionShape:
    """A vision transformer: pre-norm, exact GELU. `drop_path` is the rate of its last block; it grows from 0."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    patch: int = 16
    image_size: int = 384
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Patches along an edge."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens of one picture: the class token and the patches."""
        return self.side**2 + 1


@dataclass(frozen=True)
class TextShape:
    """BERT's sizes: post-norm, exact GELU, no token types. The last two rows are [DEC] and [ENC]."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    vocab: int = 30524
    positions: int = 512
    dropout: float = 0.1
    norm_eps: float = 1e-12
    pad_id: int = 0
    eos_id: int = 102  # [SEP]

    @property
    def dec_id(self) -> int:
        """First token of what is decoded."""
        return self.vocab - 2

    @property
    def enc_id(self) -> int:
        """First token of text that is encoded with pictures."""
        return self.vocab - 1


@dataclass(frozen=True)
class Parts:
    """What a use of BLIP consists of beside the vision transformer.

    `encoder`: "" (none), "one" picture or "two" (a branch of cross-attention for each). `decoder_reads`: "" (no
    decoder), "image" tokens, or the encoder's "text" states. `tied`: the decoder has the encoder's modules but for
    self-attention. `matching`: the heads of contrast and matching.
    """

    encoder: str = "one"
    decoder_reads: str = ""
    tied: bool = False
    matching: bool = False


# *Source:* the released model classes and their resolutions. "joint" has what questions, captions (as answers to a
# prompt), retrieval and matching need, in one model.
PARTS = {
    "retrieval": Parts(matching=True),
    "caption": Parts(encoder="", decoder_reads="image"),
    "vqa": Parts(decoder_reads="text"),
    "nlvr2": Parts(encoder="two"),
    "pretrain": Parts(decoder_reads="image", tied=True, matching=True),
    "joint": Parts(decoder_reads="text", matching=True),
}
IMAGE_SIZES = {"retrieval": 384, "caption": 384, "vqa": 480, "nlvr2": 384, "pretrain": 224, "joint": 384}
DROP_PATHS = {"vqa": 0.1, "nlvr2": 0.1}  # of the base model; the large one has 0.1 always

PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "large": ({"width": 1024, "layers": 24, "heads": 16, "drop_path": 0.1}, {}),
    # The sizes of the packaged towers (`mtvl.backbones.blip.unimodal`). Of the twelve blocks of that ViT the first ten: the last
    # ones were bent to saliency, see docs/real_small.md. 112 pixels are what two CPU cores can train on.
    "small": (
        {"width": 384, "layers": 10, "heads": 6, "patch": 14, "image_size": 112},
        {"width": 384, "layers": 6, "heads": 12, "ffn": 1536},
    ),
    "tiny": (
        {"width": 32, "layers": 2, "heads": 4, "patch": 8, "image_size": 32},
        {"width": 32, "layers": 2, "heads": 4, "ffn": 64, "vocab": 120, "positions": 40, "eos_id": 3},
    ),
}


@dataclass(frozen=True)
class BlipConfig:
    """Options of BLIP.

    `kind`: which parts it has (`PARTS`). `preset`: base (ViT-B/16), large (ViT-L/16), small (ViT-S/14, six layers of text) or
    tiny; `vision` and `text` replace single sizes. `image_size` 0: as the kind was published, or the preset's own. `weights`:
    "" for random ones, or an original .pth file, a .safetensors file, a folder or hub name of transformers, or "dinov2_minilm"
    (the towers of packages, without cross-attention). `tokenizer`: "tiny_blip" (bundled), a folder or a hub name; "" where
    the weights bring one.
    `visual`: kinds of visual input; empty means as the tasks of the run need. `frames` of a video, evenly spaced.
    `picture_order`, `frame_order`: size of the code without parameters that tells the second picture, or frame, from the
    first (0: a row's pictures are a set, as published). `frame_weights`: how a text weighs the frames of a video, without
    parameters (off, paper, cosine or as_coded; `mtvl.objectives.frames`). `init_std` of random weights.
    """

    name: str = "blip"
    kind: str = "joint"
    preset: str = "base"
    image_size: int = 0
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    embed_dim: int = 256
    weights: str = ""
    tokenizer: str = ""
    visual: tuple[str, ...] = ()
    frames: int = 8
    picture_order: float = 0.5
    frame_order: float = 0.0
    frame_weights: str = "off"
    init_std: float = 0.02
    init_seed: int = 0

    @property
    def parts(self) -> Parts:
        """The parts of this kind; ConfigError when there is no such kind."""
        if self.kind not in PARTS:
            raise ConfigError(f"unknown 'backbone.kind' {self.kind!r}; {near_names(self.kind, PARTS)}")
        return PARTS[self.kind]

    def shapes(self) -> tuple[VisionShape, TextShape]:
        """Sizes of both towers; ConfigError for unknown names and sizes that do not fit together."""
        parts, (vision, text) = self.parts, self._preset()
        sizes = {"image_size": IMAGE_SIZES[self.kind], "drop_path": DROP_PATHS.get(self.kind, 0.0)} | vision
        sizes |= {"image_size": self.image_size} if self.image_size else {}
        seen = _shape(VisionShape, sizes | self.vision, "vision")
        read = _shape(TextShape, text | self.text, "text")
        for shape, where in ((seen, "vision"), (read, "text")):
            if shape.width % shape.heads:
                raise ConfigError(f"'backbone.{where}': width {shape.width} is no multiple of heads {shape.heads}")
        if seen.image_size % seen.patch:
            raise ConfigError(f"'backbone.image_size' {seen.image_size} is no multiple of the patch size {seen.patch}")
        if (
            self.frames < 1
            or self.embed_dim < 1
            or self.picture_order < 0
            or self.frame_order < 0
            or not self.init_std > 0
        ):
            raise ConfigError(
                "'backbone.frames' and 'backbone.embed_dim' must be at least 1, 'backbone.init_std' above 0, and "
                f"'backbone.picture_order' and 'backbone.frame_order' not below 0; found {self.frames}, {self.embed_dim}, "
                f"{self.init_std}, {self.picture_order} and {self.frame_order}"
            )
        if parts.tied and parts.decoder_reads != "image":
            raise ConfigError("a decoder that is tied to the encoder reads image tokens, as the encoder does")
        return seen, read

    def _preset(self) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.preset not in PRESETS:
            raise ConfigError(f"unknown 'backbone.preset' {self.preset!r}; {near_names(self.preset, PRESETS)}")
        return PRESETS[self.preset]


S = TypeVar("S", VisionShape, TextShape)


def _shape(cls: type[S], values: dict[str, Any], where: str) -> S:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"unknown 'backbone.{where}.{unknown[0]}'; {near_names(unknown[0], known)}")
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    return cls(**{key: _size(kinds[key], value, f"{where}.{key}") for key, value in values.items()})


def _size(kind: str, value: Any, key: str) -> Any:
    """`value` as a size of the `kind` int or float; ConfigError for what is none.

    These sections stay plain mappings, so their values come here as YAML reads them: 1e-5 is a text there.
    """
    if kind == "float" and isinstance(value, str):
        with contextlib.suppress(ValueError):  # said below
            value = float(value)
    name = key.rpartition(".")[2]
    is_number = isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
    is_share, may_be_zero = name in ("drop_path", "dropout"), name in ("pad_id", "eos_id")
    if is_number and (0 <= value < 1 if is_share else value > 0 or (may_be_zero and value == 0)):
        return value
    wanted = "from 0 to below 1" if is_share else "not below 0" if may_be_zero else "above 0"
    raise ConfigError(f"'backbone.{key}' expects a{'n' if kind == 'int' else ''} {kind} {wanted}, found {value!r}")
