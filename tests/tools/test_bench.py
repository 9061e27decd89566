"""The benchmark tool: names, table and JSON, turns and ratios, and the two measurements of data supply."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench  # noqa: E402
from benches import data, result  # noqa: E402
from benches.result import Result, compare, interleaved  # noqa: E402

from mtvl.registry import Registry  # noqa: E402


def measure_fakes(rounds: int) -> list[Result]:
    print("progress of the measurement")
    return compare({"slow": [2.0] * rounds, "fast": [1.0, 5.0, 6.0][:rounds]}, "samples/s", baseline="slow")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "fake_benches", module)
    monkeypatch.setattr(bench, "BENCHES", Registry("benchmark", {"fakes": "fake_benches:measure_fakes"}))


def test_table_names_baseline_rounds_and_machine(fake: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--rounds", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["benchmark", "median", "unit", "rounds", "ratio", "note"]
    assert lines[3].split() == ["fakes:", "fast", "5", "samples/s", "3", "2.50", "x", "slow"]
    assert "cores" in lines[-1] and "torch threads" in lines[-1]
    assert "progress" in err and "progress" not in out


def test_json_is_all_that_is_printed(fake: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "fakes", "--json", "--rounds", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["torch_threads"] >= 1
    assert report["results"][1] == {
        "bench": "fakes", "name": "fast", "median": 1.0, "unit": "samples/s", "rounds": 1, "baseline": "slow",
        "ratio": 0.5, "note": "",
    }  # fmt: skip


def test_unknown_names_are_refused_before_anything_runs(fake: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--only", "fakes,fake"]) == 1
    out, err = capsys.readouterr()
    assert err.strip() == "bench: unknown benchmark 'fake'; did you mean 'fakes'? known: fakes"
    assert out == ""


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "0"])
    assert "above 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(bench.BENCHES))
def test_every_entry_of_the_table_exists(name: str) -> None:
    assert callable(bench.BENCHES.load(name))


def test_sides_take_turns_and_the_first_turn_is_not_counted() -> None:
    calls: list[str] = []

    def side(name: str) -> Any:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    values = interleaved("turns", {"a": side("a"), "b": side("b")}, 2)
    assert "".join(calls) == "abbaab"  # the second round backwards
    assert values == {"a": [4.0, 5.0], "b": [3.0, 6.0]}


def test_ratio_of_medians() -> None:
    found = compare({"a": [1.0, 2.0, 9.0], "b": [4.0, 4.0, 1.0]}, "s", baseline="a", notes={"b": "x"})
    assert found == [Result("a", 2.0, "s", 3, "a", 1.0), Result("b", 4.0, "s", 3, "a", 2.0, "x")]
    assert compare({"a": [0.0], "b": [1.0]}, "s", baseline="a")[1].ratio == 0.0
    assert compare({"a": [1.0]}, "s") == [Result("a", 1.0, "s", 1)]


def test_supply_measures_every_usable_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SECONDS", 3)
    monkeypatch.setattr(data, "RATE", 8)
    monkeypatch.setattr(data, "SAMPLES", 1)
    found = {r.name: r for r in data.measure_supply(tmp_path, 1)}
    usable = {name for name in data.DECODERS if not data.unusable(name)}
    assert found.keys() == usable | {"frame folder", "frame strip", "stored features"}
    assert all(r.median > 0 and r.ratio > 0 and r.baseline == "decord" for r in found.values())
    assert found["decord"].note.startswith("2 frames of 3 s")


def test_share_counts_waiting_only_and_leaves_out_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Loader:
        def iterate(self, start: int, stop: int) -> Any:
            nonlocal now
            for step in range(start, stop):
                now += 50.0 if step == start else 3.0
                yield step, []

    class Engine:
        steps: list[int] = []

        def train_step(self, step: int, batches: list[Any]) -> None:
            nonlocal now
            now += 1.0
            self.steps.append(step)

    monkeypatch.setattr(data.time, "perf_counter", lambda: now)
    trainer = data.Trainer(Engine(), {0: Loader(), 1: Loader()})
    assert [trainer.share(0), trainer.share(1)] == [75.0, 75.0]
    assert Engine.steps == list(range(2 * (data.STEPS + 1)))
    assert trainer.step_seconds == {0: [4.0] * data.STEPS, 1: [4.0] * data.STEPS}


@pytest.mark.slow
def test_waiting_share_of_the_real_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TASKS", ("vqa",))
    monkeypatch.setattr(data, "WORKERS", (0, 1))
    monkeypatch.setattr(data, "STEPS", 1)
    monkeypatch.setattr(result, "Progress", lambda *_: type("Silent", (), {"update": lambda *_: None})())
    found = data.measure_waiting(tmp_path, 1)
    assert [r.name for r in found] == ["waiting, data.workers=0", "waiting, data.workers=1"]
    assert all(0 <= r.median < 100 and "ms the quickest step" in r.note for r in found)
