"""LoRA in the layout of the PEFT library: folders with adapter_config.json and adapter_model.safetensors.

Names in the file are `base_model.model.` and the path in a plain transformers model; a linear map that is adapted keeps
its own bias under `base_layer`. *Source:* peft 0.21.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mtvl.backbones.clip_config import bundled_folder
from mtvl.config import RunConfig
from mtvl.errors import CheckpointError, PlanError
from mtvl.export import ROWS
from mtvl.interchange.plain import VISUAL, copy_tensors, read_tensors, visual_state, write_visual
from mtvl.model import Model
from mtvl.petl.lora import LowRank
from mtvl.petl.plan import SHARED
from mtvl.petl.select import in_layers
from mtvl.sites import LINEAR_KINDS, Site

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Fields that change the function in a way that has no counterpart here, and what they hold when they do not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "fan_in_fan_out": (False, None), "lora_bias": (False, None),
    "use_qalora": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None),
    "layer_replication": (None, []), "trainable_token_indices": (None, [], {}), "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []), "use_bdlora": (None, False), "arrow_config": (None, {}),
    "kasa_config": (None, {}), "velora_config": (None, {}), "monteclora_config": (None, {}), "megatron_config": (None, {}),
}  # fmt: skip
# Fields that are read here, or that say only how training began or who wrote the file.
HARMLESS = frozenset({
    "peft_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "modules_to_save", "base_model_name_or_path",
    "task_type", "peft_version", "auto_mapping", "revision", "inference_mode", "init_lora_weights", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "ensure_weight_tying", "qalora_group_size", "runtime_config",
})  # fmt: skip


# ---- out ------------------------------------------------------------------------------------------------------------


def write_peft(folder: Path, model: Model, config: RunConfig) -> list[Path]:
    """Write the LoRA of `model` as PEFT folders and return them: `folder` itself, or one in it for each task.

    Trained biases go with `bias="all"`, trained norms with `modules_to_save`. The visual embedding, which a plain
    language model has no place for, lies in `folder`/visual.safetensors. Raises PlanError for another method.
    """
    adapters = [model.backbone.get_submodule(i.site.path).adapter for i in model.plan.injections]
    if not adapters or not all(isinstance(a, LowRank) for a in adapters):
        raise PlanError(f"PEFT's layout is written for the method 'lora' alone, this model has {model.plan.method!r}")
    if model.is_merged:
        raise PlanError("the adapters are merged into the backbone; unmerge the model first")
    content = _config_of(model, config)
    places = {folder / task: task for task in model.plan.tasks} if model.plan.is_task_private else {folder: ""}
    write_visual(folder, model)
    for place, task in places.items():
        if task:
            model.set_task(task)
        place.mkdir(parents=True, exist_ok=True)
        tensors = {PREFIX + k: v.detach().float().cpu().contiguous().clone() for k, v in _tensors(model).items()}
        save_file(tensors, str(place / WEIGHTS), metadata={"format": "pt"})
        (place / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return list(places)


def _plain(model: Model, site: Site) -> str:
    """The site's path in the plain language model."""
    return site.path.removeprefix(f"{model.backbone.text_name}.")


def _text_sites(model: Model) -> list[Site]:
    return [s for s in model.plan.sites if s.kind not in ("visual", "tower")]


def _bias_key(model: Model, site: Site) -> str:
    is_adapted = any(i.site == site for i in model.plan.injections)
    return _plain(model, site) + (".base_layer.bias" if is_adapted else ".bias")


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    """Tensors of the active task by PEFT's names, without the prefix."""
    tensors: dict[str, torch.Tensor] = {}
    for injection in model.plan.injections:
        adapter, path = model.backbone.get_submodule(injection.site.path).adapter, _plain(model, injection.site)
        tensors[f"{path}.lora_A.weight"] = adapter.down.current().weight
        tensors[f"{path}.lora_B.weight"] = adapter.up.current().weight
    if model.plan.biases:
        for site in (s for s in _text_sites(model) if s.num_bias):
            tensors[_bias_key(model, site)] = model.backbone.get_parameter(f"{site.path}.bias")
    for site in (s for s in model.plan.unfrozen if s.kind == "norm"):
        for name, parameter in model.backbone.get_submodule(site.path).named_parameters(recurse=False):
            tensors[f"{_plain(model, site)}.{name}"] = parameter
    return tensors


def _config_of(model: Model, config: RunConfig) -> dict[str, Any]:
    """adapter_config.json."""
    options, plan = dict(model.plan.options), model.plan
    norms = [_plain(model, s) for s in plan.unfrozen if s.kind == "norm"]
    weights = str(config.backbone.get("weights", ""))
    alpha = float(str(options["alpha"]))
    return {
        "peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "peft_version": "0.21.2", "inference_mode": True,
        "base_model_name_or_path": None if bundled_folder(weights) else weights or None, "revision": None,
        "r": options["rank"], "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": next(a.dropout for a in _adapters(model)),
        "target_modules": _short([_plain(model, i.site) for i in plan.injections],
                                 [_plain(model, s) for s in plan.sites if s.is_linear]),
        "bias": "all" if plan.biases else "none", "modules_to_save": norms or None,
        "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None, "layers_pattern": None,
    }  # fmt: skip


