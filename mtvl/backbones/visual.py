"""The visual embedding of VL-Adapter: features of pictures and of video frames to encoder tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mtvl.errors import ConfigError


def pool_grid(features: torch.Tensor, side: int) -> torch.Tensor:
    """(B, N, P, F) grid cells, row by row -> (B, N, side*side, F) by adaptive max pooling."""
    rows, images, cells, width = features.shape
    grid = round(cells**0.5)
    if grid == side:
        return features
    square = features.reshape(rows * images, grid, grid, width).permute(0, 3, 1, 2)
    pooled = nn.functional.adaptive_max_pool2d(square, (side, side))
    return pooled.permute(0, 2, 3, 1).reshape(rows, images, side * side, width)


class VisualEmbedding(nn.Module):
    """Projects features and adds position, image-order and slot terms; one projection for each kind of feature.

    token = norm(linear_kind(feature)) + norm(linear(box)) + image_order[n] + token_table[K - 1 - slot]

    "grid" features of a picture are pooled to `num_tokens`; "frame" features of a video are taken as they are, in order
    of time. Position, image-order and slot terms are shared. The boxes of grid features are all zero, so the second term is one learned vector; its linear weight receives an
    exactly zero gradient. The slot rows live in the language model's token table (the last `num_slots` rows) and are
    frozen and random unless the method trains that table: an adapter export has to carry them.
    *Source:* VL-Adapter, section 3 (theta V->L) and its released code.
    """

    def __init__(
        self, feature_widths: dict[str, int], d_model: int, *, num_tokens: int, num_slots: int = 0, num_images: int = 2,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        side = round(num_tokens**0.5)
        if side * side != num_tokens:
            raise ValueError(f"num_tokens must be a square number, found {num_tokens}")
        self.side = side
        self.num_slots = num_slots or num_tokens
        self.features = nn.ModuleDict(
            {kind: nn.Sequential(nn.Linear(width, d_model), norm(d_model)) for kind, width in feature_widths.items()}
        )
        self.position = nn.Sequential(nn.Linear(5, d_model), norm(d_model))
        self.image_order = nn.Embedding(num_images, d_model)

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """As `pool_grid`, to the side of this embedding."""
        return pool_grid(features, self.side)

    def forward(self, features: torch.Tensor, token_table: torch.Tensor, kind: str = "grid") -> torch.Tensor:
        """(B, N, P, F) -> (B, V, D), V = N * num_tokens ("grid") or N * P; slots start again at 0 for every picture."""
        if kind not in self.features:
            raise ConfigError(f"this model has no projection for {kind!r} features, only for {', '.join(self.features)}; "
                              "its tasks had none: train on a task of that kind, or set 'backbone.visual'")  # fmt: skip
        linear = self.features[kind][0]
        given = features.to(linear.weight.dtype)
        pooled = self.pool(given) if kind == "grid" else given
        rows, images, tokens, _ = pooled.shape
        if images > self.image_order.num_embeddings:
            raise ValueError(f"at most {self.image_order.num_embeddings} pictures a sample, found {images}")
        if tokens > self.num_slots:
            raise ValueError(f"at most {self.num_slots} visual tokens a picture or video, found {tokens}")
        slots = token_table[-tokens:].flip(0)  # slot i uses row K - 1 - i
        boxes = pooled.new_zeros(1, 5)
        out = self.features[kind](pooled) + self.position(boxes)
        out = out + self.image_order.weight[:images].view(1, images, 1, -1) + slots.view(1, 1, tokens, -1)
        return out.reshape(rows, images * tokens, -1)


class GridEmbedding(nn.Module):
    """Projects the grid features of pictures; each cell knows its row, its column and its picture.

    token = norm(linear(feature + row[y] + column[x])) + image_order[n]

    *Source:* CLIP-ViL's visual embedding with position embeddings, which are as wide as the features. The order of
    pictures is added here: one vector more for a single picture, and what tells two apart.
    """

    def __init__(
        self, feature_widths: dict[str, int], d_model: int, *, num_tokens: int, num_positions: int, eps: float = 1e-12,
        num_images: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.side = round(num_tokens**0.5)
        if self.side**2 != num_tokens or self.side > num_positions:
            raise ConfigError(
                f"'backbone.visual_tokens' must be a square number of at most {num_positions} x {num_positions} cells "
                f"('backbone.grid_positions'), found {num_tokens}"
            )
        width = feature_widths["grid"]
        self.rows, self.columns = nn.Embedding(num_positions, width), nn.Embedding(num_positions, width)
        self.features = nn.ModuleDict(
            {"grid": nn.Sequential(nn.Linear(width, d_model), nn.LayerNorm(d_model, eps=eps))}
        )
        self.image_order = nn.Embedding(num_images, d_model)

    def forward(self, features: torch.Tensor, token_table: torch.Tensor, kind: str = "grid") -> torch.Tensor:
        """(B, N, P, F) -> (B, N * side * side, D). The table of tokens is not used."""
        if kind not in self.features:
            raise ConfigError(f"this backbone reads pictures and no {kind!r} features; take clip_bart or clip_t5")
        cells = pool_grid(features.to(self.rows.weight.dtype), self.side)
        rows, images, tokens, _ = cells.shape
        if images > self.image_order.num_embeddings:
            raise ValueError(f"at most {self.image_order.num_embeddings} pictures a sample, found {images}")
        places = torch.arange(self.side, device=cells.device)
        positions = self.rows(places)[:, None] + self.columns(places)[None]
        out = self.features[kind](cells + positions.flatten(0, 1))
        out = out + self.image_order(torch.arange(images, device=cells.device)).view(1, images, 1, -1)
        return out.reshape(rows, images * tokens, -1)
