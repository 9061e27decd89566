"""Plans: the integers, the fingerprint, the table, and the proof that a model is its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from mtvl.config import RunConfig
from mtvl.errors import PlanError
from mtvl.model import Model, build_model, make_backbone, make_method, make_plan
from mtvl.petl.apply import apply_plan, check_plan
from mtvl.petl.plan import SHARED, Injection, Part, Plan
from mtvl.sites import Site

MakeConfig = Callable[..., RunConfig]
IMAGE_TASKS = ("vqa", "gqa", "nlvr2", "coco")


@pytest.mark.parametrize(
    ("petl", "trainable", "total"),
    [
        ({"name": "full"}, 141_156_864, 141_156_864),
        ({"name": "adapter"}, 6_081_600, 145_606_464),
        ({"name": "adapter", "share": "none"}, 19_430_400, 158_955_264),
    ],
    ids=["full", "single", "multiple"],
)
def test_the_papers_models_have_these_sizes(petl: dict, trainable: int, total: int) -> None:
    """*Source:* VL-Adapter's CLIP-BART base on four image tasks, counted in its released code."""
    plan = make_plan(RunConfig(tasks=IMAGE_TASKS, backbone={"name": "clip_bart"}, petl=petl))
    assert (plan.num_trainable, plan.num_total) == (trainable, total)


@pytest.mark.parametrize(("share", "downs", "ups"), [("all", 1, 1), ("down", 1, 3), ("up", 3, 1), ("none", 3, 3)])
def test_adapter_counts_in_closed_form(share: str, downs: int, ups: int, tiny_config: MakeConfig) -> None:
    plan = make_plan(tiny_config({"name": "adapter", "share": share, "bottleneck": 5}))
    num_sites = 2 * 2 + 2 * 3  # two encoder layers with two blocks, two decoder layers with three
    width = 32
    assert len(plan.injections) == num_sites
    assert plan.num_added == num_sites * (downs * (width * 5 + 5) + ups * (5 * width + width))
    assert plan.num_trainable == plan.num_added + sum(s.num_parameters for s in plan.unfrozen)
    assert plan.is_task_private == (share != "all")


def test_switches_decide_what_is_unfrozen(tiny_config: MakeConfig) -> None:
    def kinds(**options: bool) -> set[str]:
        return {s.kind for s in make_plan(tiny_config({"name": "adapter", **options})).unfrozen}

    assert kinds() == {"norm", "visual"}
    assert kinds(train_norms=False) == {"visual"}
    assert kinds(train_visual=False) == {"norm"}
    assert kinds(train_norms=False, train_visual=False) == set()


def test_the_fingerprint_follows_names_and_shapes_and_nothing_else(tiny_config: MakeConfig) -> None:
    def fingerprint(**petl: object) -> str:
        return make_plan(tiny_config({"name": "adapter", **petl})).fingerprint()

    same = fingerprint()
    assert fingerprint() == same and fingerprint(share="all", reduction=8) == same
    different = [fingerprint(bottleneck=5), fingerprint(share="none"), fingerprint(train_norms=False)]
    different.append(make_plan(tiny_config({"name": "full"})).fingerprint())
    assert len({same, *different}) == 5
    private = {"name": "adapter", "share": "none"}
    assert (
        make_plan(tiny_config(private, tasks=("vqa", "gqa"))).fingerprint()
        != make_plan(tiny_config(private, tasks=("vqa", "coco"))).fingerprint()
    )
    # a shared adapter is the same whatever tasks it serves
    assert make_plan(tiny_config(tasks=("vqa",))).fingerprint() == same


def test_the_table_prints_integers_that_add_up(tiny_config: MakeConfig) -> None:
    plan = make_plan(tiny_config({"name": "adapter", "share": "up", "bottleneck": 5}))
    table = plan.table()
    assert f"trainable {plan.num_trainable:,} of {plan.num_total:,}" in table
    assert plan.fingerprint() in table and "bottleneck=5 share=up" in table
    assert "down (weight 5x32, bias 5) [vqa, gqa, coco] + up (weight 32x5, bias 32) [shared]" in table
    rows = [line.split() for line in table.splitlines() if line.startswith(("add ", "train "))]
    assert sum(int(r[4].replace(",", "")) for r in rows) == plan.num_trainable
    assert sum(int(r[3]) for r in rows) == len(plan.injections) + len(plan.unfrozen)


def test_owners_name_the_task_of_every_added_parameter(tiny_config: MakeConfig) -> None:
    owners = make_plan(tiny_config({"name": "adapter", "share": "down"})).owners()
    assert set(owners.values()) == {SHARED, "vqa", "gqa", "coco"}
    for name, owner in owners.items():
        assert name.endswith((f".adapter.down.{SHARED}.weight", f".adapter.down.{SHARED}.bias")) == (owner == SHARED)
        assert f".{owner}." in name


@pytest.mark.parametrize("name", [SHARED, "a.b", ""])
def test_some_words_cannot_name_a_task(name: str) -> None:
    with pytest.raises(PlanError, match="cannot name a task"):
        Plan("adapter", (), (name,), (), (), ())


def test_a_norm_cannot_hold_an_adapter() -> None:
    site = Site("encoder.norm", "norm", "encoder", 0, num_parameters=4)
    injection = Injection(site, (Part("down", SHARED, (("weight", (2, 2)),)),))
    with pytest.raises(PlanError, match=r"encoder\.norm is a norm site"):
        Plan("adapter", (), ("vqa",), (site,), (injection,), ())


def test_a_plan_is_applied_once(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    model = build_model(config)
    method = make_method(config.petl)
    with pytest.raises(PlanError, match="holds a AdaptedLinear"):
        apply_plan(model.backbone, model.plan, method, 0)


def test_a_model_that_is_not_its_plan_is_refused(tiny_config: MakeConfig) -> None:
    model = build_model(tiny_config())
    check_plan(model.backbone, model.plan)
    frozen = next(p for p in model.backbone.parameters() if not p.requires_grad)
    frozen.requires_grad_(True)
    with pytest.raises(PlanError, match="the plan trains .* the model"):
        check_plan(model.backbone, model.plan)
    frozen.requires_grad_(False)
    added = model.backbone.get_parameter(next(iter(model.plan.owners())))
    added.requires_grad_(False)
    with pytest.raises(PlanError, match="planned parameter .* found nothing"):
        check_plan(model.backbone, model.plan)


def test_an_adapter_with_other_parameters_than_planned_is_refused(tiny_config: MakeConfig) -> None:
    config = tiny_config()
    backbone, method = make_backbone(config.backbone), make_method(config.petl)
    plan = method.plan(backbone.sites(), config.tasks)

    class Surplus:
        def build(self, injection: Injection, active: object) -> nn.Module:
            module = method.build(injection, active)
            module.scale = nn.Parameter(torch.ones(1))
            return module

    with pytest.raises(PlanError, match="not planned.*adapter.scale"):
        Model(backbone, plan, Surplus())


def test_a_method_without_its_sites_says_so(tiny_config: MakeConfig) -> None:
    sites = [s for s in make_backbone(tiny_config().backbone, meta=True).sites() if not s.is_linear]
    with pytest.raises(PlanError, match=r"none of the sites self_attn\.out"):
        make_method({"name": "adapter"}).plan(sites, ("vqa",))
    narrow = [replace(Site("x", "ffn.down", "encoder", 0, 4, 4, 20))]
    with pytest.raises(PlanError, match=r"'petl.reduction' 8 leaves no bottleneck at x \(4\)"):
        make_method({"name": "adapter"}).plan(narrow, ("vqa",))
