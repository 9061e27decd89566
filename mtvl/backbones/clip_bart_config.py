"""What a CLIP-BART is made of: presets, options, bundled checkpoints, and the sizes that follow from them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import BartConfig

from mtvl.backbones.frame_tower import FRAME_TOWERS
from mtvl.backbones.towers import TOWERS
from mtvl.errors import CheckpointError, ConfigError, near_names

VISUAL_KINDS = ("grid", "frame")
STORED = "stored"  # in place of a tower's name
STORED_WIDTHS = {"grid": 2048, "frame": 512}  # RN101 and ViT-B/32, as VL-Adapter's files hold them
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
        "max_position_embeddings": 192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClipBartConfig:
    """Options of the CLIP-BART backbone.

    `weights`: a bundled name ("tiny"), a local folder, a hub name ("facebook/bart-base"), or "" for random weights of
    the `preset` with `text` overrides (BartConfig fields). `visual`: kinds of features that get a projection ("grid" for
    pictures, "frame" for videos); empty means as the tasks of the run need. `tower_weights`, `frame_tower_weights`:
    safetensors file or open_clip tag; a tower called "stored" is none: all features are files (.h5, .npz) then.
    `frames`: most frames of a video.
    """

    name: str = "clip_bart"
    weights: str = ""
    preset: str = "base"
    text: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    tower: str = ""  # "" -> rn101, or the bundled checkpoint's own
    tower_weights: str = ""
    feature_width: int = 0  # 0 -> the tower's; another width can only be fed with features that are handed in
    frame_tower: str = ""  # "" -> vit_b32, or the bundled checkpoint's own
    frame_tower_weights: str = ""
    frame_width: int = 0
    frames: int = 0  # 0 -> 64, or the bundled checkpoint's own
    visual: tuple[str, ...] = ()
    visual_tokens: int = 36
    num_sentinels: int = 100
    num_slots: int = 100
    dropout: float = 0.1
    init_seed: int = 0


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
    if name not in (*TOWERS, STORED):
        raise ConfigError(f"unknown 'backbone.tower' {name!r}; {near_names(name, (*TOWERS, STORED))}")
    return str(name)


def frame_tower_name(config: ClipBartConfig) -> str:
    """The frame tower's name: as configured, else the bundled checkpoint's, else ViT-B/32."""
    name = config.frame_tower or bundle_settings(config).get("frame_tower", "vit_b32")
    if name not in (*FRAME_TOWERS, STORED):
        raise ConfigError(f"unknown 'backbone.frame_tower' {name!r}; {near_names(name, (*FRAME_TOWERS, STORED))}")
    return str(name)


def feature_widths(config: ClipBartConfig) -> dict[str, int]:
    """F of each kind of features in `config.visual` (pictures alone when that is empty)."""
    widths = {}
    for kind in config.visual or ("grid",):
        if kind not in VISUAL_KINDS:
            raise ConfigError(f"unknown kind {kind!r} in 'backbone.visual'; {near_names(kind, VISUAL_KINDS)}")
        given, name, towers = (
            (config.feature_width, tower_name(config), TOWERS) if kind == "grid"
            else (config.frame_width, frame_tower_name(config), FRAME_TOWERS)
        )  # fmt: skip
        widths[kind] = given or (STORED_WIDTHS[kind] if name == STORED else towers[name].grid[1])  # type: ignore[attr-defined]
    return widths
