"""The training loop, to be read downwards: recipe, data, model, engine, resume, steps, export, DONE."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mtvl import dist
from mtvl.agreement import brief, check_identity, check_ranks
from mtvl.checkpoint import (
    DONE,
    find_resumable,
    full_disks_named,
    left_of,
    read_done,
    read_state,
    remove_unfinished,
    require_folder,
    resolve_resume,
    steps_of,
    write_done,
)
from mtvl.config import AugmentConfig, RunConfig, TowerOptimConfig, to_plain
from mtvl.data.schedule import Schedule, num_micro_steps, stable_bits
from mtvl.data.skips import SkipLog
from mtvl.engine import (
    STOPPED_BY_SIGNAL,
    Engine,
    StepReport,
    StopFlag,
    Watchdog,
    lost_ranks_named,
    peak_memory,
    start,
)
from mtvl.engine.host import HostCopies
from mtvl.engine.settings import check_engine, read_engine_file
from mtvl.engine.state import read_tensors, write_tensors
from mtvl.errors import CheckpointError, ConfigError
from mtvl.evaluator import Evaluator
from mtvl.export import added_rows, base_fingerprint, write_export
from mtvl.loader import Loader
from mtvl.model import Model, build_model
from mtvl.optim import parameter_groups
from mtvl.report import JsonLines, Progress, Scalars
from mtvl.saving import Saver
from mtvl.tasks import TASKS_DIR, load_task
from mtvl.tasks.visual import with_visual
from mtvl.types import Example
from mtvl.workspace import Workspace, with_answers

PAIRS = "pairs.safetensors"  # queue and teacher, in a checkpoint of a run that has them


@dataclass
class RunResult:
    """How a run ended: the exit code, the last optimizer step, and the final metrics (validation, when asked for)."""

    code: int
    step: int
    metrics: dict[str, float]


class Run:
    """One training run: what is built once, and what happens after a step. `train` reads downwards."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        config = with_visual(config, TASKS_DIR)  # written down, so that an export does not hang on the task files
        self.config, self.folder = config, folder
        self.say = print if dist.is_main() else _silent
        self.device = start()
        config = self.config = agreed(config, self.say)
        self.model = build_model(config)
        self.base, self.rows = base_fingerprint(self.model), added_rows(self.model)  # before anything is partitioned
        self.workspace = Workspace(
            config, self.model.backbone, device=self.device, say=self.say, skips=SkipLog(folder, dist.rank())
        )
        self.is_validating = config.train.validate_every > 0 or config.checkpoint.keep_best
        splits = ["train"] + (["val"] if self.is_validating else [])
        self.workspace.prepare([(task, split) for task in config.tasks for split in splits])
        begin_pairs(config, self.model, self.workspace)
        examples = {task: self.workspace.examples(task, "train") for task in config.tasks}
        sizes = {task: len(rows) for task, rows in examples.items()}
        lengths = {t: [sum(len(s.text) for s in e.segments) for e in rows] for t, rows in examples.items()}
        schedule = Schedule(sizes, config.mixture, config.train.global_batch, config.seed, lengths=lengths)
        self.shares = schedule.shares()
        self.identity = identity_of(config, self, schedule, examples)
        check_identity(self.identity)
        self.loader = Loader(
            examples, self.workspace.tasks, schedule, self.workspace.collator, config, dist.rank(), dist.world_size()
        )
        self.say(self.model.plan.table())
        model = self.model
        parts = (model.added(), model.tower_parameters())
        groups = parameter_groups(model.trainable(), model.tasks_of_parameters(), config.optim, *parts)
        self.engine = Engine(self.model, groups, config, self.loader.micro_steps)
        # The only use of the global generator.
        torch.manual_seed(stable_bits("dropout", config.seed, dist.rank()) % 2**63)
        run = self.engine.run if self.engine.is_partitioned else None
        self.evaluator = Evaluator(self.model, self.workspace.writer, self.device, run)
        self.watch = Watchdog(config.train.stuck_seconds, folder)
        self.saver = Saver(folder, config.checkpoint.keep_last, background=config.checkpoint.background)
        self.first = 0
        self.best: dict[str, Any] = {}
        self.seen = dict.fromkeys(config.tasks, 0)
        self.metrics: dict[str, float] = {}

    def resume(self, resume: str) -> None:
        """Load what `resume` asks for ("auto", "never", or a folder), or start fresh."""
        if self.model.pairs is not None:
            self.model.pairs.step.teacher.float()  # an average moves by less than bfloat16 can hold
        remove_unfinished(self.folder)
        if resume == "never" and find_resumable(self.folder):
            raise CheckpointError(f"{self.folder} already holds checkpoints; use --resume auto, or another --run")
        found = resolve_resume(resume, self.folder)
        if found is None:
            self.say(f"no checkpoint in {self.folder}: starting fresh")
            return
        checkpoint, self.first = found
        progress = read_state(checkpoint, self.identity, self.config.checkpoint.allow)["progress"]
        self.engine.load(checkpoint)
        if self.model.pairs is not None:
            self.model.pairs.resume(read_tensors(checkpoint / PAIRS), progress.get("pairs", ""))
        self.best, self.metrics = progress["best"], progress["validation"]
        self.seen |= progress["samples"]
        self.say(f"resumed from {checkpoint}")

    def open_logs(self) -> None:
        """config.yaml, log.jsonl and TensorBoard, on rank 0."""
        self.log = self.scalars = None
        if dist.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / "config.yaml.tmp"  # a full disk must not leave an empty one
            draft.write_text(yaml.safe_dump(to_plain(self.config), sort_keys=False))
            draft.replace(self.folder / "config.yaml")
            (self.folder / DONE).unlink(missing_ok=True)  # of a shorter run: it would prove the end of this one
            self.log = JsonLines(self.folder / "log.jsonl", keep_below_step=self.first)
            self.scalars = Scalars(self.folder / "tensorboard", from_step=self.first)
        self.progress = Progress("train", self.config.train.steps, start=self.first, quiet=not dist.is_main())

    def record(self, done: int, report: StepReport, seconds: float) -> None:
        """Log the step that has just ended."""
        rate = sum(report.num_examples.values()) / max(seconds, 1e-9)
        for task, count in report.num_examples.items():
            self.seen[task] += count
        if self.log is None or self.scalars is None:
            return
        stall = self.saver.stall_seconds()
        self.log.write({
            "step": done, "task": "+".join(report.losses), "loss": report.loss, "losses": dict(report.losses),
            "lr": report.lr, "grad_norm": report.grad_norm, "samples_per_second": round(rate, 3),
            "skipped": report.skipped, "samples": dict(self.seen), "memory_bytes": peak_memory(),
            **({"save_stall_seconds": round(stall, 4)} if stall else {}),  # before this step
            **({"suspects": list(report.suspects)} if report.skipped else {}),
        })  # fmt: skip
        if report.skipped:
            self.say(f"step {done} was skipped, its loss or gradient was not finite (skipped so far: "
                     f"{self.engine.skipped_steps}); examples: {', '.join(report.suspects)}")  # fmt: skip
        losses = " ".join(f"{t} {v:.3f}" for t, v in report.losses.items())
        self.progress.update(done, f"loss {report.loss:.4f} ({losses}) {rate:.0f} samples/s")
        if done % self.config.train.log_every == 0:
            self.scalars.add({f"loss/{t}": v for t, v in report.losses.items()}, done)
            self.scalars.add({"lr": report.lr, "grad_norm": report.grad_norm, "samples_per_second": rate}, done)

    def validate(self, done: int) -> None:
        """Score the validation examples; a new best is exported into `best/`."""
        self.saver.wait()
        self.metrics = validate(self.workspace, self.evaluator, self.loader, self.config, self.watch)
        self.say(f"validation at step {done}: " + "  ".join(f"{k} {v:.2f}" for k, v in self.metrics.items()))
        if self.log is not None and self.scalars is not None:
            self.log.write({"step": done, "validation": self.metrics})
            self.scalars.add({f"validation/{k}": v for k, v in self.metrics.items()}, done)
        if self.config.checkpoint.keep_best and self.metrics["average"] > self.best.get("average", float("-inf")):
            self.best = {"step": done, "average": self.metrics["average"]}
            self.export("best", done)

    def save(self, done: int) -> None:
        """Begin a checkpoint; once it is there, those that are not kept are deleted."""
        self.watch.beat(f"saving step {done}")
        progress = {"best": self.best, "samples": self.seen, "validation": self.metrics, "pairs": self.model.pair_rows}
        protected = [self.first] + ([self.best["step"]] if self.best else [])
        if self.engine.skipped_in_a_row:  # whether they are from before the trouble is not known yet
            protected += steps_of(self.folder)
        self.saver.save(done, self._take_state, self.identity, progress, protected)

    def _take_state(self) -> Callable[[Path], None]:
        """Copy what a checkpoint holds; the result writes its files, after the log's records up to here."""
        state, pairs, log = self.engine.snapshot(), HostCopies(), self.log
        if self.model.pairs is not None and dist.is_main():  # the same on all ranks
            for name, tensor in self.model.pairs.state_dict().items():
                pairs.add(name, tensor)

        def write(folder: Path) -> None:
            if log is not None:
                log.to_disk()
            state.write(folder)
            if pairs.tensors:
                pairs.wait()
                write_tensors(folder / PAIRS, pairs.tensors)

        return write

    def export(self, name: str, done: int) -> None:
        """Write the adapter export `name`. Collective."""
        state = self.engine.trainable_state()
        if dist.is_main():
            write_export(
                self.folder / name, self.model, self.config, state=state, rows=self.rows, base=self.base,
                extra={"step": done, "validation": self.metrics, "tower": self.workspace.tower_fingerprint},
            )  # fmt: skip

    def close(self) -> None:
        """Close loader and logs, when the checkpoint on its way is there."""
        self.saver.close()
        self.loader.close()
        self.workspace.close()
        for log in (self.log, self.scalars):
            if log is not None:
                log.close()


