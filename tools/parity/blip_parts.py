"""What the checkers of the families "blip" and "uniadapter" share: building from a case, and comparing by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mtvl.backbones.blip import Blip, BlipBackbone, BlipConfig
from mtvl.backbones.blip.keys import ALIASES, to_original
from mtvl.backbones.blip.loading import load_original, momentum_of
from mtvl.objectives.contrast import hard_targets, matching_labels
from mtvl.steps.retrieval import RetrievalLosses, RetrievalOptions, RetrievalStep
from parity.report import EXACT, Case, Report, Tolerance

FORWARD = Tolerance(atol=3e-5, rtol=1e-5)
GRAD = Tolerance(atol=5e-5)
RELATIVE = Tolerance(atol=1e-5)

MODEL_KINDS = {"retrieval_two_ranks": "retrieval"}  # recorded kind -> kind of model, where they differ


# ---- building ----------------------------------------------------------------------------------------------------


def build(case: Case, report: Report, **vision: Any) -> BlipBackbone:
    """The model with the recorded state, in training mode (every dropout is zero)."""
    seen, read = (dict(case.facts["dims"][name]) for name in ("vision", "text"))
    ids = case.facts["conventions"]["special_token_ids"]
    kind = MODEL_KINDS.get(case.facts["kind"], case.facts["kind"])
    state = with_second_names(case)
    config = BlipConfig(
        kind=kind, embed_dim=embed_dim(case.facts, state),
        vision={"width": seen["width"], "layers": seen["depth"], "heads": seen["heads"], "patch": seen["patch"],
                "mlp_ratio": seen["mlp_ratio"], "image_size": seen["image_size"], "norm_eps": seen["ln_eps"],
                "drop_path": seen["drop_path"]},
        text={"width": read["hidden"], "layers": read["layers"], "heads": read["heads"], "ffn": read["intermediate"],
              "vocab": read["vocab"], "positions": read["max_positions"], "norm_eps": read["ln_eps"],
              "dropout": read["dropout"], "eos_id": ids["sep"], "pad_id": ids["pad"]},
    )  # fmt: skip
    model = BlipBackbone.build(config).train()
    loaded = load_original(model, state, str(case.file))
    report.equal("tensors that start at random", sorted(loaded.fresh), [])
    names = {"dec_bos": model.text_shape.dec_id, "enc": model.text_shape.enc_id}
    report.mapping("first tokens", names, {key: ids[key] for key in names})
    if "counts" in case.facts:
        count = sum(p.numel() for p in model.parameters())
        report.equal("parameters", count, case.facts["counts"]["online_parameters"])
    back = to_original(model.state_dict(), model.vision_shape.patch)
    kept = {name: state[name] for name in state if name not in loaded.unused or name in ALIASES}
    report.tensors("state under original names", back, kept, EXACT)
    return model


def with_second_names(case: Case) -> dict[str, torch.Tensor]:
    """The recorded state; what is tied stands there under all of its names."""
    state = case.under("state/")
    for first, others in case.facts.get("tied", {}).items():
        for name in others:
            if first in state:
                state.setdefault(name, state[first])
    return state


def embed_dim(facts: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> int:
    """Width of the features that are contrasted; BLIP's where there are none."""
    return facts.get("embed_dim") or len(state.get("vision_proj.weight", range(256)))


def make_step(case: Case, model: Blip, report: Report, options: RetrievalOptions) -> RetrievalStep:
    """Queue and teacher as recorded before the step."""
    state = case.under("state/")
    taught = momentum_of(model, state)
    step = RetrievalStep(model, options, taught)
    step.teacher.assign(taught)
    fill_queue(step, state)
    return step


def fill_queue(step: RetrievalStep, state: Mapping[str, torch.Tensor]) -> None:
    """The recorded queue, whose columns are features."""
    step.queue.image.copy_(state["image_queue"].T)
    step.queue.text.copy_(state["text_queue"].T)
    step.queue.place.copy_(state["ptr_queue" if "ptr_queue" in state else "queue_ptr"][0])
    if "idx_queue" in state:
        step.queue.ids.copy_(state["idx_queue"][0])


def retrieval_options(case: Case, **further: Any) -> RetrievalOptions:
    """Settings of the recorded step."""
    facts = case.facts
    is_pretraining = facts["kind"] == "pretrain"
    return RetrievalOptions(
        queue_size=facts["queue_size"], momentum=facts["momentum"], all_ranks=facts["negative_all_rank"],
        targets="diagonal" if is_pretraining else "ids", smoothing=1e-4 if is_pretraining else 0.0, **further,
    )  # fmt: skip


# ---- comparing ---------------------------------------------------------------------------------------------------


