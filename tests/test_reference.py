"""Names of the reference both ways, and refusal of everything that does not fit."""

from __future__ import annotations

import pytest
import torch

from mtvl.errors import CheckpointError
from mtvl.model import Model, build_model
from mtvl.reference import (
    describe_reference,
    load_reference,
    map_reference_state,
    our_names,
    our_task,
    reference_names,
    reference_state,
    reference_task,
)

TASKS = ("vqa", "nlvr2", "coco")
PETL = {
    "full": {"name": "full"},
    "all": {"name": "adapter", "share": "all", "bottleneck": 4},
    "up": {"name": "adapter", "share": "up", "bottleneck": 4},
    "down": {"name": "adapter", "share": "down", "bottleneck": 4},
    "none": {"name": "adapter", "share": "none", "bottleneck": 4},
    "compacter": {"name": "compacter", "share": "all", "bottleneck": 4, "division": 2},
    "low rank compacters": {"name": "compacter", "share": "none", "bottleneck": 4, "division": 2, "rank": 1},
    "hyperformer": {"name": "hyperformer", "bottleneck": 4, "task_width": 6, "hidden": 5, "code": 3},
    "lora": {"name": "lora", "share": "all", "rank": 3},
    "multiple lora": {"name": "lora", "share": "none", "rank": 3},
    "prompt": {"name": "prompt", "share": "all", "length": 3, "width": 5},
    "prompts": {"name": "prompt", "share": "none", "length": 3, "width": 5},
}


# (backbone, variant): the reference has LoRA for BART alone
ALL = [("clip_bart", v) for v in PETL] + [("clip_t5", v) for v in PETL if "lora" not in v]


@pytest.fixture
def make(tiny_config):
    def build(variant: str, seed: int = 0, backbone: str = "clip_bart") -> Model:
        config = tiny_config(
            PETL[variant], tasks=TASKS, seed=seed, paper_compat=True, init_seed=seed, backbone=backbone
        )
        model = build_model(config)
        random = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=random))
        return model

    return build


def test_names_of_the_other_methods(make) -> None:
    attention = "model.decoder.layers.0.encoder_attn"
    net = "model.decoder.adapter_layers_hyper_net"
    for variant, theirs, ours in (
        ("multiple lora", f"{attention}.q_proj.lora_As.nlvr", f"bart.{attention}.q_proj.adapter.down.nlvr2.weight"),
        ("lora", f"{attention}.v_proj.lora_Bs.caption", f"bart.{attention}.v_proj.adapter.up.shared.weight"),
        ("prompts", "model.encoder.prompt_modules.prompts.caption.prefix_embedding.3.bias",
         "bart.model.encoder.adapter.prompt.coco.out.bias"),
        ("hyperformer", "model.decoder.task_embed.task_to_embeddings.nlvr", "common.adapter.tasks.vector.nlvr2.weight"),
        ("hyperformer", f"{net}.cross_attention_up_sampler_hyper_net.weight_generator.0.bias",
         "common.adapter.decoder.net.shared.blocks.cross_attn.up_weight.bias"),
        ("low rank compacters", "model.encoder.layers.1.ff_adapter.adapters.vqa.up_sampler.W_left",
         "bart.model.encoder.layers.1.fc2.adapter.up.vqa.left"),
    ):  # fmt: skip
        assert our_names(make(variant), TASKS)[theirs] == f"backbone.{ours}"


def copy_of(state):
    """Every name with a tensor of its own, as a safetensors file without aliases gives it."""
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize(("backbone", "variant"), ALL)
def test_a_state_survives_both_directions(make, backbone, variant) -> None:
    source, target = make(variant, 1, backbone), make(variant, 2, backbone)
    state = copy_of(reference_state(source, TASKS))
    assert any(not torch.equal(v, target.state_dict()[n]) for n, v in source.state_dict().items())
    load_reference(target, TASKS, state)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    for name, value in reference_state(target, TASKS).items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize(("backbone", "variant"), ALL)
