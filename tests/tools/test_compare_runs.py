"""The table over evaluated runs, from files as the library writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import compare_runs  # noqa: E402

from mtvl.config import RunConfig, to_plain  # noqa: E402


def make_run(folder: Path, score: float, seed: int = 0) -> Path:
    (folder / "export").mkdir(parents=True)
    config = to_plain(RunConfig(tasks=("vqa", "coco"), seed=seed))
    content = {"format": 1, "config": config, "trainable": 5, "total": 100, "step": 7}
    (folder / "export" / "adapter.json").write_text(json.dumps(content))
    (folder / "export" / "adapter.safetensors").write_bytes(b"")
    (folder / "eval.json").write_text(json.dumps({"vqa": {"score": score}, "coco": {"score": 100.0}}))
    return folder


def test_differences_and_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (str(make_run(tmp_path / n, s, i)) for i, (n, s) in enumerate((("a", 60.0), ("b", 52.0))))
    assert compare_runs.main([a, b, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["average"] for r in rows] == [80.0, 76.0] and rows[1]["difference"] == -4.0
    assert rows[0]["trained_percent"] == 5.0 and rows[1]["seed"] == 1
    assert compare_runs.main([a, b, "--within", "3"]) == 1
    assert compare_runs.main([a, b, "--within", "5"]) == 0


def test_run_without_evaluation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path / "a", 60.0)
    (a / "eval.json").unlink()
    assert compare_runs.main([str(a)]) == 2 and "evaluate.py" in capsys.readouterr().err


def test_the_command_ends_with_its_code(tmp_path: Path) -> None:
    command = [sys.executable, compare_runs.__file__, str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and str(tmp_path / "missing") in done.stderr and "Traceback" not in done.stderr
