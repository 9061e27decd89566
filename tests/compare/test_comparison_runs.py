"""Comparisons as they are run: stopped, killed, gone on with, changed, failed; real trainings on the smallest miniworld."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtvl.cli import DEFAULT_RECIPE, run_evaluate, run_train
from mtvl.compare import sweep
from mtvl.compare.children import Stop, locked
from mtvl.compare.figure import has_plots
from mtvl.compare.recipe import load_comparison
from mtvl.compare.sweep import Place, compare
from mtvl.engine import Engine
from mtvl.errors import ConfigError, DataError, MtvlError
from mtvl.signals import STOPPED_BY_SIGNAL

STEPS = 4
METHODS = """
  - {name: single, label: Single Adapter, set: {petl.name: adapter, petl.bottleneck: 4}, paper: {trained: 4.18}}
  - {name: broken, set: {petl.name: ia3, engine.file: ds_configs/zero9.json}}
  - {name: norms, set: {petl.name: projection, petl.train_norms: true}}
"""


@pytest.fixture(scope="module")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    settings = {
        "data.root": str(world), "data.cache": str(folder / "cache"), "data.max_examples": 16, "data.workers": 0,
        "train.steps": STEPS, "train.global_batch": 8, "train.micro_batch": 8, "evaluate.bootstrap": 10,
    }  # fmt: skip
    file = folder / "methods.yaml"
    file.write_text(
        f"base: {DEFAULT_RECIPE}\ntitle: A small comparison\ntasks: [vqa, nlvr2]\nset: {json.dumps(settings)}\n"
        f"budget: {{train_minutes: 2.0, evaluate_minutes: 1.0}}\nmethods:{METHODS}"
    )
    return file


def in_this_process(
    command: list[str], log: Path, *, stop: Stop, lock: int | None = None, tick: Callable[[], None]
) -> int:
    """Does what the child would do, without the seconds that an interpreter takes to start."""
    verb = {"train.py": run_train, "evaluate.py": run_evaluate}[Path(command[1]).name]
    with log.open("a") as output, contextlib.redirect_stdout(output):
        print("$ ...")
        tick()
        try:
            return verb(command[2:])
        except MtvlError as error:
            print(f"mtvl: error: {error}")
            return 2


@pytest.fixture(scope="module")
def stopped(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Stopped by a signal in the second step of the first run: the folder, the exit code and the state."""
    out, stops = tmp_path_factory.mktemp("stopped") / "out", []
    step = Engine.train_step

    def stop_at_two(engine: Engine, number: int, batches: list[Any]) -> object:
        if number == 1:
            stops[0].signals += 1  # as when a terminal's Ctrl-C, or a sweep, reaches both
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, number, batches)

    def child(command: list[str], log: Path, **keys: Any) -> int:
        stops.append(keys["stop"])
        return in_this_process(command, log, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_child", child)
        patch.setattr(Engine, "train_step", stop_at_two)
        code = compare(load_comparison(recipe), out)
    return {"out": out, "code": code, "state": Place(out).examine(load_comparison(recipe).runs()[0])}


@pytest.fixture(scope="module")
def finished(recipe: Path, stopped: dict[str, Any]) -> dict[str, Any]:
    """The stopped comparison gone on with, to its end: the folder, the exit code and what was run."""
    commands: list[list[str]] = []

    def child(command: list[str], log: Path, **keys: Any) -> int:
        commands.append(command)
        return in_this_process(command, log, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_child", child)
        code = compare(load_comparison(recipe), stopped["out"])
    return {"out": stopped["out"], "code": code, "commands": commands}


def test_a_stop_leaves_a_run_to_go_on_with(stopped: dict[str, Any]) -> None:
    assert stopped["code"] == STOPPED_BY_SIGNAL
    assert (stopped["state"].kind, stopped["state"].step) == (sweep.HALF, 2)
    assert not (stopped["out"] / "table.md").exists() or "single" not in (stopped["out"] / "table.md").read_text()


def test_the_rest_is_run_and_a_failure_stops_nothing(finished: dict[str, Any]) -> None:
    out = finished["out"]
    assert finished["code"] == 1
    assert sorted(p.name for p in out.glob("*_s0.json")) == ["norms_s0.json", "single_s0.json"]
    folders = [(Path(c[1]).stem, Path(c[c.index("--run") + 1]).name) for c in finished["commands"] if "--run" in c]
    assert folders == [("train", "single_s0"), ("train", "broken_s0"), ("train", "norms_s0")]
    steps = [json.loads(line)["step"] for line in (out / "runs" / "single_s0" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))  # it went on at 3
    assert "zero9.json" in (out / "runs" / "broken_s0" / "FAILED").read_text()


def test_a_record_holds_what_a_table_needs(finished: dict[str, Any]) -> None:
    out = finished["out"]
    record = json.loads((out / "single_s0.json").read_text())
    scores = {t: r["score"] for t, r in json.loads((out / "runs" / "single_s0" / "eval.json").read_text()).items()}
    assert record["scores"] == scores and set(scores) == {"vqa", "nlvr2"}
    assert record["average"] == pytest.approx(sum(scores.values()) / 2)
    assert record["num_examples"] == {"vqa": 16, "nlvr2": 16}
    assert record["trained_percent"] == pytest.approx(100 * record["trainable"] / record["total"])
    assert record["seed"] == 0 and record["budget"]["steps"] == STEPS and record["budget"]["global_batch"] == 8
    assert 0 < record["seconds_per_step"] < 60 and record["peak_memory_bytes"] > 2**26
    assert record["budget"]["train_seconds"] > 0 and record["budget"]["evaluate_seconds"] > 0
    assert record["identity"]["petl.bottleneck"] == 4 and record["commit"]
    assert len(json.dumps(record)) < 10_000


def test_table_and_figure(finished: dict[str, Any]) -> None:
    out = finished["out"]
    summary = json.loads((out / "table.json").read_text())
    assert [r["name"] for r in summary["rows"]] == ["single", "norms"] and summary["missing"] == ["broken"]
    text = (out / "table.md").read_text()
    assert "Single Adapter" in text and "Not run yet: broken" in text and "paper: trained %" in text
    assert (out / "figure.svg").is_file() == (out / "figure.png").is_file() == has_plots()


def test_what_is_done_is_not_repeated(
    finished: dict[str, Any],
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Records alone are enough: on another day, on another machine, without the run folders."""
    for name in ("single_s0.json", "norms_s0.json"):
        shutil.copy(finished["out"] / name, tmp_path / name)
    monkeypatch.setattr(sweep, "run_child", lambda *_args, **_keys: pytest.fail("a finished run was started"))
    monkeypatch.setattr(sweep, "has_plots", lambda: False)
    assert compare(load_comparison(recipe), tmp_path, only=["norms"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 1 runs done" in shown and "matplotlib" in shown
    assert "Single Adapter" in (tmp_path / "table.md").read_text()  # not asked for, and still a row
    assert not (tmp_path / "figure.svg").exists()


def test_changed_settings_are_refused(
    finished: dict[str, Any], recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished["out"] / "table.md").read_bytes()
    changed = load_comparison(recipe, ["optim.lr=0.02"])
    with pytest.raises(ConfigError, match=r"(?s)2 runs .*single_s0: optim.lr: 0.01 -> 0.02.*another OUT, or delete"):
        compare(changed, finished["out"])
    assert compare(changed, finished["out"], dry_run=True) == 0
    assert "changed (optim.lr: 0.01 -> 0.02)" in capsys.readouterr().out
    assert (finished["out"] / "table.md").read_bytes() == before


def test_changed_settings_of_a_half_trained_run_are_refused(
    finished: dict[str, Any], recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "single_s0"
    shutil.copytree(finished["out"] / "runs" / "single_s0", folder)
    (folder / "DONE").unlink()
    examine = Place(tmp_path).examine
    assert examine(load_comparison(recipe).runs()[0]).kind == sweep.HALF
    changed = examine(load_comparison(recipe, ["petl.bottleneck=6"]).runs()[0])
    assert (changed.kind, changed.detail) == (sweep.CHANGED, "petl.bottleneck: 4 -> 6")
    (folder / sweep.MARK).unlink()
    assert "did not start" in examine(load_comparison(recipe).runs()[0]).detail


def test_a_dry_run_lists_states_and_times(
    finished: dict[str, Any], recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert compare(load_comparison(recipe), tmp_path / "new", seeds=[0, 5], dry_run=True) == 0
    shown = capsys.readouterr().out
    assert shown.count("  3m00s  new") == 6 and "0 of 6 runs done, about 18m00s to go" in shown
    assert not (tmp_path / "new").exists()
    assert compare(load_comparison(recipe), finished["out"], dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("single_s0") and lines[1].endswith("done")
    assert "new (last try: training ended with code 2" in lines[2] and "zero9.json" in lines[2]
    assert lines[-1].startswith("2 of 3 runs done, about ") and "18m" not in lines[-1]  # measured by now, not stated
    with pytest.raises(DataError, match=r"'data\.root' is .*gone, which is no folder"):
        compare(load_comparison(recipe, [f"data.root={tmp_path / 'gone'}"]), tmp_path / "new", dry_run=True)


def test_minutes_end_it_before_the_next_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "run_child", lambda *_args, **_keys: pytest.fail("the time was over"))
    assert compare(load_comparison(recipe), tmp_path, minutes=0) == STOPPED_BY_SIGNAL


@pytest.mark.multiproc
def test_a_killed_comparison_leaves_its_run_whole(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL to the comparison: its training goes on, keeps the lock, and when it is ended it has saved."""
    out = tmp_path / "out"
    log = out / "runs" / "single_s0" / "log.jsonl"
    command = [sys.executable, "-m", "mtvl.cli", "compare", "--recipe", str(recipe), str(out), "--only", "single"]
    with (tmp_path / "shown").open("w") as shown:
        parent = subprocess.Popen([*command, "train.steps=100000"], stdout=shown, stderr=shown)
    try:
        deadline = time.monotonic() + 240
        while not log.is_file() or log.read_text().count("\n") < 3:
            assert time.monotonic() < deadline and parent.poll() is None, (tmp_path / "shown").read_text()
            time.sleep(0.2)
    finally:
        parent.kill()
        parent.wait()
    child = int((out / "runs" / ".lock").read_text())
    try:
        again = load_comparison(recipe, ["train.steps=100000"])
        with pytest.raises(ConfigError, match=f"in use by another.*{child}"):
            compare(again, out, only=["single"])
    finally:
        os.kill(child, signal.SIGTERM)
    while time.monotonic() < deadline:
        with contextlib.suppress(ConfigError), locked(out / "runs"):
            break
        time.sleep(0.2)
    state = Place(out).examine(again.runs(only=["single"])[0])
    assert state.kind == sweep.HALF and state.step >= 3