def test_every_tensor_has_a_name_and_every_name_one_tensor(make, backbone, variant) -> None:
    model = make(variant, backbone=backbone)
    names = reference_names(model, TASKS)
    assert {n for n, _ in model.named_parameters()} <= set(names)
    flat = [theirs for group in names.values() for theirs in group]
    assert len(flat) == len(set(flat)) == len(our_names(model, TASKS))


def test_names_of_places_and_tasks(make) -> None:
    names = our_names(make("none"), TASKS)
    layer = "model.decoder.layers.1"
    assert {
        f"{layer}.self_attn_adapter.adapters.nlvr.down_sampler.weight",
        f"{layer}.enc_attn_adapter.adapters.caption.up_sampler.bias",
        f"{layer}.ff_adapter.adapters.vqa.up_sampler.weight",
        "model.encoder.layers.0.attn_adapter.adapters.caption.down_sampler.bias",
        "model.encoder.visual_embedding.feat_embedding.0.weight",
        "model.encoder.visual_embedding.absolute_vis_pos_embedding.1.bias",
        "model.encoder.visual_embedding.img_order_embedding.weight",
        "final_logits_bias",
    } <= names.keys()
    ours = names[f"{layer}.self_attn_adapter.adapters.nlvr.down_sampler.weight"]
    assert ours == "backbone.bart.model.decoder.layers.1.self_attn.out_proj.adapter.down.nlvr2.weight"
    table = {ours for name, ours in names.items() if name.startswith("lm_head") or "obj_order" in name}
    assert table == {"backbone.bart.model.shared.weight"}
    names = our_names(make("none", backbone="clip_t5"), TASKS)
    layer = "decoder.block.1.layer"
    assert {
        f"{layer}.0.attn_adapter.adapters.nlvr.down_sampler.weight",
        f"{layer}.1.enc_attn_adapter.adapters.caption.up_sampler.bias",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.visual_embedding.absolute_vis_pos_embedding.1.weight",
    } <= names.keys()
    ours = names[f"{layer}.2.ff_adapter.adapters.vqa.up_sampler.weight"]
    assert ours == f"backbone.t5.{layer}.2.DenseReluDense.wo.adapter.up.vqa.weight"
    assert names["encoder.visual_embedding.obj_order_embedding.weight"] == "backbone.t5.shared.weight"
    assert [our_task(t) for t in ("vqa", "gqa", "nlvr", "caption")] == ["vqa", "gqa", "nlvr2", "coco"]
    assert [our_task(reference_task(t)) for t in (*TASKS, "tvqa")] == [*TASKS, "tvqa"]


def test_shared_parts_answer_to_the_names_of_all_tasks(make) -> None:
    names = reference_names(make("up"), TASKS)
    site = "backbone.bart.model.encoder.layers.0.fc2.adapter"
    theirs = "model.encoder.layers.0.ff_adapter.adapters"
    assert names[f"{site}.up.shared.bias"] == tuple(f"{theirs}.{t}.up_sampler.bias" for t in ("vqa", "nlvr", "caption"))
    assert names[f"{site}.down.coco.bias"] == (f"{theirs}.caption.down_sampler.bias",)


def test_what_the_reference_lacks_has_no_name_there(tiny_config) -> None:
    for petl in ({"name": "ia3"}, {"name": "prefix"}, {"name": "compacter", "share_rule": True}):
        with pytest.raises(CheckpointError, match="no counterpart of .*adapter"):
            reference_names(build_model(tiny_config(petl, tasks=TASKS)), TASKS)
    with pytest.raises(CheckpointError, match="no counterpart of .*Attention.q.adapter"):
        reference_names(build_model(tiny_config({"name": "lora"}, tasks=TASKS, backbone="clip_t5")), TASKS)


@pytest.mark.parametrize("place", ["self_attn.out", "cross_attn.out", "ffn.down"])
def test_low_rank_changes_at_the_adapters_places_have_no_names(place, tiny_config) -> None:
    model = build_model(tiny_config({"name": "lora", "rank": 3, "places": [place]}, tasks=TASKS))
    with pytest.raises(CheckpointError, match="no counterpart of"):
        reference_state(model, TASKS)


