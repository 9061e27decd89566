"""Names of a released VL-Adapter state (CLIP-BART) in both directions, and what such a state says about itself.

A reference state holds one tensor under several names: the token table under five, a shared adapter under one name per
task. Files either list all names or come with a table of aliases; both are accepted, and nothing is left unexplained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mtvl.errors import CheckpointError
from mtvl.model import Model
from mtvl.reference_parts import Added, added_names, describe_added
from mtvl.reference_parts import our_task as our_task
from mtvl.reference_parts import reference_task as reference_task

State = Mapping[str, torch.Tensor]
Aliases = Mapping[str, Sequence[str]]

_TABLE = "model.shared.weight"
# One parameter by construction, under any method: a file may drop some of these names.
_TABLE_NAMES = (
    _TABLE, "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight",
    "model.encoder.visual_embedding.obj_order_embedding.weight",
)  # fmt: skip
_VISUAL = {
    # One projection in a released state: of grid features or of frame features, by the tasks that it was trained on.
    "visual.features.grid.": "model.encoder.visual_embedding.feat_embedding.",
    "visual.features.frame.": "model.encoder.visual_embedding.feat_embedding.",
    "visual.position.": "model.encoder.visual_embedding.absolute_vis_pos_embedding.",
    "visual.image_order.": "model.encoder.visual_embedding.img_order_embedding.",
}
_LAYER = re.compile(r"model\.(encoder|decoder)\.layers\.(\d+)\.")


# ---- names -------------------------------------------------------------------------------------------------------


def _translate(name: str, tasks: Sequence[str], method: str) -> tuple[str, ...]:
    """Reference names of one entry of our state dict; `tasks` and `method` are the plan's."""
    name = name.removeprefix("backbone.")
    for ours, visual in _VISUAL.items():
        if name.startswith(ours):
            return (visual + name.removeprefix(ours),)
    plain = name.removeprefix("bart.")
    if theirs := added_names(plain, tasks, method):
        return theirs
    if plain == name or ".adapter." in plain:
        raise CheckpointError(f"the reference has no counterpart of {name}")
    return (plain,)


