"""Ranking a row's own choices: each score is what the choice gets as a target alone, and padding counts for nothing."""

from __future__ import annotations

import dataclasses

import torch

from mtvl.evaluator import Evaluator
from mtvl.model import build_model
from mtvl.objectives.seq2seq import token_losses
from mtvl.types import Decoding

CHOICES = [[[0, 7, 2], [0, 8, 9, 10, 2]], [[0, 11, 12, 2], [0, 13, 2]], [[0, 5, 2], [0, 6, 2]]]


def padded(width: int = 6) -> torch.Tensor:
    return torch.tensor([[ids + [-100] * (width - len(ids)) for ids in row] for row in CHOICES])


def test_scores_are_those_of_each_choice_alone(tiny_config, make_batch) -> None:
    model = build_model(tiny_config()).eval()
    batch = dataclasses.replace(make_batch(rows=3), choice_ids=padded())
    model.set_task(batch.task)
    found = model.rank(batch)
    memory = model.backbone.encode(batch)
    for column in range(2):
        ids = batch.choice_ids[:, column]
        with torch.no_grad():
            losses = token_losses(model.backbone.decode(memory, ids), ids)
        expected = [-losses[row, : len(CHOICES[row][column])].mean() for row in range(3)]
        torch.testing.assert_close(found[:, column], torch.stack(expected), atol=1e-6, rtol=1e-5)


def test_the_answer_is_the_name_of_the_best_choice(tiny_config, make_batch) -> None:
    model = build_model(tiny_config()).eval()
    batch = dataclasses.replace(make_batch(rows=3), choice_ids=padded())

    class Task:
        name, decoding = batch.task, Decoding(mode="rank", choices=("a0", "a1"))

    predictions = Evaluator(model, tokenizer=None).predict_batch(Task, batch)
    scores = model.rank(batch)
    assert [p.text for p in predictions] == [f"a{i}" for i in scores.argmax(1).tolist()]
    assert [set(p.scores) for p in predictions] == [{"a0", "a1"}] * 3
