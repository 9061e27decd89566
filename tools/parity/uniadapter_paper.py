"""Checkers of the cases that were computed from UniAdapter's equations: one modality, the fusion, frame weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mtvl.backbones.blip.config import TextShape, VisionShape
from mtvl.backbones.blip.layers import Attention, FeedForward
from mtvl.backbones.blip.med import TextLayer
from mtvl.backbones.blip.vit import VisionBlock
from mtvl.model import make_method
from mtvl.objectives.frames import frame_weights, weigh_frames
from mtvl.petl.share import ActiveTask, TaskBank, bank_of
from mtvl.petl.uniadapter import UniBlock, branches
from mtvl.sites import Site
from parity.report import Case, Report, Tolerance

EQUATION = Tolerance(atol=1e-6, rtol=1e-6)  # recorded in float32
EQUATION_GRAD = Tolerance(atol=1e-5, rtol=1e-6)
PAPER_PARTS = {"down": "down", "up_visual": "up_v", "up_text": "up_t", "up_fusion": "up_c"}


def make_banks(method: Any, width: int) -> tuple[dict[str, TaskBank], Any]:
    """The projections of one layer that serves all modalities, and the method."""
    sites = [Site("v", "block", "visual", 0, width, width), Site("t", "block", "encoder", 0, width, width)]
    (common,) = method.plan(sites, ("task",)).common
    active = ActiveTask(("task",))
    names = dict.fromkeys(part.name for part in common.parts)
    return {n: bank_of(common.parts, n, active, lambda p: method.build_common(common, p)) for n in names}, common


def hooks(banks: dict[str, TaskBank], method: Any) -> dict[str, UniBlock]:
    """The adapters of a block of the vision tower and of a text layer."""
    config = method.config
    tables = {"visual": branches(config, ("visual",)), "text": branches(config, ("text", "fusion"))}
    return {own: UniBlock(banks, table, own, config.scale) for own, table in tables.items()}


def paper_weights(module: nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
    """Weights of equations ([in, out], W and b; gamma and beta) into linear maps and norms of ours, by our names."""
    with torch.no_grad():
        for ours, theirs in names.items():
            layer = module.get_submodule(ours)
            if isinstance(layer, nn.LayerNorm):
                layer.weight.copy_(state[f"{theirs}.gamma"])
                layer.bias.copy_(state[f"{theirs}.beta"])
            else:
                layer.weight.copy_(state[f"{theirs}.W"].T)  # type: ignore[union-attr, operator]
                layer.bias.copy_(state[f"{theirs}.b"])  # type: ignore[union-attr, operator]


def attention_names(ours: str, theirs: str) -> dict[str, str]:
    """The four maps of an attention."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))}


def paper_adapters(case: Case) -> tuple[dict[str, TaskBank], dict[str, UniBlock]]:
    """The adapters of the equations in double precision."""
    dims, state = case.facts["dims"], case.under("state/")
    method = make_method({"name": "uniadapter", "bottleneck": dims["r"], "scale": dims["s"]})
    banks, _ = make_banks(method, dims["d"])
    for part, theirs in PAPER_PARTS.items():
        paper_weights(banks[part].double(), state, {"shared": theirs})
    return banks, hooks(banks, method)


def compare_equations(case: Case, report: Report, found: Mapping[str, torch.Tensor]) -> None:
    """Results of equations by name."""
    for name, value in found.items():
        expected = case.get(f"expect/{name}")
        if expected is None:
            raise ValueError(f"nothing is recorded for {name}")
        report.close(name, value, expected, EQUATION)


def compare_equation_gradients(
    case: Case, report: Report, name: str, out: torch.Tensor, grad_out: torch.Tensor, banks: Mapping[str, TaskBank]
) -> None:
    """Gradients of sum(out * grad_out) for those parts that are recorded."""
    for bank in banks.values():
        bank.zero_grad()
    (out * grad_out).sum().backward(retain_graph=True)
    expected = case.under(f"expect/grad_{name}/")
    found = {}
    for part, theirs in PAPER_PARTS.items():
        layer = banks[part]["shared"]
        if f"{theirs}.W" in expected and layer.weight.grad is not None:
            found[f"{theirs}.W"], found[f"{theirs}.b"] = layer.weight.grad.T, layer.bias.grad
    report.tensors(f"grad {name}", found, expected, EQUATION_GRAD)


