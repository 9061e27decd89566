"""What methods do beside training: stand still when idle, merge, adapt some layers only, decode as they were trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from mtvl.config import OptimConfig, RunConfig
from mtvl.errors import CheckpointError, ConfigError, PlanError
from mtvl.export import write_export
from mtvl.model import Model, build_model, make_backbone, make_method, make_plan
from mtvl.optim import build_optimizer, parameter_groups
from mtvl.petl.plan import Plan
from mtvl.types import Batch, Decoding

# Methods whose added parts are changes of linear maps, and can be folded into them.
MERGEABLE = {"lora", "ia3", "vcra"}
NOT_HERE = {("blip", "vcra")}  # one map runs in two passes with vectors of their own; tests/petl/test_blip_methods.py
MERGED = 1e-10  # float64 logits up to 8 in size; measured worst case: 3.3e-15

BEAM_SCORE = 1e-6  # float64 but for the sums of the search; scores down to -2.1; measured worst case: 1.5e-7

MakeConfig = Callable[..., RunConfig]
MakeBatch = Callable[..., Batch]


def randomise(model: Model, seed: int = 0) -> Model:
    """Every added parameter random, so that nothing hides behind a part that starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.plan.owners():
            parameter = model.backbone.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def test_idle_tasks_stand_still(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    """Bit for bit, parameters and moments, also where missing gradients arrive as zeros as they do from ZeRO."""
    model = randomise(build_model(tiny_config(petl))).train()
    trainable, config = model.trainable(), OptimConfig(name="adamw", lr=1e-2, weight_decay=0.1)
    owners = model.tasks_of_parameters()
    groups = [g for g in parameter_groups(trainable, owners, config) if g.names]
    assert {g.task for g in groups if g.task} == (set(model.plan.tasks) if model.plan.is_task_private else set())
    optimizer = build_optimizer(trainable, groups, config)
    optimizer.allocate(trainable.values())
    for step, task in enumerate(("vqa", "gqa", "coco", "gqa")):
        before = {n: p.detach().clone() for n, p in trainable.items()}
        moments = {n: {k: v.clone() for k, v in optimizer.state[p].items()} for n, p in trainable.items()}
        model.zero_grad(set_to_none=True)
        model.set_task(task)
        for pictures in (1, 0):  # what reads text alone as well
            loss = model(make_batch(task, seed=step, pictures=pictures))
            if loss.requires_grad:  # else the visual projection is all that learns
                loss.backward()
        for parameter in trainable.values():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        optimizer.begin([g.name for g in groups if g.task in (None, task)], config.lr)
        optimizer.step()
        optimizer.commit()
        for name, parameter in trainable.items():
            if owners[name] == task:
                assert not torch.equal(parameter, before[name]), name
            elif owners[name] is not None:
                assert torch.equal(parameter, before[name]), name
                assert all(torch.equal(v, moments[name][k]) for k, v in optimizer.state[parameter].items()), name


def test_merged_is_unmerged(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch, tmp_path, backbone_name: str
) -> None:
    config = tiny_config(petl)
    model = randomise(build_model(config)).double().eval()
    if model.plan.injections and (petl["name"] not in MERGEABLE or (backbone_name, petl["name"]) in NOT_HERE):
        with pytest.raises(PlanError, match="cannot be merged"):
            model.merge("vqa")
        assert not model.is_merged
        return
    before = {n: v.clone() for n, v in model.state_dict().items()}
    for task in config.tasks[:2]:
        batch = make_batch(task)
        model.set_task(task)
        apart = model.logits(batch).detach()
        model.merge(task)
        merged = model.logits(batch).detach()
        assert float((merged - apart).abs().max()) < MERGED
        if model.plan.injections:  # the adapters are in the weights, no longer beside them
            path = model.plan.injections[0].site.path
            assert not torch.equal(model.backbone.get_submodule(path).weight, before[f"backbone.{path}.weight"])
        with pytest.raises(PlanError, match="unmerge"):
            model.train()
        with pytest.raises(PlanError, match="merged already"):
            model.merge(task)
        with pytest.raises(CheckpointError, match="merged"):
            write_export(tmp_path, model, config)
        if model.plan.is_task_private:
            with pytest.raises(PlanError, match="unmerge it to run 'coco'"):
                model.set_task("coco")
        model.unmerge()
        assert torch.equal(model.logits(batch), apart)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(v, after[n]) for n, v in before.items())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(model.train().trainable())


def test_a_backbone_without_biases_is_refused_by_name(tiny_config: MakeConfig, backbone_name: str) -> None:
    config = tiny_config({"name": "bitfit"})
    if any(s.num_bias for s in make_backbone(config.backbone, meta=True).sites() if s.kind != "visual"):
        assert make_plan(config).biases
        return
    with pytest.raises(PlanError, match="has no bias vectors; choose another 'petl.name'"):
        make_plan(config)


def test_unmerging_a_model_that_is_not_merged_does_nothing(petl: dict, tiny_config: MakeConfig) -> None:
    model = build_model(tiny_config(petl))
    before = {n: id(p) for n, p in model.named_parameters()}
    model.unmerge()
    assert not model.is_merged and {n: id(p) for n, p in model.named_parameters()} == before


