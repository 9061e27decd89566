"""Standstill of saves and throughput of several processes: what is compared with what, on small models and fake workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from benches import ranks, save  # noqa: E402

from mtvl.errors import MtvlError  # noqa: E402

FAKE = """
import os, sys, time
sys.path.insert(0, {tools!r})
from benches.workers.protocol import claim_output, serve
answers = claim_output()
world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
assert os.environ["OMP_NUM_THREADS"] == "1" and os.environ["MASTER_PORT"].isdigit()
# Two ranks: half of the rows in 0.6 of the time, and the second one is slower.
seconds = 0.2 if world == 1 else 0.1 + 0.02 * rank
serve(lambda: (lambda: time.sleep(seconds), f"{{sys.argv[1]}} {{sys.argv[2]}} of {{world}}"), answers)
"""


def test_standstill_is_compared_with_a_step() -> None:
    """On a small model; the one that is waited for holds what the other does not, hashes and disk."""
    found = {r.name: r for r in save.measure_saves(2, "backbone.preset=small")}
    assert set(found) == {save.STEP, save.BESIDE, save.WAITING, save.AFTER, "a checkpoint"}
    assert all(r.baseline == save.STEP and r.rounds == 2 for r in found.values() if r.unit == "s")
    assert 0 < found[save.BESIDE].median < found[save.WAITING].median
    trained = int(found[save.STEP].note.split()[0].replace(",", ""))
    assert 12 * trained < 1e6 * found["a checkpoint"].median < 1.2 * 12 * trained + 1e5


def test_ranks_step_together_and_the_slowest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(tools=str(TOOLS)))
    monkeypatch.setattr(ranks, "SCRIPT", script)
    monkeypatch.setenv(ranks.SIZES_VARIABLE, "tiny")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    twice, two = ranks.measure(1)
    assert twice.note == "tiny 64 of 1" and "0.60 is promised" in two.note
    assert two.baseline == twice.name == "tiny default: twice one process"
    assert twice.median == pytest.approx(2 * 64 / 0.2, rel=0.25) and two.median < 64 / 0.12
    assert two.ratio == two.median / twice.median


def test_slips_of_the_ranks_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ranks.SIZES_VARIABLE, "large")
    with pytest.raises(MtvlError, match="MTVL_BENCH_RANKS names 'large'; known: base, tiny"):
        ranks.measure(1)
    monkeypatch.delenv(ranks.SIZES_VARIABLE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with pytest.raises(MtvlError, match="two processes want two cores"):
        ranks.measure(1)
