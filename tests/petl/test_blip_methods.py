"""Methods on BLIP: they start as the frozen backbone, train what they plan, recompute, merge, and refuse with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtvl.backbones.blip import Blip, BlipConfig
from mtvl.errors import ConfigError, PlanError
from mtvl.model import Model, make_backbone, make_method
from mtvl.petl import METHODS

# Methods of the plug-in that are defined on BLIP's linear maps and hooks, beside the two that live in it.
GENERAL = ("adapter", "parallel_adapter", "compacter", "lora", "ia3", "hyperformer")
UNI = (
    {}, {"shared": "none"}, {"shared": "up"}, {"shared": "both"}, {"query": "separate"}, {"query": "off"},
    {"modalities": ("visual",)}, {"modalities": ("fusion",)}, {"variant": "as_coded"}, {"layers": "last:1"}, {"share": "none"},
)  # fmt: skip
TRANS = (
    {}, {"pairs": "by_tower"}, {"freeze_pair": True}, {"tie_values": False}, {"learn_scale": True}, {"share": "none"},
    {"share": "down"}, {"share": "up", "freeze_pair": True},
    {"activation": "relu", "orientation": "literal"},
)  # fmt: skip
SECTIONS = [
    *({"name": name} for name in GENERAL), *({"name": "uniadapter", "bottleneck": 4, "key_bottleneck": 3, **o} for o in UNI),
    *({"name": "unitrans", "rank": 3, **o} for o in TRANS), {"name": "vcra", "rank": 3},
]  # fmt: skip
IDS = ["-".join(f"{v}" for v in s.values()) for s in SECTIONS]


def build(kind: str = "joint", **options: Any) -> Blip:
    model = Blip.build(BlipConfig(kind=kind, preset="tiny", image_size=32, embed_dim=12, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(drawn + ("norm" in name and parameter.dim() == 1))
    return model


def adapt(backbone: Blip, section: dict[str, Any], *, paper_compat: bool = False) -> Model:
    extra = {"dropout": 0.0} if section["name"] == "lora" else {}
    method = make_method({**section, **extra}, paper_compat=paper_compat)
    model = Model(backbone, method.plan(backbone.sites(), ("a", "b")), method)
    model.set_task("a")
    return model


def everything(model: Blip) -> list[torch.Tensor]:
    """What each way through the towers gives."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 2, 3, 32, 32, generator=generator)
    ids = torch.randint(4, 118, (2, 6), generator=generator)
    mask = torch.arange(6)[None] < torch.tensor([[6], [4]])
    tokens = model.see(pixels)
    states = model.fuse(ids, mask, tokens)
    return [
        tokens, model.read(ids, mask), states, model.decode_states(ids, mask, states, mask),
        model.image_features(tokens), model.match(states[:, 0]),
    ]  # fmt: skip


