"""Checker of the family "vl_adapter": CLIP-BART and CLIP-T5 states, losses, gradients, updates and generated ids.

Everything runs through the library's own model, optimizer, parameter groups and search. Sizes, tasks, methods and
settings come from the case's JSON and state, tolerances from the recording's notes on float64 and other torch versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BartConfig, T5Config

from mtvl.backbones import BACKBONES
from mtvl.config import OptimConfig
from mtvl.model import Model, make_method
from mtvl.objectives.seq2seq import sample_losses, token_losses
from mtvl.optim import GroupOptimizer, build_optimizer, parameter_groups
from mtvl.petl import METHODS
from mtvl.reference import describe_reference, load_reference, our_names, our_task
from mtvl.types import Batch, Decoding
from parity.report import Case, NotYet, Report, Tolerance

HIDDEN = Tolerance(atol=2e-5)
LOGITS = Tolerance(atol=5e-5)
LOSS = Tolerance(atol=2e-5)
GRAD = Tolerance(atol=2e-5, rtol=1e-4)
NORM = Tolerance(rtol=1e-5)
AFTER = Tolerance(atol=1e-5)
SCORES = Tolerance(atol=1e-5)

KINDS = ("image", "generation", "video")
BACKBONE_NAMES = {"bart": "clip_bart", "t5": "clip_t5"}
# Recorded method -> our registered name and how it is shared ("" = read off the state).
METHOD_NAMES = {
    "full": ("full", "all"), "single_adapter": ("adapter", "all"), "multiple_adapters": ("adapter", "none"),
    "half_shared": ("adapter", ""), "hyperformer": ("hyperformer", ""), "single_compacter": ("compacter", "all"),
    "multiple_compacters": ("compacter", "none"), "single_lora": ("lora", "all"), "multiple_lora": ("lora", "none"),
    "single_prompt": ("prompt", "all"), "multiple_prompts": ("prompt", "none"),
}  # fmt: skip
# Registered method -> its options by the names of recorded sizes; "bottleneck" stands beside them.
OPTIONS: dict[str, dict[str, str]] = {
    "adapter": {"bottleneck": "bottleneck"},
    "compacter": {"bottleneck": "bottleneck", "division": "hypercomplex_division"},
    "hyperformer": {"bottleneck": "bottleneck", "task_width": "task_embedding_dim", "hidden": "task_hidden_dim",
                    "code": "projected_task_embedding_dim"},
    "lora": {"rank": "lora_dim", "alpha": "lora_alpha"},
    "prompt": {"length": "prompt_len", "width": "prompt_mid_dim"},
}  # fmt: skip
TEXT_CLASSES: dict[str, Any] = {"bart": BartConfig, "t5": T5Config}
TEXT_KEYS = {
    "bart": (
        "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
        "encoder_ffn_dim", "decoder_ffn_dim", "max_position_embeddings", "activation_function", "scale_embedding",
        "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id",
    ),
    "t5": (
        "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "relative_attention_num_buckets",
        "layer_norm_epsilon", "feed_forward_proj", "pad_token_id", "eos_token_id", "decoder_start_token_id",
    ),
}  # fmt: skip
# Variants of BART that this backbone does not have: a case that sets them otherwise cannot be compared.
TEXT_FIXED = {"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True,
              "add_bias_logits": False, "static_position_embeddings": False}  # fmt: skip
SEARCH_FIXED = {"length_penalty": 1.0, "min_length": 0, "do_sample": False, "num_return_sequences": 1,
                "repetition_penalty": 1.0}  # fmt: skip


def check(case: Case, report: Report) -> None:
    """Compare every quantity that the case records."""
    require_registered(case.facts)
    model, names = build(case)
    check_parameters(case, report, model, names)
    facts = case.facts
    tasks = {key.split("/")[1] for key in case.tensors if key.startswith("expect/")} - {"mixed"}
    report.names("recorded tasks", tasks, facts["record_tasks"])
    searches = {key.split("/")[3] for key in case.tensors if "/generate/" in key}
    report.names("recorded searches", searches, facts.get("generation") or ())
    for task in facts["record_tasks"]:
        batch = make_batch(case, task)
        check_forward(case, report, model, task, batch)
        check_gradients(case, report, model, names, task, batch)
        check_generation(case, report, model, task, batch)
    for task in facts["optimizer_tasks"]:
        check_training(case, report, names, (task, task), f"expect/{task}/optim/", f"expect/{task}/after2/")
    if case.facts.get("mixed_sequence"):
        check_training(case, report, names, tuple(case.facts["mixed_sequence"]), "expect/mixed/", "expect/mixed/after/")
    case.under("input/")
    report.equal("records left uncompared", case.unused(), [])


def require_registered(facts: Mapping[str, Any]) -> None:
    """NotYet for what is planned, ValueError for what nobody knows."""
    kind, backbone, method = facts["kind"], facts["backbone"], facts["method"]
    known = {
        "kind": (kind, KINDS), "backbone": (backbone, tuple(BACKBONE_NAMES)),
        "method": (method, tuple(METHOD_NAMES)),
    }  # fmt: skip
    for key, (value, values) in known.items():
        if value not in values:
            raise ValueError(f"unknown {key} {value!r}; known: {', '.join(values)}")
    if BACKBONE_NAMES[backbone] not in BACKBONES:
        raise NotYet(f"backbone {backbone!r} is not registered yet")
    if METHOD_NAMES[method][0] not in METHODS:
        raise NotYet(f"method {method!r} is not registered yet")


# ---- building ----------------------------------------------------------------------------------------------------


def build(case: Case) -> tuple[Model, dict[str, str]]:
    """The model with the recorded state, in training mode (every dropout is zero), and our name by reference name."""
    facts, text = case.facts, case.facts["lm_config"]
    for key, value in TEXT_FIXED.items():
        if text.get(key, value) != value:
            raise ValueError(f"lm_config.{key} = {text[key]!r} is not supported; this backbone has {value!r}")
    state, aliases = case.under("state/"), facts["state_aliases"]
    described = describe_reference(state, aliases)
    added = facts["vocab_total"] - facts["vocab_base"]
    pooled = facts["n_visual_slots"] if feature_kind(facts) == "grid" else 36  # frames are not pooled
    family = facts["backbone"]
    cls = BACKBONES.load(BACKBONE_NAMES[family])
    config = cls.Config(visual_tokens=pooled, num_slots=added // 2, num_sentinels=added - added // 2, dropout=0.0)
    sizes = {key: text[key] for key in TEXT_KEYS[family] if key in text}
    language = TEXT_CLASSES[family](vocab_size=facts["vocab_base"], **sizes)
    backbone = cls(config, language, {feature_kind(facts): facts["feat_dim"]})
    method = make_method(petl_section(facts, described.petl), paper_compat=True)
    tasks = tuple(our_task(task) for task in facts["tasks"])
    model = Model(backbone, method.plan(backbone.sites(), tasks), method)
    load_reference(model, tasks, state, aliases)
    return model.train(), our_names(model, tasks)


def petl_section(facts: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's section for the case; ValueError when the state says otherwise of what both tell."""
    name, share = METHOD_NAMES[facts["method"]]
    sizes = {**facts["hparams"], "bottleneck": facts["bottleneck"]}
    petl: dict[str, Any] = {"name": name, **{option: sizes[key] for option, key in OPTIONS.get(name, {}).items()}}
    if "share" in described:
        petl["share"] = share or half(described["share"])
    if name == "lora":
        petl["dropout"] = 0.0  # as every dropout of the recording
    if wrong := {k: (v, petl[k]) for k, v in described.items() if k in petl and k != "share" and v != petl[k]}:
        raise ValueError(f"the state and the case's JSON differ (state, JSON): {wrong}")
    return petl


