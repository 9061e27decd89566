"""Which runs a joint run is compared with, and the table, from files as the library writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import compare_joint  # noqa: E402

from mtvl.config import RunConfig, to_plain  # noqa: E402

Run = Callable[..., tuple[int, str, str]]
SAMPLES = {"vqa": 640, "coco": 320, "tvc": 64}


def write_run(folder: Path, scores: dict[str, float], config: RunConfig, done: bool = True) -> Path:
    (folder / "export").mkdir(parents=True)
    content = {"format": 1, "config": to_plain(config), "trainable": 5, "total": 100, "step": 16}
    (folder / "export" / "adapter.json").write_text(json.dumps(content))
    (folder / "export" / "adapter.safetensors").write_bytes(b"")
    (folder / "eval.json").write_text(json.dumps({t: {"score": s} for t, s in scores.items()}))
    (folder / "log.jsonl").write_text(
        json.dumps({"step": 1, "samples": dict.fromkeys(SAMPLES, 0)})
        + "\n"
        + json.dumps({"step": 16, "samples": SAMPLES})
        + "\n"
        + json.dumps({"validation": 1.0})
        + "\n"
    )
    if done:
        (folder / "DONE").write_text("")
    return folder


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    config = RunConfig(tasks=tuple(SAMPLES))
    return write_run(tmp_path / "joint", {"vqa": 70.0, "coco": 200.0, "tvc": 90.0}, config)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The tool's exit code, and what it printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = compare_joint.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


def rows(shown: str) -> list[str]:
    return [" ".join(line.split()) for line in shown.splitlines()]


def test_steps_give_each_task_the_joint_runs_samples(joint: Path, tmp_path: Path, run: Run) -> None:
    code, shown, error = run(joint, tmp_path / "out", "--dry-run")
    assert code == 0, error
    assert shown.splitlines() == [
        "single_vqa: vqa: 10 steps of 64",
        "single_coco: coco: 5 steps of 64",
        "single_tvc: tvc: 1 steps of 64",
        "images: vqa, coco: 15 steps of 64",
    ], "one video task alone is the single run"
    assert not (tmp_path / "out").exists()


def test_finished_runs_are_kept_and_compared(joint: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    for task, score in (("vqa", 60.0), ("coco", 210.0), ("tvc", 90.0)):
        write_run(out / f"single_{task}", {task: score}, RunConfig(tasks=(task,)))
    code, shown, error = run(joint, out, "--families", "single")
    assert code == 0, error
    assert "| vqa | 640 | 70.00 | 60.00 | +10.00 |" in rows(shown)
    assert "| average | 1,024 | 120.00 | 120.00 | +0.00 |" in rows(shown)
    assert json.loads((out / "compare_joint.json").read_text())["single"]["coco"] == 210.0


def test_averages_are_over_the_tasks_of_a_column(joint: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    write_run(out / "images", {"vqa": 71.0, "coco": 201.0}, RunConfig(tasks=("vqa", "coco")))
    _, shown, _ = run(joint, out, "--families", "images")
    assert "| average | 1,024 | 120.00 | 136.00 | -1.00 |" in rows(shown), "135 of the joint run on the same two tasks"


def test_bad_input_is_named(joint: Path, tmp_path: Path, run: Run) -> None:
    code, _, error = run(joint, tmp_path / "out", "--families", "singel")
    assert code == 2 and "did you mean 'single'" in error
    (joint / "log.jsonl").write_text("")
    code, _, error = run(joint, tmp_path / "out")
    assert code == 2 and "no training step" in error
    (joint / "eval.json").write_text(json.dumps({"vqa": {"score": 1.0}}))
    (joint / "log.jsonl").write_text(json.dumps({"step": 1, "samples": SAMPLES}) + "\n")
    assert "was not evaluated on coco, tvc" in run(joint, tmp_path / "out")[2]


def test_the_command_ends_with_its_code(tmp_path: Path) -> None:
    command = [sys.executable, compare_joint.__file__, str(tmp_path / "none"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and str(tmp_path / "none") in done.stderr and "Traceback" not in done.stderr


def test_failing_run_ends_with_its_log(joint: Path, tmp_path: Path, run: Run) -> None:
    config = json.loads((joint / "export" / "adapter.json").read_text())
    config["config"]["backbone"]["weights"] = str(tmp_path / "nowhere")
    (joint / "export" / "adapter.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    code, _, error = run(joint, out, "--families", "images")
    assert code == 2 and "images.log" in error
    assert "nowhere" in (out / "images.log").read_text()
