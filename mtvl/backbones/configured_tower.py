"""Which visual tower a configuration means, built with its weights."""

from __future__ import annotations

from typing import Any

import torch

from mtvl.backbones.clip_config import STORED, ClipConfig, bundled_folder, frame_tower_name, tower_name
from mtvl.backbones.frame_tower import FRAME_TOWERS, FrameTower
from mtvl.backbones.towers import TOWERS, GridTower, PackagedTower
from mtvl.errors import ConfigError


def configured_tower(settings: ClipConfig, kind: str, wanted: int | None) -> GridTower | FrameTower | Any | None:
    """The tower for one kind of features; None where all are stored ones.

    `wanted`: F that the model's projection reads, None when it has none of this kind. ConfigError for another width, and
    for a tower that would be random beside pretrained text weights.
    """
    key, option, towers = (
        ("tower", "feature_width", TOWERS) if kind == "grid" else ("frame_tower", "frame_width", FRAME_TOWERS)
    )
    name = tower_name(settings) if kind == "grid" else frame_tower_name(settings)
    configured, weights = getattr(settings, key), getattr(settings, f"{key}_weights")
    if name == STORED:
        return None
    sizes = towers[name]  # type: ignore[index]
    width = sizes.grid[1]
    if wanted is not None and width != wanted:
        raise ConfigError(f"'backbone.{option}' is {wanted}, the tower {name} gives {width}")
    if isinstance(sizes, PackagedTower):
        if weights:
            raise ConfigError(f"'backbone.{key}_weights' is {weights}, the tower {name} has the weights of its package; "
                              "leave the key empty")  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # its layers are drawn before they are filled
            return sizes.build()
    if (folder := bundled_folder(weights)) is not None:
        weights = str(folder / f"{key}.safetensors")
    folder = bundled_folder(settings.weights)
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


def trained_tower(settings: ClipConfig, widths: dict[str, int], *, meta: bool = False) -> GridTower | None:
    """The tower that is trained as a part of a model with `widths`; None without `train_tower`."""
    if not settings.train_tower:
        return None
    if "grid" not in widths:
        raise ConfigError("'backbone.train_tower' trains the tower of pictures, and no task of this run has pictures")
    if meta and tower_name(settings) != STORED:
        return GridTower(tower_name(settings))
    tower = configured_tower(settings, "grid", widths["grid"])
    if not isinstance(tower, GridTower):
        raise ConfigError(
            f"'backbone.train_tower' needs a grid tower of this package, 'backbone.tower' is {tower_name(settings)!r}"
        )
    return tower
