"""Running a comparison: what is done is kept, what was cut short goes on, what fails is reported at the end."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.checkpoint import read_done, steps_of
from mtvl.compare.children import LAUNCH, Stop, evaluate_command, locked, run_child, train_command
from mtvl.compare.figure import has_plots, write_figure
from mtvl.compare.recipe import Comparison, Run, run_name
from mtvl.compare.record import (
    commit_name,
    differences,
    identity_of,
    last_step,
    make_record,
    read_mark,
    read_record,
    write_json,
)
from mtvl.compare.tables import markdown, summarise
from mtvl.errors import ConfigError, MtvlError
from mtvl.model import make_plan
from mtvl.report import format_seconds
from mtvl.signals import STOPPED_BY_SIGNAL
from mtvl.workspace import named_root

DONE, TRAINED, HALF, NEW, CHANGED = "done", "trained, not evaluated", "half-trained", "new", "changed"
MARK, FAILED = "compare.json", "FAILED"  # in a run folder


@dataclass
class State:
    """How far a run is. `detail` says what changed, or how the last try failed."""

    run: Run
    kind: str
    step: int = 0
    record: dict[str, Any] | None = None
    detail: str = ""


class Place:
    """Where a comparison lives: OUT/NAME.json (records, to be kept), OUT/runs/NAME (run folders, may be deleted)."""

    def __init__(self, out: Path) -> None:
        self.out, self.runs = out, out / "runs"

    def check(self, *, writes: bool) -> None:
        """ConfigError unless this is, or can become, a folder; with `writes` it is made, and tried."""
        nearest = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise ConfigError(f"OUT {self.out}: expected a folder, but {nearest} is a file; give another OUT")
        if not writes:
            return
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            for folder in (self.out, self.runs):
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ConfigError(
                f"OUT {self.out}: expected a folder that records and runs can be written to, found: {error.strerror}; "
                "give another OUT"
            ) from None

    def record(self, name: str) -> Path:
        """File of a run's record."""
        return self.out / f"{name}.json"

    def folder(self, name: str) -> Path:
        """Run folder."""
        return self.runs / name

    def log(self, name: str) -> Path:
        """What the run's processes printed."""
        return self.runs / f"{name}.log"

    def examine(self, run: Run) -> State:
        """How far `run` is; CheckpointError for a record that cannot be read."""
        identity, folder = identity_of(run.config), self.folder(run.name)
        record = read_record(self.record(run.name))
        if record is not None:
            changed = differences(record["identity"], identity)
            return State(run, CHANGED if changed else DONE, record=record, detail="; ".join(changed))
        steps, is_done, mark = steps_of(folder), read_done(folder) is not None, folder / MARK
        failure = (folder / FAILED).read_text(encoding="utf-8") if (folder / FAILED).is_file() else ""
        if not steps and not is_done:  # nothing was trained that could differ
            return State(run, NEW, detail=failure)
        if not mark.is_file():
            return State(run, CHANGED, detail="its folder holds a training that 'mtvl compare' did not start")
        if changed := differences(read_mark(mark)["identity"], identity):
            return State(run, CHANGED, detail="; ".join(changed))
        if is_done:
            return State(run, TRAINED, run.config.train.steps, detail=failure)
        return State(run, HALF, steps[-1], detail=failure)


class Clock:
    """What is left to do, in seconds, from the runs measured so far or, before the first, the recipe's budget."""

    def __init__(self, comparison: Comparison, states: Sequence[State]) -> None:
        budget = comparison.config.budget
        self.stated = (60 * budget.train_minutes, 60 * budget.evaluate_minutes)
        self.measured: dict[str, list[tuple[float, float]]] = {}
        for state in states:
            if state.record is not None and state.kind == DONE:
                self.add(state.record)

    def add(self, record: dict[str, Any]) -> None:
        """Learn from a finished run."""
        seconds = (record["budget"]["train_seconds"], record["budget"]["evaluate_seconds"])
        self.measured.setdefault(record["method"], []).append(seconds)

    def parts(self, method: str) -> tuple[float, float]:
        """Expected seconds of training and of evaluation of one run."""
        known = self.measured.get(method) or [p for parts in self.measured.values() for p in parts] or [self.stated]
        return sum(p[0] for p in known) / len(known), sum(p[1] for p in known) / len(known)

    def left(self, state: State) -> float:
        """Expected seconds until the run is done."""
        train, evaluate = self.parts(state.run.line.name)
        if state.kind == DONE:
            return 0.0
        return evaluate + train * (1 - state.step / state.run.config.train.steps)


