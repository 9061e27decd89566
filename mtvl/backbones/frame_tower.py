"""Frozen towers for the frames of videos: a few tokens a frame. Never part of the trained model or of its counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mtvl.backbones.towers import GridTower, PackagedTower, normalised, weights_hash
from mtvl.errors import CheckpointError, ConfigError, near_names


@dataclass(frozen=True)
class FrameTowerConfig:
    """(P, F) of one frame and the open_clip model behind it ("" for the tiny tower)."""

    grid: tuple[int, int]
    model: str
    image_size: int


FRAME_TOWERS: dict[str, FrameTowerConfig | PackagedTower] = {
    "vit_b32": FrameTowerConfig((1, 512), "ViT-B-32-quickgelu", 224),
    "tiny": FrameTowerConfig((4, 64), "", 112),
    "efficientnet_lite0": PackagedTower((1, 1280), "mtvl.backbones.lite_tower:LiteFrameTower"),
}


class FrameTower(nn.Module):
    """One embedding of a whole frame (ViT-B/32), or the four quarters of a frame (tiny).

    *Source:* VALUE's clip-vit features as VL-Adapter uses them: CLIP ViT-B/32 image embeddings of 512, not normalised;
    shorter side to 224 bicubic, centre crop, CLIP mean and deviation.
    """

    def __init__(self, name: str, weights: str = "") -> None:
        super().__init__()
        config = FRAME_TOWERS.get(name)
        if not isinstance(config, FrameTowerConfig):
            known = [n for n, c in FRAME_TOWERS.items() if isinstance(c, FrameTowerConfig)]
            raise ConfigError(f"unknown frame tower {name!r}; {near_names(name, known)}")
        self.name, self.config = name, config
        if name == "tiny":
            self.trunk: nn.Module = GridTower("tiny")
            self.head = nn.Linear(self.trunk.grid[1], self.config.grid[1], bias=False)
        else:
            import open_clip  # slow import: only when a tower is built

            tag = weights if weights and not weights.endswith(".safetensors") else None
            self.trunk = open_clip.create_model(self.config.model, pretrained=tag).visual
        if weights.endswith(".safetensors"):
            self._load(Path(weights))
        self.requires_grad_(False)
        self.eval()

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(f"no frame tower weights at {path}")
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(str(path)).items()}
        if any(k.startswith("visual.") for k in state):  # a whole CLIP model
            state = {f"trunk.{k.removeprefix('visual.')}": v for k, v in state.items() if k.startswith("visual.")}
        own = self.state_dict()
        missing = sorted(set(own) - set(state))
        wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
        if missing or wrong:
            raise CheckpointError(
                f"{path} is not a {self.name} frame tower: missing {missing[:3]}, other shape {wrong[:3]}"
            )
        self.load_state_dict({k: state[k] for k in own})

    @property
    def grid(self) -> tuple[int, int]:
        """(P, F) of one frame."""
        return self.config.grid

    @property
    def fingerprint(self) -> str:
        """Hash of architecture, preprocessing and weights."""
        return f"frame-{self.name}-{weights_hash(f'{self.config}|frame', self)}"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) normalised pixels -> (n, P, F)."""
        if self.name != "tiny":
            return self.trunk(pixels)[:, None]
        return self.head(quarters(self.trunk(pixels)))

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL pictures -> (n, 3, H, W) float32."""
        if self.name == "tiny":
            return self.trunk.preprocess(images)  # type: ignore[operator, no-any-return]
        arrays = [np.asarray(_crop(im.convert("RGB"), self.config.image_size), dtype=np.float32) for im in images]
        return normalised(arrays)

    @torch.no_grad()
    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """PIL pictures (RGB, any size) -> (len(images), P, F) float32 on the CPU."""
        device = next(self.parameters()).device
        return self(self.preprocess(images).to(device)).float().cpu()


def quarters(grid: torch.Tensor, points: int = 4) -> torch.Tensor:
    """(n, P, F) grid cells -> (n, 4, F): the largest value in each quarter, in reading order.

    The grid is read at `points` x `points` places first (linear interpolation): a grid of 7 has no middle line.
    """
    rows, cells, width = grid.shape
    side = round(cells**0.5)
    square = grid.transpose(1, 2).reshape(rows, width, side, side)
    centres = (torch.arange(points, device=grid.device, dtype=grid.dtype) + 0.5) / points * 2 - 1
    places = torch.stack(torch.meshgrid(centres, centres, indexing="ij")[::-1], dim=-1)[None]
    sampled = nn.functional.grid_sample(square, places.expand(rows, -1, -1, -1), align_corners=False)
    return nn.functional.adaptive_max_pool2d(sampled, 2).flatten(2).transpose(1, 2)


def _crop(picture: Image.Image, size: int) -> Image.Image:
    """The middle square of `size` pixels after the shorter side was brought to `size`."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))
