"""Examples to a Batch: the only place that tokenizes, truncates, pads, draws a target and loads visual features."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mtvl.data.rows import IGNORE, item_id, shorten_video, without_rows
from mtvl.data.schedule import stable_bits
from mtvl.errors import ConfigError, DataError, near_names
from mtvl.types import KEEP, Answers, Batch, Example, Limits, Segment, Target, Tokenizer, wrap_target

_CACHE_TEXTS = 2**18  # of sources and of targets; about 300 bytes each


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


class Encoded(NamedTuple):
    """Wrapped ids of a text, int64, and what the limit cost: tokens cut in all, and those of segments to be kept."""

    ids: np.ndarray
    num_cut: int
    num_cut_keep: int


class Collator:
    """Makes batches with `tokenizer` under the `limits` of each task; safe to call from several threads.

    `features` may be None when no task has pictures, `frames` when none has videos. At most `max_frames` of a video are
    kept. `max_tokens` is the longest text that the backbone can read or write (0: no limit); it binds where a task's limit
    is higher. With `answers` targets are places in that list and no text. `text_only` puts zeros in place of features without reading any.
    `multiple_of` rounds padded lengths up. `seed` decides, with task, uid and epoch, which target is drawn, so the draw
    is the same for any number of ranks, micro-batches and workers. A training example whose picture or video cannot be
    read goes to `on_bad`, where that is given; its row stays and counts for nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        features: FeatureSource | None,
        limits: Mapping[str, Limits],
        *,
        frames: FrameSource | None = None,
        max_frames: int = 64,
        max_tokens: int = 0,
        answers: Answers | None = None,
        seed: int = 0,
        text_only: bool = False,
        multiple_of: int = 1,
        on_bad: Callable[[Example, DataError], None] | None = None,
    ) -> None:
        self._tokenizer, self._features = tokenizer, features
        self._answers, self._writer = answers, tokenizer if answers is None else answers
        for task, limit in limits.items():
            for name, tokens, special in (
                ("source_tokens", limit.source_tokens, tokenizer.num_special),
                ("target_tokens", limit.target_tokens, self._writer.num_special),
            ):
                if tokens < 0 or 0 < tokens <= special:
                    raise ConfigError(f"task '{task}': '{name}' is {tokens}, expected 0 (no limit) or more than the "
                                      f"{special} special tokens of this backbone")  # fmt: skip
        self._limits = {name: _bounded(limit, max_tokens) for name, limit in limits.items()}
        self._frames, self._max_frames = frames, max_frames
        self._seed, self._text_only, self._multiple_of, self._on_bad = seed, text_only, multiple_of, on_bad
        # Fast tokenizers refuse to be used by two threads at once ("Already borrowed").
        self._tokenizer_lock = threading.Lock()
        self._source = lru_cache(maxsize=_CACHE_TEXTS)(self._encode_source)
        self._target = lru_cache(maxsize=_CACHE_TEXTS)(self._encode_target)
        self._counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._counts_lock = threading.Lock()

    def collate(
        self, task: str, examples: Sequence[Example], *, epoch_keys: Sequence[int] | None = None, training: bool
    ) -> Batch:
        """Batch of B = len(examples) rows of one task.

        In training one target per row is drawn for its epoch in `epoch_keys` (length B, required); otherwise the row
        holds its heaviest target, or -100 throughout when it has none. Raises DataError for a training example without
        targets and for rows with different numbers of pictures, ConfigError for an unknown task.
        """
        if not examples:
            raise ValueError("a batch needs at least one example")
        limits = self._limits_of(task)
        targets: Sequence[Target | None]
        if training:
            targets = self._draw_all(examples, epoch_keys)
        else:
            targets = [max(e.targets, key=lambda t: t.weight, default=None) for e in examples]
        sources = [self._source(e.segments, limits.source_tokens) for e in examples]
        wanted = [self._target(t.text, limits.target_tokens) if t else None for t in targets]
        source_ids, source_mask = self._pad([s.ids for s in sources], self._tokenizer.pad_id)
        target_ids, target_mask = self._pad([w.ids if w else _NO_IDS for w in wanted], IGNORE)
        self._count(task, sources, wanted, source_mask, target_mask)
        kind = "frame" if examples[0].visual.video else "grid"
        visual, visual_mask, bad = self._load_visual(kind, examples, training)
        batch = Batch(
            task=task,
            uids=tuple(e.uid for e in examples),
            source_ids=source_ids,
            source_mask=source_mask,
            features=visual,
            feature_mask=visual_mask,  # type: ignore[arg-type]
            feature_kind=kind,
            target_ids=target_ids,
            target_weights=torch.tensor([t.weight if t else 0.0 for t in targets], dtype=torch.float32),
            answer_scores=self._answer_scores(task, examples),  # type: ignore[arg-type]
            choice_ids=None if training else self._choices(examples, limits.target_tokens),  # type: ignore[arg-type]
            item_ids=torch.tensor([item_id(e.visual) for e in examples], dtype=torch.int64),
        )
        return without_rows(batch, bad) if bad else batch

    def num_target_tokens(self, task: str, examples: Sequence[Example], epoch_keys: Sequence[int]) -> int:
        """Target tokens of these training rows, special tokens included, without making a batch.

        Every rank can so count a whole slot by itself: the "token_mean" denominator needs no communication.
        """
        limit = self._limits_of(task).target_tokens
        return sum(len(self._target(t.text, limit).ids) for t in self._draw_all(examples, epoch_keys))

    def stats(self) -> dict[str, dict[str, float]]:
        """Per task since the start: rows, padding shares, and rows that lost tokens to the limits.

        "source_padding" and "target_padding" are shares of padded cells; "cut_keep" counts rows that lost tokens of
        segments which should never lose any.
        """
        result = {}
        with self._counts_lock:
            for task, c in self._counts.items():
                result[task] = {
                    "rows": c["rows"],
                    "source_padding": 1 - c["source_tokens"] / max(1, c["source_cells"]),
                    "target_padding": 1 - c["target_tokens"] / max(1, c["target_cells"]),
                    "cut_sources": c["cut_sources"],
                    "cut_keep": c["cut_keep"],
                    "cut_targets": c["cut_targets"],
                }
        return result

    def _choices(self, examples: Sequence[Example], limit: int) -> torch.Tensor | None:
        """Ids (B, C, T) of the rows' own choices, or None when they have none."""
        count = len(examples[0].choices)
        other = next((e for e in examples if len(e.choices) != count), None)
        if other is not None:
            raise DataError(f"task '{other.task}': '{other.uid}' has {len(other.choices)} choices, '{examples[0].uid}' "
                            f"has {count}; all examples need the same number")  # fmt: skip
        if not count:
            return None
        ids, _ = self._pad([self._target(text, limit).ids for e in examples for text in e.choices], IGNORE)
        return ids.view(len(examples), count, -1)

    def _answer_scores(self, task: str, examples: Sequence[Example]) -> torch.Tensor | None:
        """Weights (B, K) of the targets over the list of answers; None where there is none."""
        if self._answers is None:
            return None
        return torch.from_numpy(np.stack([self._answers.scores(task, e.targets) for e in examples]))

    def _limits_of(self, task: str) -> Limits:
        try:
            return self._limits[task]
        except KeyError:
            raise ConfigError(f"the collator has no task '{task}'; {near_names(task, self._limits)}") from None

    def _draw_all(self, examples: Sequence[Example], epoch_keys: Sequence[int] | None) -> list[Target]:
        if epoch_keys is None or len(epoch_keys) != len(examples):
            raise ValueError(f"training needs an epoch for each of {len(examples)} examples, found {epoch_keys}")
        return [draw_target(e, self._seed, epoch) for e, epoch in zip(examples, epoch_keys, strict=True)]

    def _tokens(self, text: str, tokenizer: Tokenizer | None = None) -> list[int]:
        with self._tokenizer_lock:
            return (tokenizer or self._tokenizer).encode(text)

    def _encode_source(self, segments: tuple[Segment, ...], limit: int) -> Encoded:
        ids = self._tokens("".join(s.text for s in segments))
        room = limit - self._tokenizer.num_special if limit else len(ids)
        cut = len(ids) - room
        if cut <= 0:
            return Encoded(np.array(self._tokenizer.wrap(ids), dtype=np.int64), 0, 0)
        kept, cut_keep = _shorten(ids, self._spans(ids, segments), segments, cut)
        return Encoded(np.array(self._tokenizer.wrap(kept), dtype=np.int64), cut, cut_keep)

    def _spans(self, ids: list[int], segments: Sequence[Segment]) -> list[int]:
        """End of each segment in the ids of the joined text.

        The text is tokenized as a whole, as it is when it fits. A segment ends where the ids of the text up to its end
        stop agreeing with those of the whole: a token that reaches over a border belongs to the segment after it.
        """
        ends, text = [], ""
        for segment in segments[:-1]:
            text += segment.text
            prefix = self._tokens(text)
            agree = next((i for i, (a, b) in enumerate(zip(prefix, ids, strict=False)) if a != b), len(prefix))
            ends.append(min(agree, len(ids)))
        return [*ends, len(ids)]

    def _encode_target(self, text: str, limit: int) -> Encoded:
        ids = self._tokens(text, self._writer)
        kept = ids[: limit - self._writer.num_special] if limit else ids
        return Encoded(np.array(wrap_target(self._writer, kept), dtype=np.int64), len(ids) - len(kept), 0)

    def _pad(self, rows: Sequence[np.ndarray], fill: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ids (B, longest) int64 and their mask (bool); at least one column."""
        lengths = np.array([len(row) for row in rows])
        width = -(-max(1, int(lengths.max())) // self._multiple_of) * self._multiple_of
        mask = np.arange(width) < lengths[:, None]
        ids = np.full(mask.shape, fill, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def _load_visual(
        self, kind: str, examples: Sequence[Example], training: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, list[int]]:
        """Features, their mask, and the rows that have those of another row, because their own cannot be read."""
        load = self._load_video if kind == "frame" else self._load_features
        try:
            return *load(examples), []
        except DataError:
            if not training or self._on_bad is None:
                raise
        bad = []
        for row, example in enumerate(examples):
            try:
                load([example])
            except DataError as error:
                self._on_bad(example, error)
                bad.append(row)
        good = next((e for row, e in enumerate(examples) if row not in bad), None)
        if good is None:
            return *self._blank(kind, examples), bad
        return *load([good if row in bad else e for row, e in enumerate(examples)]), bad

    def _blank(self, kind: str, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Zeros in place of the features of `examples`."""
        source = self._frames if kind == "frame" else self._features
        assert source is not None
        tokens, width = source.grid
        if kind == "frame":
            shape = (len(examples), 1, self._max_frames * tokens)
            return torch.zeros(*shape, width), torch.ones(shape, dtype=torch.bool)
        return torch.zeros(len(examples), len(examples[0].visual.images), tokens, width), None

    def _load_features(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor | None]:
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
        shape = (len(examples), num_pictures, *self._features.grid)
        return self._features.get([path for e in examples for path in e.visual.images]).view(shape), None

    def _load_video(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor | None]:
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
        rows = [shorten_video(self._frames.read(e.visual.video, e.visual.span), self._max_frames) for e in examples]
        longest = max(len(row) for row in rows)
        features = torch.zeros(len(rows), 1, longest * tokens, width)
        mask = torch.zeros(features.shape[:3], dtype=torch.bool)
        for i, row in enumerate(rows):
            features[i, 0, : len(row) * tokens] = row.reshape(-1, width)
            mask[i, 0, : len(row) * tokens] = True
        return features, mask

    def _count(
        self,
        task: str,
        sources: Sequence[Encoded],
        targets: Sequence[Encoded | None],
        source_mask: torch.Tensor,
        target_mask: torch.Tensor,
    ) -> None:
        found = {
            "rows": len(sources),
            "source_tokens": sum(len(s.ids) for s in sources),
            "source_cells": source_mask.numel(),
            "target_tokens": sum(len(t.ids) for t in targets if t),
            "target_cells": target_mask.numel(),
            "cut_sources": sum(s.num_cut > 0 for s in sources),
            "cut_keep": sum(s.num_cut_keep > 0 for s in sources),
            "cut_targets": sum(t.num_cut > 0 for t in targets if t),
        }
        with self._counts_lock:
            counts = self._counts[task]
            for name, value in found.items():
                counts[name] += value


_NO_IDS = np.empty(0, dtype=np.int64)


def _bounded(limits: Limits, most: int) -> Limits:
    """`limits` with neither above `most` (0: as they are)."""
    if not most:
        return limits
    return Limits(*(min(tokens or most, most) for tokens in (limits.source_tokens, limits.target_tokens)))


def draw_target(example: Example, seed: int, epoch: int) -> Target:
    """One target with probability proportional to its weight: a pure function of (seed, task, uid, epoch).

    Targets of weight 0 are drawn only when there is no other ("no valid answer" is an empty text of weight 0). Raises
    DataError when the example has none.

    *Source:* VL-Adapter draws one answer by its soft score; there the draw hangs on a worker's generator.
    """
    targets = example.targets
    if not targets:
        raise DataError(f"task '{example.task}': example '{example.uid}' has no targets and cannot be trained on; "
                        "train on an annotated split")  # fmt: skip
    if len(targets) == 1:
        return targets[0]
    sums = list(accumulate(t.weight for t in targets))
    if not sums[-1] > 0:
        return targets[0]
    # 52 bits, not 53: the product must stay below the last sum after rounding.
    point = (stable_bits(seed, "target", example.task, example.uid, epoch) >> 76) / 2**52 * sums[-1]
    return targets[bisect_right(sums, point)]


def _shorten(ids: list[int], ends: Sequence[int], segments: Sequence[Segment], cut: int) -> tuple[list[int], int]:
    """`ids` without `cut` tokens, and how many of those came from segments to be kept.

    The lowest priority loses first, the last segment among equals, each from its end; what is left to cut after that
    goes from the end of the text.
    """
    starts = [0, *ends[:-1]]
    keep = [True] * len(ids)
    for i in sorted(range(len(segments)), key=lambda i: (segments[i].priority, -i)):
        if segments[i].priority >= KEEP:
            break
        lost = min(cut, max(0, ends[i] - starts[i]))
        keep[ends[i] - lost : ends[i]] = [False] * lost
        cut -= lost
    kept = [token for token, is_kept in zip(ids, keep, strict=True) if is_kept]
    return (kept[:-cut], cut) if cut else (kept, 0)