class Reporter:
    """One line about the run at work and the whole: rewritten on a terminal, now and then elsewhere."""

    def __init__(self, total: int, clock: Clock, *, every_seconds: float = 30.0) -> None:
        self.total, self.clock, self.terminal = total, clock, sys.stdout.isatty()
        self.every = 1.0 if self.terminal else every_seconds
        self.last = self.begin = time.monotonic()
        self.rest: list[State] = []

    def start(self, position: int, state: State, rest: Sequence[State]) -> None:
        """A run begins; `rest` are those after it."""
        self.position, self.state, self.rest, self.phase = position, state, list(rest), "training"
        self.last = self.begin = time.monotonic()
        self.from_step, self.since = state.step, time.time()

    def line(self, folder: Path) -> str:
        """The line as it stands now."""
        steps = self.state.run.config.train.steps
        last = last_step(folder, self.since) if self.phase == "training" else {}
        self.state.step = last.get("step", self.state.step)
        text = f"step {self.state.step}/{steps}" if self.phase == "training" else self.phase
        if last:
            text += f", loss {last['loss']:.3f}"
        own = self.clock.left(self.state)
        seconds, steps_done = time.monotonic() - self.begin, self.state.step - self.from_step
        if self.phase == "training" and steps_done > 0:
            own = seconds / steps_done * (steps - self.state.step) + self.clock.parts(self.state.run.line.name)[1]
        whole = own + sum(self.clock.left(s) for s in self.rest)
        return (
            f"[{self.position}/{self.total}] {self.state.run.name}: {text}, {format_seconds(seconds)}"
            f" | eta run {format_seconds(own)}, all {format_seconds(whole)}"
        )

    def tick(self, folder: Path) -> None:
        """Show the line when it is time to."""
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            print(
                ("\r\x1b[K" if self.terminal else "") + self.line(folder), end="" if self.terminal else "\n", flush=True
            )

    def say(self, text: str) -> None:
        """Print a line of its own."""
        print(("\r\x1b[K" if self.terminal else "") + text, flush=True)


def compare(
    comparison: Comparison, out: Path, *, seeds: Sequence[int] = (), only: Sequence[str] = (),
    minutes: float | None = None, dry_run: bool = False,
) -> int:  # fmt: skip
    """Run what is missing, then write the table and the figure; the exit code.

    0: all runs are done. 1: a run failed. 143: stopped by a signal or after `minutes`; the same command goes on.
    Raises ConfigError, before anything is run, for settings that cannot be run or that differ from those of a run in `out`,
    and DataError for a `data.root` that is not there.
    """
    place = Place(out)
    place.check(writes=False)
    states = [_examined(comparison, place, run) for run in comparison.runs(seeds, only)]
    for config in {s.run.config.data: s.run.config for s in states if s.kind != DONE}.values():
        named_root(config)
    others = _others(comparison, place, states)
    clock = Clock(comparison, [*states, *others])
    print(overview(comparison, states, clock), flush=True)
    if dry_run:
        return 0
    if changed := [s for s in states if s.kind == CHANGED]:
        listed = "\n".join(f"  {s.run.name}: {s.detail}" for s in changed)
        first = changed[0].run.name
        raise ConfigError(
            f"{len(changed)} runs in {out} were made with other settings:\n{listed}\ngive another OUT, or delete "
            f"{place.record(first)} and {place.folder(first)} (and so on) to have them run again"
        )
    place.check(writes=True)
    with locked(place.runs) as lock, Stop(minutes).watching() as stop:
        failures, is_stopped = _run_all(comparison, place, states, others, clock, stop, lock)
    if any(s.kind == DONE for s in [*states, *others]):
        print("\n" + write_tables(comparison, out, [*states, *others]), flush=True)
    for name, failure in failures.items():
        print(f"failed: {name}: {failure} (its output: {place.log(name)})", file=sys.stderr, flush=True)
    if is_stopped:
        left = sum(s.kind != DONE for s in states)
        print(f"stopped with {left} of {len(states)} runs to go; the same command goes on", flush=True)
        return STOPPED_BY_SIGNAL
    return int(bool(failures))


def _run_all(
    comparison: Comparison, place: Place, states: Sequence[State], others: Sequence[State], clock: Clock, stop: Stop,
    lock: int,
) -> tuple[dict[str, str], bool]:  # fmt: skip
    """Run all that is not done; what failed, by name, and whether the end was asked for."""
    waiting = [s for s in states if s.kind != DONE]
    reporter = Reporter(len(states), clock)
    failures: dict[str, str] = {}
    for index, state in enumerate(waiting):
        if stop.is_set:
            return failures, True
        reporter.start(states.index(state) + 1, state, waiting[index + 1 :])
        reporter.say(reporter.line(place.folder(state.run.name)))
        failure = _run_one(comparison, place, state, reporter, stop, lock)
        if state.record is not None:
            state.kind = DONE
            clock.add(state.record)
            average, percent = state.record["average"], state.record["trained_percent"]
            reporter.say(f"{state.run.name} done: average {average:.2f}, {percent:.2f} % trained")
            write_tables(comparison, place.out, [*states, *others], figure=False)
        elif failure:
            failures[state.run.name] = failure
            reporter.say(f"{state.run.name} failed: {failure}")
    return failures, stop.is_set and any(s.kind != DONE for s in states)


