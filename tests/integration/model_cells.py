"""Whole runs of the tiny CLIP-BART on the ranks of one launch; writes what it measured as JSON.

Three tasks with private adapters, dropout, and two slots a step, so that the task changes inside an accumulation window
and a task is idle; all in the middle of an epoch. For every ZeRO stage: four steps straight with a
checkpoint after two, and two steps from that checkpoint; under ZeRO-3 also four steps with activation recompute.
Usage (started by tests/distributed.py): model_cells.py FOLDER MINIWORLD
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
from safetensors.torch import load_file

from mtvl import dist
from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import RunConfig, load_run_config
from mtvl.engine import Engine, StepReport, finish, start
from mtvl.train import train
from mtvl.types import Batch

FOLDER, WORLD = Path(sys.argv[1]), Path(sys.argv[2])
TASKS = ["vqa", "gqa", "nlvr2"]
STEPS, HALF = 4, 2


def make_config(stage: int, *more: str) -> RunConfig:
    """The default recipe, smaller."""
    overrides = [
        f"data.root={WORLD}", f"data.cache={FOLDER / 'cache'}", f"engine.file=ds_configs/zero{stage}.json",
        f"train.steps={STEPS}", "train.global_batch=8", "train.micro_batch=4", "mixture.law=equal", "mixture.slots=2",
        "petl.share=none", "backbone.dropout=0.1", f"checkpoint.every_steps={HALF}", "checkpoint.keep_best=false",
    ]  # fmt: skip
    return load_run_config(DEFAULT_RECIPE, TASKS, [*overrides, *more])


class Watch:
    """Wraps Engine.train_step: what moves in a window and what must not, and how often a layer's first linear map ran."""

    def __init__(self) -> None:
        self.inner = Engine.train_step
        self.clear()

    def clear(self) -> None:
        """Forget the last run."""
        self.losses: list[float] = []
        self.windows: list[list[str]] = []  # tasks of each window, micro-step after micro-step
        self.idle_moved: list[str] = []
        self.active_stood: list[str] = []
        self.layer_runs = 0
        self.watched: Engine | None = None

    def install(self) -> None:
        """Put the wrapper in place for the rest of the process."""
        watch = self

        def train_step(engine: Engine, step: int, batches: Sequence[Batch]) -> StepReport:
            return watch.step(engine, step, batches)

        Engine.train_step = train_step  # type: ignore[method-assign]

    def step(self, engine: Engine, step: int, batches: Sequence[Batch]) -> StepReport:
        """One optimizer step with everything of every task compared before and after."""
        if engine is not self.watched:
            self.watched = engine
            layer = next(m for n, m in engine.module.named_modules() if n.endswith("encoder.layers.0.fc1"))
            layer.register_forward_pre_hook(lambda *_: setattr(self, "layer_runs", self.layer_runs + 1))
        before = own_share(engine)
        report = self.inner(engine, step, batches)
        after = own_share(engine)
        tasks = [b.task for b in batches]
        for group in engine.groups:
            moved = [n for n, tensor in after[group.name].items() if not torch.equal(before[group.name][n], tensor)]
            if group.task is not None and group.task not in tasks:
                self.idle_moved += [f"step {step}: {group.name}: {n}" for n in moved]
            elif not moved:
                self.active_stood.append(f"step {step}: {group.name}")
        self.windows.append(tasks)
        self.losses.append(report.loss)
        return report


def own_share(engine: Engine) -> dict[str, dict[str, torch.Tensor]]:
    """What this rank holds of every group: model weights, masters, moments, step count. No collective: it runs often."""
    optimizer, masters, stage = engine.optimizer, engine.masters, engine.zero_stage
    found: dict[str, dict[str, torch.Tensor]] = {}
    for index, group in enumerate(engine.groups):
        own = found[group.name] = {"count": torch.tensor(optimizer.counts[group.name])}
        for name in group.names:
            parameter = masters.parameters[name]
            own[f"model {name}"] = parameter.ds_tensor if stage == 3 else parameter.detach()
            if stage == 3:
                own[f"weight {name}"] = safe_get_local_fp32_param(parameter)
                for state in optimizer.state_names:
                    own[f"{state} {name}"] = safe_get_local_optimizer_state(parameter, state)
            elif stage == 0:
                own.update({f"{state} {name}": optimizer.state[parameter][state] for state in optimizer.state_names})
        if stage in (1, 2):  # one flat partition a group
            flat = engine.deepspeed.optimizer.single_partition_of_fp32_groups[index]
            own.update(
                {"weight": flat.detach()} | {state: optimizer.state[flat][state] for state in optimizer.state_names}
            )
        assert len(own) > 1 + len(optimizer.state_names)
        found[group.name] = {n: tensor.clone() for n, tensor in own.items()}
    return found


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ends(folder: Path) -> list[str]:
    """Digests of the exact final state (masters, moments, counts) and of the export."""
    last = folder / "checkpoints" / f"step_{STEPS}"
    files = [last / "engine.safetensors", last / "engine.json", folder / "export" / "adapter.safetensors"]
    return [digest(file) for file in files]


def check_stage(stage: int, watch: Watch) -> dict[str, Any]:
    """Straight and resumed runs of a stage."""
    straight, resumed = FOLDER / f"straight{stage}", FOLDER / f"resumed{stage}"
    watch.clear()
    assert train(make_config(stage), straight, resume="never").code == 0
    results: dict[str, Any] = {
        "losses": watch.losses, "windows": watch.windows, "idle_moved": watch.idle_moved,
        "active_stood": watch.active_stood, "layer_runs": watch.layer_runs,
    }  # fmt: skip
    torch.manual_seed(99)  # what the first run left in the generators must not matter
    watch.clear()
    half = straight / "checkpoints" / f"step_{HALF}"
    assert train(make_config(stage), resumed, resume=str(half)).code == 0
    results["losses_resumed"] = watch.losses
    results["idle_moved"] += watch.idle_moved
    if dist.is_main():
        results["same_end"] = ends(straight) == ends(resumed)
        results["trainable"] = sum(v.numel() for k, v in load_file(str(half / "engine.safetensors")).items()
                                   if k.startswith("weight/"))  # fmt: skip
        results["bytes"] = sum(p.stat().st_size for p in half.rglob("*") if p.is_file())
    return results


def check_recompute(watch: Watch) -> dict[str, Any]:
    """The run under ZeRO-3 with recompute; the difference of the exports from the straight run without."""
    folder = FOLDER / "recompute3"
    watch.clear()
    assert train(make_config(3, "train.recompute=true"), folder, resume="never").code == 0
    results: dict[str, Any] = {"losses": watch.losses, "layer_runs": watch.layer_runs}
    if dist.is_main():
        a, b = (load_file(str(f / "export" / "adapter.safetensors")) for f in (FOLDER / "straight3", folder))
        results["tensors"] = max(float((a[k] - b[k]).abs().max()) for k in a)
        results["same_names"] = set(a) == set(b)
    return results


def main() -> None:
    """Run everything; rank 0 writes the results."""
    torch.set_num_threads(1)
    start("cpu")
    watch = Watch()
    watch.install()
    results = {f"zero{stage}": check_stage(stage, watch) for stage in range(4)}
    results["recompute"] = check_recompute(watch)
    if dist.is_main():
        (FOLDER / "results.json").write_text(json.dumps(results, indent=1))
    finish(0)


if __name__ == "__main__":
    main()
