"""The same losses on every ZeRO stage, number of processes and micro-batch split, through the tool that reports them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtvl.data.miniworld.write import ensure_miniworld

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multiproc
@pytest.mark.slow
def test_losses_agree_over_stages_worlds_and_splits(tmp_path: Path) -> None:
    world = ensure_miniworld(tmp_path / "world", size="tiny", progress=lambda _: None)
    command = [sys.executable, str(ROOT / "tools" / "check_stages.py"), "--steps", "4", "--json",
               f"data.root={world}", f"data.cache={tmp_path / 'cache'}"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ}, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
    assert len(rows) == 24  # 2 shares x 2 worlds x (4 stages + a second split on two of them)
    assert len({row["last_loss"] for row in rows}) > 1  # both shares really ran
