"""The same losses on every ZeRO stage, number of processes and micro-batch split, through the tool that reports them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mtvl.data.miniworld.write import ensure_miniworld

ROOT = Path(__file__).resolve().parents[2]
TOOL = str(ROOT / "tools" / "check_stages.py")
# Each method and each stage once, both worlds, both splits; the tool without --cells runs the whole matrix.
CELLS = (
    "multiple-zero3-world1-micro4", "half_down-zero1-world1-micro16", "hyperformer-zero2-world1-micro4",
    "single-zero0-world2-micro4", "half_up-zero2-world2-micro16", "prompt-zero3-world2-micro16",
)  # fmt: skip


@pytest.mark.multiproc
@pytest.mark.slow
def test_losses_agree_over_stages_worlds_and_splits(tmp_path: Path) -> None:
    world = ensure_miniworld(tmp_path / "world", size="tiny", progress=lambda _: None)
    command = [sys.executable, TOOL, "--steps", "4", "--json", "--cells", ",".join(CELLS), f"data.root={world}",
               f"data.cache={tmp_path / 'cache'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
    assert [row["cell"] for row in rows] == list(CELLS)
    assert len({row["last_loss"] for row in rows}) == len(CELLS)  # each method really ran


def test_slips_are_named() -> None:
    for flag, value in (("--cells", "half-zero2-world1-micro8"), ("--cells", "single-zero2"), ("--methods", "double")):
        done = subprocess.run(
            [sys.executable, TOOL, flag, value], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 2 and "half_up" in done.stderr and "Traceback" not in done.stderr
