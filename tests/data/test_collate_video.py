"""Videos in a batch: padded to the longest, masked, shortened by the reference's rule, zeroed for the baseline."""

from __future__ import annotations

import pytest
import torch
from test_collate import WordTokenizer, example

from mtvl.data.collate import Collator
from mtvl.data.rows import shorten_video
from mtvl.errors import ConfigError, DataError
from mtvl.types import Example, Limits, Visual


class Videos:
    """The path is the number of frames; a frame holds its number, from the start of the span."""

    grid = (2, 3)

    def read(self, path: str, span=None) -> torch.Tensor:
        first, last = (0, int(path)) if span is None else map(int, span)
        return torch.arange(first, last).float().view(-1, 1, 1).expand(-1, *self.grid)


def video(uid: str, path: str, span=None) -> Example:
    plain = example(uid, "what happens")
    return Example(uid, "vqa", plain.segments, Visual(video=path, span=span), plain.targets)


def collator(**options) -> Collator:
    return Collator(WordTokenizer(), None, {"vqa": Limits()}, frames=Videos(), **options)


def test_videos_are_padded_to_the_longest_and_masked() -> None:
    batch = collator().collate("vqa", [video("a", "3"), video("b", "9", (4.0, 6.0))], training=False)
    assert batch.feature_kind == "frame" and batch.features.shape == (2, 1, 6, 3)
    assert batch.features[0, 0, :, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.features[1, 0, :, 0].tolist() == [4, 4, 5, 5, 0, 0]
    assert batch.feature_mask[:, 0].tolist() == [[True] * 6, [True] * 4 + [False] * 2]


def test_text_only_reads_nothing() -> None:
    batch = collator(text_only=True, max_frames=4).collate("vqa", [video("a", "3")], training=False)
    assert batch.features.shape == (1, 1, 8, 3) and not batch.features.any() and batch.feature_mask.all()


def test_long_videos_are_max_pooled_over_time() -> None:
    rows = torch.arange(10).float().view(10, 1, 1).expand(-1, 2, 3)
    # Bins of adaptive pooling: floor(i * 10 / 4) to ceil((i + 1) * 10 / 4).
    assert shorten_video(rows, 4)[:, 0, 0].tolist() == [2, 4, 7, 9]
    assert shorten_video(rows, 10) is rows
    batch = collator(max_frames=4).collate("vqa", [video("a", "10")], training=False)
    assert batch.features[0, 0, ::2, 0].tolist() == [2, 4, 7, 9]


def test_kinds_are_not_mixed_and_a_source_is_needed() -> None:
    with pytest.raises(DataError, match="'b' has no video"):
        collator().collate("vqa", [video("a", "3"), example("b", "x")], training=False)
    with pytest.raises(DataError, match="'a' has a video, 'b' has none"):
        collator().collate("vqa", [example("b", "x"), video("a", "3")], training=False)
    with pytest.raises(ConfigError, match="without a source of frames"):
        Collator(WordTokenizer(), None, {"vqa": Limits()}).collate("vqa", [video("a", "3")], training=False)
