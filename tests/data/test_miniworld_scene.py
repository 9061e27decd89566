"""Scenes and pictures: reproducible, inside their cells, with held-out compositions where they belong."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mtvl.data.miniworld.render import RGB, render
from mtvl.data.miniworld.scene import (
    CELL_PIXELS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Scene,
    Thing,
    grid_labels,
    sample_scene,
    scene_at,
)
from mtvl.errors import ConfigError


def things(split: str, number: int = 400) -> list[Thing]:
    return [thing for i in range(number) for thing in scene_at(3, split, i).objects]


def test_scenes_are_functions_of_seed_split_and_index() -> None:
    assert scene_at(0, "train", 5) == scene_at(0, "train", 5)
    seen = {scene_at(seed, split, i) for seed in (0, 1) for split in SPLITS for i in range(50)}
    assert len(seen) == 2 * len(SPLITS) * 50
    assert sample_scene(random.Random(7), "val") == sample_scene(random.Random(7), "val")


def test_an_unknown_split_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'valid'.*pretrain, test, train, val"):
        sample_scene(random.Random(0), "valid")


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_compositions_occur_in_test_only(split: str) -> None:
    found = things(split)
    pairs = {(t.colour, t.shape) for t in found}
    assert (pairs & HELD_OUT == HELD_OUT) if split == "test" else not pairs & HELD_OUT
    assert {t.colour for t in found} == set(COLOURS)
    assert {t.shape for t in found} == set(SHAPES)
    assert len(pairs - HELD_OUT) == len(COLOURS) * len(SHAPES) - len(HELD_OUT)


def test_scenes_hold_three_to_six_objects_in_different_cells_in_reading_order() -> None:
    sizes = set()
    for i in range(200):
        cells = [(t.row, t.col) for t in scene_at(0, "train", i).objects]
        assert cells == sorted(set(cells))
        sizes.add(len(cells))
    assert sizes == {3, 4, 5, 6}


def test_grid_labels_name_every_cell() -> None:
    scene = Scene((Thing(0, 1, "blue", "star", "large", "dotted"), Thing(3, 3, "red", "circle", "small", "plain")))
    labels = grid_labels(scene)
    assert labels.shape == (16, 4) and labels.dtype == np.int64
    assert labels[1].tolist() == [
        1 + COLOURS.index("blue"), 1 + SHAPES.index("star"), 1 + SIZES.index("large"), 1 + TEXTURES.index("dotted"),
    ]  # fmt: skip
    assert labels[15].tolist() == [1, 1, 1, 1]
    assert np.count_nonzero(labels.any(axis=1)) == 2


def test_pictures_show_the_objects_in_their_cells_and_nothing_elsewhere() -> None:
    for index in range(40):
        scene = scene_at(0, "test", index)
        pixels = np.asarray(render(scene)).astype(int)
        assert pixels.shape == (128, 128, 3)
        empty = np.asarray(render(Scene((), scene.light, scene.shade, scene.ramp))).astype(int)
        changed = np.abs(pixels - empty).sum(axis=2) > 30
        cells = changed.reshape(4, CELL_PIXELS, 4, CELL_PIXELS).any(axis=(1, 3))
        assert {(int(r), int(c)) for r, c in np.argwhere(cells)} == {(t.row, t.col) for t in scene.objects}
        for thing in scene.objects:
            rows = slice(thing.row * CELL_PIXELS, (thing.row + 1) * CELL_PIXELS)
            cell = pixels[rows, thing.col * CELL_PIXELS : (thing.col + 1) * CELL_PIXELS]
            near = np.abs(cell - np.array(RGB[thing.colour])).sum(axis=2) < 25
            assert near.sum() > 15, thing


@pytest.mark.parametrize("size", SIZES)
def test_every_attribute_changes_the_picture(size: str) -> None:
    """Pictures that differ in one attribute differ in many pixels, small striped stars included."""
    for shape in SHAPES:
        pictures = {
            (colour, texture): np.asarray(render(Scene((Thing(1, 1, colour, shape, size, texture),)))).astype(int)
            for colour in COLOURS
            for texture in TEXTURES
        }
        for colour in COLOURS:
            for a, b in (("plain", "striped"), ("plain", "dotted"), ("striped", "dotted")):
                difference = np.abs(pictures[colour, a] - pictures[colour, b]).sum(axis=2)
                assert (difference > 60).sum() >= 8, (shape, colour, a, b)
    outlines = [np.asarray(render(Scene((Thing(1, 1, "red", s, size, "plain"),)))).astype(int) for s in SHAPES]
    for i, a in enumerate(outlines):
        for b in outlines[i + 1 :]:
            assert (np.abs(a - b).sum(axis=2) > 200).sum() >= 24
