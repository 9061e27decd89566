"""Scenes of the miniworld: a few objects on an invisible 4 x 4 lattice, drawn at random from named splits.

A scene is pure data; `render` draws it and `language` talks about it. Some (colour, shape) pairs are held out: they
occur in the split "test" only, while every single colour and shape occurs everywhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from mtvl.errors import ConfigError, near_names

PICTURE_PIXELS = 128
LATTICE = 4
CELL_PIXELS = PICTURE_PIXELS // LATTICE

COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple", "brown", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
SPLITS = ("pretrain", "train", "val", "test")

# One shape per colour: no colour and no shape loses more than a third of its compositions.
HELD_OUT = frozenset(
    {
        ("red", "heart"), ("yellow", "cross"), ("green", "star"), ("cyan", "triangle"),
        ("blue", "square"), ("purple", "circle"), ("brown", "star"), ("black", "heart"),
    }
)  # fmt: skip

MIN_OBJECTS, MAX_OBJECTS = 3, 6
NUM_RAMPS = 8  # directions of the background gradient
_JITTER_PIXELS = {"small": 5, "large": 2}  # an object never leaves its cell, so relations stay true in pixels
_THEME_SHARE = 0.55  # share of objects that follow the theme of a scene: without it nothing could be counted
_HELD_OUT_SHARE = 0.15  # per object of the test split


@dataclass(frozen=True)
class Thing:
    """One object. `row`/`col` are lattice cells from the top left; `dx`/`dy` shift it by pixels inside its cell."""

    row: int
    col: int
    colour: str
    shape: str
    size: str
    texture: str
    dx: int = 0
    dy: int = 0

    @property
    def is_held_out(self) -> bool:
        """True when the pair (colour, shape) occurs in the test split only."""
        return (self.colour, self.shape) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (row, then column) and the two light RGB colours of the background gradient."""

    objects: tuple[Thing, ...]
    light: tuple[int, int, int] = (250, 250, 250)
    shade: tuple[int, int, int] = (225, 225, 225)
    ramp: int = 0  # direction of the gradient, 0..NUM_RAMPS-1


def sample_scene(rng: random.Random, split: str) -> Scene:
    """Draw a scene of `split` ("pretrain", "train", "val" or "test"); ConfigError for another name.

    Half of the scenes have a theme (one colour or one shape that many objects share), so that counts above 1 occur.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown miniworld split {split!r}; {near_names(split, SPLITS)}")
    cells = sorted(rng.sample(range(LATTICE * LATTICE), rng.randint(MIN_OBJECTS, MAX_OBJECTS)))
    theme_colour = rng.choice(COLOURS) if rng.random() < 0.3 else ""
    theme_shape = rng.choice(SHAPES) if not theme_colour and rng.random() < 0.45 else ""
    objects = []
    for cell in cells:
        colour, shape = _sample_pair(rng, theme_colour, theme_shape, split == "test")
        size = rng.choice(SIZES)
        reach = _JITTER_PIXELS[size]
        objects.append(
            Thing(
                row=cell // LATTICE, col=cell % LATTICE, colour=colour, shape=shape, size=size,
                texture=rng.choice(TEXTURES), dx=rng.randint(-reach, reach), dy=rng.randint(-reach, reach),
            )
        )  # fmt: skip
    tint = rng.randint(236, 252), rng.randint(236, 252), rng.randint(236, 252)
    darker = tint[0] - rng.randint(8, 30), tint[1] - rng.randint(8, 30), tint[2] - rng.randint(8, 30)
    return Scene(tuple(objects), tint, darker, rng.randrange(NUM_RAMPS))


def _sample_pair(rng: random.Random, theme_colour: str, theme_shape: str, with_held_out: bool) -> tuple[str, str]:
    if with_held_out and rng.random() < _HELD_OUT_SHARE:
        return rng.choice(_HELD_OUT_LIST)
    follows = rng.random() < _THEME_SHARE
    while True:
        colour = theme_colour if theme_colour and follows else rng.choice(COLOURS)
        shape = theme_shape if theme_shape and follows else rng.choice(SHAPES)
        if (colour, shape) not in HELD_OUT:
            return colour, shape


_HELD_OUT_LIST = tuple(sorted(HELD_OUT))  # a set has no stable order over processes


def scene_at(seed: int, split: str, index: int) -> Scene:
    """The scene number `index` of the endless stream (`seed`, `split`): the same on every machine, in any order."""
    return sample_scene(random.Random(f"miniworld/{seed}/{split}/{index}"), split)


def grid_labels(scene: Scene) -> np.ndarray:
    """Attribute ids per lattice cell: (16, 4) int64, rows row-major, columns colour, shape, size, texture.

    0 stands for an empty cell; otherwise 1 + the index into COLOURS, SHAPES, SIZES, TEXTURES.
    """
    labels = np.zeros((LATTICE * LATTICE, 4), dtype=np.int64)
    for thing in scene.objects:
        labels[thing.row * LATTICE + thing.col] = (
            1 + COLOURS.index(thing.colour),
            1 + SHAPES.index(thing.shape),
            1 + SIZES.index(thing.size),
            1 + TEXTURES.index(thing.texture),
        )
    return labels
