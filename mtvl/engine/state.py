"""Exact training state as safetensors and JSON: masters and moments by name, step counts, random generators.

The files depend neither on the ZeRO stage nor (random generators aside) on the number of ranks, hold no frozen tensor,
and nothing in them is unpickled. `engine.safetensors` has one entry `weight/NAME` and one `MOMENT/NAME` per trainable
parameter, `engine.json` the groups with their step counts, `random_R.safetensors` the generators of rank R.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mtvl import dist
from mtvl.engine.host import HostCopies
from mtvl.engine.masters import Masters, full_shape
from mtvl.errors import CheckpointError
from mtvl.optim import ParameterGroup

FORMAT = 1
TENSORS, FACTS = "engine.safetensors", "engine.json"
WEIGHT = "weight"

log = logging.getLogger(__name__)


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file; CheckpointError when the disk refuses."""
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {file}: {error}") from None


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Content of a safetensors file; CheckpointError when there is none or it cannot be read."""
    try:
        return load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; go on from another checkpoint") from None


@dataclass(frozen=True)
class Snapshot:
    """The training state as it was at one moment, held by rank 0 (nothing elsewhere); what is trained on changes none of it."""

    tensors: HostCopies
    generators: tuple[dict[str, torch.Tensor], ...] = ()  # by rank
    facts: str = ""

    def write(self, folder: Path) -> None:
        """Write the state into the existing `folder`; on other ranks than 0 nothing. May be called in another thread.

        CheckpointError when the disk refuses, and for a state that is not finite: it would take the place of a good one.
        """
        if not self.facts:
            return
        self.tensors.wait()
        if lost := next((n for n, tensor in self.tensors.tensors.items() if not bool(tensor.isfinite().all())), None):
            raise CheckpointError(
                f"'{lost}' is no longer finite: an update was too large; go on with a lower optim.lr or with optim.clip_norm, "
                "and with checkpoint.allow=[optim]"
            )
        for rank, generators in enumerate(self.generators):
            write_tensors(folder / f"random_{rank}.safetensors", generators)
        write_tensors(folder / TENSORS, self.tensors.tensors)
        (folder / FACTS).write_text(self.facts, encoding="utf-8")


def take_state(masters: Masters, groups: Sequence[ParameterGroup], facts: Mapping[str, Any]) -> Snapshot:
    """Copy the state of all ranks to rank 0's memory. Collective."""
    optimizer, copies = masters.optimizer, HostCopies()
    for state in (None, *optimizer.state_names):
        for name in masters.parameters:
            full = masters.look(name, state)  # a collective: on all ranks, in one order
            if dist.is_main():
                copies.add(f"{state or WEIGHT}/{name}", full)
    # Rank 0 writes them all: a checkpoint is whole without any other rank having come so far.
    generators = dist.gather_objects(random_state())
    if not dist.is_main():
        return Snapshot(copies)
    content = {
        "format": FORMAT,
        "optimizer": type(optimizer).__name__,
        "world_size": dist.world_size(),
        "groups": [
            {"name": g.name, "task": g.task, "decay": g.decay, "steps": optimizer.counts[g.name]} for g in groups
        ],
        **facts,
    }
    return Snapshot(copies, tuple(generators), json.dumps(content, indent=1))


def load_state(folder: Path, masters: Masters, groups: Sequence[ParameterGroup]) -> dict[str, Any]:
    """Restore what a `Snapshot` wrote and return the content of `engine.json`. Collective.

    Everything is compared before anything is set. Raises CheckpointError naming the first item that differs.
    """
    facts = _read_facts(folder)
    _check_groups(folder, facts, masters, groups)
    try:
        with safe_open(str(folder / TENSORS), framework="pt") as file:
            saved = list(file.keys())
            _check_tensors(folder, {k: tuple(file.get_slice(k).get_shape()) for k in saved}, masters)
            for state in (None, *masters.optimizer.state_names):
                for name in masters.parameters:
                    masters.set(name, file.get_tensor(f"{state or WEIGHT}/{name}"), state)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / TENSORS}: {error}") from None
    masters.publish()
    masters.optimizer.counts.update({g["name"]: g["steps"] for g in facts["groups"]})
    _restore_random(folder, facts["world_size"])
    return facts


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds no usable training state: {error}") from None
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"{folder / FACTS}: expected format {FORMAT}, found {facts.get('format')}")
    return facts


def _check_groups(folder: Path, facts: Mapping[str, Any], masters: Masters, groups: Sequence[ParameterGroup]) -> None:
    if facts["optimizer"] != type(masters.optimizer).__name__:
        raise CheckpointError(
            f"{folder}: saved with optimizer {facts['optimizer']}, this run uses {type(masters.optimizer).__name__}"
        )
    saved = {g["name"]: {"task": g["task"], "decay": g["decay"]} for g in facts["groups"]}
    current = {g.name: {"task": g.task, "decay": g.decay} for g in groups}
    for name in [*saved, *(n for n in current if n not in saved)]:
        if saved.get(name) != current.get(name):
            raise CheckpointError(
                f"{folder}: parameter group '{name}' differs: saved {saved.get(name, 'no such group')}, "
                f"this run {current.get(name, 'no such group')}"
            )


def _check_tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]], masters: Masters) -> None:
    wanted = {
        f"{state or WEIGHT}/{name}": full_shape(parameter)
        for state in (None, *masters.optimizer.state_names)
        for name, parameter in masters.parameters.items()
    }
    for key in [*wanted, *(k for k in shapes if k not in wanted)]:
        if shapes.get(key) != wanted.get(key):
            raise CheckpointError(
                f"{folder / TENSORS}: '{key}' differs: saved shape {shapes.get(key, 'none (missing)')}, "
                f"this model wants {wanted.get(key, 'no such tensor')}"
            )


def random_state() -> dict[str, torch.Tensor]:
    """States of this process's generators (torch CPU and current CUDA device, Python, NumPy) as tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_scalars": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python_internal": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Inverse of `random_state`; a state of a GPU is left out on a machine without one."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_scalars"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    version, *internal = state["python_internal"].tolist()
    python_gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(internal), python_gauss[0] if python_gauss else None))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _restore_random(folder: Path, world_size: int) -> None:
    if world_size != dist.world_size():
        log.warning(
            "%s was written by %d processes and is resumed on %d: random generators (dropout) start from the seed",
            folder, world_size, dist.world_size(),
        )  # fmt: skip
        return
    file = folder / f"random_{dist.rank()}.safetensors"
    try:
        with safe_open(str(file), framework="pt") as content:
            names = list(content.keys())
            set_random_state({k: content.get_tensor(k) for k in names})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None
