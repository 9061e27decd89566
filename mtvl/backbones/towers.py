"""Frozen visual towers: pictures in, grid features out. Never part of the trained model or of its counts."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mtvl.errors import CheckpointError, ConfigError, near_names

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerConfig:
    """Shape of a CLIP residual tower. `stage` is the last residual stage that runs (1-4)."""

    layers: tuple[int, int, int, int]
    width: int
    stage: int
    image_size: int

    @property
    def grid(self) -> tuple[int, int]:
        """(P cells, F width) of the output."""
        side = self.image_size // (4 * 2 ** (self.stage - 1))
        return side * side, self.width * 4 * 2 ** (self.stage - 1)


@dataclass(frozen=True)
class PackagedTower:
    """A tower that comes with its weights in an optional package: (P, F) and "module:Class" of its encoder."""

    grid: tuple[int, int]
    entry: str

    def build(self) -> Any:
        """The tower; ConfigError where its package is not installed."""
        module, _, attribute = self.entry.partition(":")
        return getattr(importlib.import_module(module), attribute)()


TOWERS: dict[str, TowerConfig | PackagedTower] = {
    "rn50": TowerConfig((3, 4, 6, 3), 64, 4, 224),
    "rn101": TowerConfig((3, 4, 23, 3), 64, 4, 224),
    "tiny": TowerConfig((1, 1, 1, 1), 16, 3, 112),
    "efficientnet_lite0": PackagedTower((49, 1280), "mtvl.backbones.lite_tower:LiteTower"),
}


def weights_hash(about: str, module: nn.Module) -> str:
    """16 hex digits that change with `about` (architecture and preprocessing in words) and with every weight."""
    digest = hashlib.sha256(about.encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def normalised(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """(H, W, 3) float32 arrays of 0..255, all of one size -> (n, 3, H, W) by CLIP's mean and deviation."""
    pixels = torch.from_numpy(np.stack(arrays)).div_(255).permute(0, 3, 1, 2)
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous()


def square_pixels(images: Sequence[Image.Image], side: int) -> torch.Tensor:
    """PIL pictures, squashed to squares (bicubic) and normalised as CLIP's -> (n, 3, side, side) float32."""
    size = (side, side)
    arrays = [np.asarray(im.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32) for im in images]
    return normalised(arrays)


class GridTower(nn.Module):
    """open_clip's residual tower up to one of its stages, without attention pooling.

    Its batch norms always use the statistics of its weights, also where the tower is trained with a model: batches are
    small and of one task, and what they would add up to would depend on the sampling.

    *Source:* CLIP's RN101 `layer4` grid (7x7x2048 at 224 px) as VL-Adapter extracts it: the picture is resized to a
    square (aspect ratio not kept), bicubic, CLIP mean and deviation.
    """

    def __init__(self, name: str, weights: str = "") -> None:
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet  # slow import: only when a tower is built

        config = TOWERS.get(name)
        if not isinstance(config, TowerConfig):
            known = [n for n, c in TOWERS.items() if isinstance(c, TowerConfig)]
            raise ConfigError(f"unknown tower {name!r}; {near_names(name, known)}")
        self.name, self.config = name, config
        trunk = ModifiedResNet(
            list(config.layers), output_dim=8, heads=1, image_size=config.image_size, width=config.width
        )
        trunk.attnpool = None
        for stage in range(config.stage + 1, 5):
            setattr(trunk, f"layer{stage}", None)
        self.trunk = trunk
        if weights:
            self._load(weights)
        self.requires_grad_(False)
        self.eval()

    @property
    def grid(self) -> tuple[int, int]:
        """(P, F) of `encode`'s output."""
        return self.config.grid

    @property
    def fingerprint(self) -> str:
        """Hash of architecture, preprocessing and weights."""
        return f"{self.name}-{weights_hash(f'{self.config}|bicubic square|clip mean', self)}"

    @property
    def fixed_fingerprint(self) -> str:
        """Hash of architecture, preprocessing and what stays as it is when the tower is trained."""
        digest = hashlib.sha256(f"{self.config}|bicubic square|clip mean".encode())
        for key, value in sorted(self.named_buffers()):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return f"trained-{self.name}-{digest.hexdigest()[:16]}"

    def train(self, mode: bool = True) -> GridTower:
        """Never in training mode: see the class."""
        return super().train(False)

    def _load(self, weights: str) -> None:
        """Load a safetensors file of this tower, or an open_clip checkpoint (file or pretrained tag)."""
        path = Path(weights)
        if path.suffix == ".safetensors":
            if not path.is_file():
                raise CheckpointError(f"no tower weights at {path}")
            state = load_file(str(path))
            if not any(k.startswith("visual.") for k in state):
                self._assign({k.removeprefix("trunk."): v.float() for k, v in state.items()}, str(path))
                return
        else:
            import open_clip

            state = open_clip.create_model(
                {"rn50": "RN50", "rn101": "RN101"}[self.name], pretrained=weights
            ).state_dict()
        self._assign(
            {k.removeprefix("visual."): v.float() for k, v in state.items() if k.startswith("visual.")}, weights
        )

    def _assign(self, state: dict[str, torch.Tensor], source: str) -> None:
        own = self.trunk.state_dict()
        missing = sorted(set(own) - set(state))
        wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
        if missing or wrong:
            raise CheckpointError(
                f"{source} is not a {self.name} tower: missing {missing[:3]}, other shape {wrong[:3]}"
            )
        self.trunk.load_state_dict({k: state[k] for k in own})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, H, W) normalised pixels -> (n, P, F)."""
        x = self.trunk.stem(pixels)
        for stage in range(1, self.config.stage + 1):
            x = getattr(self.trunk, f"layer{stage}")(x)
        return x.flatten(2).transpose(1, 2)

    def grids(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, N, H * W, 3) normalised pixels, row by row -> (B, N, P, F). ConfigError for anything but pixels."""
        rows, images, cells, channels = pixels.shape
        side = self.config.image_size
        if (cells, channels) != (side * side, 3):
            raise ConfigError(
                f"a tower that is trained ('backbone.train_tower') reads pixels ({side * side}, 3) of a picture, found "
                f"features ({cells}, {channels})"
            )
        square = pixels.reshape(rows * images, side, side, 3).permute(0, 3, 1, 2)
        grid = self(square.to(next(self.parameters()).dtype))
        return grid.view(rows, images, *grid.shape[1:])

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL pictures -> (n, 3, H, W) float32."""
        return square_pixels(images, self.config.image_size)

    @torch.no_grad()
    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """PIL pictures (RGB, any size) -> (len(images), P, F) float32 on the CPU."""
        device = next(self.parameters()).device
        return self(self.preprocess(images).to(device)).float().cpu()