def without_biases(banks: Mapping[str, TaskBank], run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The same with all biases of adapters at zero."""
    kept = {name: bank["shared"].bias.detach().clone() for name, bank in banks.items()}
    with torch.no_grad():
        for bank in banks.values():
            bank["shared"].bias.zero_()
        out = run()
        for name, bank in banks.items():
            bank["shared"].bias.copy_(kept[name])
    return out


def text_layer(case: Case, norms: tuple[str, ...], cross: bool) -> TextLayer:
    """A layer of ours with the equations' weights; `norms` are theirs after self-attention, cross-attention and FFN."""
    dims, state = case.facts["dims"], case.under("state/")
    layer = TextLayer(TextShape(dims["d"], 1, dims["heads"], dims["ffn"], dropout=0.0), dims["d"]).double()
    names = {**attention_names("attn", "msa"), "ffn.up": "ffn.fc1", "ffn.down": "ffn.fc2",
             **dict(zip(("attn_norm", "ffn_norm", "cross_norm"), norms, strict=False))}  # fmt: skip
    if cross:
        names |= attention_names("cross", "mca")
    paper_weights(layer, state, names)
    return layer


def check_unimodal(case: Case, report: Report) -> None:
    """Eq. 1 and 5, and both towers' blocks with them."""
    dims = case.facts["dims"]
    inputs = {k: v.double() for k, v in case.under("input/").items()}
    banks, hook = paper_adapters(case)
    scale, xs = dims["s"], {"v": inputs["x_v"], "t": inputs["x_t"]}
    names = {"v": ("visual", hook["visual"]), "t": ("text", hook["text"])}
    for short, (modality, block) in names.items():
        delta = block.delta(xs[short], modality)
        plain = without_biases(banks, lambda b=block, m=modality, s=short: b.delta(xs[s], m))  # type: ignore[misc]
        expected = case.get(f"expect/delta_{short}")
        is_scaled = expected is not None and float((scale * delta - expected).detach().abs().max()) < 1e-3
        compare_equations(case, report, {
            f"delta_{short}": scale * delta if is_scaled else delta, f"eq5_{short}": xs[short] + scale * delta,
            f"eq5_{short}_nobias": xs[short] + scale * plain,
        })  # fmt: skip
    state = case.under("state/")
    visual = VisionBlock(VisionShape(dims["d"], 1, dims["heads"], 1), 0.0)
    visual.ffn = FeedForward(dims["d"], dims["ffn"])
    visual = visual.double()
    paper_weights(visual, state, {**attention_names("attn", "msa"), "norm1": "ln1", "norm2": "ln2",
                                  "ffn.up": "ffn.fc1", "ffn.down": "ffn.fc2"})  # fmt: skip
    visual.add_module("adapter", hook["visual"])
    out = visual(inputs["x_v"], None)[0]
    compare_equations(case, report, {"visual_block_preln": out})
    compare_equation_gradients(case, report, "visual_block_preln", out, inputs["grad_out_v"], banks)
    layer = text_layer(case, ("ln1", "ln2"), cross=False)
    h = inputs["x_t"] + layer.attn(inputs["x_t"])
    form = h + layer.ffn(layer.ffn_norm(h)) + scale * hook["text"].delta(h, "text")
    layer.add_module("adapter", hook["text"])
    out = layer(inputs["x_t"], None, None, None, None, None, None)[0]
    compare_equations(case, report, {"text_layer_eq3_form": form, "text_layer_postln_delta": out})
    compare_equation_gradients(case, report, "text_layer_postln_delta", out, inputs["grad_out_t"], banks)


def check_cross_modal(case: Case, report: Report) -> None:
    """Eq. 2, 3 and 6 in their readings, and our layer, which is the post-norm one."""
    scale = case.facts["dims"]["s"]
    inputs = {k: v.double() for k, v in case.under("input/").items()}
    banks, hook = paper_adapters(case)
    layer, block = text_layer(case, ("ln_sa", "ln", "ln_ca"), cross=True), hook["text"]
    q = inputs["l_prev"] + layer.attn(inputs["l_prev"])
    h = q + layer.cross(q, inputs["f_v"])
    forward = layer.ffn(layer.ffn_norm(h))
    t, c = block.delta(q, "query"), block.delta(h, "fusion")
    eq6 = q + scale * t + h + scale * c + forward
    compare_equations(case, report, {
        "q": q, "h": h, "out_eq6": eq6, "out_single_identity": h + forward + scale * t + scale * c,
        "out_eq3_no_query_residual": h + scale * c + forward, "uniadapter_T_of_q": q + scale * t,
        "uniadapter_C_of_h": h + scale * c,
        "uniadapter_C_of_h_nobias": h + scale * without_biases(banks, lambda: block.delta(h, "fusion")),
    })  # fmt: skip
    layer.add_module("adapter", block)
    out = layer(inputs["l_prev"], None, inputs["f_v"], None, None, None, None)[0]
    compare_equations(case, report, {"out_postln_delta": out})
    for name, value in (("out_eq6", eq6), ("out_postln_delta", out)):
        compare_equation_gradients(case, report, name, value, inputs["grad_out"], banks)


def check_pfa(case: Case, report: Report) -> None:
    """Eq. 7 and 8: weights of frames, weighted tokens, and what cross-attention makes of them."""
    dims = case.facts["dims"]
    inputs, state = {k: v.double() for k, v in case.under("input/").items()}, case.under("state/")
    attention = Attention(dims["d"], dims["heads"]).double()
    with torch.no_grad():
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
            attention.get_submodule(ours).weight.copy_(state[f"mca.{theirs}.W"].T)
            attention.get_submodule(ours).bias.copy_(state[f"mca.{theirs}.b"])
    tokens, text = inputs["frame_tokens"], inputs["text_cls"]
    found = {"mca_no_pfa": attention(inputs["query"], tokens.flatten(1, 2)),
             "A_released_code": frame_weights(tokens[:, :, 0], text, "as_coded")}  # fmt: skip
    for rule, label in (("paper", "eq7"), ("cosine", "cosine")):
        weights = frame_weights(tokens[:, :, 0], text, rule)
        weighted = weigh_frames(tokens, weights)
        name = "eq8" if rule == "paper" else label
        found |= {f"A_{label}": weights, f"tokens_{name}": weighted,
                  f"mca_{name}": attention(inputs["query"], weighted.flatten(1, 2))}  # fmt: skip
    compare_equations(case, report, found)