def half(share: str) -> str:
    """The shared half of a half-shared adapter; the published row shares Up, which one task alone cannot tell."""
    return share if share in ("up", "down") else "up"


def feature_kind(facts: Mapping[str, Any]) -> str:
    """The kind of features that a case feeds."""
    return "frame" if facts["kind"] == "video" else "grid"


def loss_rule(case: Case, task: str) -> str:
    """The sentence that describes the task's loss; all tasks on videos share one."""
    rules = case.facts["conventions"]["loss_per_task"]
    name = "video" if case.facts["kind"] == "video" else task
    for tasks, rule in rules.items():
        if name in tasks.split("/"):
            return str(rule)
    raise ValueError(f"no loss is described for task {task!r}; described are {', '.join(rules)}")


def make_batch(case: Case, task: str) -> Batch:
    """The recorded inputs as the library's Batch."""
    inputs, rule = case.under(f"input/{task}/"), loss_rule(case, task)
    ids, targets, features = inputs["input_ids"], inputs["target_ids"], inputs["vis_feats"]
    if features.dim() == 3:
        features = features[:, None]
    if inputs["boxes"].abs().max() > 0:
        raise ValueError(f"task {task!r} has boxes; grid features have none here")
    kind = "sample_mean" if rule.startswith("per sample mean") else "token_mean"
    is_scored = "score" in rule
    weights = inputs["scores"] if is_scored else torch.ones(len(ids))
    return Batch(
        task=our_task(task),
        uids=tuple(str(i) for i in range(len(ids))),
        source_ids=ids,
        source_mask=ids != case.facts["lm_config"]["pad_token_id"],
        features=features,  # the recording attends to padded frames too, so nothing is masked here
        feature_kind=feature_kind(case.facts),
        target_ids=targets,
        target_weights=weights,
        loss=kind,
        denominator=float(len(ids) if kind == "sample_mean" else (targets != -100).sum()),
    )


