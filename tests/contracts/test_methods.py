"""What every registered method promises, on a tiny random backbone. A new entry of METHODS arrives here untouched."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mtvl.config import RunConfig
from mtvl.errors import PlanError
from mtvl.model import Model, build_model, make_backbone, make_plan
from mtvl.petl import METHODS
from mtvl.types import Batch, Decoding

# Methods whose released initialisation does not start as the frozen backbone.
STARTS_ELSEWHERE_IN_THE_PAPER = {"adapter", "adapter_prompt", "compacter", "hyperformer", "uniadapter"}
# Methods that cannot start as the frozen backbone: what they add to the input or to attention is always attended to.
STARTS_NEARBY = {"prompt", "adapter_prompt", "prefix"}
# Mean difference of logits; measured worst case: 0.94 (prefix). Another random backbone is 1.27 away, a prefix that starts
# at standard deviation 1 is 1.13 away.
NEARBY = 1.05
STARTS_WITHOUT_CHANCE = {"ia3"}  # all that it adds starts at one value, whatever the seed

MakeConfig = Callable[..., RunConfig]
MakeBatch = Callable[..., Batch]


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Hash of every parameter and buffer by name."""
    return {n: hashlib.sha256(t.numpy(force=True).tobytes()).hexdigest() for n, t in model.state_dict().items()}


