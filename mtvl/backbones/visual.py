"""The visual embedding of VL-Adapter: grid features to encoder tokens."""

from __future__ import annotations

import torch
from torch import nn


class VisualEmbedding(nn.Module):
    """Projects grid features and adds position, image-order and slot terms.

    token = norm(linear(feature)) + norm(linear(box)) + image_order[n] + token_table[K - 1 - slot]

    The boxes of grid features are all zero, so the second term is one learned vector; its linear weight receives an
    exactly zero gradient. The slot rows live in the language model's token table (the last `num_slots` rows) and are
    frozen and random unless the method trains that table: an adapter export has to carry them.
    *Source:* VL-Adapter, section 3 (theta V->L) and its released code.
    """

    def __init__(self, feature_widths: dict[str, int], d_model: int, *, num_tokens: int, num_images: int = 2) -> None:
        super().__init__()
        side = round(num_tokens**0.5)
        if side * side != num_tokens:
            raise ValueError(f"num_tokens must be a square number, found {num_tokens}")
        self.side = side
        self.features = nn.ModuleDict(
            {
                kind: nn.Sequential(nn.Linear(width, d_model), nn.LayerNorm(d_model))
                for kind, width in feature_widths.items()
            }
        )
        self.position = nn.Sequential(nn.Linear(5, d_model), nn.LayerNorm(d_model))
        self.image_order = nn.Embedding(num_images, d_model)

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """(B, N, P, F) grid cells, row by row -> (B, N, side*side, F) by adaptive max pooling."""
        rows, images, cells, width = features.shape
        grid = round(cells**0.5)
        if grid == self.side:
            return features
        square = features.reshape(rows * images, grid, grid, width).permute(0, 3, 1, 2)
        pooled = nn.functional.adaptive_max_pool2d(square, (self.side, self.side))
        return pooled.permute(0, 2, 3, 1).reshape(rows, images, self.side * self.side, width)

    def forward(self, features: torch.Tensor, token_table: torch.Tensor, kind: str = "grid") -> torch.Tensor:
        """(B, N, P, F) -> (B, V, D), V = N * num_tokens; slots start again at 0 for every picture."""
        linear = self.features[kind][0]
        pooled = self.pool(features.to(linear.weight.dtype))
        rows, images, tokens, _ = pooled.shape
        if images > self.image_order.num_embeddings:
            raise ValueError(f"at most {self.image_order.num_embeddings} pictures a sample, found {images}")
        slots = token_table[-tokens:].flip(0)  # slot i uses row K - 1 - i
        boxes = pooled.new_zeros(1, 5)
        out = self.features[kind](pooled) + self.position(boxes)
        out = out + self.image_order.weight[:images].view(1, images, 1, -1) + slots.view(1, 1, tokens, -1)
        return out.reshape(rows, images * tokens, -1)
