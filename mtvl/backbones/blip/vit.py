"""BLIP's vision transformer."""

from __future__ import annotations

import torch
from torch import nn

from mtvl.backbones.blip.config import VisionShape
from mtvl.backbones.blip.layers import Attention, FeedForward, tell_modality
from mtvl.backbones.blip.recompute import Recompute
from mtvl.sites import BlockStates


class PatchEmbedding(nn.Module):
    """Patches to tokens with a class token in front and learned positions.

    The published convolution has stride and kernel of one patch: it is a linear map of flattened patches, in the order
    channel, row, column.
    """

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.patch_size, self.image_size = shape.patch, shape.image_size
        self.patch = nn.Linear(3 * shape.patch**2, shape.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.position = nn.Parameter(torch.zeros(1, shape.tokens, shape.width))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, P, D); ValueError for another size than the positions are made for."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"expected pictures of {self.image_size} x {self.image_size} pixels, found {tuple(pixels.shape[-2:])}; "
                "set 'backbone.image_size', positions are then interpolated when weights are loaded"
            )
        tokens = self.patch(patches(pixels, self.patch_size))
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1) + self.position


def patches(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, H/size * W/size, 3 * size * size): patches row by row, each as channel, row, column."""
    rows, channels, height, width = pixels.shape
    cut = pixels.view(rows, channels, height // size, size, width // size, size).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(rows, -1, channels * size * size)


class DropPath(nn.Module):
    """Leaves out a residual branch for random rows in training, and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, S, D)."""
        if not self.rate or not self.training:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * (keep / (1 - self.rate)).to(branch.dtype)


class VisionBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); a hook "block" may change the result."""

    def __init__(self, shape: VisionShape, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.attn = Attention(shape.width, shape.heads)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.ffn = FeedForward(shape.width, shape.width * shape.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor, side: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, P, D) -> (B, P, D)."""
        tell_modality((self.attn.q, self.attn.k, self.attn.v), "visual")
        stream = x + self.drop_path(self.attn(self.norm1(x)))
        out = stream + self.drop_path(self.ffn(self.norm2(stream)))
        if (adapter := getattr(self, "adapter", None)) is None:
            return out, side
        return adapter(BlockStates(x, None, stream, out, side))


class VisionTransformer(Recompute):
    """Pictures to tokens: the class token first, all through the final norm."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = PatchEmbedding(shape)
        rates = torch.linspace(0, shape.drop_path, shape.layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(VisionBlock(shape, rate) for rate in rates)
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, P, D)."""
        hidden, side = self.embed(pixels), None
        for block in self.blocks:
            hidden, side = self.run(block, hidden, side)
        return self.norm(hidden)
