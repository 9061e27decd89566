"""Checker of the family "uniadapter": the released code's blocks, retrieval and answers, and the paper's equations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mtvl.backbones.blip import Blip, BlipBackbone, BlipConfig
from mtvl.backbones.blip.config import TextShape, VisionShape
from mtvl.backbones.blip.keys import original_name, to_original
from mtvl.backbones.blip.loading import load_original
from mtvl.backbones.blip.med import TextLayer
from mtvl.backbones.blip.vit import VisionBlock
from mtvl.model import Model, make_method
from mtvl.objectives.frames import frame_weights, key_scales
from mtvl.petl.share import TaskBank
from mtvl.steps.retrieval import RetrievalOptions, RetrievalStep
from parity.blip import check_answers
from parity.blip_parts import (
    blocks_of,
    compare,
    compare_layers,
    compare_named,
    compare_step,
    compare_targets,
    embed_dim,
    fill_queue,
    outputs_of,
    with_second_names,
)
from parity.report import Case, Report, check_kind
from parity.uniadapter_paper import check_cross_modal, check_pfa, check_unimodal, hooks, make_banks

PARTS = {
    "adapter_layer_norm_before": "norm", "adapter_layer_norm_cross_modal": "cross_norm", "down_proj": "down",
    "up_proj": "up_text", "visual_up_proj": "up_visual", "multi_up_proj": "up_fusion",
}  # fmt: skip
OURS = {ours: theirs for theirs, ours in PARTS.items()}


def check(case: Case, report: Report) -> None:
    """Compare every quantity that the case records."""
    check_kind(case, report, {
        "blocks": check_blocks, "retrieval": check_retrieval, "vqa": check_vqa, "paper_unimodal": check_unimodal,
        "paper_cross_modal": check_cross_modal, "paper_pfa": check_pfa,
    })  # fmt: skip


# ---- building ----------------------------------------------------------------------------------------------------


def load_block(block: nn.Module, state: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Original tensors of one block or layer, below no prefix of their own, into ours, which `prefix` names."""
    whole = original_name(f"{prefix}.0.ffn.up.weight").partition(".0.")[0] + ".0."
    for name, tensor in block.state_dict().items():
        if name.startswith("adapter."):
            continue
        source = original_name(f"{prefix}.0.{name}")
        found = state[source.removeprefix(whole)]
        if ".attn.qkv." in source:
            found = found.chunk(3)["qkv".index(name.split(".")[-2])]
        tensor.copy_(found)


def our_adapter_name(name: str) -> str | None:
    """Our name, inside the adapted backbone, of an adapter's tensor of the released code; None for what is none."""
    pieces = name.split(".")
    if pieces[0] == "adapters":
        return f"common.adapter.layer{pieces[1]}.{PARTS[pieces[2]]}.shared.{pieces[3]}"
    for stack, begin in (("encoder", "text_encoder.encoder."), ("decoder", "text_decoder.bert.encoder.")):
        for which in ("key", "value"):
            stem = f"{begin}video_{which}_adapter."
            if name.startswith(stem):
                part, _, leaf = name.removeprefix(stem).rpartition(".")
                return f"common.adapter.keys_{stack}_{which[0]}.{part.partition('_')[0] or 'up'}.shared.{leaf}"
    return None


def is_adapter(name: str) -> bool:
    """True for tensors of adapters under any of the names that the released state gives them."""
    return any(piece.startswith(("adapter", "video_")) for piece in name.split("."))