def _adapters(model: Model) -> list[Any]:
    return [model.backbone.get_submodule(i.site.path).adapter for i in model.plan.injections]


def _short(chosen: Sequence[str], linear: Sequence[str]) -> list[str]:
    """The last names alone where they choose the same maps, e.g. q_proj and v_proj; otherwise whole paths."""
    names = sorted({path.rpartition(".")[2] for path in chosen})
    by_name = {path for path in linear if path.rpartition(".")[2] in names}
    return names if by_name == set(chosen) else sorted(chosen)


# ---- in -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeftFolder:
    """One adapter as PEFT wrote it: its settings, and its tensors without PEFT's prefix."""

    folder: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def targets(self) -> frozenset[str]:
        """Paths, in the plain model, of the linear maps that it adapts."""
        return frozenset(k.removesuffix(".lora_A.weight") for k in self.tensors if k.endswith(".lora_A.weight"))


def is_peft(folder: Path) -> bool:
    """True for a PEFT folder, or a folder of such folders (one for each task)."""
    return (folder / CONFIG).is_file() or any(folder.glob(f"*/{CONFIG}"))


def read_peft(folder: Path) -> dict[str, PeftFolder]:
    """Adapters by task; the name is "" where `folder` itself is one. CheckpointError for what cannot be represented."""
    if (folder / CONFIG).is_file():
        return {"": _read(folder)}
    found = {file.parent.name: _read(file.parent) for file in sorted(folder.glob(f"*/{CONFIG}"))}
    if not found:
        raise CheckpointError(f"{folder} holds no {CONFIG}, nor do folders in it: it is no PEFT folder")
    return found


def _read(folder: Path) -> PeftFolder:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is damaged: {error}") from None
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise CheckpointError(f"{folder / CONFIG}: expected peft_type LORA, found {kind!r}; only LoRA can be imported")
    for field, value in settings.items():
        if field in HARMLESS or value in NEUTRAL.get(field, (None, False, {}, [])):
            continue
        raise CheckpointError(
            f"{folder / CONFIG}: the field '{field}' is {value!r}, which LoRA has no counterpart for here; merge the adapter in "
            "PEFT (merge_and_unload) and use the result as 'backbone.weights'"
        )
    for field in ("r", "lora_alpha"):
        if not isinstance(settings.get(field), (int, float)):
            raise CheckpointError(f"{folder / CONFIG}: expected a number for '{field}', found {settings.get(field)!r}")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}; save the adapter with save_pretrained(..., safe_serialization=True)"
        )
    tensors = read_tensors(folder / WEIGHTS)
    if foreign := sorted(k for k in tensors if not k.startswith(PREFIX)):
        raise CheckpointError(f"{folder / WEIGHTS}: expected names that begin with {PREFIX}, found {foreign[:3]}")
    # With bias="all" PEFT writes the biases of saved modules three times, and what it loads is the plain name.
    copies = (".original_module.", ".modules_to_save.")
    return PeftFolder(
        folder, settings, {k.removeprefix(PREFIX): v for k, v in tensors.items() if not any(c in k for c in copies)}
    )


def family_of(adapter: PeftFolder) -> str:
    """Registered backbone whose language model has the adapter's names; CheckpointError when none has."""
    heads = {"model.encoder.layers": "clip_bart", "model.decoder.layers": "clip_bart",
             "encoder.block": "clip_t5", "decoder.block": "clip_t5"}  # fmt: skip
    found = {next((b for h, b in heads.items() if t.startswith(h + ".")), "") for t in adapter.targets}
    if len(found) != 1 or "" in found:
        raise CheckpointError(
            f"{adapter.folder / WEIGHTS}: expected LoRA on BART (model.encoder.layers...) or T5 (encoder.block...), found "
            f"{sorted(adapter.targets)[:3]}"
        )
    return found.pop()


def petl_section(adapters: Mapping[str, PeftFolder], sites: Sequence[Site], text_name: str) -> dict[str, Any]:
    """The recipe's `petl` section of one adapter, or of one for each task. CheckpointError where they do not agree."""
    first = next(iter(adapters.values()))
    for other in adapters.values():
        for field in ("r", "lora_alpha", "use_rslora", "bias"):
            if other.settings.get(field) != first.settings.get(field):
                raise CheckpointError(
                    f"{other.folder / CONFIG}: '{field}' is {other.settings.get(field)!r}, in {first.folder} it is "
                    f"{first.settings.get(field)!r}; adapters of one model have the same"
                )
        if other.targets != first.targets:
            raise CheckpointError(f"{other.folder} adapts other linear maps than {first.folder}")
    rank = int(first.settings["r"])
    for adapter in adapters.values():
        _check_ranks(adapter, rank)
    alpha = float(first.settings["lora_alpha"]) * (rank**0.5 if first.settings.get("use_rslora") else 1.0)
    places, layers = _choice(first, sites, text_name)
    return {
        "name": "lora", "rank": rank, "alpha": alpha, "dropout": float(first.settings.get("lora_dropout", 0.0)),
        "places": places, "layers": layers, "share": "all" if "" in adapters else "none",
        "train_biases": first.settings.get("bias", "none") != "none",
        "train_norms": bool(first.settings.get("modules_to_save")),
    }  # fmt: skip