def train_step(model: Model, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Forward and backward of one batch, then a step when there is an optimizer."""
    model.set_task(batch.task)
    loss = model(batch)
    if loss.requires_grad:  # text alone trains nothing where the visual projection is all that learns
        loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def adapter_weights(model: Model) -> dict[str, torch.Tensor]:
    added = model.plan.owners()
    return {n: p for n, p in model.backbone.named_parameters() if n in added}


@torch.no_grad()  # where T5's table of positions wants a gradient, torch takes another kernel with other last bits
def test_training_starts_from_the_frozen_backbone(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    options = {f.name for f in dataclasses.fields(METHODS.load(petl["name"]).Config)}
    # Own dropout draws random numbers and so moves the backbone's masks; everything else must not.
    config = tiny_config({**petl, "dropout": 0.0} if "dropout" in options else petl)
    model, plain = build_model(config), make_backbone(config.backbone)
    if petl["name"] in STARTS_NEARBY:
        batch = make_batch(config.tasks[0])
        model.eval().set_task(batch.task)
        difference = model.logits(batch) - plain.eval().decode(plain.encode(batch), batch.target_ids)
        assert 0 < difference.abs().mean() < NEARBY
        return
    for task in config.tasks:
        batch = make_batch(task)
        model.set_task(task)
        for training in (False, True):  # dropout draws the same masks: an adapter consumes no random numbers
            model.train(training)
            plain.train(training)
            torch.manual_seed(5)
            logits = model.logits(batch)
            torch.manual_seed(5)
            assert torch.equal(logits, plain.decode(plain.encode(batch), batch.target_ids))


@torch.no_grad()  # as above
def test_paper_compat_starts_where_the_paper_started(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch
) -> None:
    config, batch = tiny_config(petl, paper_compat=True), make_batch()
    model, plain = build_model(config).eval(), make_backbone(config.backbone).eval()
    model.set_task(batch.task)
    is_equal = torch.equal(model.logits(batch), plain.decode(plain.encode(batch), batch.target_ids))
    assert is_equal == (petl["name"] not in STARTS_ELSEWHERE_IN_THE_PAPER | STARTS_NEARBY)


def test_only_planned_tensors_move(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    config = tiny_config(petl)
    model = build_model(config).train()
    planned = set(model.plan.owners())
    for site in model.plan.unfrozen:
        planned |= {
            f"{site.path}.{n}" for n, _ in model.backbone.get_submodule(site.path).named_parameters(recurse=False)
        }
    planned |= {f"{site.path}.bias" for site in model.plan.biases}
    unique = {n for n, _ in model.backbone.named_parameters()}  # tied parameters appear under one name
    assert {n.removeprefix("backbone.") for n in model.trainable()} == planned & unique

    before = digests(model)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-2)
    for step in range(3):
        for task in config.tasks:  # without a picture in between: what reads text alone has to move too
            train_step(model, make_batch(task, seed=step, pictures=(step + 1) % 2), optimizer)
    moved = {n for n, digest in digests(model).items() if digest != before[n]}
    aliases = {id(p) for p in model.trainable().values()}
    expected = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in aliases}
    assert moved == expected


def test_counts_and_plan_from_shapes_alone(petl: dict, tiny_config: MakeConfig) -> None:
    config = tiny_config(petl)
    model = build_model(config)
    assert sum(p.numel() for p in model.trainable().values()) == model.plan.num_trainable
    assert sum(p.numel() for p in model.parameters()) == model.plan.num_total
    assert sum(p.numel() for p in adapter_weights(model).values()) == model.plan.num_added
    from_shapes = make_plan(config)
    assert from_shapes.fingerprint() == model.plan.fingerprint()
    assert from_shapes == model.plan


def test_base_names_survive_wrapping(petl: dict, tiny_config: MakeConfig) -> None:
    config = tiny_config(petl)
    plain = make_backbone(config.backbone).state_dict()
    wrapped = build_model(config).backbone.state_dict()
    assert set(plain) <= set(wrapped)
    assert set(wrapped) - set(plain) == set(build_model(config).plan.owners())
    assert all(torch.equal(plain[n], wrapped[n]) for n in plain)


@pytest.mark.parametrize("order", ["backward_follows_forward", "both_forwards_first"])
def test_recompute_changes_no_gradient(
    petl: dict, order: str, tiny_config: MakeConfig, make_batch: MakeBatch, tiny_backbones: dict, backbone_name: str
) -> None:
    """Equal bit for bit, with dropout on, while tasks alternate: also when the next task is set before backward."""
    has_tower = tiny_backbones[backbone_name].trains_tower

    def gradients(recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
        model = build_model(tiny_config(petl, recompute=recompute, paper_compat=True)).train()
        calls: list[int] = []
        for site in model.plan.sites:
            if site.is_linear:
                model.backbone.get_submodule(site.path).register_forward_pre_hook(lambda *_: calls.append(1))
        torch.manual_seed(3)
        losses = []
        for step, task in enumerate(("vqa", "gqa", "vqa", "coco")):
            model.set_task(task)
            losses.append(model(make_batch(task, seed=step)))
            if order == "backward_follows_forward":
                losses.pop().backward()
        for loss in losses:
            loss.backward()
        return {n: p.grad for n, p in model.trainable().items() if p.grad is not None}, len(calls)

    kept, calls = gradients(False)
    recomputed, more_calls = gradients(True)
    again = more_calls - calls
    # Layers of a tower in which nothing is trained, and nothing below, have no second run.
    assert again == calls or (has_tower and 0 < again < calls), "the switch did not make the layers run again"
    assert kept.keys() == recomputed.keys()
    assert not [n for n in kept if not torch.equal(kept[n], recomputed[n])]


@pytest.mark.parametrize("num_beams", [1, 5])
def test_generate_repeats_itself(petl: dict, num_beams: int, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model, batch = build_model(tiny_config(petl, paper_compat=True)).eval(), make_batch()
    model.set_task(batch.task)
    decoding = Decoding(num_beams=num_beams, max_tokens=8, no_repeat_ngram=3)
    ids = model.generate(batch, decoding)
    assert ids.shape[0] == len(batch.uids) and 2 <= ids.shape[1] <= 8 and ids.dtype == torch.long
    assert torch.equal(ids, model.generate(batch, decoding))


def test_choose_repeats_itself(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model, batch = build_model(tiny_config(petl, paper_compat=True)).eval(), make_batch()
    model.set_task(batch.task)
    choices = [[0, 7, 2], [0, 9, 11, 2], [0, 8, 2]]
    scores = model.choose(batch, choices)
    assert scores.shape == (len(batch.uids), 3) and bool((scores < 0).all())
    assert torch.equal(scores, model.choose(batch, choices))
    assert torch.equal(scores.flip(1), model.choose(batch, choices[::-1]))


def test_tasks_that_the_model_was_not_built_for(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model = build_model(tiny_config(petl)).eval()
    if model.plan.is_task_private:
        with pytest.raises(PlanError, match="vqa, gqa, coco.*'nlvr2'"):
            model.set_task("nlvr2")
    else:
        model.set_task("nlvr2")
        assert torch.isfinite(model(make_batch("nlvr2", pictures=2)))


def test_only_the_active_tasks_parts_learn(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model = build_model(tiny_config(petl, paper_compat=True)).train()
    owners = model.tasks_of_parameters()
    assert {o for o in owners.values() if o} == ({"vqa", "gqa", "coco"} if model.plan.is_task_private else set())
    for pictures in (1, 0):  # what reads text alone as well
        train_step(model, make_batch("gqa", pictures=pictures))
    with_gradient = {n for n, p in model.trainable().items() if p.grad is not None}
    assert with_gradient == {n for n, owner in owners.items() if owner in (None, "gqa")}


def test_a_private_model_refuses_to_run_without_a_task(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch
) -> None:
    model = build_model(tiny_config(petl)).eval()
    if not model.plan.is_task_private:
        assert torch.isfinite(model(make_batch()))
        return
    with pytest.raises(PlanError, match="vqa, gqa, coco"):
        model(make_batch())


def test_seeds_decide_the_adapters_and_nothing_else(petl: dict, tiny_config: MakeConfig) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first, again, other = (build_model(tiny_config(petl, seed=s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])

    assert digests(first) == digests(again)
    differing = {n for n, digest in digests(first).items() if digest != digests(other)[n]}
    assert differing <= {f"backbone.{n}" for n in first.plan.owners()}
    assert bool(differing) == (bool(first.plan.owners()) and petl["name"] not in STARTS_WITHOUT_CHANCE)
