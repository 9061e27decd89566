"""The visual half of a batch: features or pixels of its rows' pictures, or of their videos, and what to do without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from mtvl.data.augment import Augmenter
from mtvl.data.features.pixels import PixelFrames, PixelSource
from mtvl.data.rows import shorten_video
from mtvl.errors import ConfigError, DataError
from mtvl.types import Example

Loaded = tuple[torch.Tensor, torch.Tensor | None]  # features, and their mask where not all are there
NO_PIXELS = (
    "'data.augment' changes training pictures before the model sees them, but this backbone reads features that a frozen tower "
    "computed once; leave data.augment out, or take a backbone that reads pixels (backbone.name=blip, or "
    "backbone.train_tower=true for tasks on pictures)"
)
OnBad = Callable[[Example, DataError], None]


class FeatureSource(Protocol):
    """Where visual features come from; `mtvl.data.features.FeatureStore` is one."""

    @property
    def grid(self) -> tuple[int, int]:
        """(P, F) of a picture."""

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        """(len(paths), P, F) float32."""


class FrameSource(Protocol):
    """Where the features of video frames come from; `mtvl.data.features` has one."""

    @property
    def grid(self) -> tuple[int, int]:
        """(P, F) of a frame."""

    def read(self, path: str, span: tuple[float, float] | None = None) -> torch.Tensor:
        """(T, P, F) float32: the frames of `span` (seconds; None: all) in order of time, at least one."""


class VisualLoader:
    """Loads the visual input of rows of one task; safe to call from several threads.

    `features`, `frames`, `max_frames`, `text_only` and `on_bad` as for `mtvl.data.collate.Collator`. `augment` changes
    training pictures; ConfigError where they are no pixels but features, which were computed once and for all.
    """

    def __init__(
        self, features: FeatureSource | None, frames: FrameSource | None, max_frames: int, *, text_only: bool = False,
        on_bad: OnBad | None = None, augment: Augmenter | None = None,
    ) -> None:  # fmt: skip
        stored = [s for s in (features, frames) if s is not None and not isinstance(s, PixelSource)]
        if augment is not None and stored:
            raise ConfigError(NO_PIXELS)
        self._features, self._frames, self._max_frames = features, frames, max_frames
        self._text_only, self._on_bad, self._augment = text_only, on_bad, augment

    def load(
        self, kind: str, examples: Sequence[Example], epochs: Sequence[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
        """Features (B, N, P, F), their mask, and the rows that have those of another row, because their own cannot be read.

        `epochs` of the rows in training, where such rows are allowed; None in evaluation.
        """
        load = self._load_video if kind == "frame" else self._load_features
        try:
            return *load(examples, epochs), []
        except DataError:
            if epochs is None or self._on_bad is None:
                raise
        bad = []
        for row, example in enumerate(examples):
            try:
                load([example], [epochs[row]])
            except DataError as error:
                self._on_bad(example, error)
                bad.append(row)
        good = next((row for row in range(len(examples)) if row not in bad), None)
        if good is None:
            return *self._blank(kind, examples), bad
        rows = [good if row in bad else row for row in range(len(examples))]
        return *load([examples[row] for row in rows], [epochs[row] for row in rows]), bad

    def _blank(self, kind: str, examples: Sequence[Example]) -> Loaded:
        """Zeros in place of the features of `examples`."""
        source = self._frames if kind == "frame" else self._features
        assert source is not None
        tokens, width = source.grid
        if kind == "frame":
            shape = (len(examples), 1, self._max_frames * tokens)
            return torch.zeros(*shape, width), torch.ones(shape, dtype=torch.bool)
        return torch.zeros(len(examples), len(examples[0].visual.images), tokens, width), None

    def _load_features(self, examples: Sequence[Example], epochs: Sequence[int] | None) -> Loaded:
        """Grid features (B, N, P, F) of the pictures; all of them are there."""
        num_pictures = len(examples[0].visual.images)
        for e in examples:
            if len(e.visual.images) != num_pictures:
                raise DataError(
                    f"task '{e.task}': all examples need the same number of pictures; '{examples[0].uid}' has "
                    f"{num_pictures}, '{e.uid}' has {len(e.visual.images)}"
                )
            if e.visual.video:
                raise DataError(f"task '{e.task}': '{e.uid}' has a video, '{examples[0].uid}' has none; "
                                "all examples of a task need the same kind")  # fmt: skip
        if num_pictures == 0:
            return torch.zeros(len(examples), 0, 0, 0), None
        if self._features is None:
            raise ConfigError(f"task '{examples[0].task}' has pictures, but the collator was made without a feature "
                              "source")  # fmt: skip
        if self._text_only:
            return self._blank("grid", examples)
        paths = [path for e in examples for path in e.visual.images]
        if self._augment is None or epochs is None:
            found = self._features.get(paths)
        else:
            assert isinstance(self._features, PixelSource)
            each = zip(examples, epochs, strict=True)
            changes = [self._augment.change(e, i, epoch) for e, epoch in each for i in range(num_pictures)]
            found = self._features.get_changed(paths, changes)
        return found.view(len(examples), num_pictures, *self._features.grid), None

    def _load_video(self, examples: Sequence[Example], epochs: Sequence[int] | None) -> Loaded:
        """Frame tokens (B, 1, P, F) padded to the longest video of the batch, and their mask (B, 1, P)."""
        if self._frames is None:
            raise ConfigError(
                f"task '{examples[0].task}' has videos, but the collator was made without a source of frames"
            )
        bare = next((e for e in examples if not e.visual.video or e.visual.images), None)
        if bare is not None:
            raise DataError(f"task '{bare.task}': '{bare.uid}' has no video or has pictures beside it; "
                            "all examples of a task need the same kind")  # fmt: skip
        tokens, width = self._frames.grid
        if self._text_only:
            return self._blank("frame", examples)
        found = [self._frames_of(e, None if epochs is None else epochs[i]) for i, e in enumerate(examples)]
        rows = [shorten_video(row, self._max_frames) for row in found]
        longest = max(len(row) for row in rows)
        features = torch.zeros(len(rows), 1, longest * tokens, width)
        mask = torch.zeros(features.shape[:3], dtype=torch.bool)
        for i, row in enumerate(rows):
            features[i, 0, : len(row) * tokens] = row.reshape(-1, width)
            mask[i, 0, : len(row) * tokens] = True
        return features, mask

    def _frames_of(self, example: Example, epoch: int | None) -> torch.Tensor:
        """(T, P, F): the frames of an example's video."""
        assert self._frames is not None
        visual = example.visual
        if self._augment is None or epoch is None:
            return self._frames.read(visual.video, visual.span)
        assert isinstance(self._frames, PixelFrames)
        return self._frames.read_changed(visual.video, visual.span, self._augment.change(example, 0, epoch))