def _check_ranks(adapter: PeftFolder, rank: int) -> None:
    for path in sorted(adapter.targets):
        down, up = adapter.tensors[f"{path}.lora_A.weight"], adapter.tensors.get(f"{path}.lora_B.weight")
        if up is None or down.shape[0] != rank or up.shape[1] != rank:
            found = (tuple(down.shape), None if up is None else tuple(up.shape))
            raise CheckpointError(
                f"{adapter.folder / WEIGHTS}: {path} is of rank {rank} by its settings, found {found}"
            )


def _choice(adapter: PeftFolder, sites: Sequence[Site], text_name: str) -> tuple[list[str], Any]:
    """`petl.places` and `petl.layers` that choose exactly the adapted maps."""
    linear = {s.path.removeprefix(f"{text_name}."): s for s in sites if s.is_linear}
    if unknown := sorted(adapter.targets - set(linear)):
        raise CheckpointError(
            f"{adapter.folder}: adapts {unknown[:3]}, which are no linear maps of this backbone's layers"
        )
    chosen = [linear[path] for path in adapter.targets]
    kinds = [k for k in LINEAR_KINDS if any(s.kind == k for s in chosen)]
    numbers = sorted({s.layer for s in chosen})
    layers: Any = "all" if numbers == sorted({s.layer for s in linear.values()}) else numbers
    planned = {s.path for s in in_layers(sites, layers) if s.kind in kinds}
    if missing := sorted(planned - {s.path for s in chosen}):
        raise CheckpointError(
            f"{adapter.folder}: adapts {', '.join(kinds)} in layers {numbers}, but not {missing[0]}; here a choice of "
            "'petl.places' holds in the same layers of encoder and decoder"
        )
    return kinds, layers


@torch.no_grad()
def load_peft(model: Model, adapters: Mapping[str, PeftFolder]) -> None:
    """Copy adapters into a model that was built with their `petl_section`; every tensor has to find its place.

    The visual embedding is read from visual.safetensors beside them, where there is one. Raises CheckpointError.
    """
    parameters = dict(model.backbone.named_parameters())
    trainable = {n.removeprefix("backbone.") for n in model.trainable()}
    done: set[str] = set()
    for task, adapter in adapters.items():
        for key, value in adapter.tensors.items():
            name = _own_name(key, task or SHARED, model)
            file = adapter.folder / WEIGHTS
            if name == f"{model.backbone.text_name}.final_logits_bias" and not value.any():
                continue
            if name not in parameters or parameters[name].shape != value.shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise CheckpointError(f"{file}: {key} {tuple(value.shape)}, but this model has {found}")
            is_same = torch.equal(parameters[name], value)
            if not is_same and (name not in trainable or name in done):
                raise CheckpointError(
                    f"{file}: {key} differs from the {'other tasks' if name in done else 'backbone'}'s, and such a change is not "
                    "trained by this method; check 'backbone.weights'"
                )
            parameters[name].copy_(value)
            done.add(name)
    top = next(iter(adapters.values())).folder
    file = (top if "" in adapters else top.parent) / VISUAL
    if file.is_file():
        _load_visual(model, file)


def _own_name(key: str, owner: str, model: Model) -> str:
    """Name in the backbone of a tensor of a PEFT file."""
    path = f"{model.backbone.text_name}.{key}"
    for theirs, ours in ((".lora_A.weight", "down"), (".lora_B.weight", "up")):
        if key.endswith(theirs):
            return f"{path.removesuffix(theirs)}.adapter.{ours}.{owner}.weight"
    return path.replace(".base_layer.bias", ".bias")


def _load_visual(model: Model, file: Path) -> None:
    """Visual embedding, added token rows, and the tower where it was trained."""
    found = read_tensors(file)
    wanted = visual_state(model)
    for name, first in model.backbone.added_rows().items():
        wanted[ROWS + name] = model.backbone.get_parameter(name).detach()[first:]
    trainable = model.trainable()
    for name, value in wanted.items():
        if not name.startswith(ROWS) and name not in trainable and not torch.equal(value, found.get(name, value)):
            raise CheckpointError(f"{file}: {name} differs from the backbone's; leave 'petl.train_visual' at true")
    copy_tensors(wanted, found, file)
