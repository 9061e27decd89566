"""What training jointly gives: one joint run against single-task, image-only and video-only runs, equal samples a task.

    python tools/compare_joint.py RUN OUT [--families single,images,videos] [--dry-run]

RUN is a finished joint run. Each other run takes RUN's whole recipe (seed included) for fewer tasks and as many steps as
those tasks had of RUN's slots; it is trained and evaluated under OUT by the same commands as any run, so what is cut
short goes on with the same call, and what is done is kept. The table and OUT/compare_joint.json come at the end; averages
are the papers': the mean of the primary metrics, CIDEr x 100.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtvl.compare.children import evaluate_command, run_child, train_command  # noqa: E402
from mtvl.compare.record import average_of, read_scores  # noqa: E402
from mtvl.config import RunConfig, to_plain  # noqa: E402
from mtvl.errors import CheckpointError, ConfigError, MtvlError, near_names  # noqa: E402
from mtvl.export import find_export, read_config  # noqa: E402
from mtvl.report import format_seconds, table  # noqa: E402
from mtvl.tasks import TASKS_DIR, read_task_config  # noqa: E402


@dataclass(frozen=True)
class Job:
    """One run to compare with: its column in the table, its tasks and its steps."""

    column: str
    tasks: tuple[str, ...]
    steps: int

    @property
    def folder(self) -> str:
        """Name of the run's folder under OUT."""
        return self.column if self.column != "single" else f"single_{self.tasks[0]}"


def seen_samples(run: Path) -> dict[str, int]:
    """Samples of each task that `run` was trained on, from the last line of its log."""
    file = run / "log.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    steps = [line for line in lines if "samples" in line]
    if not steps:
        raise CheckpointError(f"{file} has no training step; RUN must be a run folder of launch/train.py")
    return dict(steps[-1]["samples"])


def plan_jobs(tasks: tuple[str, ...], samples: dict[str, int], batch: int, families: list[str]) -> list[Job]:
    """The runs of `families`; a family without two tasks (or equal to the joint run) is left out."""
    videos = {t for t in tasks if read_task_config(t, TASKS_DIR / f"{t}.yaml").video is not None}
    groups = {
        "single": [(t,) for t in tasks],
        "images": [tuple(t for t in tasks if t not in videos)],
        "videos": [tuple(t for t in tasks if t in videos)],
    }
    unknown = [f for f in families if f not in groups]
    if unknown:
        raise ConfigError(f"unknown family of runs {unknown[0]!r}; {near_names(unknown[0], groups)}")
    return [
        Job(family, group, max(1, round(sum(samples[t] for t in group) / batch)))
        for family in families
        for group in groups[family]
        if 0 < len(group) < len(tasks) and (family == "single" or len(group) > 1)
    ]


def overrides(config: RunConfig, job: Job) -> list[str]:
    """What `job` changes in the joint run's recipe."""
    changed = [f"train.steps={job.steps}", f"checkpoint.every_steps={max(job.steps, 1)}"]
    unused = [n for n in config.mixture.weights if n not in job.tasks]
    if unused:
        raise ConfigError("a mixture with fixed weights cannot be compared at equal samples; take another law")
    return changed


def make_run(config: RunConfig, job: Job, out: Path) -> dict[str, float]:
    """Train and evaluate `job` unless that is done; its scores by task."""
    run, log = out / job.folder, out / f"{job.folder}.log"
    recipe = out / "recipe.json"  # JSON is YAML
    recipe.write_text(json.dumps(to_plain(config)))
    commands = [] if (run / "DONE").is_file() else [train_command(recipe, job.tasks, run, overrides(config, job))]
    if not (run / "eval.json").is_file():
        commands.append(evaluate_command(run, job.tasks))
    for command in commands:
        if run_child(command, log):
            raise CheckpointError(f"{job.folder} did not finish; its output is {log}; the command was {command}")
    return read_scores(run)


def report(joint: dict[str, float], samples: dict[str, int], columns: dict[str, dict[str, float]]) -> str:
    """Markdown table: one row a task, then averages over the tasks that a column has, beside the joint run's."""
    header = ["task", "samples", "joint", *(c for name in columns for c in (name, "joint -"))]

    def pair(score: float | None, reference: float) -> list[str]:
        return ["-", "-"] if score is None else [f"{score:.2f}", f"{reference - score:+.2f}"]

    rows = [
        [t, f"{samples[t]:,}", f"{joint[t]:.2f}", *(c for s in columns.values() for c in pair(s.get(t), joint[t]))]
        for t in joint
    ]

    rows.append(
        ["average", f"{sum(samples[t] for t in joint):,}", f"{average_of(joint):.2f}"]
        + [c for s in columns.values() for c in pair(average_of(s), average_of({t: joint[t] for t in s}))]
    )
    return table(rows, header, markdown=True)


def compare(run: Path, out: Path, families: list[str], dry_run: bool) -> None:
    """Run what is missing and print the table; MtvlError on unusable input."""
    config, _ = read_config(find_export(run))
    samples, joint = seen_samples(run), read_scores(run)
    missing = [t for t in config.tasks if t not in joint]
    if missing:
        raise CheckpointError(
            f"{run} was not evaluated on {', '.join(missing)}; run launch/evaluate.py --checkpoint {run}"
        )
    jobs = plan_jobs(config.tasks, samples, config.train.global_batch, families)
    for job in jobs:
        overrides(config, job)
        print(f"{job.folder}: {', '.join(job.tasks)}: {job.steps} steps of {config.train.global_batch}", flush=True)
    if dry_run:
        return
    out.mkdir(parents=True, exist_ok=True)
    columns: dict[str, dict[str, float]] = {}
    begin, total, done = time.monotonic(), sum(j.steps for j in jobs), 0
    for job in jobs:
        columns.setdefault(job.column, {}).update(make_run(config, job, out))
        done += job.steps
        spent = time.monotonic() - begin
        print(
            f"{job.folder} done | {format_seconds(spent)} eta {format_seconds(spent / done * (total - done))}",
            flush=True,
        )
    print("\n" + report(joint, samples, columns))
    content: dict[str, Any] = {"joint": joint, "samples": samples, **columns}
    (out / "compare_joint.json").write_text(json.dumps(content, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit 2 on unusable input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--families", default="single,images,videos")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and their steps")
    args = parser.parse_args(arguments)
    try:
        compare(args.run, args.out, [f for f in args.families.split(",") if f], args.dry_run)
    except MtvlError as error:
        print(f"compare_joint: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
