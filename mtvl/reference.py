"""Names of a released VL-Adapter state (CLIP-BART or CLIP-T5) in both directions, and what such a state says about itself.

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
from mtvl.reference_parts import ROOTS, Added, added_names, describe_added
from mtvl.reference_parts import our_task as our_task
from mtvl.reference_parts import reference_task as reference_task

State = Mapping[str, torch.Tensor]
Aliases = Mapping[str, Sequence[str]]

# One parameter by construction, under any method: a file may drop some of these names.
_TABLE_NAMES = {
    family: (
        f"{root}shared.weight", f"{root}encoder.embed_tokens.weight", f"{root}decoder.embed_tokens.weight",
        "lm_head.weight", f"{root}encoder.visual_embedding.obj_order_embedding.weight",
    )
    for family, root in ROOTS.items()
}  # fmt: skip
_VISUAL = {
    # One projection in a released state: of grid features or of frame features, by the tasks that it was trained on.
    "visual.features.grid.": "encoder.visual_embedding.feat_embedding.",
    "visual.features.frame.": "encoder.visual_embedding.feat_embedding.",
    "visual.position.": "encoder.visual_embedding.absolute_vis_pos_embedding.",
    "visual.image_order.": "encoder.visual_embedding.img_order_embedding.",
}
_LAYER = re.compile(r"(?:model\.)?(encoder|decoder)\.(?:layers|block)\.(\d+)\.")


# ---- names -------------------------------------------------------------------------------------------------------


def _translate(name: str, tasks: Sequence[str], family: str, method: str) -> tuple[str, ...]:
    """Reference names of one entry of our state dict; `tasks` and `method` are the plan's."""
    name, root = name.removeprefix("backbone."), ROOTS[family]
    for ours, visual in _VISUAL.items():
        if name.startswith(ours):
            return (root + visual + name.removeprefix(ours),)
    plain = name.removeprefix(f"{family}.")
    if theirs := added_names(plain, tasks, root, method):
        return theirs
    if plain == name or ".adapter." in plain:
        raise CheckpointError(f"the reference has no counterpart of {name}")
    return (plain,)


def reference_names(model: Model, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Every reference name of every tensor of `model` (a CLIP-BART or CLIP-T5 with a plan for `tasks` applied), by our
    first name.

    Ours are the names of `model.named_parameters()` and of the buffers in its state dict. Raises CheckpointError for a
    parameter that the reference does not have.
    """
    family = str(model.backbone.family)
    tables = _TABLE_NAMES[family]
    method = model.plan.method
    names: dict[str, tuple[str, ...]] = {}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        ours = first.setdefault(id(parameter), name)
        names[ours] = (*names.get(ours, ()), *_translate(name, tasks, family, method))
    for name in model.state_dict().keys() - {n for n, _ in model.named_parameters(remove_duplicate=False)}:
        names[name] = _translate(name, tasks, family, method)
    for ours, theirs in names.items():
        if tables[0] in theirs:
            names[ours] = tuple(dict.fromkeys((*theirs, *tables)))
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
    tables = set(_TABLE_NAMES[model.backbone.family])
    missing, used = [], set()
    for ours, theirs in names.items():
        present = [name for name in theirs if name in full]
        absent = [name for name in theirs if name not in full]
        used.update(present)
        if absent and not (present and set(absent) <= tables):
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

    `text` are fields of the language model's configuration without the added token rows; the number of BART's attention
    heads is not in a state. `vocab_total` counts all token rows, sentinels and visual slots included.
    """

    added: Added
    family: str
    text: dict[str, Any]
    vocab_total: int
    feature_width: int

    @property
    def petl(self) -> dict[str, Any]:
        """The `petl` section of a recipe that makes this model."""
        return {"name": self.added.method, **self.added.options}

    @property
    def backbone(self) -> str:
        """Registered name of the backbone."""
        return f"clip_{self.family}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Our names of the tasks, in the file's order; a fully fine-tuned state names none."""
        return self.added.tasks


_FIRST_UP = {"bart": "encoder.layers.0.fc1.weight", "t5": "encoder.block.0.layer.1.DenseReluDense.wi.weight"}


def describe_reference(state: State, aliases: Aliases | None = None) -> ReferenceFacts:
    """Detect backbone, method, its options, tasks and sizes. CheckpointError when the state is of another kind."""
    full = expand_aliases(strip_prefix(state), aliases)
    family = "t5" if any(name.startswith("encoder.block.") for name in full) else "bart"
    root, table_name = ROOTS[family], _TABLE_NAMES[family][0]
    projection = f"{root}encoder.visual_embedding.feat_embedding.0.weight"
    if absent := [n for n in (table_name, projection, root + _FIRST_UP[family]) if n not in full]:
        raise CheckpointError(
            f"this is no VL-Adapter state of CLIP-{family.upper()}: it has no {', '.join(absent)}; states of CLIP-BART and "
            "CLIP-T5 can be read"
        )
    return ReferenceFacts(
        added=describe_added(full),
        family=family,
        text=_sizes(full, family),
        vocab_total=full[table_name].shape[0],
        feature_width=full[projection].shape[1],
    )


def _sizes(full: State, family: str) -> dict[str, Any]:
    layers: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for name in full:
        if match := _LAYER.match(name):
            layers[match[1]].add(int(match[2]))
    depth = {stack: len(numbers) for stack, numbers in layers.items()}
    up = full[ROOTS[family] + _FIRST_UP[family]]
    if family == "t5":
        attention = "encoder.block.0.layer.0.SelfAttention"
        buckets, heads = full[f"{attention}.relative_attention_bias.weight"].shape
        return {
            "d_model": up.shape[1], "d_kv": full[f"{attention}.q.weight"].shape[0] // heads, "d_ff": up.shape[0],
            "num_layers": depth["encoder"], "num_decoder_layers": depth["decoder"], "num_heads": heads,
            "relative_attention_num_buckets": buckets,
        }  # fmt: skip
    return {
        "d_model": up.shape[1],
        "encoder_layers": depth["encoder"],
        "decoder_layers": depth["decoder"],
        "encoder_ffn_dim": up.shape[0],
        "decoder_ffn_dim": full["model.decoder.layers.0.fc1.weight"].shape[0],
        # BART's learned positions start at row 2
        "max_position_embeddings": full["model.encoder.embed_positions.weight"].shape[0] - 2,
    }
