"""The stream: the same rows for any ranks, micro-batches and threads, normalised over the whole slot."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from mtvl.config import DataConfig, MixtureConfig, RunConfig, TrainConfig
from mtvl.data.collate import Collator
from mtvl.data.schedule import Schedule
from mtvl.errors import ConfigError
from mtvl.loader import Loader, evaluation_batches
from mtvl.types import Batch, Example, Limits, Segment, Target, Visual

SIZES = {"vqa": 101, "coco": 10, "nlvr2": 3}


class Letters:
    pad_id, eos_id, num_special = 1, 2, 2

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        return [0, *ids, 2]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > 2)


def make_examples() -> dict[str, list[Example]]:
    def row(task: str, i: int) -> Example:
        targets = tuple(Target("x" * (1 + (i + k) % 7), 0.3 * (k + 1)) for k in range(3))
        return Example(f"{task}-{i}", task, (Segment("q", f"{task} {i} " + "w" * (i % 5)),), Visual(), targets)

    return {task: [row(task, i) for i in range(size)] for task, size in SIZES.items()}


TASKS = {
    "vqa": SimpleNamespace(name="vqa", loss="sample_mean", label_smoothing=0.0, limits=Limits(0, 6)),
    "coco": SimpleNamespace(name="coco", loss="token_mean", label_smoothing=0.0, limits=Limits()),
    "nlvr2": SimpleNamespace(name="nlvr2", loss="sample_mean", label_smoothing=0.0, limits=Limits(8, 0)),
}


def make_loader(
    micro_batch: int = 16, rank: int = 0, world: int = 1, workers: int = 0, global_batch: int = 16, seed: int = 4
) -> Loader:
    config = RunConfig(
        tasks=tuple(SIZES),
        seed=seed,
        data=DataConfig(workers=workers),
        mixture=MixtureConfig(law="equal", slots=2, block=9, loss_weights={"coco": 0.5}),
        train=TrainConfig(global_batch=global_batch, micro_batch=micro_batch),
    )
    schedule = Schedule(SIZES, config.mixture, global_batch, seed)
    collator = Collator(Letters(), None, {n: t.limits for n, t in TASKS.items()}, seed=seed)
    return Loader(make_examples(), TASKS, schedule, collator, config, rank, world)


def rows_of(batches: Sequence[Batch]) -> Counter:
    rows: Counter = Counter()
    for batch in batches:
        for uid, source, mask, target, weight in zip(
            batch.uids, batch.source_ids, batch.source_mask, batch.target_ids, batch.target_weights, strict=True
        ):
            if uid:
                kept = tuple(target[target != -100].tolist())
                rows[batch.task, uid, tuple(source[mask].tolist()), kept, float(weight)] += 1
    return rows


def same(left: Sequence[Batch], right: Sequence[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(v, vars(b)[k]) if isinstance(v, torch.Tensor) else v == vars(b)[k]
        for a, b in zip(left, right, strict=True)
        for k, v in vars(a).items()
    )


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 16), (1, 5), (2, 8), (2, 3), (3, 2), (8, 1), (24, 4)])
def test_ranks_and_micro_batches_only_slice_a_slot(world: int, micro_batch: int) -> None:
    whole = make_loader()
    ranks = [make_loader(micro_batch, rank, world) for rank in range(world)]
    slot_micro = ranks[0].micro_steps // 2
    for step in range(12):
        expected = whole.step(step)
        parts = [loader.step(step) for loader in ranks]
        assert {len(part) for part in parts} == {ranks[0].micro_steps}
        for index, slot in enumerate(expected):
            pieces = [b for part in parts for b in part[index * slot_micro : (index + 1) * slot_micro]]
            assert rows_of(pieces) == rows_of([slot])
            assert {(b.task, b.denominator, b.loss, b.loss_weight) for b in pieces} == {
                (slot.task, slot.denominator, slot.loss, slot.loss_weight)
            }
            assert all(1 <= len(b.uids) <= micro_batch for b in pieces)


def test_normalisers_count_the_whole_slot() -> None:
    seen = set()
    for step in range(9):
        for batch in make_loader().step(step):
            tokens = int((batch.target_ids != -100).sum())
            assert batch.denominator == (tokens if batch.task == "coco" else 16)
            assert batch.loss == TASKS[batch.task].loss
            assert batch.loss_weight == (0.25 if batch.task == "coco" else 0.5)
            seen.add(batch.task)
    assert seen == set(SIZES)


def test_filler_rows_count_for_nothing() -> None:
    ranks = [make_loader(1, rank, 5, global_batch=3) for rank in range(5)]
    for step in range(6):
        parts = [loader.step(step) for loader in ranks]
        fillers = [b for part in parts for b in part if b.uids == ("",)]
        assert len(fillers) == 2 * (5 - 3)
        for batch in fillers:
            assert batch.source_mask.any() and not batch.target_weights.any() and (batch.target_ids == -100).all()
        assert sum(rows_of([b for part in parts for b in part]).values()) == 2 * 3


def test_prefetch_threads_change_nothing() -> None:
    plain = list(make_loader().iterate(3, 20))
    assert [step for step, _ in plain] == list(range(3, 20))
    for workers in (1, 2, 4):
        threaded = list(make_loader(workers=workers).iterate(3, 20))
        assert [step for step, _ in threaded] == list(range(3, 20))
        assert all(same(a, b) for (_, a), (_, b) in zip(plain, threaded, strict=True))


def test_resuming_is_starting_at_a_later_step() -> None:
    straight = dict(make_loader().iterate(0, 20))
    for step, batches in make_loader(workers=2).iterate(11, 20):
        assert same(batches, straight[step])


class Breaking(Loader):
    def step(self, step: int) -> list[Batch]:
        if step == 5:
            raise OSError("disk gone")
        return super().step(step)


def prefetch_threads() -> int:
    return sum(t.name.startswith("loader") for t in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_unchanged_at_their_step(workers: int) -> None:
    loader = make_loader(workers=workers)
    loader.__class__ = Breaking
    done = []
    with pytest.raises(OSError, match="disk gone"):
        for step, _ in loader.iterate(0, 100):
            done.append(step)
    assert done == [0, 1, 2, 3, 4]
    assert prefetch_threads() == 0


def test_closing_ends_the_threads() -> None:
    loader = make_loader(workers=3)
    stream = loader.iterate(0, 10**6)
    next(stream)
    assert prefetch_threads() == 3
    loader.close()
    assert prefetch_threads() == 0
    loader.close()
    stream = loader.iterate(0, 10**6)
    next(stream)
    stream.close()
    assert prefetch_threads() == 0


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_evaluation_covers_every_example_once(world: int) -> None:
    loader, examples = make_loader(), make_examples()["coco"]
    uids = []
    for rank in range(world):
        for batch in loader.evaluation_batches("coco", examples, 3, rank, world):
            assert len(batch.uids) <= 3 and batch.loss == "token_mean"
            assert batch.denominator == int((batch.target_ids != -100).sum())
            uids += batch.uids
    assert sorted(uids) == sorted(e.uid for e in examples)
    bare = [Example("u", "vqa", examples[0].segments, Visual())]
    [batch] = evaluation_batches(loader._collator, TASKS["vqa"], bare, 4)
    assert batch.denominator == 1 and (batch.target_ids == -100).all()


def test_stats_name_padding_and_cuts() -> None:
    loader = make_loader()
    for step in range(9):
        loader.step(step)
    stats = loader.stats()
    assert set(stats["tasks"]) == set(SIZES)
    assert stats["tasks"]["nlvr2"]["cut_keep"] == stats["tasks"]["nlvr2"]["rows"] > 0
    assert any("nlvr2" in line and "limits.source_tokens" in line for line in stats["warnings"])
    assert any("vqa" in line and "limits.target_tokens" in line for line in stats["warnings"])
    assert not any("coco" in line and "cut" in line for line in stats["warnings"])


def test_examples_must_belong_to_the_schedule() -> None:
    loader = make_loader()
    examples = make_examples()
    examples["coco"] = examples["coco"][:-1]
    with pytest.raises(ConfigError, match="plans 10 examples of 'coco'.*given 9"):
        Loader(examples, TASKS, loader._schedule, loader._collator, loader._config, 0, 1)
