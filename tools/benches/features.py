"""Supply of features: pictures a second from the store against the tower online, the same pictures in both."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benches.result import Result, compare, interleaved
from mtvl.backbones.towers import GridTower
from mtvl.data.features import FeatureStore
from mtvl.data.media import open_image

TOWER = "rn101"  # at 224 px; random weights cost the same time
PICTURES, WIDTH, HEIGHT = 128, 320, 240
BATCH = 64
STORE_BATCHES = 16  # of a round; one online batch takes longer than all of them
ONLINE, STORE = "tower online", "store"


def measure(rounds: int) -> list[Result]:
    """Random batches of BATCH pictures, half of them JPEG and half PNG files."""
    with tempfile.TemporaryDirectory(prefix="mtvl-bench-") as folder:
        pictures = write_pictures(Path(folder), PICTURES)
        return measure_supply(Path(folder) / "features", pictures, GridTower(TOWER), rounds)


def measure_supply(
    folder: Path, pictures: list[str], tower: GridTower, rounds: int, batch: int = BATCH
) -> list[Result]:
    """Pictures a second of `tower` and of a store that it has filled."""
    store = FeatureStore(tower, folder)
    store.ensure(pictures, print)
    random = np.random.default_rng(0)

    def online(paths: Sequence[str]) -> object:
        return tower.encode([open_image(path) for path in paths])

    sides = {
        ONLINE: partial(rate_of, online, pictures, random, batch, 1),
        STORE: partial(rate_of, store.get, pictures, random, batch, STORE_BATCHES),
    }
    values = interleaved("features", sides, rounds)
    cells, width = tower.grid
    notes = {
        ONLINE: f"{tower.name} at {tower.config.image_size} px, batches of {batch} files of {WIDTH} x {HEIGHT}",
        STORE: f"{len(pictures)} pictures x {cells} x {width} float16, read before",
    }
    return compare(values, "pictures/s", baseline=ONLINE, notes=notes)


def rate_of(
    read: Callable[[Sequence[str]], object], pictures: list[str], random: np.random.Generator, batch: int, batches: int
) -> float:
    """Pictures a second over random batches."""
    chosen = [[pictures[i] for i in random.choice(len(pictures), batch, replace=False)] for _ in range(batches)]
    begin = time.perf_counter()
    for paths in chosen:
        read(paths)
    return batch * batches / (time.perf_counter() - begin)


def write_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of smooth colours under noise, JPEG and PNG in turns."""
    random, paths = np.random.default_rng(1), []
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    for i in range(count):
        waves = 104 + 50 * (np.sin(rows / (9 + i % 7)) + np.cos(columns / (11 + i % 5)))
        pixels = waves[..., None] + random.integers(0, 48, (HEIGHT, WIDTH, 3))
        path = folder / f"{i}.{'jpg' if i % 2 else 'png'}"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        paths.append(str(path))
    return paths
