"""A model whose adapters are merged, as a plain transformers model that needs nothing of this project."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mtvl.errors import CheckpointError
from mtvl.export import added_rows
from mtvl.model import Model

VISUAL = "visual.safetensors"  # what no language model has: the visual embedding and the added token rows


def write_merged(folder: Path, model: Model, task: str = "") -> None:
    """Write the language model with the adapters (of `task`, where there are private ones) folded into its weights.

    `folder` then loads with `AutoModelForSeq2SeqLM.from_pretrained`; its token table has the added rows, and beside it
    lies `visual.safetensors` with the visual embedding. `model` itself is left as it was. Raises PlanError when the
    method's adapters are no change of linear maps.
    """
    model.merge(task)
    try:
        plain_text_model(model.backbone).save_pretrained(str(folder))
    finally:
        model.unmerge()
    write_visual(folder, model)


def plain_text_model(backbone: Any) -> Any:
    """transformers' own model with the weights that `backbone`'s language model has now; adapters are left behind."""
    config = copy.deepcopy(backbone.text.config)
    config._attn_implementation = "sdpa"  # ours looks for prefixes and is registered by this project alone
    plain = type(backbone.text)(config)
    state = {k: v for k, v in backbone.text.state_dict().items() if ".adapter." not in k}
    plain.load_state_dict(state)
    return plain.to(next(iter(state.values())).dtype).eval()


def write_visual(folder: Path, model: Model) -> None:
    """Visual embedding, added token rows and a trained tower, under the names that an export has for them."""
    state = {k: v.detach().float().cpu() for k, v in visual_state(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in (state | added_rows(model)).items()}, str(folder / VISUAL))


def visual_state(model: Model) -> dict[str, torch.Tensor]:
    """The model's own tensors of the visual embedding, and of the tower where it is trained with the model."""
    modules = {"visual": model.backbone.visual, "visual_tower": model.backbone.visual_tower}
    states = {name: {} if module is None else module.state_dict() for name, module in modules.items()}
    # Counters of batches are no floats and mean nothing: the tower's statistics stand still.
    return {f"backbone.{n}.{k}": v for n, state in states.items() for k, v in state.items() if v.is_floating_point()}


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file in float32; CheckpointError when it cannot be read."""
    try:
        return {k: v.float() for k, v in load_file(str(file)).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def copy_tensors(wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], source: Path) -> None:
    """Copy `found` into `wanted` by name; CheckpointError unless names and shapes are the same."""
    shapes = [{(k, tuple(v.shape)) for k, v in side.items()} for side in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            f"{source}: expected {sorted(shapes[0] - shapes[1])[:3] or 'nothing more'}, "
            f"found {sorted(shapes[1] - shapes[0])[:3] or 'nothing of it'}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
