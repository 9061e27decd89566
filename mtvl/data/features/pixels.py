"""Pixels in place of stored features, for a tower that is trained or adapted: what it computes changes with every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mtvl.data.augment import Change
from mtvl.data.features.keys import item_keys
from mtvl.data.features.store import rows_of_span
from mtvl.data.features.stored import is_stored
from mtvl.data.media import open_image
from mtvl.errors import DataError

Preprocess = Callable[[Sequence[Any]], torch.Tensor]  # PIL pictures -> (n, 3, H, W) normalised


class PixelSource:
    """Reads pictures anew for every batch. `grid` is (H * W, 3): the cells are pixels, row by row.

    It stands where a `FeatureStore` stands and stores nothing.
    """

    noun = "pictures"

    def __init__(self, preprocess: Preprocess, side: int) -> None:
        self._preprocess = preprocess
        self.grid = (side * side, 3)

    def ensure(
        self, paths: Sequence[str], progress: Callable[[str], None] | None = None, *, fill: str = "eager",
        broken: dict[str, DataError] | None = None,
    ) -> None:  # fmt: skip
        """DataError where there are features in place of pictures; nothing is computed ahead."""
        item_keys(paths, self.noun)  # an error when some are missing
        stored = next((path for path in paths if is_stored(path)), None)
        if stored is not None:
            raise DataError(
                "the tower is trained with the model ('backbone.train_tower', or BLIP's own), so it needs the "
                f"{self.noun} themselves; this is a file of features that another tower made once: give the {self.noun}, or "
                "train with a tower that is frozen",
                file=stored,
            )

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        """(len(paths), H * W, 3) float32."""
        return self._cells([open_image(path) for path in paths])

    def get_changed(self, paths: Sequence[str], changes: Sequence[Change]) -> torch.Tensor:
        """The same of pictures that are changed first, each in its own way."""
        return self._cells([change(open_image(path)) for path, change in zip(paths, changes, strict=True)])

    def _cells(self, pictures: Sequence[Any]) -> torch.Tensor:
        """PIL pictures -> (n, H * W, 3) float32."""
        return self._preprocess(pictures).flatten(2).transpose(1, 2).contiguous()

    def to(self, device: Any) -> PixelSource:
        """Nothing is computed here, on whatever device."""
        return self

    def close(self) -> None:
        """Nothing waits to be written."""


class PixelFrames(PixelSource):
    """Reads `count` evenly spaced frames of a video anew for every batch; (H * W, 3) is the `grid` of each.

    It stands where a `FrameStore` stands. `every`: seconds between the pictures of a folder or strip of frames.
    """

    noun = "videos"

    def __init__(self, preprocess: Preprocess, side: int, count: int, *, every: float, decoder: str = "auto") -> None:
        super().__init__(preprocess, side)
        self.count, self.every, self.decoder = count, every, decoder

    def read(self, path: str, span: tuple[float, float] | None = None) -> torch.Tensor:
        """(T, H * W, 3) float32: at most `count` frames of `span` (seconds; None: all) in order of time."""
        return self._cells(spaced_frames(path, self.count, span, self.every, self.decoder))

    def read_changed(self, path: str, span: tuple[float, float] | None, change: Change) -> torch.Tensor:
        """The same of frames that are all changed in one way."""
        return self._cells(list(map(change, spaced_frames(path, self.count, span, self.every, self.decoder))))


def spaced_frames(
    path: str, count: int, span: tuple[float, float] | None, every: float, decoder: str = "auto"
) -> list[Any]:
    """At most `count` evenly spaced pictures of the seconds `span` (None: all) of a video, in order of time.

    A video file gives those in the middle of `count` equal parts. A folder or strip, with a picture every `every` seconds,
    gives the pictures of the span nearest to these instants, each once: it may have fewer. DataError for a span that is
    none, and for what cannot be read.
    """
    from mtvl.data.video import VIDEO_SUFFIXES, iterate_frames, open_video  # slow import: only where videos are decoded

    if path.lower().endswith(VIDEO_SUFFIXES):
        reader = open_video(path, decoder)
        start, end = (0.0, reader.seconds) if span is None else _within(span, reader.seconds, path)
        return list(reader.frames_at([start + (i + 0.5) * (end - start) / count for i in range(count)]))
    frames = list(iterate_frames(path, every, decoder))
    if span is not None:
        try:
            frames = frames[rows_of_span(span, every, len(frames))]
        except ValueError as error:
            raise DataError(str(error), file=path) from None
    if len(frames) <= count:
        return frames
    return [frames[int((i + 0.5) * len(frames) / count)] for i in range(count)]


def _within(span: tuple[float, float], seconds: float, path: str) -> tuple[float, float]:
    """`span` inside a video of `seconds`; DataError unless it is two ascending numbers."""
    start, end = span
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise DataError(f"expected a time span (start, end) in seconds with start <= end, found {span}", file=path)
    return min(max(start, 0.0), seconds), min(max(end, 0.0), seconds)
