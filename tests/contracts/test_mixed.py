"""Batches that mix tasks by example answer every row as a batch of its own task would, for every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mtvl.config import RunConfig
from mtvl.data.mixed import join
from mtvl.errors import PlanError
from mtvl.evaluator import Evaluator
from mtvl.model import Model, build_model
from mtvl.types import Batch, Decoding

MakeConfig = Callable[..., RunConfig]
MakeBatch = Callable[..., Batch]

# Logits up to 5.4. Adapters run on fewer rows at a time and texts have more padding, so sums are ordered otherwise.
DOUBLE = 1e-13  # measured worst case: 4.9e-15
SINGLE = 2e-5  # measured worst case: 2.6e-6


def randomised(config: RunConfig) -> Model:
    """Everything that the method adds is random, so that tasks differ."""
    model, random = build_model(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in model.plan.owners():
            parameter = model.backbone.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return model


def parts_of(make_batch: MakeBatch) -> list[Batch]:
    """Three tasks: other lengths, numbers of rows and of pictures, one of them twice and one without pictures."""
    bare = make_batch("coco", rows=2, source_tokens=2, seed=3)
    bare = replace(bare, features=bare.features[:, :0], feature_mask=bare.feature_mask[:, :0])
    return [make_batch("gqa", rows=3, seed=1), make_batch("vqa", rows=2, pictures=2, source_tokens=9, seed=2), bare,
            make_batch("gqa", rows=1, target_tokens=3, seed=4)]  # fmt: skip


@torch.no_grad()
def test_mixed_rows_are_answered_as_by_their_own_task(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch, tiny_backbones: dict, backbone_name: str
) -> None:
    pad = tiny_backbones[backbone_name].pad_id
    in_single = petl["name"] in ("adapter", "prefix")  # the others differ by their sums no more
    for dtype, limit in [(torch.float64, DOUBLE), *([(torch.float32, SINGLE)] if in_single else [])]:
        compare(randomised(tiny_config(petl)).to(dtype), parts_of(make_batch), limit, pad)


def compare(model: Model, parts: list[Batch], limit: float, pad: int) -> None:
    """Logits, choices and generated ids of the joined batch against those of its parts."""
    mixed = join(parts, pad)
    assert mixed.row_tasks == ("gqa", "gqa", "gqa", "vqa", "vqa", "coco", "coco", "gqa")
    logits = model.backbone.decode(model.encode(mixed), mixed.target_ids)
    beams = Decoding(num_beams=3, max_tokens=7)
    ids = model.generate(mixed, beams)
    scores = model.choose(mixed, [[0, 7, 2], [0, 9, 2]])
    first, differing = 0, 0.0
    for part in parts:
        rows = slice(first, first := first + len(part.uids))
        model.set_task(part.task)
        own = model.logits(part)
        assert float((logits[rows, : own.shape[1]] - own).abs().max()) < limit
        assert float((scores[rows] - model.choose(part, [[0, 7, 2], [0, 9, 2]])).abs().max()) < limit
        alone = model.generate(part, beams)
        width = max(alone.shape[1], ids.shape[1])
        fill = (0, width - alone.shape[1]), (0, width - ids.shape[1])
        padded = [torch.nn.functional.pad(t, f, value=pad) for t, f in zip((alone, ids[rows]), fill, strict=True)]
        if limit == DOUBLE:  # in single precision near ties may fall either way
            assert torch.equal(*padded)
        if model.plan.is_task_private:
            model.set_task("coco" if part.task == "gqa" else "gqa")
            differing = max(differing, float((logits[rows, : own.shape[1]] - model.logits(part)).abs().max()))
    assert differing > 1e-2 or not model.plan.is_task_private  # another task's parts would have been noticed


def test_a_mixed_batch_is_not_trained_on(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model = build_model(tiny_config({"name": "adapter", "share": "none"}))
    mixed = join(parts_of(make_batch), 1)
    with pytest.raises(PlanError, match="for inference"):
        model(mixed)
    with pytest.raises(PlanError, match="vqa, gqa, coco only, not for 'nlvr2'"):
        model.set_rows(["vqa", "nlvr2"])
    model.set_rows(["vqa", "gqa"])
    with pytest.raises(PlanError, match="tasks of 2 rows are set, found 3 rows"):
        model.logits(make_batch("vqa", rows=3))
    model.set_task("vqa")  # ends it
    assert model.logits(make_batch("vqa", rows=3)).shape[0] == 3


class _Task:
    def __init__(self, name: str, decoding: Decoding) -> None:
        self.name, self.decoding = name, decoding


class _Ids:
    """A tokenizer that leaves ids as they are."""

    def wrap(self, ids: list[int]) -> list[int]:
        return [0, *ids, 2]

    def encode(self, text: str) -> list[int]:
        return [int(piece) for piece in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(str(i) for i in ids)


def test_every_task_is_decoded_in_its_own_way(
    tiny_config: MakeConfig, make_batch: MakeBatch, tiny_backbones: dict, backbone_name: str
) -> None:
    pad_id = tiny_backbones[backbone_name].pad_id
    model = randomised(tiny_config({"name": "adapter", "share": "none", "bottleneck": 4})).double()
    tasks = {
        "gqa": _Task("gqa", Decoding(max_tokens=6)),
        "coco": _Task("coco", Decoding(max_tokens=6)),
        "vqa": _Task("vqa", Decoding(mode="choose", choices=("7 8", "9 8"))),
    }
    evaluator, parts = Evaluator(model, _Ids()), parts_of(make_batch)
    found = evaluator.predict_mixed_batch(tasks, join(parts, pad_id))
    assert [task for task, _ in found] == ["gqa"] * 3 + ["vqa"] * 2 + ["coco"] * 2 + ["gqa"]
    alone = [p for part in parts for p in evaluator.predict_batch(tasks[part.task], part)]

    def stripped(text: str) -> str:
        pad = str(pad_id)
        return (
            text.removesuffix(f" {pad}").rstrip()
            if not text.endswith(f" {pad} {pad}")
            else stripped(text[: -len(pad) - 1])
        )

    for (_, mixed), own in zip(found, alone, strict=True):
        assert mixed.uid == own.uid and stripped(mixed.text) == stripped(own.text)
        assert (mixed.scores or {}).keys() == (own.scores or {}).keys()
        for name, score in (own.scores or {}).items():
            assert abs(mixed.scores[name] - score) < DOUBLE

    tasks["coco"] = _Task("coco", Decoding(mode="rank", choices=("a", "b")))
    ranked = replace(parts[2], choice_ids=torch.randint(5, 60, (2, 2, 4), generator=torch.Generator().manual_seed(2)))
    found = evaluator.predict_mixed_batch(tasks, join([parts[0], ranked], pad_id))
    for (_, mixed), own in zip(found[3:], evaluator.predict_batch(tasks["coco"], ranked), strict=True):
        assert mixed.text == own.text and all(abs(mixed.scores[n] - s) < DOUBLE for n, s in own.scores.items())