def identity_of(config: RunConfig, run: Run, schedule: Schedule, examples: dict[str, list[Example]]) -> dict[str, str]:
    """What a checkpoint belongs to; a resume with anything else is refused with the name of the differing item."""
    digest = hashlib.sha256()
    for task, rows in examples.items():
        settings = run.workspace.tasks[task]
        # Checkpoints from before there was smoothing stay what they are.
        smoothing = (settings.label_smoothing,) if settings.label_smoothing else ()
        digest.update(repr((task, settings.limits, settings.loss, *smoothing)).encode())
        for row in rows:
            video = (row.visual.video, row.visual.span) if row.visual.video else ()
            digest.update(repr((row.uid, row.segments, row.visual.images, row.targets, *video)).encode())
    optim = to_plain(config.optim)
    if config.optim.tower == TowerOptimConfig():
        del optim["tower"]  # checkpoints from before there was such a section stay what they are
    return {
        "base": run.base, "tower": run.workspace.tower_fingerprint, "plan": run.model.plan.fingerprint(),
        "backbone": json.dumps(brief(config.backbone), sort_keys=True), "petl": json.dumps(config.petl, sort_keys=True),
        "tasks": ",".join(config.tasks),
        "seed": str(config.seed), "number of examples": json.dumps(schedule.sizes), "examples": digest.hexdigest()[:16],
        "mixture": json.dumps(to_plain(config.mixture)), "schedule": schedule.fingerprint,
        "train.global_batch": str(config.train.global_batch), "train.steps": str(config.train.steps),
        "train.precision": config.train.precision, "optim": json.dumps(optim),
        "paper_compat": str(config.paper_compat), "data.text_only": str(config.data.text_only),
        **({"data.augment": json.dumps(to_plain(config.data.augment))} if config.data.augment != AugmentConfig() else {}),
        **({"pairs": json.dumps(to_plain(config.pairs))} if run.model.pairs is not None else {}),
    }  # fmt: skip