# ---- quantities --------------------------------------------------------------------------------------------------


def check_parameters(case: Case, report: Report, model: Model, names: Mapping[str, str]) -> None:
    """Trainable and frozen sets, shapes, decay, counts."""
    facts, plan, trainable = case.facts, model.plan, model.trainable()
    listed = {names[p["name"]]: p for p in facts["trainable_parameters"]}
    report.names("trainable parameters", trainable, listed)
    frozen = {n: list(p.shape) for n, p in model.named_parameters() if not p.requires_grad}
    report.mapping("frozen parameters", frozen, {names[name]: shape for name, shape in facts["frozen_parameters"]})
    report.mapping("trainable shapes", {n: list(p.shape) for n, p in trainable.items()},
                   {n: p["shape"] for n, p in listed.items()})  # fmt: skip
    config = optim_config(facts)
    decay = {
        n: config.weight_decay * g.decay
        for g in parameter_groups(model.trainable(), model.tasks_of_parameters(), config)
        for n in g.names
    }
    report.mapping("weight decay", decay, {n: p["weight_decay"] for n, p in listed.items()})
    report.equal("trainable_count", plan.num_trainable, facts["trainable_count"])
    report.equal("total_count", plan.num_total, facts["total_count"])
    report.equal("total_count of the model", sum(p.numel() for p in model.parameters()), facts["total_count"])


@torch.no_grad()
def check_forward(case: Case, report: Report, model: Model, task: str, batch: Batch) -> None:
    """Hidden states, logits and losses."""
    model.set_task(batch.task)
    memory = model.backbone.encode(batch)
    logits = model.backbone.decode(memory, batch.target_ids)
    losses = token_losses(logits, batch.target_ids)
    per_sample = sample_losses(losses, batch.target_ids, batch.target_weights)
    found = {
        "encoder_last_hidden_state": (memory.hidden, HIDDEN), "logits": (logits, LOGITS), "token_loss": (losses, LOSS),
        "sample_loss": (per_sample, LOSS), "loss": (model(batch).reshape(1), LOSS),
    }  # fmt: skip
    if batch.loss == "token_mean":
        del found["sample_loss"]  # the reference does not average over samples here
    for name, (value, tolerance) in found.items():
        report.close(f"{task}/{name}", value, recorded(case, f"expect/{task}/{name}"), tolerance)
    if (expected := case.get(f"expect/{task}/pred_true")) is not None:
        text = case.facts["lm_config"]
        start = [text["bos_token_id"]] if "bos_token_id" in text else []  # T5 has none
        choices = [[*start, case.facts[key], text["eos_token_id"]] for key in ("true_id", "false_id")]
        scores = model.choose(batch, choices)
        report.equal(f"{task}/pred_true", (scores[:, 0] > scores[:, 1]).long().tolist(), expected.long().tolist())


