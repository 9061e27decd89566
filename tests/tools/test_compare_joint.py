"""Which runs a joint run is compared with, and the table, from files as the library writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtvl.config import RunConfig, to_plain

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_joint.py"
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


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def rows(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_steps_give_each_task_the_joint_runs_samples(joint: Path, tmp_path: Path) -> None:
    done = run(joint, tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "single_vqa: vqa: 10 steps of 64",
        "single_coco: coco: 5 steps of 64",
        "single_tvc: tvc: 1 steps of 64",
        "images: vqa, coco: 15 steps of 64",
    ], "one video task alone is the single run"
    assert not (tmp_path / "out").exists()


def test_finished_runs_are_kept_and_compared(joint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for task, score in (("vqa", 60.0), ("coco", 210.0), ("tvc", 90.0)):
        write_run(out / f"single_{task}", {task: score}, RunConfig(tasks=(task,)))
    done = run(joint, out, "--families", "single")
    assert done.returncode == 0, done.stderr
    assert "| vqa | 640 | 70.00 | 60.00 | +10.00 |" in rows(done)
    assert "| average | 1,024 | 120.00 | 120.00 | +0.00 |" in rows(done)
    assert json.loads((out / "compare_joint.json").read_text())["single"]["coco"] == 210.0


def test_averages_are_over_the_tasks_of_a_column(joint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_run(out / "images", {"vqa": 71.0, "coco": 201.0}, RunConfig(tasks=("vqa", "coco")))
    done = run(joint, out, "--families", "images")
    assert "| average | 1,024 | 120.00 | 136.00 | -1.00 |" in rows(done), "135 of the joint run on the same two tasks"


def test_bad_input_is_named(joint: Path, tmp_path: Path) -> None:
    wrong = run(joint, tmp_path / "out", "--families", "singel")
    assert wrong.returncode == 2 and "did you mean 'single'" in wrong.stderr
    assert run(tmp_path / "none", tmp_path / "out").returncode == 2
    (joint / "log.jsonl").write_text("")
    empty = run(joint, tmp_path / "out")
    assert empty.returncode == 2 and "no training step" in empty.stderr
    (joint / "eval.json").write_text(json.dumps({"vqa": {"score": 1.0}}))
    write_log = json.dumps({"step": 1, "samples": SAMPLES}) + "\n"
    (joint / "log.jsonl").write_text(write_log)
    assert "was not evaluated on coco, tvc" in run(joint, tmp_path / "out").stderr


def test_failing_run_ends_with_its_log(joint: Path, tmp_path: Path) -> None:
    config = json.loads((joint / "export" / "adapter.json").read_text())
    config["config"]["backbone"]["weights"] = str(tmp_path / "nowhere")
    (joint / "export" / "adapter.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    done = run(joint, out, "--families", "images")
    assert done.returncode == 2 and "images.log" in done.stderr
    assert "nowhere" in (out / "images.log").read_text()