def test_aliases_stand_for_the_names_that_are_left_out(make) -> None:
    source, target = make("all", 1), make("all", 2)
    names = reference_names(source, TASKS)
    state = {k: v.clone() for k, v in reference_state(source, TASKS).items()}
    aliases = {group[0]: list(group[1:]) for group in names.values() if len(group) > 1}
    short = {k: v for k, v in state.items() if k in {group[0] for group in names.values()}}
    with pytest.raises(CheckpointError, match="names are missing: .*adapters.caption"):
        map_reference_state(short, target, TASKS)
    load_reference(target, TASKS, short, aliases)
    assert all(torch.equal(v, target.state_dict()[n]) for n, v in source.state_dict().items())
    with pytest.raises(CheckpointError, match="aliases are given for nothing"):
        map_reference_state(short, target, TASKS, {"nothing": ["x"]})


def test_the_tied_table_may_be_stored_once(make) -> None:
    source, target = make("none", 1), make("none", 2)
    state = copy_of(reference_state(source, TASKS))
    for name in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"):
        del state[name]
    load_reference(target, TASKS, {f"module.{k}": v for k, v in state.items()})  # as DataParallel names it
    assert torch.equal(target.backbone.bart.lm_head.weight, source.backbone.bart.lm_head.weight)


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded(make) -> None:
    source, target = make("none", 1), make("none", 2)
    before = copy_of(target.state_dict())
    good = copy_of(reference_state(source, TASKS))
    norm = "model.encoder.layers.1.final_layer_norm.weight"
    extra = {**good, "model.encoder.layers.7.fc1.weight": torch.zeros(1)}
    cases = {
        f"1 names are missing: {norm}": {k: v for k, v in good.items() if k != norm},
        "1 unexpected names: model.encoder.layers.7.fc1.weight; 0 missing": extra,
        f"{norm}: expected shape": {**good, norm: torch.zeros(3)},
        "one tensor in this model but differ": {**good, "lm_head.weight": good["lm_head.weight"] + 1},
    }
    for message, state in cases.items():
        with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
            load_reference(target, TASKS, state)
    assert all(torch.equal(v, before[n]) for n, v in target.state_dict().items())


def test_private_adapters_are_not_read_as_a_shared_one(make) -> None:
    state = reference_state(make("none", 1), TASKS)
    with pytest.raises(CheckpointError, match="one tensor in this model but differ"):
        load_reference(make("all"), TASKS, state)


@pytest.mark.parametrize(("backbone", "variant"), ALL)
def test_a_state_describes_itself(make, backbone, variant) -> None:
    model = make(variant, 3, backbone)
    facts = describe_reference({f"module.{k}": v for k, v in copy_of(reference_state(model, TASKS)).items()})
    assert facts.petl == PETL[variant]
    assert set(facts.tasks) == (set() if variant == "full" else set(TASKS))
    assert (facts.vocab_total, facts.feature_width) == (77, 256)
    assert facts.backbone == backbone
    text = model.backbone.text.config
    assert all(getattr(text, key) == value for key, value in facts.text.items()) and len(facts.text) >= 6


def test_other_states_are_refused_by_name(make) -> None:
    state = reference_state(make("full"), TASKS)
    with pytest.raises(CheckpointError, match="several methods, adapter and lora|several methods, lora and adapter"):
        describe_reference({**reference_state(make("lora"), TASKS), **reference_state(make("all"), TASKS)})
    for name, value in reference_state(make("compacter"), TASKS).items():
        if not name.endswith("phm_rule"):
            state[name] = value
    with pytest.raises(CheckpointError, match="one rule for all places"):
        describe_reference(state)
    with pytest.raises(CheckpointError, match="task vectors but no model.encoder.adapter_layers_hyper_net"):
        describe_reference(
            {**reference_state(make("full"), TASKS), "model.shared_task_embed.task_to_embeddings.vqa": torch.zeros(6)}
        )
    with pytest.raises(CheckpointError, match="CLIP-T5"):
        describe_reference({"encoder.block.0.layer.0.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no VL-Adapter state"):
        describe_reference({"resnet.conv1.weight": torch.zeros(1)})
