"""Pixels in place of stored features, for a tower that is trained: what it computes changes with every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mtvl.data.features.keys import item_keys
from mtvl.data.features.stored import is_stored
from mtvl.data.media import open_image
from mtvl.errors import DataError

Preprocess = Callable[[Sequence[Any]], torch.Tensor]  # PIL pictures -> (n, 3, H, W) normalised


class PixelSource:
    """Reads pictures anew for every batch. `grid` is (H * W, 3): the cells are pixels, row by row.

    It stands where a `FeatureStore` stands and stores nothing.
    """

    def __init__(self, preprocess: Preprocess, side: int) -> None:
        self._preprocess = preprocess
        self.grid = (side * side, 3)

    def ensure(
        self, paths: Sequence[str], progress: Callable[[str], None] | None = None, *, fill: str = "eager",
        broken: dict[str, DataError] | None = None,
    ) -> None:  # fmt: skip
        """DataError where there are features in place of pictures; nothing is computed ahead."""
        item_keys(paths)  # an error when some are missing
        stored = next((path for path in paths if is_stored(path)), None)
        if stored is not None:
            raise DataError(
                "the tower is trained ('backbone.train_tower'), so it needs the pictures themselves; this is a file of features "
                "that another tower made once: give the pictures, or train with the tower frozen",
                file=stored,
            )

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        """(len(paths), H * W, 3) float32."""
        pixels = self._preprocess([open_image(path) for path in paths])
        return pixels.flatten(2).transpose(1, 2).contiguous()

    def to(self, device: Any) -> PixelSource:
        """Nothing is computed here, on whatever device."""
        return self

    def close(self) -> None:
        """Nothing waits to be written."""
