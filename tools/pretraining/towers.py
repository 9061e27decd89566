"""Pretraining of the tiny towers by dense attribute prediction: of pictures, then of the quarters of video frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mtvl.backbones.frame_tower import FrameTower, quarters
from mtvl.backbones.towers import GridTower
from mtvl.data.miniworld.render import render
from mtvl.data.miniworld.scene import COLOURS, LATTICE, SHAPES, SIZES, TEXTURES, Scene, grid_labels, scene_at
from pretraining.clock import Clock, cosine

SPLIT_SEED = 1_000_003  # the stream of pictures and episodes that pretraining draws from
NAMES = ("colour", "shape", "size", "texture")
CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1, len(TEXTURES) + 1)


def attribute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the four attributes: logits (..., sum(CLASSES)), labels (..., 4)."""
    parts = logits.split(CLASSES, dim=-1)
    losses = [nn.functional.cross_entropy(p.flatten(0, -2), labels[..., i].flatten()) for i, p in enumerate(parts)]
    return torch.stack(losses).sum()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Share of right attributes where an object stands."""
    used = labels[..., 0] > 0
    parts = zip(NAMES, logits.split(CLASSES, dim=-1), strict=True)
    return {n: float((p.argmax(-1) == labels[..., i])[used].float().mean()) for i, (n, p) in enumerate(parts)}


def pretrain_tower(clock: Clock, seed: int, batch: int = 64) -> tuple[GridTower, dict[str, float]]:
    """At each of the 16 lattice cells colour, shape, size and texture (or "empty")."""
    torch.manual_seed(seed)
    tower = GridTower("tiny").requires_grad_(True).train()
    head = nn.Linear(tower.grid[1], sum(CLASSES))
    centres = (torch.arange(LATTICE) + 0.5) / LATTICE * 2 - 1
    points = torch.stack(torch.meshgrid(centres, centres, indexing="ij")[::-1], dim=-1)[None]
    side = round(tower.grid[0] ** 0.5)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.05)

    def logits(start: int) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [scene_at(SPLIT_SEED + seed, "pretrain", start + i) for i in range(batch)]
        labels = torch.from_numpy(np.stack([grid_labels(s) for s in scenes]))
        grid = tower(tower.preprocess([render(s) for s in scenes])).transpose(1, 2).reshape(batch, -1, side, side)
        cells = nn.functional.grid_sample(grid, points.expand(batch, -1, -1, -1), align_corners=False)
        return head(cells.flatten(2).transpose(1, 2)), labels

    while clock.share < 1:
        for group in optimizer.param_groups:
            group["lr"] = cosine(clock.share, 2e-3)
        loss = attribute_loss(*logits(clock.step * batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step += 1
        clock.report(50, loss=float(loss.detach()))
    tower.eval().requires_grad_(False)
    with torch.no_grad():
        return tower, accuracy(*logits(10_000_000))


def quarter_labels(scene: Scene) -> np.ndarray:
    """(4, 4) int64: attribute ids of the one object of each quarter, zeros where there is none."""
    cells = grid_labels(scene).reshape(2, 2, 2, 2, 4)  # quarter row, row inside, quarter column, column inside
    return cells.max(axis=(1, 3)).reshape(4, 4)


def pretrain_frame_head(grid: GridTower, scenes: Sequence[Scene], seed: int, steps: int = 1500) -> FrameTower:
    """Frame tower on the frozen trunk of `grid`: its head keeps what tells the object of each quarter."""
    torch.manual_seed(seed + 1)
    tower = FrameTower("tiny")
    tower.trunk.load_state_dict(grid.state_dict())
    labels = torch.from_numpy(np.stack([quarter_labels(s) for s in scenes]))
    parts = [quarters(grid.encode([render(s) for s in scenes[i : i + 256]])) for i in range(0, len(scenes), 256)]
    features, classify = torch.cat(parts), nn.Linear(tower.grid[1], sum(CLASSES))
    optimizer = torch.optim.AdamW([*tower.head.requires_grad_(True).parameters(), *classify.parameters()], lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(features), (256,))
        loss = attribute_loss(classify(tower.head(features[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tower.requires_grad_(False)
    with torch.no_grad():
        print("frame tower accuracy on objects:", accuracy(classify(tower.head(features)), labels))
    return tower


def encode_all(encode: Callable[[list], torch.Tensor], scenes: Sequence[Scene], cache: Path) -> torch.Tensor:
    """(len(scenes), P, F) float16 features; kept in `cache` for another try."""
    if cache.is_file():
        return torch.load(cache, weights_only=True)
    parts, start = [], time.time()
    for first in range(0, len(scenes), 256):
        parts.append(encode([render(s) for s in scenes[first : first + 256]]).half())
        if first % 5120 == 0:
            print(f"features {first}/{len(scenes)} {time.time() - start:.0f}s", flush=True)
    torch.save(torch.cat(parts), cache)
    return torch.cat(parts)
