"""All answers of a row in one step, and the ranking of a list, on every backbone that writes its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mtvl.config import RunConfig
from mtvl.data.rows import without_rows
from mtvl.errors import ConfigError
from mtvl.evaluator import KEPT, Evaluator
from mtvl.model import Model, build_model
from mtvl.objectives.seq2seq import token_losses
from mtvl.types import Batch, Decoding

MakeConfig, MakeBatch = Callable[..., RunConfig], Callable[..., Batch]
ANSWERS = [["7 8", "9"], ["10 11 12"], ["13", "14 15", "7 8"]]
WEIGHTS = [[0.6, 0.3], [1.0], [0.1, 0.2, 0.7]]
LISTED = ("7 8", "9", "10 11 12", "13", "14 15", "16", "9 17")


class Ids:
    """A tokenizer whose words are numbers; the answers end as the backbone's."""

    def __init__(self, eos_id: int) -> None:
        self.eos_id = eos_id

    def wrap(self, ids: list[int]) -> list[int]:
        return [5, *ids, self.eos_id]

    def encode(self, text: str) -> list[int]:
        return [int(piece) for piece in text.split()]


class Task:
    name = "vqa"

    def __init__(self, **decoding: Any) -> None:
        self.decoding = Decoding(mode="rank_list", **decoding)

    def listed_answers(self) -> tuple[str, ...]:
        return LISTED


@pytest.fixture
def model(tiny_config: MakeConfig, backbone_name: str) -> Model:
    if backbone_name == "clip_vil":
        pytest.skip("answers from a list of its own")
    return build_model(tiny_config()).eval()


@pytest.fixture
def words(tiny_backbones: dict, backbone_name: str) -> Ids:
    return Ids(tiny_backbones[backbone_name].eos_id)


def with_answers(batch: Batch, words: Ids) -> Batch:
    """A batch of three rows with two, one and three answers."""
    ids, weights = torch.full((3, 3, 5), -100), torch.zeros(3, 3)
    for row, answers in enumerate(ANSWERS):
        for place, answer in enumerate(answers):
            wrapped = words.wrap(words.encode(answer))
            ids[row, place, : len(wrapped)] = torch.tensor(wrapped)
            weights[row, place] = WEIGHTS[row][place]
    return replace(batch, loss="answers", choice_ids=ids, choice_weights=weights, denominator=3.0)


def test_the_loss_is_that_of_every_answer_alone(model: Model, words: Ids, make_batch: MakeBatch) -> None:
    batch = with_answers(make_batch(rows=3), words)
    model.set_task("vqa")
    loss = model(batch)
    memory, expected = model.backbone.encode(batch), torch.zeros(())
    for place in range(3):
        ids = batch.choice_ids[:, place].masked_fill(batch.choice_weights[:, place, None] == 0, -100)
        ids[(ids == -100).all(1), 0] = 5  # something to decode, which weighs nothing
        losses = token_losses(model.backbone.decode(memory, ids), ids).sum(1)
        expected = expected + (losses * batch.choice_weights[:, place]).sum() / 3
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.trainable().values())
    assert not torch.isclose(model(replace(batch, label_smoothing=0.1)), loss)


def test_rows_that_count_for_nothing_run_and_weigh_nothing(model: Model, words: Ids, make_batch: MakeBatch) -> None:
    batch = with_answers(make_batch(rows=3), words)
    model.set_task("vqa")
    kept = replace(batch, choice_weights=batch.choice_weights.clone())
    kept.choice_weights[1:] = 0
    torch.testing.assert_close(model(without_rows(batch, [1, 2])), model(kept))
    nothing = model(without_rows(batch, [0, 1, 2]))
    nothing.backward()
    assert float(nothing.detach()) == 0 and all(
        not p.grad.any() for p in model.trainable().values() if p.grad is not None
    )


def test_a_list_is_ranked_as_one_by_one(model: Model, words: Ids, make_batch: MakeBatch) -> None:
    """All answers begin with one token here; the second one picks the best three, and likelihood ranks them."""
    batch = make_batch(rows=3)
    found = Evaluator(model, words).predict_batch(Task(top=3), batch)
    model.set_task("vqa")
    memory = model.backbone.encode(batch)
    wrapped = [words.wrap(words.encode(text)) for text in LISTED]
    with torch.no_grad():
        first = torch.log_softmax(model.backbone.decode(memory, torch.tensor([[5, 5]] * 3))[:, 1], 1)
        whole = []
        for ids in wrapped:
            target = torch.tensor([ids] * 3)
            whole.append(-token_losses(model.backbone.decode(memory, target), target).sum(1))
    for row, prediction in enumerate(found):
        by_first = [float(first[row, ids[1]]) for ids in wrapped]
        third = sorted(by_first)[-3]
        among = {text: float(whole[i][row]) for i, text in enumerate(LISTED) if by_first[i] >= third - 1e-6}
        assert set(prediction.scores) <= set(among) and len(prediction.scores) == 3
        assert all(score == pytest.approx(among[text], abs=1e-4) for text, score in prediction.scores.items())
        assert prediction.text == max(prediction.scores, key=prediction.scores.__getitem__)
    everything = Evaluator(model, words).predict_batch(Task(top=99, choices=LISTED[:2] + LISTED), batch)
    assert all(len(p.scores) == KEPT for p in everything)
    best = torch.stack(whole, 1).argmax(1).tolist()
    assert [p.text for p in everything] == [LISTED[i] for i in best]


def test_a_backbone_with_a_list_of_its_own_says_so(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model = build_model(tiny_config()).eval()
    if getattr(model.backbone, "answers", None) is None:
        pytest.skip("writes its answers")
    with pytest.raises(ConfigError, match="decoding.mode=generate"):
        Evaluator(model, Ids(2)).predict_batch(Task(), make_batch(rows=3))
