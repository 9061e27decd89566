"""The adapter export: everything that is needed beside the public backbone, as safetensors and JSON.

Layout: `adapter.safetensors` holds the trained tensors under their names in the model and, under `rows/`, those rows of
the token table that no public checkpoint has (sentinels and visual slots: random, frozen, and needed). `adapter.json`
holds the recipe, the plan's fingerprint and the base's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import mtvl
from mtvl.checkpoint import flush
from mtvl.config import RunConfig, apply_overrides, parse_section, to_plain, validate
from mtvl.errors import CheckpointError
from mtvl.model import Model, build_model

FORMAT = 1
ROWS = "rows/"


def base_fingerprint(model: Model) -> str:
    """Hash of the frozen tensors, without the rows that the export carries itself."""
    skip = model.backbone.added_rows()
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            value = parameter.detach().float().cpu()
            if (short := name.removeprefix("backbone.")) in skip:
                value = value[: skip[short]]
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def added_rows(model: Model) -> dict[str, torch.Tensor]:
    """Copies of the token rows beyond the public vocabulary, by export key. Call before the model is partitioned."""
    return {
        ROWS + name: model.backbone.get_parameter(name).detach()[first:].float().cpu().clone()
        for name, first in model.backbone.added_rows().items()
    }


def write_export(
    folder: Path, model: Model, config: RunConfig, *, state: Mapping[str, torch.Tensor] | None = None,
    rows: Mapping[str, torch.Tensor] | None = None, base: str = "", extra: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the export atomically. `state` are full trained tensors (default: the model's own).

    CheckpointError for a merged model, and for tensors that are missing or not finite.
    """
    if model.is_merged:
        raise CheckpointError(f"export to {folder}: the adapters are merged into the backbone; unmerge the model first")
    tensors = dict(state if state is not None else {n: p.detach() for n, p in model.trainable().items()})
    missing = sorted(set(model.trainable()) - set(tensors))
    if missing or any(t.numel() == 0 for t in tensors.values()):
        raise CheckpointError(f"export to {folder}: trained tensors are missing or empty, e.g. {missing[:3]}")
    tensors |= dict(rows if rows is not None else added_rows(model))
    content = {
        "format": FORMAT, "mtvl": mtvl.__version__, "config": to_plain(config), "tasks": list(config.tasks),
        "plan": model.plan.fingerprint(), "base": base or base_fingerprint(model),
        "trainable": model.plan.num_trainable, "total": model.plan.num_total, **(extra or {}),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "adapter.safetensors.tmp"
    try:
        save_file({k: v.float().cpu().contiguous() for k, v in tensors.items()}, str(temporary))
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {temporary}: {error}; make room there and start again") from None
    flush(temporary)  # before DONE is, which proves that there is an export
    os.replace(temporary, folder / "adapter.safetensors")
    temporary = folder / "adapter.json.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    flush(temporary)
    os.replace(temporary, folder / "adapter.json")
    flush(folder)


def find_export(path: Path) -> Path:
    """The export folder of a run folder or of itself; CheckpointError when there is none."""
    for folder in (path, path / "export"):
        if (folder / "adapter.json").is_file() and (folder / "adapter.safetensors").is_file():
            return folder
    raise CheckpointError(
        f"{path} is no run and no export: expected adapter.json and adapter.safetensors there or in {path / 'export'}"
        + ("" if path.exists() else "; the folder does not exist")
    )


def read_config(folder: Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, dict[str, Any]]:
    """The recipe inside an export, with overrides, and the rest of its JSON; CheckpointError when it is none."""
    try:
        content = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        values = content["config"]
        if not isinstance(values, dict):
            raise TypeError(f"'config' is {type(values).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'adapter.json'} is damaged ({type(error).__name__}: {error})") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: export format {content.get('format')}, this version reads {FORMAT}")
    config = parse_section(RunConfig, apply_overrides(values, overrides))
    validate(config)
    return config, content


def load_export(path: Path, overrides: Sequence[str] = ()) -> tuple[Model, RunConfig, dict[str, Any]]:
    """Rebuild the trained model from an export and its public backbone; every mismatch is a CheckpointError."""
    folder = find_export(path)
    config, content = read_config(folder, overrides)
    if missing := [key for key in ("tasks", "plan", "base") if key not in content]:
        raise CheckpointError(f"{folder / 'adapter.json'} is damaged: it has no {', '.join(missing)}")
    model = build_model(config)
    if model.plan.fingerprint() != content["plan"]:
        raise CheckpointError(f"{folder}: its plan is {content['plan']}, this recipe makes {model.plan.fingerprint()}")
    found = base_fingerprint(model)
    if found != content["base"]:
        raise CheckpointError(
            f"{folder}: trained on a backbone with fingerprint {content['base']}, found {found}; "
            "set 'backbone.weights' to the weights it was trained on"
        )
    try:
        tensors = load_file(str(folder / "adapter.safetensors"))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / 'adapter.safetensors'} cannot be read: {error}") from None
    _copy_in(model, tensors, folder)
    model.trained_tower = str(content.get("tower", ""))
    return model, config, content


def _copy_in(model: Model, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    expected = {n: tuple(p.shape) for n, p in model.trainable().items()}
    expected |= {k: tuple(v.shape) for k, v in added_rows(model).items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))
        raise CheckpointError(f"{folder}: tensors differ from the plan, e.g. {differing[:3]}")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        # The rows come first: when the method trains the whole table, the trained tensor is the newer one.
        for key, value in sorted(tensors.items(), key=lambda item: not item[0].startswith(ROWS)):
            if key.startswith(ROWS):
                parameter = model.backbone.get_parameter(key.removeprefix(ROWS))
                parameter[parameter.shape[0] - value.shape[0] :].copy_(value)
            else:
                parameters[key].copy_(value)