def agreed(config: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """`config` with what its data decide (lists of answers), written down with the run; EngineError unless it is one on
    all ranks: on unequal copies of the data they would make heads of their own."""
    check_ranks(config)
    config = with_answers(config, say)
    if "answers" in config.backbone:
        check_ranks(config)
    return config


def begin_pairs(config: RunConfig, model: Model, workspace: Workspace) -> None:
    """Prepare `model` where a task is on pairs; ConfigError where it cannot: ranks exchange rows, the teacher reads whole weights."""
    if all(task.loss != "pairs" for task in workspace.tasks.values()):
        return
    ranks = dist.world_size()
    pieces = num_micro_steps(config.train.global_batch, config.train.micro_batch, ranks) * ranks
    if config.train.global_batch % pieces:
        raise ConfigError(
            f"a task of this run matches pictures with texts, so every rank needs as many rows: 'train.global_batch' "
            f"{config.train.global_batch} is no multiple of {pieces} pieces (ranks x micro-batches of a slot)"
        )
    if read_engine_file(config.engine.file).get("zero_optimization", {}).get("stage", 0) == 3:
        raise ConfigError(
            "a task of this run matches pictures with texts, and its teacher averages whole weights, which ZeRO-3 splits; use "
            "ZeRO-2 (engine.file=ds_configs/zero2.json)"
        )
    model.begin_pairs(config.pairs, f"{config.train.global_batch // pieces} on each of {ranks} ranks")


def check_recipe(config: RunConfig) -> None:
    """Errors that need no data and no model, before hours are spent on either."""
    for name in config.tasks:
        load_task(name, root=config.data.folder, overlay=config.task.get(name))
    check_engine(config, start().type)  # joins the ranks: DeepSpeed, which is asked, reads its variables on import


def train(config: RunConfig, folder: Path, *, resume: str = "auto") -> RunResult:
    """Train one model on `config.tasks` in the run folder `folder`.

    resume: "auto" continues the newest valid checkpoint of `folder`, "never" refuses a run folder that has one, a path
    continues that checkpoint. Raises MtvlError subclasses; what was saved before stays in `folder`.
    """
    check_recipe(config)
    if resume not in ("auto", "never"):
        require_folder(Path(resume))  # before data and model are built
    with lost_ranks_named(lambda: left_of(folder)):
        run = Run(config, folder)
    return carry_out(run, resume)


def carry_out(run: Run, resume: str = "auto") -> RunResult:
    """What `train` does once a run is built: resume, the steps that are left, validation, checkpoints, export, DONE."""
    folder, steps = run.folder, run.config.train.steps
    left = lambda: left_of(folder)  # noqa: E731
    with lost_ranks_named(left):
        run.resume(resume)
    if run.first == steps and (finished := dist.broadcast_object(read_done(folder))):
        run.say(f"{folder} is complete (step {finished['step']}); nothing to do")
        return RunResult(0, steps, finished["metrics"])
    with full_disks_named(folder):
        run.open_logs()

    with StopFlag().watching() as stop, run.watch.watching(), full_disks_named(folder), lost_ranks_named(left):
        with contextlib.closing(run):
            done = take_steps(run, stop)
        if done < steps:
            run.say(f"stopped by a signal after step {done}; the state is saved; go on with --run {folder}")
            return RunResult(STOPPED_BY_SIGNAL, done, run.metrics)
        run.watch.beat("the export")
        run.export("export", steps)
        write_done(folder, steps, run.metrics)
    shares = ", ".join(f"{task} {share:.1%}" for task, share in run.shares.items())
    run.say(f"samples seen per task: {json.dumps(run.seen)}; asked shares of the slots: {shares}")
    stats = run.loader.stats()
    padding = (f"{t} {c['source_padding']:.0%} {c['target_padding']:.0%}" for t, c in sorted(stats["tasks"].items()))
    run.say(f"padding of sources and targets: {', '.join(padding)}")
    for warning in stats["warnings"]:
        run.say(f"note: {warning}")
    run.say(f"export in {folder / 'export'}")
    return RunResult(0, steps, run.metrics)


def take_steps(run: Run, stop: StopFlag) -> int:
    """The steps that are left, with their validations and checkpoints; returns the last step: less than all when stopped."""
    config, steps = run.config, run.config.train.steps
    clock = time.perf_counter()
    for step, batches in run.loader.iterate(run.first, steps):
        done = step + 1
        run.watch.beat(f"step {done} ({', '.join(sorted({b.task for b in batches}))})")
        report = run.engine.train_step(step, batches)
        run.record(done, report, time.perf_counter() - clock)
        run.saver.poll()
        every = config.train.validate_every or steps
        if run.is_validating and (done == steps or done % every == 0):
            run.validate(done)
            run.save(done)
        elif done == steps or done % config.checkpoint.every_steps == 0:
            run.save(done)
        if done < steps and stop.agreed():
            if run.saver.newest != done:
                run.save(done)
            run.saver.wait()
            return done
        run.watch.beat(f"getting the batches of step {done + 1}")
        clock = time.perf_counter()  # saving and validating are not training speed
    run.saver.wait()
    return steps


def validate(
    workspace: Workspace, evaluator: Evaluator, loader: Loader, config: RunConfig, watch: Watchdog
) -> dict[str, float]:
    """Primary metric of every task on evenly spread validation examples, and their mean (CIDEr x 100 included)."""
    metrics = {}
    for name, task in workspace.tasks.items():
        rows = workspace.examples(name, "val")
        limit = config.train.validate_examples
        if limit and len(rows) > limit:
            rows = [rows[i * len(rows) // limit] for i in range(limit)]
        if task.decoding.mode == "retrieve":
            beat = functools.partial(watch.beat, f"validation of {name}")
            found = evaluator.retrieve(task, rows, workspace.collator, config.evaluate.batch, beat=beat)
        else:
            batches = loader.evaluation_batches(name, rows, config.evaluate.batch, dist.rank(), dist.world_size())
            batches = watch.over(batches, f"validation of {name}")
            found = evaluator.predict(task, rows, batches)
        scores = evaluator.score(task, rows, found)
        metrics[name] = float(scores.metrics[scores.primary])
    metrics["average"] = sum(metrics.values()) / len(metrics)
    return metrics


def _silent(_text: str) -> None:
    """What ranks other than 0 say."""