@pytest.mark.parametrize("name", sorted(MERGEABLE))
def test_a_merged_model_is_moved_with_what_it_was_made_of(
    name: str, tiny_config: MakeConfig, backbone_name: str
) -> None:
    if (backbone_name, name) in NOT_HERE:
        pytest.skip("cannot be merged into this backbone; test_merged_is_unmerged holds that")
    model = randomise(build_model(tiny_config({"name": name})))
    before = dict(model.named_parameters())
    values = {n: p.detach().clone() for n, p in before.items()}
    model.merge("vqa")
    model.double()
    model.unmerge()
    after = dict(model.named_parameters())
    assert {n: id(p) for n, p in after.items()} == {n: id(p) for n, p in before.items()}
    assert {p.dtype for p in after.values()} == {torch.float64}
    assert all(torch.equal(p, values[n].double()) for n, p in after.items())


@pytest.mark.parametrize("name", sorted(MERGEABLE))
def test_partitioned_weights_are_not_merged(name: str, tiny_config: MakeConfig, backbone_name: str) -> None:
    if (backbone_name, name) in NOT_HERE:
        pytest.skip("cannot be merged into this backbone; test_merged_is_unmerged holds that")
    model = build_model(tiny_config({"name": name}))
    site = model.backbone.get_submodule(model.plan.injections[-1].site.path)
    site.weight.data = torch.empty(0)  # what ZeRO-3 leaves on a rank
    with pytest.raises(PlanError, match="expected whole weights to merge, found partitioned ones at"):
        model.merge("vqa")
    first = model.backbone.get_submodule(model.plan.injections[0].site.path)
    assert not model.is_merged and first._unmerged is None


def test_layers_choose_where_a_method_works(petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    config, chosen = tiny_config({**petl, "layers": "last:1"}), 1  # of two layers a stack
    plan, whole = make_plan(config), make_plan(tiny_config(petl))
    touched = [i.site for i in plan.injections] + [*plan.unfrozen, *plan.biases]
    assert {s.layer for s in touched} <= {-1, chosen}
    for ours, all_of_them in ((plan.unfrozen, whole.unfrozen), (plan.biases, whole.biases)):
        assert set(ours) == {s for s in all_of_them if s.layer in (-1, chosen)}
    sites = {i.site for i in whole.injections}
    assert {i.site for i in plan.injections} == {s for s in sites if s.layer in (-1, chosen)}
    assert plan.fingerprint() != whole.fingerprint()
    model = build_model(config).train()
    model.set_task("vqa")
    assert torch.isfinite(model(make_batch("vqa")))


def test_every_method_reads_its_layers_alike(petl: dict, tiny_config: MakeConfig) -> None:
    """The first, the last and a list, in all ways of writing them; and a slip is an error, not all layers."""
    sites = list(make_plan(tiny_config(petl)).sites)  # two layers a stack

    def plan(layers: object) -> Plan:
        return make_method({**petl, "layers": layers}).plan(sites, ("vqa", "gqa"))

    def touched(layers: object) -> list[set[object]]:
        found = plan(layers)
        return [{i.site for i in found.injections}, set(found.unfrozen), set(found.biases)]

    assert touched("first:1") == touched([0]) == touched(0) and touched("last:1") == touched([1])
    assert (
        touched("all")
        == touched("first:2")
        == touched([0, 1])
        == [a | b for a, b in zip(touched([0]), touched([1]), strict=True)]
    )
    for layers, error in (("frist:1", ConfigError), ([], ConfigError), (-1, ConfigError), ([0, 2], PlanError)):
        with pytest.raises(error, match=r"petl\.layers"):
            plan(layers)


def test_beam_scores_are_those_of_the_teacher_forced_model(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch, tiny_backbones: dict, backbone_name: str
) -> None:
    """What a beam search returns has the log-likelihood that the same model gives to it as a target.

    An EOS that is forced at the last position costs nothing; the score's length counts the start and not EOS.
    """
    model, batch = randomise(build_model(tiny_config(petl))).double().eval(), make_batch("gqa")
    batch = dataclasses.replace(batch, features=batch.features.double())
    model.set_task("gqa")
    tiny, longest = tiny_backbones[backbone_name], 8
    with torch.no_grad():
        ids, scores = model.backbone.generate(model.backbone.encode(batch), Decoding(num_beams=5, max_tokens=longest))
        forced = model.backbone.decode(model.backbone.encode(batch), ids[:, 1:]).log_softmax(-1)
    for row in range(len(ids)):
        has_ended = tiny.eos_id in ids[row, 1:]
        length = ids[row].tolist().index(tiny.eos_id, 1) if has_ended else ids.shape[1]  # without EOS, with the start
        is_free = not has_ended or (tiny.forces_eos and length == longest - 1)
        paid = length - 1 if is_free else length
        total = sum(float(forced[row, i, ids[row, i + 1]]) for i in range(paid))
        assert abs(total / length - float(scores[row])) < BEAM_SCORE


def test_greedy_decoding_follows_the_teacher_forced_model(
    petl: dict, tiny_config: MakeConfig, make_batch: MakeBatch, tiny_backbones: dict, backbone_name: str
) -> None:
    """With a key-value cache, position after position, the adapted model is the one that is trained."""
    model, batch = randomise(build_model(tiny_config(petl))).eval(), make_batch("gqa")
    model.set_task("gqa")
    ids = model.generate(batch, Decoding(max_tokens=8))
    with torch.no_grad():
        forced = model.backbone.decode(model.backbone.encode(batch), ids[:, 1:]).argmax(-1)
    for row in range(len(ids)):
        tokens = [t for t in ids[row, 1:].tolist() if t != tiny_backbones[backbone_name].pad_id]
        assert tokens == forced[row, : len(tokens)].tolist()
