"""The arithmetic of what methods add, and what their options refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mtvl.config import RunConfig
from mtvl.errors import ConfigError, PlanError
from mtvl.model import Model, build_model, make_method, make_plan
from mtvl.petl.compacter import Phm
from mtvl.petl.ia3 import Factor, ScaledInput
from mtvl.petl.plan import SHARED, Common, Part, Plan
from mtvl.petl.select import in_layers
from mtvl.sites import Site
from mtvl.types import Batch

MakeConfig = Callable[..., RunConfig]
MakeBatch = Callable[..., Batch]
LOW_RANK = {"name": "compacter", "division": 4, "rank": 1, "share_rule": True, "bottleneck": 8}


def test_phm_is_a_sum_of_kronecker_products() -> None:
    random = torch.Generator().manual_seed(0)
    full = Phm(Part("down", SHARED, (("rule", (2, 2, 2)), ("W", (2, 3, 4)), ("b", (8,)))), None)
    low = Phm(Part("down", SHARED, (("rule", (2, 2, 2)), ("left", (2, 3, 1)), ("right", (2, 1, 4)), ("b", (8,)))), None)
    x = torch.randn(5, 6, generator=random)
    for layer in (full, low):
        for parameter in layer.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=random))
        factors = layer.W if layer is full else layer.left @ layer.right
        matrix = sum(torch.kron(layer.rule[i], factors[i]) for i in range(2))
        assert torch.allclose(layer(x), x @ matrix + layer.b, atol=1e-5)


def test_the_shared_rule_is_one_tensor_that_all_places_move(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model = build_model(tiny_config(LOW_RANK, paper_compat=True)).train()
    rules = [n for n, _ in model.named_parameters() if "rule" in n]
    assert rules == ["backbone.common.adapter.rule.rule.shared.weight"]
    model(make_batch()).backward()
    assert model.backbone.get_parameter(rules[0].removeprefix("backbone.")).grad.abs().max() > 0
    private = make_plan(tiny_config({**LOW_RANK, "share": "up"}))
    assert {o for n, o in private.owners().items() if "rule" in n} == {"vqa", "gqa", "coco"}


def test_a_low_rank_compacter_has_the_published_size(tiny_config: MakeConfig) -> None:
    plan, k, width, inner = make_plan(tiny_config(LOW_RANK)), 4, 32, 8
    assert plan.num_added == k**3 + 10 * ((width + inner + inner) + (inner + width + width))


def test_one_hypernetwork_a_stack_serves_all_places_and_tasks(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    petl = {"name": "hyperformer", "bottleneck": 4, "task_width": 6, "hidden": 5, "code": 3}
    model = build_model(tiny_config(petl, paper_compat=True)).eval()
    assert [c.name for c in model.plan.common] == ["tasks", "encoder", "decoder"]
    assert not any(".out_proj.adapter" in n or ".fc2.adapter" in n for n, _ in model.named_parameters())

    def generators(blocks: int) -> int:
        return blocks * ((2 * 4 * 32 + 4 + 32) * (3 + 1))

    head = 2 * 6 + (5 * 12 + 5) + (3 * 5 + 3) + 2 * 3
    assert model.plan.num_added == 3 * 6 + 2 * head + generators(2) + generators(3)
    logits = {}
    for task in ("vqa", "gqa"):
        model.set_task(task)
        logits[task] = model.logits(make_batch())
    assert not torch.equal(logits["vqa"], logits["gqa"])
    with pytest.raises(PlanError, match="no adapter for task 'other'"):
        model.active.set("other")
        model.logits(make_batch())


def test_ia3_scales_what_goes_into_the_second_projection() -> None:
    linear, factor, x = nn.Linear(3, 2), Factor(3), torch.randn(4, 3)
    factor.weight.data = torch.tensor([0.5, -1.0, 2.0])
    adapter = ScaledInput(nn.Sequential(factor))  # type: ignore[arg-type]
    want = linear(x * torch.tensor([1.5, 0.0, 3.0]))
    assert torch.equal(adapter(x, linear(adapter.before(x))), want)


def prefixed(tiny_config: MakeConfig, **options: object) -> Model:
    model = build_model(tiny_config({"name": "prefix", "length": 3, **options})).eval()
    for name in model.plan.owners():
        model.backbone.get_parameter(name).data.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model


def test_prefixes_are_seen_by_every_position_and_show_no_future(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model, batch = prefixed(tiny_config), make_batch()
    want = model.logits(batch)
    batch.target_ids[:, -1] = 9
    assert torch.allclose(model.logits(batch), want, atol=1e-5)
    for stack in ("encoder", "decoder"):
        layers = model.backbone.get_submodule(f"bart.model.{stack}.layers")
        for name in [n for n, _ in layers.named_modules() if n.endswith("adapter.prefix.shared")]:
            values = layers.get_parameter(f"{name}.values")
            kept = values.detach().clone()
            values.data.mul_(2)
            assert bool(((model.logits(batch) - want).abs() > 1e-6).any(-1).all()), name  # at every position
            values.data.copy_(kept)


def test_a_prefix_is_attention_over_more_keys(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    """One attention against its definition, with padding."""
    model = prefixed(tiny_config)
    attention = model.backbone.get_submodule("bart.model.encoder.layers.0.self_attn")
    x, mask = torch.randn(2, 4, 32), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = attention(x, attention_mask=mask[:, None, None, :])[0]
    table = attention.adapter.prefix.current()

    def heads(t: torch.Tensor) -> torch.Tensor:
        return t.view(t.shape[0], -1, 2, 16).transpose(1, 2)

    keys = torch.cat([table.keys.expand(2, -1, -1), attention.k_proj(x)], 1)
    values = torch.cat([table.values.expand(2, -1, -1), attention.v_proj(x)], 1)
    scores = heads(attention.q_proj(x)) @ heads(keys).transpose(2, 3) / 4
    seen = torch.cat([torch.ones(2, 3, dtype=torch.bool), mask], 1)[:, None, None, :]
    mixed = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ heads(values)
    want = attention.out_proj(mixed.transpose(1, 2).reshape(2, 4, 32))
    assert torch.allclose(found, want, atol=1e-5)


def test_a_prompt_stands_before_the_text_and_is_never_masked(tiny_config: MakeConfig, make_batch: MakeBatch) -> None:
    model, batch = build_model(tiny_config({"name": "prompt", "length": 3, "width": 5})), make_batch()
    memory = model.backbone.encode(batch)
    assert memory.mask.shape[1] == memory.hidden.shape[1] == 3 + batch.source_ids.shape[1] + 9
    assert bool(memory.mask[:, :3].all()) and torch.equal(memory.mask[:, 3 : 3 + 7], batch.source_mask)


def test_the_adapter_with_prompts_is_both(tiny_config: MakeConfig) -> None:
    both = make_plan(tiny_config({"name": "adapter_prompt", "length": 3, "width": 5}))
    adapter = make_plan(tiny_config({"name": "adapter"}))
    prompts = make_plan(tiny_config({"name": "prompt", "length": 3, "width": 5, "share": "none"}))
    assert both.owners() == {**adapter.owners(), **prompts.owners()}
    assert both.num_trainable == adapter.num_trainable + prompts.num_added


@pytest.mark.parametrize(
    ("petl", "error", "words"),
    [
        ({"name": "lora", "rank": 0}, ConfigError, "'petl.rank' must be at least 1"),
        ({"name": "lora", "dropout": 1.0}, ConfigError, "'petl.dropout'"),
        ({"name": "lora", "places": ["self_attn.x"]}, ConfigError, r"knows no \['self_attn.x'\]"),
        ({"name": "prompt", "length": 0}, ConfigError, "'petl.length' and 'petl.width'"),
        ({"name": "prompt", "share": "up"}, ConfigError, "'petl.share' of prompt is all or none, found 'up'"),
        ({"name": "prefix", "share": "down"}, ConfigError, "'petl.share' of prefix"),
        ({"name": "prefix", "length": 0}, ConfigError, "'petl.length' must be at least 1"),
        ({"name": "ia3", "share": "up"}, ConfigError, "'petl.share' of ia3"),
        ({"name": "compacter", "division": 0}, ConfigError, "'petl.division' must be at least 1"),
        ({"name": "compacter", "division": 3}, PlanError, "'petl.division' 3 does not divide the widths 32"),
        ({"name": "compacter", "bottleneck": -1}, ConfigError, "'petl.bottleneck' at least 0"),
        ({"name": "hyperformer", "code": 0}, ConfigError, "'petl.code' must be at least 1"),
        ({"name": "adapter", "layers": "last"}, ConfigError, "'petl.layers' expects all, first:N, last:N"),
        ({"name": "adapter", "layers": "first:0"}, ConfigError, "found 'first:0'"),
        ({"name": "adapter", "layers": [-1]}, ConfigError, r"found \[-1\]"),
        ({"name": "adapter", "layers": []}, ConfigError, r"found \[\]"),
        ({"name": "adapter", "layers": True}, ConfigError, "found True"),
        ({"name": "adapter", "layers": "last:3"}, PlanError, "the deepest stack has 2 layers"),
        ({"name": "adapter", "layers": [0, 2]}, PlanError, "the deepest stack has 2 layers"),
        (
            {"name": "adapter_prompt", "prompt_share": "up"},
            ConfigError,
            "'petl.prompt_share' of adapter_prompt is all or none",
        ),
    ],
)
def test_options_that_cannot_be_used(petl: dict, error: type, words: str, tiny_config: MakeConfig) -> None:
    with pytest.raises(error, match=words):
        make_plan(tiny_config(petl))


def test_layers_count_in_every_stack() -> None:
    sites = [Site(f"{s}{i}", "norm", s, i) for s, depth in (("encoder", 3), ("decoder", 2)) for i in range(depth)]
    sites.append(Site("table", "embedding", "encoder", -1))

    def names(layers: object) -> list[str]:
        return [s.path for s in in_layers(sites, layers)]

    assert names("first:1") == ["encoder0", "decoder0", "table"]
    assert names("last:2") == ["encoder1", "encoder2", "decoder0", "decoder1", "table"]
    assert names([2]) == names(2) == ["encoder2", "table"]
    assert names([0, 1]) == ["encoder0", "encoder1", "decoder0", "decoder1", "table"]
    assert names("all") == [s.path for s in sites]


def test_methods_without_their_sites_say_so() -> None:
    table = [Site("table", "embedding", "encoder", -1, num_parameters=4)]
    for name, words in {
        "prompt": "input",
        "prefix": "self_attn, cross_attn",
        "lora": r"self_attn\.q",
        "ia3": r"self_attn\.k",
        "bitfit": "no bias",
        "projection": "no visual embedding",
        "hyperformer": r"self_attn\.out",
    }.items():
        with pytest.raises(PlanError, match=words):
            make_method({"name": name}).plan(table, ("vqa",))


def test_a_plan_counts_common_modules_and_biases_once() -> None:
    norm = Site("n", "norm", "encoder", 0, num_parameters=4, num_bias=2)
    common = Common("net", "both", (Part("a", SHARED, (("weight", (2, 3)),)), Part("b", "vqa", (("weight", (5,)),))))
    plan = Plan("m", (), ("vqa",), (norm,), (), (), (norm,), (common,))
    assert (plan.num_added, plan.num_trainable, plan.num_total) == (11, 13, 15)
    assert plan.is_task_private
    assert plan.owners() == {"common.adapter.net.a.shared.weight": SHARED, "common.adapter.net.b.vqa.weight": "vqa"}
    assert "net: a (weight 2x3) [shared] + b (weight 5) [vqa]" in plan.table() and "the site's bias" in plan.table()
    with pytest.raises(PlanError, match="n is trained as a whole"):
        Plan("m", (), ("vqa",), (norm,), (), (norm,), (norm,))


def test_alpha_is_in_the_fingerprint_of_a_lora(tiny_config: MakeConfig) -> None:
    """It decides no shape: without it a run would go on, or be evaluated, with another scale."""
    usual, same, other = (make_plan(tiny_config({"name": "lora", "alpha": alpha})) for alpha in (32, 32.0, 64))
    assert usual.fingerprint() == same.fingerprint() != other.fingerprint()
