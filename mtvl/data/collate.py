"""Examples to a Batch: the only place that tokenizes, truncates, pads, draws a target and loads visual features."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from mtvl.data.augment import Augmenter
from mtvl.data.rows import IGNORE, item_id, without_rows
from mtvl.data.schedule import stable_bits
from mtvl.data.visuals import FeatureSource as FeatureSource
from mtvl.data.visuals import FrameSource as FrameSource
from mtvl.data.visuals import VisualLoader
from mtvl.errors import ConfigError, DataError, near_names
from mtvl.types import KEEP, Answers, Batch, Example, Limits, Segment, Target, Tokenizer, wrap_target

_CACHE_TEXTS = 2**18  # of sources and of targets; about 300 bytes each


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
    read goes to `on_bad`, where that is given; its row stays and counts for nothing. Training rows of the tasks `all_answers`
    carry all their targets beside the drawn one. `augment` changes training pictures.
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
        all_answers: Collection[str] = (),
        augment: Augmenter | None = None,
    ) -> None:
        self._tokenizer, self._answers, self._writer = tokenizer, answers, tokenizer if answers is None else answers
        for task, limit in limits.items():
            for name, tokens, special in (
                ("source_tokens", limit.source_tokens, tokenizer.num_special),
                ("target_tokens", limit.target_tokens, self._writer.num_special),
            ):
                if tokens < 0 or 0 < tokens <= special:
                    raise ConfigError(f"task '{task}': '{name}' is {tokens}, expected 0 (no limit) or more than the "
                                      f"{special} special tokens of this backbone")  # fmt: skip
        self._limits = {name: _bounded(limit, max_tokens) for name, limit in limits.items()}
        self._visuals = VisualLoader(
            features, frames, max_frames, text_only=text_only, on_bad=on_bad, augment=augment
        )  # fmt: skip
        self._seed, self._multiple_of, self._all_answers = seed, multiple_of, frozenset(all_answers)
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
        visual, visual_mask, bad = self._visuals.load(kind, examples, epoch_keys if training else None)
        choice_ids, choice_weights = self._choices(task, examples, limits.target_tokens, training)
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
            choice_ids=choice_ids,  # type: ignore[arg-type]
            choice_weights=choice_weights,  # type: ignore[arg-type]
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

    def _choices(
        self, task: str, examples: Sequence[Example], limit: int, training: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Ids (B, C, T) of the rows' own choices, or in training all their answers with their weights (B, C); else None."""
        if training:
            return self._all_targets(examples, limit) if task in self._all_answers else (None, None)
        count = len(examples[0].choices)
        other = next((e for e in examples if len(e.choices) != count), None)
        if other is not None:
            raise DataError(f"task '{other.task}': '{other.uid}' has {len(other.choices)} choices, '{examples[0].uid}' "
                            f"has {count}; all examples need the same number")  # fmt: skip
        if not count:
            return None, None
        ids, _ = self._pad([self._target(text, limit).ids for e in examples for text in e.choices], IGNORE)
        return ids.view(len(examples), count, -1), None

    def _all_targets(self, examples: Sequence[Example], limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All targets of rows as ids (B, C, T), -100 where a row has fewer, and their weights (B, C)."""
        most = max(len(e.targets) for e in examples)
        rows = [[self._target(t.text, limit).ids for t in e.targets] for e in examples]
        ids, _ = self._pad([row[i] if i < len(row) else _NO_IDS for row in rows for i in range(most)], IGNORE)
        weights = [[t.weight for t in e.targets] + [0.0] * (most - len(e.targets)) for e in examples]
        return ids.view(len(examples), most, -1), torch.tensor(weights, dtype=torch.float32)

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