def reference_names(model: Model, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every reference name of every tensor of `model` (a CLIP-BART with a plan for `tasks` applied), by our first name.

    Ours are the names of `model.named_parameters()` and of the buffers in its state dict. Raises CheckpointError for a
    parameter that the reference does not have.
    """
    names: dict[str, tuple[str, ...]] = {}
    method = model.plan.method
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        ours = first.setdefault(id(parameter), name)
        names[ours] = (*names.get(ours, ()), *_translate(name, tasks, method))
    for name in model.state_dict().keys() - {n for n, _ in model.named_parameters(remove_duplicate=False)}:
        names[name] = _translate(name, tasks, method)
    for ours, theirs in names.items():
        if _TABLE in theirs:
            names[ours] = tuple(dict.fromkeys((*theirs, *_TABLE_NAMES)))
    return names


def our_names(model: Model, tasks: Sequence[str]) -> dict[str, str]:
    """Our name by reference name: the inverse of `reference_names`."""
    return {theirs: ours for ours, names in reference_names(model, tasks).items() for theirs in names}


# ---- states ------------------------------------------------------------------------------------------------------


def _shown(names: Iterable[str], most: int = 8) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "(none)"


def strip_prefix(state: State) -> dict[str, torch.Tensor]:
    """`state` without the `module.` that data-parallel training puts before every name."""
    prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def expand_aliases(state: State, aliases: Aliases | None) -> dict[str, torch.Tensor]:
    """`state` under all names that `aliases` (first name -> other names of the same tensor) adds."""
    full = dict(state)
    for first, others in (aliases or {}).items():
        if first not in state:
            raise CheckpointError(f"aliases are given for {first}, which is not in the file")
        for other in others:
            full.setdefault(other, state[first])
    return full


def map_reference_state(
    state: State, model: Model, tasks: Sequence[str], aliases: Aliases | None = None
) -> dict[str, torch.Tensor]:
    """Our state (names as in `reference_names`) from a reference state; pure.

    Raises CheckpointError with the lists when names are missing or unexpected, when shapes differ, or when names that
    are one tensor in `model` hold different values (e.g. a Multiple Adapters file read as Single Adapter).
    """
    full, result = expand_aliases(strip_prefix(state), aliases), {}
    own = model.state_dict()
    names = reference_names(model, tasks)
    missing, used = [], set()
    for ours, theirs in names.items():
        present = [name for name in theirs if name in full]
        absent = [name for name in theirs if name not in full]
        used.update(present)
        if absent and not (present and set(absent) <= set(_TABLE_NAMES)):
            missing += absent
            continue
        value = full[present[0]]
        if value.shape != own[ours].shape:
            raise CheckpointError(f"{present[0]}: expected shape {tuple(own[ours].shape)}, found {tuple(value.shape)}")
        for other in present[1:]:
            if full[other] is not value and not torch.equal(full[other], value):
                raise CheckpointError(f"{present[0]} and {other} are one tensor in this model but differ in the file")
        result[ours] = value
    if unexpected := full.keys() - used:
        raise CheckpointError(
            f"{len(unexpected)} unexpected names: {_shown(unexpected)}; {len(missing)} missing names: {_shown(missing)}"
        )
    if missing:
        raise CheckpointError(f"{len(missing)} names are missing: {_shown(missing)}")
    return result


@torch.no_grad()
def load_reference(model: Model, tasks: Sequence[str], state: State, aliases: Aliases | None = None) -> None:
    """Copy a reference state into `model`, in place; errors as in `map_reference_state`, and then nothing is changed."""
    own = model.state_dict()
    for name, value in map_reference_state(state, model, tasks, aliases).items():
        own[name].copy_(value)


def reference_state(model: Model, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
    """The complete reference state of `model`, under all names; tied names share one tensor."""
    own = model.state_dict()
    return {name: own[ours] for ours, names in reference_names(model, tasks).items() for name in names}


# ---- what a state says about itself ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReferenceFacts:
    """What can be read off a reference state.

    `text` are BartConfig fields without the added token rows; the number of attention heads is not in a state.
    `vocab_total` counts all token rows, sentinels and visual slots included.
    """

    added: Added
    text: dict[str, Any]
    vocab_total: int
    feature_width: int

    @property
    def petl(self) -> dict[str, Any]:
        """The `petl` section of a recipe that makes this model."""
        return {"name": self.added.method, **self.added.options}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Our names of the tasks, in the file's order; a fully fine-tuned state names none."""
        return self.added.tasks


def describe_reference(state: State, aliases: Aliases | None = None) -> ReferenceFacts:
    """Detect backbone, method, its options, tasks and sizes. CheckpointError when the state is of another kind."""
    full = expand_aliases(strip_prefix(state), aliases)
    if any(name.startswith("encoder.block.") for name in full):
        raise CheckpointError("this is a CLIP-T5 state; the backbone is not registered yet (known: CLIP-BART)")
    needed = (_TABLE, "model.encoder.visual_embedding.feat_embedding.0.weight", "model.encoder.layers.0.fc1.weight")
    if absent := [name for name in needed if name not in full]:
        raise CheckpointError(f"this is no VL-Adapter state of CLIP-BART: it has no {', '.join(absent)}")
    table = full[_TABLE]
    return ReferenceFacts(
        added=describe_added(full),
        text=_sizes(full),
        vocab_total=table.shape[0],
        feature_width=full[needed[1]].shape[1],
    )


def _sizes(full: State) -> dict[str, Any]:
    layers: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for name in full:
        if match := _LAYER.match(name):
            layers[match[1]].add(int(match[2]))
    return {
        "d_model": full[_TABLE].shape[1],
        "encoder_layers": len(layers["encoder"]),
        "decoder_layers": len(layers["decoder"]),
        "encoder_ffn_dim": full["model.encoder.layers.0.fc1.weight"].shape[0],
        "decoder_ffn_dim": full["model.decoder.layers.0.fc1.weight"].shape[0],
        # BART's learned positions start at row 2
        "max_position_embeddings": full["model.encoder.embed_positions.weight"].shape[0] - 2,
    }
