"""Batches: tokens as in the joined text, cuts by priority, targets drawn by a pure function, features or zeros."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from mtvl.backbones.answers import AnswerList
from mtvl.data.collate import Collator, draw_target
from mtvl.data.rows import IGNORE
from mtvl.errors import ConfigError, DataError
from mtvl.types import Example, Limits, Segment, Target, Visual


class WordTokenizer:
    """Words with their leading space are one token, as in byte-level BPE, so segment borders can fall inside one."""

    pad_id, eos_id, num_special = 1, 2, 2

    def __init__(self) -> None:
        self.words: list[str] = []
        self.calls = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        ids = []
        for word in re.findall(r" ?[^ ]+| ", text):
            if word not in self.words:
                self.words.append(word)
            ids.append(10 + self.words.index(word))
        return ids

    def wrap(self, ids: Sequence[int]) -> list[int]:
        return [0, *ids, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words[i - 10] for i in ids if i >= 10)


class Pictures:
    """Features that name their picture: every cell holds the number in the path."""

    grid = (2, 3)

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.full(self.grid, float(path)) for path in paths])


def example(uid: str, *segments: Segment | str, targets: Sequence[Target] = (Target("yes"),), images=()) -> Example:
    parts = tuple(s if isinstance(s, Segment) else Segment("question", s) for s in segments)
    return Example(uid, "vqa", parts, Visual(tuple(images)), tuple(targets))


def collator(source: int = 0, target: int = 0, **options) -> Collator:
    features = options.pop("features", None)
    return Collator(WordTokenizer(), features, {"vqa": Limits(source, target)}, **options)


def texts(collate: Collator, batch) -> list[str]:
    rows = zip(batch.source_ids, batch.source_mask, strict=True)
    return [collate._tokenizer.decode(row[mask].tolist()) for row, mask in rows]


def test_shapes_padding_and_masks() -> None:
    rows = [example("1", "vqa: ", "what is it"), example("2", "one", targets=[Target("two words", 0.3)])]
    batch = collator().collate("vqa", rows, epoch_keys=[0, 0], training=True)
    assert batch.uids == ("1", "2")
    assert batch.source_ids.shape == batch.source_mask.shape == (2, 6)  # "vqa:", " what", " is", " it" and two specials
    assert batch.source_ids.dtype == batch.target_ids.dtype == torch.int64
    assert batch.source_mask.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert batch.source_ids[1, 3:].tolist() == [1, 1, 1]
    assert batch.target_ids[0].tolist()[3:] == [IGNORE]
    assert batch.target_ids[1].tolist()[0] == 0 and batch.target_ids[1].tolist()[-1] == 2
    assert batch.target_weights.tolist() == pytest.approx([1.0, 0.3])
    assert batch.features.shape == (2, 0, 0, 0)


def test_text_is_tokenized_as_joined() -> None:
    collate = collator()
    batch = collate.collate("vqa", [example("1", "vqa: ", "what")], epoch_keys=[0], training=True)
    assert batch.source_ids[0].tolist() == WordTokenizer().wrap(collate._tokenizer.encode("vqa: what"))
    assert batch.source_ids.shape[1] == 4  # by itself, "vqa: " would end with a token for its space


def test_padded_lengths_are_multiples() -> None:
    batch = collator(multiple_of=8).collate("vqa", [example("1", "a b c")], epoch_keys=[0], training=True)
    assert batch.source_ids.shape == (1, 8) and batch.target_ids.shape == (1, 8)


def test_lowest_priority_loses_first_from_its_end() -> None:
    parts = (
        Segment("subtitles", "s1 s2 s3 s4 ", 10),
        Segment("question", "q1 q2 "),
        Segment("hint", "h1 h2 h3 ", 20),
        Segment("prompt", "tvqa:"),
    )
    expected = {
        12: "s1 s2 s3 s4 q1 q2 h1 h2 h3 tvqa:",
        11: "s1 s2 s3 q1 q2 h1 h2 h3 tvqa:",
        8: "q1 q2 h1 h2 h3 tvqa:",  # the space belongs to "q1", which is to be kept whole
        7: "q1 q2 h1 h2 tvqa:",
        5: "q1 q2 tvqa:",
        4: "q1 q2",  # last resort: the end of the text
    }
    for limit, text in expected.items():
        collate = collator(source=limit)
        batch = collate.collate("vqa", [example("1", *parts)], epoch_keys=[0], training=True)
        assert texts(collate, batch)[0].strip() == text
        assert batch.source_ids.shape[1] <= limit
        assert collate.stats()["vqa"]["cut_keep"] == (limit == 4)
        assert collate.stats()["vqa"]["cut_sources"] == (limit < 12)


def test_equal_priorities_lose_the_later_segment_first() -> None:
    parts = (Segment("a", "a1 a2", 5), Segment("b", " b1 b2", 5), Segment("q", " q"))
    collate = collator(source=5)
    batch = collate.collate("vqa", [example("1", *parts)], epoch_keys=[0], training=True)
    assert texts(collate, batch) == ["a1 a2 q"]


def test_kept_text_alone_is_cut_at_its_end_as_the_reference_does() -> None:
    collate = collator(source=5)
    batch = collate.collate("vqa", [example("1", "vqa: ", "one two three four")], epoch_keys=[0], training=True)
    assert texts(collate, batch) == ["vqa: one two"]
    assert batch.source_ids[0, -1] == 2


def test_targets_are_cut_to_their_limit() -> None:
    collate = collator(target=4)
    row = example("1", "q", targets=[Target("a b c d")])
    batch = collate.collate("vqa", [row], epoch_keys=[0], training=True)
    assert batch.target_ids.shape == (1, 4) and batch.target_ids[0, -1] == 2
    assert collate.stats()["vqa"]["cut_targets"] == 1
    assert collate.num_target_tokens("vqa", [row, example("2", "q")], [0, 0]) == 4 + 3


def test_draws_follow_the_weights_and_depend_on_nothing_else() -> None:
    targets = [Target("never", 0.0), Target("half", 0.5), Target("one", 1.0), Target("nor", 0.0)]
    rows = [example(str(i), "q", targets=targets) for i in range(3000)]
    drawn = [draw_target(row, 7, 0).text for row in rows]
    counts = Counter(drawn)
    assert set(counts) == {"half", "one"}
    assert abs(counts["one"] / 3000 - 2 / 3) < 0.03
    assert [draw_target(row, 7, 0).text for row in reversed(rows)] == drawn[::-1]
    assert [draw_target(row, 7, 1).text for row in rows] != drawn
    assert [draw_target(row, 8, 0).text for row in rows] != drawn
    whole = collator(seed=7).collate("vqa", rows[:64], epoch_keys=[0] * 64, training=True)
    for i in (0, 13, 63):
        one = collator(seed=7).collate("vqa", rows[i : i + 1], epoch_keys=[0], training=True)
        assert one.target_weights[0] == whole.target_weights[i]


def test_no_valid_answer_is_an_empty_text_of_weight_zero() -> None:
    row = example("1", "q", targets=[Target("", 0.0)])
    batch = collator().collate("vqa", [row], epoch_keys=[3], training=True)
    assert batch.target_ids.tolist() == [[0, 2]] and batch.target_weights.tolist() == [0.0]


def test_rows_without_targets_can_be_predicted_only() -> None:
    rows = [example("1", "q", targets=()), example("2", "q", targets=[Target("b", 0.3), Target("a", 0.9)])]
    collate = collator()
    batch = collate.collate("vqa", rows, training=False)
    assert batch.target_ids[0].tolist() == [IGNORE] * 3
    assert collate._tokenizer.decode(batch.target_ids[1].tolist()) == "a"
    assert collate.collate("vqa", rows[:1], training=False).target_ids.tolist() == [[IGNORE]]
    with pytest.raises(DataError, match="'1' has no targets"):
        collate.collate("vqa", rows, epoch_keys=[0, 0], training=True)
    with pytest.raises(ValueError, match="epoch for each"):
        collate.collate("vqa", rows[1:], training=True)


def test_features_stand_in_picture_order_and_text_only_reads_none() -> None:
    rows = [example("1", "q", images=("1", "2")), example("2", "q", images=("3", "4"))]
    batch = collator(features=Pictures()).collate("vqa", rows, epoch_keys=[0, 0], training=True)
    assert batch.features.shape == (2, 2, 2, 3)
    assert batch.features[:, :, 0, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]

    class Unreadable(Pictures):
        def get(self, paths: Sequence[str]) -> torch.Tensor:
            raise AssertionError("text-only must not read features")

    blind = collator(features=Unreadable(), text_only=True).collate("vqa", rows, epoch_keys=[0, 0], training=True)
    assert blind.features.shape == batch.features.shape and not blind.features.any()
    assert torch.equal(blind.source_ids, batch.source_ids)
    with pytest.raises(DataError, match="'1' has 2, '3' has 1"):
        collator(features=Pictures()).collate("vqa", [rows[0], example("3", "q", images=("1",))], training=False)
    with pytest.raises(ConfigError, match="without a feature source"):
        collator().collate("vqa", rows, training=False)


def test_texts_are_tokenized_once_and_padding_is_counted() -> None:
    collate = collator()
    rows = [example("1", "a b c d"), example("2", "a")]
    collate.collate("vqa", rows, epoch_keys=[0, 0], training=True)
    calls = collate._tokenizer.calls
    collate.collate("vqa", rows[::-1], epoch_keys=[1, 1], training=True)
    assert collate._tokenizer.calls == calls
    stats = collate.stats()["vqa"]
    assert stats["rows"] == 4
    assert stats["source_padding"] == pytest.approx(1 - 9 / 12)
    assert stats["target_padding"] == 0


def test_impossible_limits_and_unknown_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="'target_tokens' is 2"):
        collator(target=2)
    with pytest.raises(ConfigError, match="did you mean 'vqa'"):
        collator().collate("vqaa", [example("1", "q")], training=False)


def test_targets_may_be_places_in_a_list_of_answers() -> None:
    answers = AnswerList({"vqa": ["yes", "no"], "gqa": ["left"]}, size=4)
    rows = [
        example("1", "is it?", targets=[Target("no", 0.3), Target("yes", 0.9)]),
        example("2", "what is it?", targets=[Target("unheard of", 1.0)]),
        example("3", "and this?", targets=[]),
    ]
    made = collator(answers=answers, target=1).collate("vqa", rows, training=False)
    assert made.target_ids.tolist() == [[0], [IGNORE], [IGNORE]]
    wanted = torch.tensor([[0.9, 0.3, -1, -1], [0, 0, -1, -1], [0, 0, -1, -1]])
    assert made.answer_scores.dtype == torch.float32 and torch.equal(made.answer_scores, wanted)
    assert made.source_ids.shape[1] > 3  # sources are text as ever
    drawn = collator(answers=answers).collate("vqa", rows[:1], epoch_keys=[0], training=True)
    assert drawn.target_ids.shape == (1, 1) and torch.equal(drawn.answer_scores, wanted[:1])
    assert collator().collate("vqa", rows[:1], training=False).answer_scores.shape == (1, 0)
