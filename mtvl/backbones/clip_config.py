"""What CLIP-BART and CLIP-T5 have in common: options, bundled checkpoints, towers, and the sizes that follow from them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mtvl.backbones.frame_tower import FRAME_TOWERS
from mtvl.backbones.towers import TOWERS
from mtvl.errors import CheckpointError, ConfigError, near_names

VISUAL_KINDS = ("grid", "frame")
STORED = "stored"  # in place of a tower's name
STORED_WIDTHS = {"grid": 2048, "frame": 512}  # RN101 and ViT-B/32, as VL-Adapter's files hold them
# Public weights -> the preset of the same shapes.
PUBLIC_PRESETS = {
    "facebook/bart-base": "base", "facebook/bart-large": "large", "google-t5/t5-base": "base", "t5-base": "base",
    "google-t5/t5-large": "large", "t5-large": "large", "google-bert/bert-base-uncased": "base",
    "bert-base-uncased": "base", "google-bert/bert-large-uncased": "large", "bert-large-uncased": "large",
}  # fmt: skip
BUNDLED = Path(__file__).parent / "weights"  # small checkpoints that ship with the package


@dataclass(frozen=True)
class ClipConfig:
    """Options of a backbone that reads visual tokens and text and writes text.

    `weights`: a bundled name ("tiny"), a local folder, a hub name ("facebook/bart-base"), or "" for random weights of
    the `preset` with `text` overrides (fields of the language model's configuration). `visual`: kinds of features that get
    a projection ("grid" for pictures, "frame" for videos); empty means as the tasks of the run need. `tower_weights`,
    `frame_tower_weights`: safetensors file or open_clip tag; a tower called "stored" is none: all features are files
    (.h5, .npz) then. `train_tower`: the tower of pictures is a part of the model and is trained from pixels with it.
    `frames`: most frames of a video.
    """

    name: str = ""
    weights: str = ""
    preset: str = "base"
    text: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = ""
    tower: str = ""  # "" -> rn101, or the bundled checkpoint's own
    tower_weights: str = ""
    train_tower: bool = False
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


def bundle_settings(config: ClipConfig) -> dict[str, Any]:
    """backbone.json of a bundled checkpoint ({} when there is none)."""
    folder = bundled_folder(config.weights)
    return json.loads((folder / "backbone.json").read_text()) if folder else {}


Config = TypeVar("Config", bound=ClipConfig)


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


def by_preset(config: Config) -> Config:
    """`config` with a preset in place of public weights of known shapes: what needs shapes alone asks no hub."""
    if config.weights in PUBLIC_PRESETS and not Path(config.weights).is_dir():
        return replace(config, weights="", preset=PUBLIC_PRESETS[config.weights])
    return config


def preset_values(config: ClipConfig, presets: Mapping[str, dict[str, Any]], family: str) -> dict[str, Any] | None:
    """Sizes of the language model: the bundled checkpoint's or the preset's; None where public weights have their own."""
    if bundle := bundle_settings(config):
        if (found := bundle.get("family", "bart")) != family:
            raise ConfigError(
                f"'backbone.weights' {config.weights!r} is a checkpoint of the family {found!r}, {config.name!r} is of "
                f"{family!r}; give weights of that family, or leave 'backbone.weights' empty for random ones"
            )
        return dict(bundle["text"])
    if config.weights:
        return None
    if config.preset not in presets:
        raise ConfigError(f"unknown 'backbone.preset' {config.preset!r}; {near_names(config.preset, presets)}")
    return presets[config.preset]


def tower_name(config: ClipConfig) -> str:
    """The tower's name: as configured, else the bundled checkpoint's, else RN101."""
    name = config.tower or bundle_settings(config).get("tower", "rn101")
    if name not in (*TOWERS, STORED):
        raise ConfigError(f"unknown 'backbone.tower' {name!r}; {near_names(name, (*TOWERS, STORED))}")
    return str(name)


def frame_tower_name(config: ClipConfig) -> str:
    """The frame tower's name: as configured, else the bundled checkpoint's, else ViT-B/32."""
    name = config.frame_tower or bundle_settings(config).get("frame_tower", "vit_b32")
    if name not in (*FRAME_TOWERS, STORED):
        raise ConfigError(f"unknown 'backbone.frame_tower' {name!r}; {near_names(name, (*FRAME_TOWERS, STORED))}")
    return str(name)


def feature_widths(config: ClipConfig) -> dict[str, int]:
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