def check_gradients(
    case: Case, report: Report, model: Model, names: Mapping[str, str], task: str, batch: Batch
) -> None:
    """Gradients before clipping, which trainable parameters get none, and their norm, which may be recorded alone."""
    is_listed = task in case.facts["grad_tasks"]
    if not is_listed and case.get(f"expect/{task}/grad_norm") is None:
        return
    model.zero_grad(set_to_none=True)
    model.set_task(batch.task)
    model(batch).backward()
    grads = {n: p.grad for n, p in model.trainable().items() if p.grad is not None}
    if is_listed:
        expected = {names[name]: value for name, value in case.under(f"expect/{task}/grad/").items()}
        report.tensors(f"{task}/grad", grads, expected, GRAD)
        report.names(f"{task}/idle_trainable", model.trainable().keys() - grads.keys(),
                     [names[name] for name in case.facts["idle_trainable"][task]])  # fmt: skip
    norm = torch.nn.utils.get_total_norm(grads.values()).reshape(1)
    report.close(f"{task}/grad_norm", norm, recorded(case, f"expect/{task}/grad_norm").reshape(1), NORM)
    model.zero_grad(set_to_none=True)


def recorded(case: Case, key: str) -> torch.Tensor:
    """A tensor that the case has to have."""
    value = case.get(key)
    if value is None:
        raise ValueError(f"the case records no {key}")
    return value


# ---- training ----------------------------------------------------------------------------------------------------


def optim_config(facts: Mapping[str, Any]) -> OptimConfig:
    """The recorded optimizer settings, read from the case's conventions."""
    number = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
    text = facts["conventions"]["optimizer"]
    found = {
        key: re.search(pattern, text)
        for key, pattern in {
            "clip_norm": rf"global norm {number}", "lr": rf"\blr {number}", "eps": rf"\beps {number}",
            "betas": rf"betas {number}/{number}",
        }.items()
    }  # fmt: skip
    if absent := [key for key, match in found.items() if match is None]:
        raise ValueError(f"conventions.optimizer does not say {', '.join(absent)}: {text!r}")
    values = {key: tuple(float(v) for v in match.groups()) for key, match in found.items() if match}
    decays = {p["weight_decay"] for p in facts["trainable_parameters"]} - {0.0}
    if len(decays) > 1:
        raise ValueError(f"one weight decay is expected, found {sorted(decays)}")
    return OptimConfig(
        name="adamw_reference",
        lr=values["lr"][0],
        eps=values["eps"][0],
        clip_norm=values["clip_norm"][0],
        betas=(values["betas"][0], values["betas"][1]),
        weight_decay=decays.pop() if decays else 0.0,
    )