def randomise_added(model: Model, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in model.plan.owners():
            parameter = model.backbone.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@torch.no_grad()
@pytest.mark.parametrize("section", SECTIONS, ids=IDS)
def test_training_starts_from_the_frozen_backbone(section: dict[str, Any]) -> None:
    """Bit for bit, in training mode too; and every way through the towers is adapted once that is not zero."""
    for training in (False, True):
        plain, model = build().train(training), adapt(build(), section).train(training)
        torch.manual_seed(4)
        expected = everything(plain)
        torch.manual_seed(4)
        assert all(torch.equal(a, b) for a, b in zip(everything(model.backbone), expected, strict=True))
    randomise_added(model)
    model.eval()
    changed = [not torch.equal(a, b) for a, b in zip(everything(model.backbone), everything(plain.eval()), strict=True)]
    modalities = section.get("modalities", ("visual", "text", "fusion"))
    assert changed[0] == ("visual" in modalities) and (changed[1] == ("text" in modalities)) and changed[2]


@pytest.mark.parametrize("section", SECTIONS, ids=IDS)
def test_every_added_parameter_is_reached(section: dict[str, Any]) -> None:
    model = adapt(build(), section).train()
    randomise_added(model)
    before = {n: p.detach().clone() for n, p in model.backbone.named_parameters() if not p.requires_grad}
    for task in ("a", "b"):
        model.set_task(task)
        sum(x.square().sum() for x in everything(model.backbone)).backward()
    idle = [n for n in model.plan.owners() if not bool(model.backbone.get_parameter(n).grad.any())]
    assert not idle, idle
    assert all(torch.equal(p, before[n]) for n, p in model.backbone.named_parameters() if n in before)
    assert sum(p.numel() for p in model.trainable().values()) == model.plan.num_trainable
    assert sum(p.numel() for p in model.parameters()) == model.plan.num_total


@pytest.mark.parametrize("section", [{"name": "unitrans", "rank": 3}, {"name": "uniadapter", "bottleneck": 4, "share": "none"}],
                         ids=["unitrans", "uniadapter"])  # fmt: skip
def test_recompute_changes_no_gradient(section: dict[str, Any]) -> None:
    """Passes of two modalities through one block, a side stream along the blocks, and another task set before backward."""

    def gradients(recompute: bool) -> dict[str, torch.Tensor]:
        model = adapt(build(), section).train()
        randomise_added(model)
        model.backbone.set_recompute(recompute, model.active.recompute_contexts)
        torch.manual_seed(3)
        losses = []
        for task in ("a", "b"):
            model.set_task(task)
            losses.append(sum(x.square().mean() for x in everything(model.backbone)))
        sum(losses).backward()
        return {n: p.grad for n, p in model.trainable().items() if p.grad is not None}

    kept, again = gradients(False), gradients(True)
    assert kept.keys() == again.keys() and len(kept) > 20
    assert all(torch.equal(kept[n], again[n]) for n in kept)


def test_tasks_have_halves_of_their_own() -> None:
    for share, down, up in (("down", {"shared"}, {"a", "b"}), ("up", {"a", "b"}, {"shared"})):
        model = adapt(build(), {"name": "uniadapter", "bottleneck": 4, "share": share})
        owners = {(n.split(".")[3].partition("_")[0], owner) for n, owner in model.plan.owners().items()}
        assert {o for half, o in owners if half == "down"} == down and {o for half, o in owners if half == "up"} == up
        method = {"name": "unitrans", "rank": 3, "learn_scale": True}
        whole, model = adapt(build(), method), adapt(build(), {**method, "share": share})
        halves: dict[str, set[str]] = {"down": set(), "up": set()}
        for name, owner in model.plan.owners().items():
            is_down = name.endswith(".a") or ".down_" in name  # A with all a; B with everything behind it
            halves["down" if is_down else "up"].add(owner)
        assert halves == {"down": down, "up": up}
        private = sum(p.numel() for n, p in model.trainable().items() if n.split(".")[-2] in ("a", "b"))
        assert model.plan.num_added == whole.plan.num_added + private // 2
    with pytest.raises(ConfigError, match="did you mean 'down'"):
        adapt(build(), {"name": "vcra", "share": "dwon"})


def test_the_decoder_has_the_encoders_adapters() -> None:
    model = adapt(build("vqa"), {"name": "uniadapter", "bottleneck": 4})
    assert {n.split(".")[2] for n in model.plan.owners()} == {"layer0", "layer1"}
    hooks = [
        model.backbone.get_submodule(f"{path}.adapter")
        for path in ("text.layers.1", "decoder.layers.1", "vision.blocks.1")
    ]
    assert len({id(h._banks[0]["down"]) for h in hooks}) == 1


def test_a_tower_of_another_width_has_banks_of_its_own() -> None:
    model = adapt(build(vision={"width": 48, "layers": 3}), {"name": "uniadapter", "bottleneck": 4})
    assert {n.split(".")[2] for n in model.plan.owners()} == {"layer0", "layer1", "visual0", "visual1", "visual2"}
    everything(model.backbone)
    model = adapt(build(vision={"width": 48, "layers": 3}), {"name": "unitrans", "rank": 3})
    pairs = {n.split(".")[2] for n in model.plan.owners() if ".pair." in n}
    assert pairs == {"down_all_w48", "up_all_w48", "down_all_w32", "up_all_w32", "down_decoder_w32", "up_decoder_w32"}
    everything(model.backbone)


@torch.no_grad()
def test_frozen_pairs_come_again_from_their_seed_and_are_in_no_state() -> None:
    section = {"name": "vcra", "rank": 3, "freeze_pair": True}
    model, again = adapt(build(), section), adapt(build(), section)
    randomise_added(model)
    assert not any("frozen" in n for n in model.state_dict())
    again.load_state_dict(model.state_dict())
    pairs = zip(everything(model.eval().backbone), everything(again.eval().backbone), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = adapt(build(), {**section, "pair_seed": 1})
    other.load_state_dict(model.state_dict())
    assert not torch.equal(everything(other.eval().backbone)[2], everything(model.backbone)[2])


@torch.no_grad()
def test_vectors_merge_where_one_modality_runs_and_say_why_not_elsewhere() -> None:
    scales = {}
    for scale in (1.0, 0.5):  # no encoder: each map has one modality
        scales[scale] = adapt(build("caption").double(), {"name": "vcra", "rank": 3, "scale": scale}).eval()
        randomise_added(scales[scale])
    model = scales[0.5]
    pixels, ids = torch.randn(2, 3, 32, 32).double(), torch.randint(4, 118, (2, 5))
    mask = torch.ones_like(ids, dtype=torch.bool)

    def logits(model: Model = model) -> torch.Tensor:
        return model.backbone.decode_states(ids, mask, model.backbone.see(pixels).flatten(1, 2))

    apart = logits()
    assert not torch.allclose(apart, logits(scales[1.0]), atol=1e-3)
    model.merge("a")
    assert float((logits() - apart).abs().max()) < 1e-11 and not torch.equal(logits(), apart)
    model.unmerge()
    assert torch.equal(logits(), apart)
    with pytest.raises(PlanError, match="text and fusion.*cannot be both"):
        adapt(build(), {"name": "vcra", "rank": 3}).merge("a")
    with pytest.raises(PlanError, match="cannot be merged"):
        adapt(build(), {"name": "uniadapter", "bottleneck": 4}).merge("a")


@torch.no_grad()
@pytest.mark.parametrize("share", ["none", "down"])
def test_the_side_network_of_a_task_runs_for_its_rows(share: str) -> None:
    """Where a decoder has it, rows of several tasks go through it together."""
    model = adapt(build("caption").double(), {"name": "unitrans", "rank": 3, "share": share}).eval()
    randomise_added(model)
    tokens = model.backbone.see(torch.randn(4, 3, 32, 32).double()).flatten(1, 2)
    ids, rows = torch.randint(4, 118, (4, 5)), ("a", "b", "b", "a")
    mask = torch.ones_like(ids, dtype=torch.bool)
    apart = []
    for row, task in enumerate(rows):
        model.set_task(task)
        one = slice(row, row + 1)
        apart.append(model.backbone.decode_states(ids[one], mask[one], tokens[one]))
    model.set_rows(rows)
    together = model.backbone.decode_states(ids, mask, tokens)
    assert float((together - torch.cat(apart)).abs().max()) < 1e-11
    model.set_task("a")
    assert not torch.allclose(model.backbone.decode_states(ids, mask, tokens)[1], together[1])


@torch.no_grad()
def test_a_parallel_adapter_reads_what_its_part_reads() -> None:
    places = ("self_attn", "cross_attn", "ffn")
    model = adapt(build(), {"name": "parallel_adapter", "places": places, "scale": 0.5, "share": "none"}).eval()
    randomise_added(model)
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    ours, plain = model.backbone.text.layers[1], build().eval().text.layers[1]
    for part, last, given in (("attn", "out", (x,)), ("cross", "out", (x, memory)), ("ffn", "down", (x,))):
        adapter = ours.get_submodule(f"{part}.{last}").adapter
        added = adapter.up(torch.relu(adapter.down(x)))
        expected = plain.get_submodule(part)(*given) + 0.5 * added
        assert torch.allclose(ours.get_submodule(part)(*given), expected, atol=1e-6) and bool(added.abs().max() > 0.1)
    apart = []
    for row, task in enumerate(("b", "a")):
        model.set_task(task)
        apart.append(ours.ffn(x[row : row + 1]))
    model.set_rows(("b", "a"))
    assert torch.allclose(ours.ffn(x), torch.cat(apart), atol=1e-6)


def test_the_readings_of_the_side_network_start_where_they_say() -> None:
    plain = everything(build().eval())[2]
    at_zero, from_text = (everything(adapt(build(), {"name": "unitrans", "rank": 3, "side": s}).eval().backbone)[2]
                          for s in ("zero", "text"))  # fmt: skip
    assert torch.equal(at_zero, plain) and not torch.allclose(from_text, plain, atol=1e-3)


def test_the_papers_start_of_uniadapter_is_not_the_frozen_backbone() -> None:
    section = {"name": "uniadapter", "bottleneck": 4, "variant": "as_coded", "key_bottleneck": 3}
    started = everything(adapt(build(), section, paper_compat=True).eval().backbone)
    plain = everything(build().eval())
    assert torch.equal(started[1], plain[1])  # the text's up-projection starts at zero there
    assert not torch.equal(started[0], plain[0]) and not torch.equal(started[2], plain[2])


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "uniadapter", "shared": "dwon"}, "did you mean 'down'"),
        ({"name": "uniadapter", "modalities": ("vison",)}, "did you mean 'fusion' or 'visual'|'vison'"),
        ({"name": "uniadapter", "bottleneck": 0}, "petl.bottleneck"),
        ({"name": "uniadapter", "key_bottleneck": -2}, "'petl.key_bottleneck' not below 0.*found 128, -2"),
        ({"name": "uniadapter", "variant": "as_coded", "shared": "up"}, "shares 'down' alone"),
        ({"name": "unitrans", "activation": "sigmoid"}, "unknown 'petl.activation' 'sigmoid'"),
        ({"name": "vcra", "rank": 0}, "petl.rank"),
        ({"name": "parallel_adapter", "places": ("fnn",)}, "did you mean 'ffn'"),
        ({"name": "parallel_adapter", "places": ()}, "petl.places"),
    ],
)
def test_options_that_cannot_be(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_method(section)


@pytest.mark.parametrize(
    ("backbone", "name", "instead"),
    [
        *((b, "uniadapter", "'adapter'") for b in ("clip_bart", "clip_t5", "clip_vil")),
        *((b, "unitrans", "petl.name=vcra") for b in ("clip_bart", "clip_t5", "clip_vil")),
        *((b, "probe", "'projection'") for b in ("clip_bart", "clip_t5")),
    ],
)
def test_backbones_without_blocks_or_heads_are_refused_with_a_way_on(
    backbone: str, name: str, instead: str, tiny_backbones: dict[str, Any]
) -> None:
    sites = make_backbone(tiny_backbones[backbone].section, meta=True).sites()
    with pytest.raises(PlanError, match=instead):
        make_method({"name": name}).plan(sites, ("a",))
    assert name in METHODS


def test_a_plan_of_many_common_modules_prints_few_rows() -> None:
    for section in ({"name": "unitrans", "rank": 3}, {"name": "uniadapter", "bottleneck": 4}):
        plan = adapt(build(), section).plan
        table = plan.table()
        assert len(table.splitlines()) < 45 and f"trainable {plan.num_trainable:,}" in table
        assert (
            sum(int(line.split()[4].replace(",", "")) for line in table.splitlines() if line.startswith("add "))
            == plan.num_added
        )
