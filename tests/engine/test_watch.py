"""A step that does not end: the report of every rank, and the end within the stated time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from distributed import describe, launch

from mtvl.engine import watch
from mtvl.engine.watch import Watchdog, lost_ranks_named
from mtvl.errors import LostRankError, MtvlError


def hang_here(until: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not until and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_stuck_step_is_reported_with_its_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.1)
    codes: list[int] = []
    with Watchdog(0.3, tmp_path, end=codes.append).watching() as dog:
        dog.beat("step 7 (vqa)")
        hang_here(codes)
    assert codes == [75] == [LostRankError.exit_code] and MtvlError.exit_code == 2
    for text in (capfd.readouterr().err, (tmp_path / "stuck" / "rank_0.txt").read_text()):
        assert "rank 0 of 1 is stuck: 'step 7 (vqa)' has taken" in text and "train.stuck_seconds (0.3)" in text
        assert "hang_here" in text  # the stack of the thread that hangs


def test_beats_keep_it_quiet(tmp_path: Path) -> None:
    codes: list[int] = []
    with Watchdog(1.0, tmp_path, end=codes.append).watching() as dog:
        for _ in dog.over(range(15), "batches"):
            time.sleep(0.1)  # 1.5 s in all
    with Watchdog(0, tmp_path, end=codes.append).watching() as off:
        off.beat("never watched")
    assert not codes and not (tmp_path / "stuck").exists()


RANKS = """
import sys, time, os, signal
from pathlib import Path
import torch
import torch.distributed as torch_dist
from mtvl.engine.watch import Watchdog, lost_ranks_named
from mtvl.errors import MtvlError
torch_dist.init_process_group("gloo")
rank, end = torch_dist.get_rank(), sys.argv[1]
begin = time.monotonic()
try:
    with Watchdog(4.0, Path(sys.argv[2])).watching() as dog, lost_ranks_named(lambda: "the same command goes on"):
        dog.beat("step 3 (vqa)")
        torch_dist.barrier()
        if rank == 1 and end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and end == "raised":
            raise ValueError("a slip of the programmer")
        if rank == 1 and end == "asleep":
            time.sleep(100)
        torch_dist.all_reduce(torch.ones(1))
except MtvlError as error:
    print(f"{error}", flush=True)
    os._exit(error.exit_code)
"""


@pytest.mark.multiproc
def test_a_lost_rank_ends_the_others(tmp_path: Path) -> None:
    """Killed, raised: at once. Asleep: all ranks report within stuck_seconds, and end with the same code."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    raised = launch(script, 2, ["raised", str(tmp_path)], timeout_seconds=120)
    assert [end.code for end in raised] == [75, 1], describe(raised)
    assert "rank 0: another rank has ended" in raised[0].output and "a slip of the programmer" in raised[1].output
    killed = launch(script, 2, ["killed", str(tmp_path)], timeout_seconds=120)
    assert killed[0].code == 75, describe(killed)
    assert "rank 0: another rank has ended" in killed[0].output and "the same command goes on" in killed[0].output
    asleep = launch(script, 2, ["asleep", str(tmp_path)], timeout_seconds=120)
    assert [end.code for end in asleep] == [75, 75], describe(asleep)
    for rank, end in enumerate(asleep):
        text = (tmp_path / "stuck" / f"rank_{rank}.txt").read_text()
        for report in (text, end.output):  # not the same letters: a stack may have moved on in between
            assert f"rank {rank} of 2 is stuck: 'step 3 (vqa)'" in report and str(script) in report


PATIENT = """
import time
from datetime import timedelta
import torch, torch.distributed as torch_dist
from mtvl import dist
torch_dist.init_process_group("gloo", timeout=timedelta(seconds=1))
groups = (None, torch_dist.new_group(timeout=timedelta(seconds=1)))
dist.wait_at_most(60)
for group in groups:
    time.sleep(2.5 * dist.rank())
    torch_dist.all_reduce(torch.ones(1), group=group)
dist.wait_at_most(0.5)
time.sleep(4 * dist.rank())
torch_dist.all_reduce(torch.ones(1))
"""


@pytest.mark.multiproc
def test_collectives_wait_as_long_as_they_are_told(tmp_path: Path) -> None:
    """In the group of all ranks and in others; at the end the wait is too long again."""
    script = tmp_path / "patient.py"
    script.write_text(PATIENT)
    first, _ = launch(script, 2, timeout_seconds=120)
    assert first.code == 1 and "Timed out waiting 500ms" in first.output, first.output


LATE = """
import os
if os.environ["RANK"] == "1":
    os._exit(9)
from mtvl.engine import start
start("cpu")
"""


@pytest.mark.multiproc
def test_a_rank_that_never_comes_is_not_waited_for_half_an_hour(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    ends = launch(script, 2, timeout_seconds=120, environment={"MTVL_MEETING_SECONDS": "1"})
    assert [end.code for end in ends] == [75, 9], describe(ends)
    assert "rank 0 of 2 waited 1 s for the others" in ends[0].output
    assert "MTVL_MEETING_SECONDS makes all wait longer" in ends[0].output


SOON = """
import os, sys
sys.path.insert(0, sys.argv[1])
from toy_model import TASKS, Toy, toy_groups
from mtvl.config import RunConfig
from mtvl.engine import Engine, lost_ranks_named, start
from mtvl.errors import LostRankError
start("cpu")
if os.environ["RANK"] == "1":
    os._exit(9)
model = Toy()
try:
    with lost_ranks_named(lambda: "start again"):
        Engine(model, toy_groups(model), RunConfig(tasks=TASKS), 1)
except LostRankError as error:
    print(error, flush=True)
    os._exit(error.exit_code)
"""


@pytest.mark.multiproc
def test_a_rank_that_dies_before_the_engine_is_built_ends_the_others(tmp_path: Path) -> None:
    script = tmp_path / "soon.py"
    script.write_text(SOON)
    ends = launch(script, 2, [str(Path(__file__).parent)], timeout_seconds=120)
    assert [end.code for end in ends] == [75, 9], describe(ends)
    assert "another rank has ended" in ends[0].output and "start again" in ends[0].output


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), lost_ranks_named(lambda: ""):
        raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="closed by peer"), lost_ranks_named(lambda: ""):
        raise RuntimeError("Connection closed by peer")  # a single process has no other rank to lose