def check_training(
    case: Case, report: Report, names: Mapping[str, str], sequence: tuple[str, ...], log: str, after: str
) -> None:
    """One optimizer step per task of `sequence`, from the recorded state; then the values of all trained parameters."""
    model, _ = build(case)
    config, label = optim_config(case.facts), after.removeprefix("expect/").rstrip("/")
    groups = [g for g in parameter_groups(model.trainable(), model.tasks_of_parameters(), config) if g.names]
    parameters = model.trainable()
    start = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = build_optimizer(parameters, groups, config)
    optimizer.allocate(parameters.values())
    losses, norms, moved_idle = [], [], []
    for task in sequence:
        batch = make_batch(case, task)
        active = [g.name for g in groups if g.task in (None, batch.task)]
        idle = {n for g in groups if g.name not in active for n in g.names}
        before = snapshot(parameters, optimizer, idle)
        loss, norm = train_step(model, optimizer, batch, active, config)
        losses.append(loss)
        norms.append(norm)
        now = snapshot(parameters, optimizer, idle)
        moved_idle += [n for n in before if not torch.equal(before[n], now[n])]
    report.close(f"{label} losses", torch.tensor(losses), recorded(case, log + "losses"), LOSS)
    report.close(f"{label} grad_norms", torch.tensor(norms), recorded(case, log + "grad_norms"), NORM)
    report.equal(f"{label} idle parameters and moments", moved_idle, [])
    expected = {names[name]: value for name, value in case.under(after).items()}
    absent = sorted(n for n in parameters.keys() - expected.keys() if not torch.equal(parameters[n], start[n]))
    report.equal(f"{label} unrecorded parameters stand still", absent, [])
    found = {n: parameters[n].detach() for n in expected if n in parameters}
    report.tensors(label, found, expected, AFTER)


def snapshot(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: GroupOptimizer, names: set[str]
) -> dict[str, torch.Tensor]:
    """Copies of the named parameters and of their moments."""
    copies = {name: parameters[name].detach().clone() for name in names}
    for name in names:
        for key, value in optimizer.state[parameters[name]].items():
            copies[f"{name} {key}"] = value.clone()
    return copies


def train_step(
    model: Model, optimizer: GroupOptimizer, batch: Batch, active: list[str], config: OptimConfig
) -> tuple[float, float]:
    """Loss and gradient norm before clipping of one step."""
    model.zero_grad(set_to_none=True)
    model.set_task(batch.task)
    loss = model(batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], config.clip_norm)
    optimizer.begin(active, config.lr)
    optimizer.step()
    optimizer.commit()
    return float(loss.detach()), float(norm)


# ---- generation --------------------------------------------------------------------------------------------------


def check_generation(case: Case, report: Report, model: Model, task: str, batch: Batch) -> None:
    """Token ids of every recorded search, and the scores of beam searches."""
    prefix = f"expect/{task}/generate/"
    settings = {key.removeprefix(prefix).split("/")[0] for key in case.tensors if key.startswith(prefix)}
    for name in sorted(settings):
        decoding = search_settings(case.facts, case.facts["generation"][name])
        model.set_task(batch.task)
        with torch.no_grad():
            ids, scores = model.backbone.generate(model.backbone.encode(batch), decoding)
        expected = recorded(case, f"{prefix}{name}/token_ids")
        report.equal(f"{task}/generate/{name}/token_ids", ids.tolist(), expected.tolist())
        expected_scores = case.get(f"{prefix}{name}/sequence_scores")
        if expected_scores is None:
            continue
        if scores is None:
            report.equal(f"{task}/generate/{name}/sequence_scores", None, "scores of a beam search")
        else:
            report.close(f"{task}/generate/{name}/sequence_scores", scores, expected_scores, SCORES)


def search_settings(facts: Mapping[str, Any], setting: Mapping[str, Any]) -> Decoding:
    """A recorded search; what it does not say comes from the language model's configuration."""
    values = {**facts["lm_config"], **setting}
    known = {"num_beams", "max_length", "no_repeat_ngram_size", "early_stopping", *SEARCH_FIXED}
    if unknown := set(setting) - known:
        raise ValueError(f"unknown search settings {sorted(unknown)}")
    for key, value in SEARCH_FIXED.items():
        if values.get(key, value) != value:
            raise ValueError(f"search setting {key} = {values[key]!r} is not supported, only {value!r}")
    return Decoding(
        num_beams=values.get("num_beams", 1),
        max_tokens=values.get("max_length", 20),
        no_repeat_ngram=values.get("no_repeat_ngram_size", 0),
        early_stopping=values.get("early_stopping", False),
    )