def build(case: Case, report: Report, kind: str) -> tuple[Model, dict[str, str]]:
    """The adapted model with the recorded state, in training mode, and our names of its adapters by the released ones."""
    dims, facts = case.facts["dims"], case.facts
    ids = facts["conventions"]["special_token_ids"]
    state = with_second_names(case)
    config = BlipConfig(
        kind=kind, embed_dim=embed_dim(facts, state),
        vision={"width": dims["width"], "layers": dims["layers"], "heads": dims["vision_heads"], "patch": dims["patch"],
                "mlp_ratio": dims["vision_mlp_ratio"], "image_size": dims["image_size"],
                "norm_eps": dims["vision_ln_eps"], "drop_path": 0.0},
        text={"width": dims["width"], "layers": dims["layers"], "heads": dims["text_heads"],
              "ffn": dims["text_intermediate"], "vocab": dims["vocab"], "positions": dims["max_positions"],
              "norm_eps": dims["text_ln_eps"], "dropout": 0.0, "eos_id": ids["sep"]},
    )  # fmt: skip
    backbone = BlipBackbone.build(config)
    loaded = load_original(backbone, {n: t for n, t in state.items() if not is_adapter(n)}, str(case.file))
    report.equal("tensors that start at random", sorted(loaded.fresh), [])
    keys = facts["config"]["video_key_adapter"]
    method = make_method({
        "name": "uniadapter", "variant": "as_coded", "bottleneck": dims["bottleneck"],
        "key_bottleneck": dims["video_key_adapter_dim"] if keys else 0, "train_heads": kind == "retrieval",
    })  # fmt: skip
    model = Model(backbone, method.plan(backbone.sites(), ("task",)), method)
    names = {n: ours for n in state if (ours := our_adapter_name(n)) is not None}
    own = dict(backbone.named_parameters())
    with torch.no_grad():
        for name, ours in names.items():
            own[ours].copy_(state[name])
    added = {n for n, _, _ in model.plan.added()}
    report.names("adapter parameters", set(names.values()), added)
    model.set_task("task")
    return model.train(), names


def compare_gradients(case: Case, report: Report, model: Model, names: Mapping[str, str]) -> None:
    """Gradients of what the release trains, and of what it freezes: the temperature, and a norm by accident."""
    backbone = model.backbone
    grads = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
    theirs = {ours: name for name, ours in names.items()}
    found = {theirs[n]: g for n, g in grads.items() if n in theirs}
    plain = {n: g for n, g in grads.items() if n not in theirs}
    found |= to_original(plain, backbone.vision_shape.patch)
    frozen = {n: g for n, g in found.items() if n == "temp" or "cross_modal" in n}
    compare_named(case, report, {n: g for n, g in found.items() if n not in frozen}, "expect/grad/")
    compare_named(case, report, frozen, "expect/grad_frozen/")
    trained = {theirs.get(n) or original_name(n) for n, p in backbone.named_parameters() if p.requires_grad}
    never = set(case.facts.get("trainable_without_grad", ()))  # a second bank that is never called
    by_name = [n for n in trained if "cross_modal" in n]  # where the case does not list them
    accident = {*case.facts.get("frozen_by_name_accident", by_name), "temp"}
    report.names("trained parameters", trained - accident, set(case.facts["trainable"]) - never - accident)


# ---- the released code -------------------------------------------------------------------------------------------


class Plus(nn.Module):
    """A map of keys or values with a recorded tensor added to what it gives."""

    def __init__(self, base: nn.Module, delta: torch.Tensor) -> None:
        super().__init__()
        self.base, self.delta = base, delta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.base(x) + self.delta


def make_blocks(case: Case, method: Any, banks: dict[str, TaskBank]) -> tuple[VisionBlock, TextLayer]:
    """The recorded block of the vision tower and text layer with their adapters."""
    dims, state = case.facts["dims"], case.under("state/")
    visual = VisionBlock(VisionShape(dims["width"], 1, dims["vision_heads"], dims["vision_mlp_ratio"]), 0.0)
    shape = TextShape(dims["width"], 1, dims["text_heads"], dims["text_intermediate"], dropout=0.0)
    text = TextLayer(shape, dims["width"])
    for block, begin, prefix in ((visual, "visual_block.", "vision.blocks"), (text, "bert_layer.", "text.layers")):
        own = {n.removeprefix(begin): t for n, t in state.items() if n.startswith(begin)}
        with torch.no_grad():
            load_block(block, own, prefix)
    load_banks(banks, {n.removeprefix("adapter."): t for n, t in state.items() if n.startswith("adapter.")})
    hook = hooks(banks, method)
    visual.add_module("adapter", hook["visual"])
    text.add_module("adapter", hook["text"])
    return visual, text


