"""The training loop, to be read downwards: recipe, data, model, engine, resume, steps, export, DONE."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtvl import dist
from mtvl.checkpoint import (
    find_resumable,
    read_done,
    read_state,
    remove_unfinished,
    resolve_resume,
    retain,
    write_checkpoint,
    write_done,
)
from mtvl.config import RunConfig, to_plain
from mtvl.data.schedule import Schedule
from mtvl.engine import Engine, start
from mtvl.errors import CheckpointError, ConfigError, EngineError
from mtvl.evaluator import Evaluator
from mtvl.export import added_rows, base_fingerprint, write_export
from mtvl.loader import Loader
from mtvl.model import Model, build_model
from mtvl.optim import ParameterGroup
from mtvl.report import JsonLines, Progress, Scalars
from mtvl.workspace import Workspace

STOPPED_BY_SIGNAL = 143  # 128 + SIGTERM: saved, can be resumed


@dataclass
class RunResult:
    """How a run ended: the exit code, the last optimizer step, and the final metrics (validation, when asked for)."""

    code: int
    step: int
    metrics: dict[str, float]


def parameter_groups(model: Model, optimizer: str) -> list[ParameterGroup]:
    """One group per task and decay setting.

    adamw: biases and norms are not decayed. adamw_reference: only names with "bias" are not decayed, as in the
    reference, whose list of norm names matches nothing (*Source:* VL-Adapter's trainer, measured).
    """
    tasks = model.tasks_of_parameters()
    grouped: dict[tuple[str | None, bool], list[str]] = {}
    for name, parameter in model.trainable().items():
        decay = "bias" not in name if optimizer == "adamw_reference" else parameter.ndim > 1
        grouped.setdefault((tasks[name], decay), []).append(name)
    order = sorted(grouped, key=lambda key: (key[0] or "", key[1]))
    return [
        ParameterGroup(
            f"{task or 'shared'}/{'decay' if decay else 'no_decay'}", task, decay, tuple(grouped[task, decay])
        )
        for task, decay in order
    ]


class StopFlag:
    """SIGTERM and SIGINT ask for a checkpoint and an orderly end; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False

    def _handle(self, number: int, _frame: object) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[StopFlag]:
        """Install the handlers for the duration of the loop."""
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """True on all ranks at the same step when any rank was signalled."""
        return dist.sum_floats([float(self.is_set)])[0] > 0


def train(config: RunConfig, run: Path, *, resume: str = "auto") -> RunResult:
    """Train one model on `config.tasks` in the folder `run`.

    resume: "auto" continues the newest valid checkpoint of `run`, "never" refuses a run folder that has one, a path
    continues that checkpoint. Raises MtvlError subclasses; partial work stays in `run`.
    """
    device = start()
    say = print if dist.is_main() else _silent

    # ---- data and model ----
    model = build_model(config)
    base, rows = base_fingerprint(model), added_rows(model)
    workspace = Workspace(config, model.backbone, say=say)
    validating = config.train.validate_every > 0 or config.checkpoint.keep_best
    splits = ["train"] + (["val"] if validating else [])
    workspace.prepare([(task, split) for task in config.tasks for split in splits])
    examples = {task: workspace.examples(task, "train") for task in config.tasks}
    schedule = Schedule(
        {t: len(e) for t, e in examples.items()}, config.mixture, config.train.global_batch, config.seed
    )
    loader = Loader(examples, workspace.tasks, schedule, workspace.collator, config, dist.rank(), dist.world_size())
    say(model.plan.table())

    # ---- engine and resume ----
    engine = Engine(model, parameter_groups(model, config.optim.name), config, loader.micro_steps)
    identity = {
        "base": base, "plan": model.plan.fingerprint(), "tasks": ",".join(config.tasks), "seed": str(config.seed),
        "sizes": json.dumps({t: len(e) for t, e in examples.items()}), "mixture": json.dumps(to_plain(config.mixture)),
        "train.global_batch": str(config.train.global_batch), "train.steps": str(config.train.steps),
        "optim": json.dumps(to_plain(config.optim)), "data.text_only": str(config.data.text_only),
    }  # fmt: skip
    if validating and engine.zero_stage == 3 and dist.world_size() > 1:
        raise ConfigError(  # answers of unequal length would leave a rank waiting in a gather
            "validation during training is not available under ZeRO-3 on several ranks; set train.validate_every=0 and "
            "checkpoint.keep_best=false and evaluate the export, or use ZeRO-2"
        )
    first, best, before = _resume(run, engine, identity, resume, say)
    if first == config.train.steps and (finished := dist.broadcast_object(read_done(run))):
        say(f"{run} is complete (step {finished['step']}); nothing to do")
        return RunResult(0, first, finished["metrics"])
    if dist.is_main():
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(yaml.safe_dump(to_plain(config), sort_keys=False))
    log = JsonLines(run / "log.jsonl", keep_below_step=first) if dist.is_main() else None
    scalars = Scalars(run / "tensorboard" if dist.is_main() else None, from_step=first)
    evaluator = Evaluator(model, workspace.tokenizer, device)

    # ---- steps ----
    progress = Progress("train", config.train.steps, start=first, quiet=not dist.is_main())
    seen = {task: before.get(task, 0) for task in config.tasks}
    metrics: dict[str, float] = {}

    def save(step: int) -> None:
        progress_record = {"best": best, "samples": seen, "validation": metrics}
        write_checkpoint(run, step, engine.save, identity, progress_record)
        retain(run, config.checkpoint.keep_last, [first] + ([best["step"]] if best else []))

    with StopFlag().watching() as stop, contextlib.closing(loader):
        clock = time.perf_counter()
        for step, batches in loader.iterate(first, config.train.steps):
            report = engine.train_step(step, batches)
            done = step + 1
            now = time.perf_counter()
            rate = sum(report.num_examples.values()) / max(now - clock, 1e-9)
            for task, count in report.num_examples.items():
                seen[task] += count
            if log:
                log.write(_record(done, report, rate, seen))
                losses = " ".join(f"{t} {v:.3f}" for t, v in report.losses.items())
                progress.update(done, f"loss {report.loss:.4f} ({losses}) {rate:.0f} samples/s")
                if done % config.train.log_every == 0:
                    scalars.add({f"loss/{t}": v for t, v in report.losses.items()}, done)
                    scalars.add({"lr": report.lr, "grad_norm": report.grad_norm, "samples_per_second": rate}, done)
            last = done == config.train.steps
            if validating and (last or (config.train.validate_every and done % config.train.validate_every == 0)):
                metrics = validate(workspace, evaluator, loader, config)
                if config.checkpoint.keep_best and (not best or metrics["average"] > best["average"]):
                    best = {"step": done, "average": metrics["average"]}
                say(f"validation at step {done}: " + "  ".join(f"{k} {v:.2f}" for k, v in metrics.items()))
                scalars.add({f"validation/{k}": v for k, v in metrics.items()}, done)
                if log:
                    log.write({"step": done, "validation": metrics})
                save(done)
            elif last or done % config.checkpoint.every_steps == 0:
                save(done)
            if not last and stop.agreed():
                save(done)
                say(f"stopped by a signal after step {done}; the state is saved, start again with --resume auto")
                return RunResult(STOPPED_BY_SIGNAL, done, metrics)
            clock = time.perf_counter()  # saving and validating are not training speed

    # ---- export and the proof of completion ----
    steps = max(config.train.steps, first)
    state = engine.trainable_state()
    if dist.is_main():
        achieved = {t: n for t, n in seen.items() if n}
        extra = {"step": steps, "validation": metrics}
        write_export(run / "export", model, config, state=state, rows=rows, base=base, extra=extra)
        write_done(run, steps, metrics)
        say(f"samples seen per task: {json.dumps(achieved)}; export in {run / 'export'}")
    if log:
        log.close()
    scalars.close()
    dist.barrier()
    return RunResult(0, steps, metrics)


def run_folder(run: Path | None, recipe: Path) -> Path:
    """`run`, or a new folder runs/RECIPE-TIME that all ranks agree on; runs/latest points to it."""
    if run is None:
        run = Path("runs") / dist.broadcast_object(f"{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    if dist.is_main():
        run.mkdir(parents=True, exist_ok=True)
        if run.parent == Path("runs"):
            link = run.parent / "latest"
            if link.is_symlink() or not link.exists():
                link.unlink(missing_ok=True)
                link.symlink_to(run.name)
    return run


def validate(workspace: Workspace, evaluator: Evaluator, loader: Loader, config: RunConfig) -> dict[str, float]:
    """Primary metric of every task on evenly spread validation examples, and their mean (CIDEr x 100 included)."""
    metrics = {}
    for name, task in workspace.tasks.items():
        rows = workspace.examples(name, "val")
        limit = config.train.validate_examples
        if limit and len(rows) > limit:
            rows = [rows[i * len(rows) // limit] for i in range(limit)]
        batches = loader.evaluation_batches(name, rows, config.evaluate.batch, dist.rank(), dist.world_size())
        scores = evaluator.score(task, rows, evaluator.predict(task, rows, batches))
        metrics[name] = float(scores.metrics[scores.primary])
    metrics["average"] = sum(metrics.values()) / len(metrics)
    return metrics


def _resume(
    run: Path, engine: Engine, identity: dict[str, str], resume: str, say: Any
) -> tuple[int, dict[str, Any], dict[str, int]]:
    """Load what `resume` asks for; returns the step to go on from, the best checkpoint and the samples seen so far."""
    remove_unfinished(run)
    if resume == "never" and find_resumable(run):
        raise CheckpointError(f"{run} already holds checkpoints; use --resume auto, or another --run")
    found = resolve_resume(resume, run)
    if found is None:
        say(f"no checkpoint in {run}: starting fresh")
        return 0, {}, {}
    folder, step = found
    progress = read_state(folder, identity)["progress"]
    engine.load(folder)
    say(f"resumed from {folder}")
    return step, progress["best"], progress["samples"]


def _record(step: int, report: Any, rate: float, seen: dict[str, int]) -> dict[str, Any]:
    """A line of log.jsonl."""
    if not report.losses:
        raise EngineError(f"step {step} reported no task")
    return {
        "step": step, "task": "+".join(report.losses), "loss": report.loss, "losses": report.losses, "lr": report.lr,
        "grad_norm": report.grad_norm, "samples_per_second": round(rate, 3), "skipped": report.skipped,
        "samples": dict(seen),
    }  # fmt: skip


def _silent(_text: str) -> None:
    """What ranks other than 0 say."""
