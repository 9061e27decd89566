"""The table over evaluated runs, from files as the library writes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mtvl.config import RunConfig, to_plain

TOOL = Path(__file__).resolve().parents[2] / "tools" / "compare_runs.py"


def make_run(folder: Path, score: float, seed: int = 0) -> Path:
    (folder / "export").mkdir(parents=True)
    config = to_plain(RunConfig(tasks=("vqa", "coco"), seed=seed))
    content = {"format": 1, "config": config, "trainable": 5, "total": 100, "step": 7}
    (folder / "export" / "adapter.json").write_text(json.dumps(content))
    (folder / "export" / "adapter.safetensors").write_bytes(b"")
    (folder / "eval.json").write_text(json.dumps({"vqa": {"score": score}, "coco": {"score": 100.0}}))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_differences_and_limit(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", 60.0), make_run(tmp_path / "b", 52.0, seed=1)
    rows = json.loads(run(a, b, "--json").stdout)
    assert [r["average"] for r in rows] == [80.0, 76.0] and rows[1]["difference"] == -4.0
    assert rows[0]["trained_percent"] == 5.0 and rows[1]["seed"] == 1
    assert run(a, b, "--within", 3).returncode == 1
    assert run(a, b, "--within", 5).returncode == 0


def test_run_without_evaluation_is_named(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", 60.0)
    (a / "eval.json").unlink()
    done = run(a)
    assert done.returncode == 2 and "evaluate.py" in done.stderr
    assert run(tmp_path / "missing").returncode == 2