def check_blocks(case: Case, report: Report) -> None:
    """One block of the vision tower, one text layer with and without pictures, with frame weights and key maps."""
    dims, inputs = case.facts["dims"], case.under("input/")
    method = make_method({"name": "uniadapter", "variant": "as_coded", "bottleneck": dims["bottleneck"]})
    banks, _ = make_banks(method, dims["width"])
    visual, text = make_blocks(case, method, banks)
    mask = inputs["text_mask"].bool()[:, None, None, :]
    memory, seen = inputs["encoder_hidden"], inputs["encoder_mask"].bool()[:, None, None, :]
    weights = frames_of_cosine(inputs["frame_cosine"])
    scales = key_scales(weights, dims["tokens_per_frame"]).flatten(1)

    def read(x: torch.Tensor, *cross: Any) -> torch.Tensor:
        return text(x, mask, *(cross or (None, None, None)), None, None)[0]

    runs: dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = {
        "visual": (inputs["visual_x"], lambda x: visual(x, None)[0]),
        "text": (inputs["text_x"], read),
        "multimodal": (inputs["text_x"], lambda x: read(x, memory, seen, None)),
        "multimodal_frame_aware": (inputs["text_x"], lambda x: read(x, memory, seen, scales)),
    }
    for name, (x, run) in runs.items():
        check_mode(case, report, name, x, run, banks, inputs["grad_out"])
    for which, key in (("k", "video_key_delta"), ("v", "video_value_delta")):
        setattr(text.cross, which, Plus(getattr(text.cross, which), inputs[key]))
    x, run = runs["multimodal_frame_aware"]
    check_mode(case, report, "multimodal_frame_aware_video_key", x, run, banks, inputs["grad_out"])
    x, hook, scale = inputs["visual_x"], hooks(banks, method), method.config.scale  # of all three, as recorded
    names = {"visual": "visual", "text": "text", "multimodal": "fusion"}
    delta = {n: scale * hook["visual" if n == "visual" else "text"].delta(x, m) for n, m in names.items()}
    compare(case, report, {f"adapter_delta/{name}": value for name, value in delta.items()})
    compare(case, report, {"adapter_with_residual/text": x + delta["text"], "frame_key_weight": weights})


def frames_of_cosine(cosine: torch.Tensor) -> torch.Tensor:
    """The released frame weights for given cosines (B, N): frames whose cosine with a unit vector is that."""
    frames = torch.stack([cosine, (1 - cosine**2).clamp(min=0).sqrt()], -1)
    return frame_weights(frames, torch.tensor([[1.0, 0.0]]).expand(len(cosine), 2), "as_coded")


def load_banks(banks: Mapping[str, TaskBank], adapters: Mapping[str, torch.Tensor]) -> None:
    """Tensors of one adapter of the released code into our parts."""
    with torch.no_grad():
        for name, tensor in adapters.items():
            part, _, leaf = name.rpartition(".")
            getattr(banks[PARTS[part]]["shared"], leaf).copy_(tensor)


def check_mode(
    case: Case, report: Report, mode: str, x: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor],
    banks: Mapping[str, TaskBank], grad_out: torch.Tensor,
) -> None:  # fmt: skip
    """Output and gradients of one way to run a block."""
    for bank in banks.values():
        bank.zero_grad()
    x = x.clone().requires_grad_(True)
    out = run(x)
    (out * grad_out).sum().backward()
    compare(case, report, {f"{mode}/out": out, f"{mode}/grad_x": x.grad})
    found = {f"{OURS[part]}.{leaf}": p.grad for part, bank in banks.items()
             for leaf, p in bank["shared"].named_parameters() if p.grad is not None}  # fmt: skip
    compare_named(case, report, found, f"expect/{mode}/grad_adapter/")