def _run_one(comparison: Comparison, place: Place, state: State, reporter: Reporter, stop: Stop, lock: int) -> str:
    """Train and evaluate; the record goes into `state`. How it failed, or "" (also when it was stopped)."""
    run, folder, log = state.run, place.folder(state.run.name), place.log(state.run.name)
    mark, launcher, tasks = folder / MARK, comparison.config.launcher, run.config.tasks
    commits = read_mark(mark)["commits"] if mark.is_file() and state.kind != NEW else []
    facts = {"identity": identity_of(run.config), "commits": [*commits, commit_name(LAUNCH.parent)]}
    write_json(mark, facts)
    (folder / FAILED).unlink(missing_ok=True)

    def child(command: list[str]) -> int:
        return run_child(command, log, stop=stop, lock=lock, tick=lambda: reporter.tick(folder))

    failure = ""
    if state.kind != TRAINED:
        code = child(train_command(comparison.base, tasks, folder, run.overrides, launcher))
        if read_done(folder) is None and not stop.is_set:
            failure = f"training ended with code {code}: {last_words(log)}"
    if not failure and not stop.is_set:
        reporter.phase, state.step, begin = "evaluating", run.config.train.steps, time.monotonic()
        code = child(evaluate_command(folder, tasks, launcher))
        seconds = time.monotonic() - begin
        if code == 0:
            try:
                state.record = make_record(folder, run.line.name, run.seed, evaluate_seconds=seconds, **facts)
                write_json(place.record(run.name), state.record)
            except MtvlError as error:
                failure = str(error)
        elif not stop.is_set:
            failure = f"evaluation ended with code {code}: {last_words(log)}"
    if failure:
        (folder / FAILED).write_text(failure + "\n", encoding="utf-8")
    return failure


def last_words(log: Path) -> str:
    """The error in a log, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    started = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    errors = [line for line in lines[started + 1 :] if line.startswith("mtvl: error: ")]
    return (errors or lines or ["(nothing was printed)"])[-1].removeprefix("mtvl: error: ")


def _examined(comparison: Comparison, place: Place, run: Run) -> State:
    with comparison.naming(run.line):  # task files are read here for the first time
        return place.examine(run)


def overview(comparison: Comparison, states: Sequence[State], clock: Clock) -> str:
    """What there is to do: each run with its trained share, state and expected time; ConfigError for a wrong method."""
    shares: dict[str, str] = {}
    rows = []
    for state in states:
        name = state.run.line.name
        if name not in shares:
            with comparison.naming(state.run.line):
                plan = make_plan(state.run.config)
            shares[name] = f"{100 * plan.num_trainable / plan.num_total:.2f}"
        text = state.kind + (f", step {state.step} of {state.run.config.train.steps}" if state.kind == HALF else "")
        if state.detail:
            text += f" ({'' if state.kind == CHANGED else 'last try: '}{state.detail.strip()})"
        rows.append(
            [state.run.name, shares[name], format_seconds(clock.left(state)) if clock.left(state) else "-", text]
        )
    widths = [max(len(row[i]) for row in [*rows, ["run", "trained %", "time", ""]]) for i in range(3)]
    lines = [
        f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}  {d}"
        for a, b, c, d in [["run", "trained %", "time", "state"], *rows]
    ]
    done, left = sum(s.kind == DONE for s in states), sum(clock.left(s) for s in states)
    return "\n".join([*lines, f"{done} of {len(states)} runs done, about {format_seconds(left)} to go"])


def _others(comparison: Comparison, place: Place, states: Sequence[State]) -> list[State]:
    """Runs of this comparison that were not asked for this time and have a record: they stand in the table too."""
    asked = {s.run.name for s in states}
    found = []
    for line in comparison.config.methods:
        for seed in dict.fromkeys([*comparison.config.seeds, *(s.run.seed for s in states)]):
            if (name := run_name(line.name, seed)) not in asked and place.record(name).is_file():
                state = place.examine(comparison.run(line, seed))
                if state.kind == CHANGED:
                    print(f"left out of the table: {place.record(name)} ({state.detail})", file=sys.stderr, flush=True)
                found.append(state)
    return found


def write_tables(comparison: Comparison, out: Path, states: Sequence[State], *, figure: bool = True) -> str:
    """Write table.json and table.md (and the figure) of the finished runs; returns the Markdown and what was written."""
    summary = summarise(comparison, [s.record for s in states if s.kind == DONE and s.record is not None])
    text = markdown(summary)
    write_json(out / "table.json", summary)
    draft = out / ".table.md.tmp"
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(out / "table.md")
    if not figure:
        return text
    if not has_plots():
        return f"{text}\n\nno figure: it needs matplotlib, the extra 'plots' of this package (pip install matplotlib)"
    write_figure(summary, out)
    return (
        f"{text}\n\nwritten: {', '.join(str(out / n) for n in ('table.md', 'table.json', 'figure.svg', 'figure.png'))}"
    )
