"""Ranks that are killed and started again, on every ZeRO stage: the same losses, the same bits. `tools/check_kills.py` has more."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from distributed import Finished, describe, launch

from mtvl import checkpoint as cp
from mtvl.errors import LostRankError

SCRIPT = Path(__file__).with_name("killed_job.py")
STAGES = ("zero0", "zero1", "zero2", "zero3")
STEPS = 8
KILLED = -signal.SIGKILL
STARTS = (("all", 3), ("all", 5), ("save", 6), ("end", STEPS))


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Finished]]]:
    """The folder of all runs, and how each start ended."""
    folder = tmp_path_factory.mktemp("killed")
    found = [
        launch(SCRIPT, 2, [str(folder), how, str(stop), str(number)], timeout_seconds=200)
        for number, (how, stop) in enumerate(STARTS)
    ]
    return folder, found


@pytest.mark.multiproc
def test_the_kills_came_where_they_should(ends: tuple[Path, list[list[Finished]]]) -> None:
    """Three times all four runs were cut off; in the last cut rank 0 alone, while it saved, and rank 1 ended by itself."""
    starts = ends[1]
    assert [e.code for e in starts[0]] == [e.code for e in starts[1]] == [KILLED, KILLED], describe(starts[1])
    assert [e.code for e in starts[2]] == [KILLED, LostRankError.exit_code], describe(starts[2])
    assert "another rank has ended" in starts[2][1].output
    assert [e.code for e in starts[3]] == [0, 0], describe(starts[3])
    for stage in STAGES:
        goes_on = [line for start in starts for line in start[0].output.splitlines() if line.startswith(stage)]
        froms = [int(line.rpartition(" ")[2]) for line in goes_on]
        # Straight, fresh, and from the checkpoint before each kill; half of one is none.
        assert froms == [0, 0, 2, 4, 4 if stage == "zero2" else 6], goes_on
    last = [start[0].output.splitlines()[-1].split()[0] for start in starts]
    assert len(set(last)) == 4, f"another stage should be the one that is struck: {last}"


@pytest.mark.multiproc
@pytest.mark.parametrize("stage", STAGES)
def test_three_kills_of_all_ranks_change_no_bit(ends: tuple[Path, list[list[Finished]]], stage: str) -> None:
    straight, killed = (ends[0] / kind / stage for kind in ("straight", "killed"))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (straight, killed)]
    assert [record["step"] for record in logs[1]] == list(range(1, STEPS + 1))
    assert logs[1] == logs[0]  # losses and norms as printed to the last digit, and the count of every task
    assert len({record["loss"] for record in logs[0]}) == STEPS
    for run in (straight, killed):
        assert cp.find_resumable(run) == (run / "checkpoints" / f"step_{STEPS}", STEPS)
        assert not [p.name for p in (run / "checkpoints").iterdir() if p.suffix]
    files = [
        {p.name: p.read_bytes() for p in (run / "checkpoints" / f"step_{STEPS}").iterdir()}
        for run in (straight, killed)
    ]
    assert files[0] == files[1]