def blocks_of(model: Blip) -> dict[str, torch.nn.Module]:
    """Blocks of the vision tower under the names of their recorded outputs."""
    return {f"visual_block_{i}": block for i, block in enumerate(model.vision.blocks)}


def layers_of(model: Blip) -> dict[str, torch.nn.Module]:
    """These and the decoder's layers."""
    return blocks_of(model) | {f"decoder_layer_{i}": layer for i, layer in enumerate(model.decoder.layers)}


@contextmanager
def outputs_of(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Outputs of these modules while the context is open, one entry a run."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[name].append(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    yield found
    for handle in handles:
        handle.remove()


def compare(case: Case, report: Report, found: Mapping[str, torch.Tensor | None], prefix: str = "expect/") -> None:
    """Recorded values by name; what was not recorded is no failure, since kinds record different things."""
    for name, value in found.items():
        expected = case.get(prefix + name)
        if expected is not None and value is not None:
            tolerance = EXACT if not expected.is_floating_point() else FORWARD
            report.close(prefix.removeprefix("expect/") + name, value.reshape(expected.shape), expected, tolerance)


def compare_gradients(
    case: Case,
    report: Report,
    model: Blip,
    prefix: str = "expect/grad/",
    also: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """All gradients entry by entry, and as one vector."""
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {n: g for n, g in to_original(grads, model.vision_shape.patch).items() if n not in ALIASES}
    compare_named(case, report, {**found, **(also or {})}, prefix)


def compare_named(case: Case, report: Report, found: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Gradients under original names; none where none were recorded."""
    expected = case.under(prefix)
    if not expected:
        return
    label = prefix.removeprefix("expect/").rstrip("/")
    report.tensors(label, found, expected, GRAD)
    shared = sorted(found.keys() & expected.keys())
    pair = [torch.cat([t[n].double().flatten() for n in shared]) for t in (found, expected)]
    relative = (pair[0] - pair[1]).norm() / pair[1].norm()
    report.close(f"{label} relative L2", relative, torch.zeros(()), RELATIVE)


def pair_weights(weights: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Our chances on the scale of the recorded weights, which are not normalised after masking."""
    return weights * expected.sum(1, keepdim=True)


def compare_step(case: Case, report: Report, losses: RetrievalLosses, prefix: str = "expect/") -> None:
    """Losses, features, similarities, targets, chances of negatives and matching logits."""
    own, contrast = losses.details["own"], losses.details["contrast"]
    logits = losses.details["logits"]
    compare(case, report, {
        "loss_itc": losses.contrast, "loss_itm": losses.matching, "image_feat": own.image, "text_feat": own.text,
        "image_embeds": own.tokens.flatten(0, 1), "sim_i2t": contrast.image_to_text, "sim_t2i": contrast.text_to_image,
        "targets_i2t": contrast.image_targets, "targets_t2i": contrast.text_targets, "itm_logits": logits,
        "itm_pos_hidden": losses.details["positive"], "itm_neg_hidden": losses.details["negative"],
        "itm_labels": matching_labels(torch.ones(len(logits) // 3 * 2, dtype=torch.bool)),
    }, prefix)  # fmt: skip
    for name, weights in zip(("neg_weights_for_text", "neg_weights_for_image"), losses.details["weights"], strict=True):
        if (expected := case.get(prefix + name)) is not None:
            report.close(prefix.removeprefix("expect/") + name, pair_weights(weights, expected), expected, FORWARD)


def compare_layers(case: Case, report: Report, runs: Mapping[str, list[torch.Tensor]]) -> None:
    """Single layers: blocks of the vision tower, text alone (run 0; run 1 is the teacher's), text with its picture."""
    for name, outputs in runs.items():
        compare(case, report, {name: outputs[0]})
        if name.startswith("text_layer_"):
            compare(case, report, {name.replace("text_layer_", "multimodal_pos_layer_"): outputs[2]})
    last = f"text_layer_{sum(name.startswith('text_layer_') for name in runs) - 1}"
    compare(case, report, {"text_hidden": runs[last][0], "text_hidden_m": runs[last][1]})


def compare_targets(case: Case, report: Report, ids: torch.Tensor, prefix: str = "") -> None:
    """The hard targets (B, B + Q) of a batch with these `ids` before the queue."""
    if (expected := case.get(f"expect/{prefix}targets_hard")) is None:
        return
    if case.facts["kind"] == "pretrain":
        found = torch.eye(len(ids), expected.shape[1])
    else:
        size = expected.shape[1] - len(ids)
        found = hard_targets(ids, torch.cat([ids, case.under("state/")["idx_queue"][0][:size]]))
    report.close(f"{prefix}targets_hard", found, expected, FORWARD)