def check_retrieval(case: Case, report: Report) -> None:
    """The retrieval step on pictures or videos, with teacher and queue."""
    facts = case.facts
    model, names = build(case, report, "retrieval")
    backbone, inputs, state = model.backbone, case.under("input/"), case.under("state/")
    rule = "as_coded" if facts["config"]["frame_aware_attention"] else "off"
    options = RetrievalOptions(
        queue_size=facts["queue_size"],
        momentum=facts["momentum"],
        all_ranks=facts["negative_all_rank"],
        frame_weights=rule,
    )
    taught = teacher_state(backbone, state, names)
    step = RetrievalStep(backbone, options, taught)
    step.teacher.assign(taught)
    fill_queue(step, state)
    own = dict(backbone.named_parameters())
    for name, average in step.teacher.averages().items():
        if name.startswith("common.adapter.layer"):  # the release averages these twice a step
            average.mul_(options.momentum).add_(own[name].detach(), alpha=1 - options.momentum)
    backbone.temperature.value.requires_grad_(True)
    batch = (inputs["image"], inputs["text_ids"], inputs["text_mask"].bool())
    layers = blocks_of(backbone) | {f"text_layer_{i}": b for i, b in enumerate(backbone.text.layers)}
    negatives = (inputs["neg_image_for_text"], inputs["neg_text_for_image"])
    with outputs_of(layers) as runs:
        losses = step(backbone, *batch, inputs["idx"], facts["alpha"], negatives=negatives)
    losses.total.backward()
    compare(case, report, {"loss_total": losses.total})
    compare_step(case, report, losses)
    compare_layers(case, report, runs)
    compare_gradients(case, report, model, names)
    compare_frames(case, report, backbone, losses.details["own"], negatives)
    compare_after(case, report, backbone, step, batch, names)


def teacher_state(
    backbone: Blip, state: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The recorded teacher under our names: both towers, their projections, and the adapters."""
    towers = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    found = {}
    for name, _ in backbone.named_parameters():
        if name.startswith("common."):
            continue
        source = original_name(name)
        root = source.partition(".")[0]
        if root not in towers:
            continue
        tensor = state[source.replace(root, f"{root}_m", 1)]
        if ".attn.qkv." in source:
            tensor = tensor.chunk(3)["qkv".index(name.split(".")[-2])]
        found[name] = tensor.flatten(1) if source.endswith("patch_embed.proj.weight") else tensor
    for name, ours in names.items():
        root = name.partition(".")[0]
        found[ours] = state[name.replace(root, f"{root}_m", 1)]
    return found


def compare_frames(case: Case, report: Report, backbone: Blip, own: Any, negatives: Any) -> None:
    """Cosines of frames and texts, their weights, and what the maps of keys and values add."""
    texts = torch.cat([own.text, own.text[negatives[1]]])
    frames = torch.cat([own.frames[negatives[0]], own.frames])
    compare(case, report, {"frame_feat": own.frames})
    if case.facts["config"]["frame_aware_attention"]:
        compare(case, report, {
            "frame_cosine_pos": torch.einsum("bne,be->bn", own.frames, own.text),
            "frame_cosine_neg": torch.einsum("bne,be->bn", frames, texts),
            "frame_key_weight_pos": frame_weights(own.frames, own.text, "as_coded"),
        })  # fmt: skip
    tokens = own.tokens.flatten(1, 2)
    for which in ("key", "value"):
        adapter = getattr(getattr(backbone.text.layers[0].cross, which[0]), "adapter", None)
        if adapter is not None:
            compare(case, report, {f"video_{which}_delta_pos": adapter(tokens, torch.zeros_like(tokens))})


def compare_after(
    case: Case, report: Report, backbone: Blip, step: RetrievalStep, batch: Any, names: Mapping[str, str]
) -> None:
    """Teacher's features; queue and averages after the step."""
    image, text = step.teach(backbone, *batch)
    tokens = step.teacher.run(backbone, backbone.see, batch[0])
    queue = step.queue
    compare(case, report, {
        "image_feat_m": image, "text_feat_m": text, "image_embeds_m": tokens.flatten(0, 1),
        "after/image_queue": queue.image.T, "after/text_queue": queue.text.T, "after/idx_queue": queue.ids[None],
        "after/ptr_queue": queue.place.reshape(1),
    })  # fmt: skip
    compare_targets(case, report, case.under("input/")["idx"])
    averages = step.teacher.averages()
    plain = to_original({n: t for n, t in averages.items() if not n.startswith("common.")}, backbone.vision_shape.patch)
    found = {**plain, **{name: averages[ours] for name, ours in names.items()}}
    for name, tensor in found.items():
        root = name.partition(".")[0]
        compare(case, report, {f"after/{name.replace(root, f'{root}_m', 1)}": tensor})


def check_vqa(case: Case, report: Report) -> None:
    """Weighted answers and their ranking; the decoder has the encoder's adapters."""
    model, names = build(case, report, "vqa")
    check_answers(case, report, model.backbone).loss.backward()
    compare_gradients(case, report, model, names)
