"""Checkpoints beside training: what waits, what does not, and who hears of a failure."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import launch_ok

from mtvl import checkpoint as cp
from mtvl.errors import CheckpointError
from mtvl.saving import Saver

PATIENCE_SECONDS = 30.0
Writer = Callable[[Path], None]


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    saver = Saver(tmp_path, keep_last=2, background=True)
    yield saver
    saver.close()


def writes(text: str) -> Callable[[], Writer]:
    """A state that is one file."""

    def write(folder: Path) -> None:
        (folder / "state.bin").write_text(text)

    return lambda: write


def fails() -> Writer:
    def write(folder: Path) -> None:
        (folder / "half.bin").write_text("half")
        raise OSError(28, "No space left on device")

    return write


def test_training_goes_on_while_a_checkpoint_is_written(saver: Saver, tmp_path: Path) -> None:
    go_on, progress = threading.Event(), {"samples": {"vqa": 1}}

    def blocked(folder: Path) -> None:
        assert go_on.wait(PATIENCE_SECONDS)
        (folder / "state.bin").write_text("whole")

    saver.save(3, lambda: blocked, {"base": "b"}, progress)
    assert saver.newest == 3
    progress["samples"]["vqa"] = 99  # the run counts on
    for _ in range(3):
        saver.poll()
    assert cp.steps_of(tmp_path) == []
    go_on.set()
    saver.wait()
    folder, step = cp.open_checkpoint(tmp_path)
    assert step == 3 and cp.read_state(folder, {"base": "b"})["progress"] == {"samples": {"vqa": 1}}
    assert 0 < saver.stall_seconds() < PATIENCE_SECONDS and saver.stall_seconds() == 0.0


def test_the_next_checkpoint_waits_for_the_last(saver: Saver, tmp_path: Path) -> None:
    there: list[list[int]] = []

    def slow(folder: Path) -> None:
        time.sleep(0.2)
        (folder / "state.bin").write_text("x")

    def take() -> Writer:
        there.append(cp.steps_of(tmp_path))
        return slow

    for step in (1, 2, 3):
        saver.save(step, take, {}, {})
    saver.wait()
    assert there == [[], [1], [1, 2]]
    assert cp.steps_of(tmp_path) == [2, 3]  # the last two are kept, and the third was there before the first went
    assert saver.stall_seconds() > 0.5


def test_without_background_it_is_there_at_once(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep_last=1, background=False)
    for step in (1, 2, 3):
        saver.save(step, writes(str(step)), {}, {}, protected=[1])
        assert cp.steps_of(tmp_path) == ([1, step] if step > 1 else [1])
    with pytest.raises(CheckpointError, match=r"step 4 was not written; .*No space left.*step_3 stays"):
        saver.save(4, fails, {}, {})
    saver.close()


def test_a_failure_ends_the_run_at_its_next_step(saver: Saver, tmp_path: Path) -> None:
    saver.save(1, writes("one"), {}, {})
    saver.save(2, fails, {}, {})
    until = time.monotonic() + PATIENCE_SECONDS
    with pytest.raises(
        CheckpointError, match=r"step 2 was not written; .*No space left on device.*step_1 stays: the same"
    ):
        while time.monotonic() < until:
            saver.poll()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_1"]
    saver.poll()  # told once
    saver.save(3, writes("three"), {}, {})
    saver.wait()
    assert cp.find_resumable(tmp_path) == (tmp_path / "checkpoints" / "step_3", 3)


def test_a_folder_that_cannot_be_written_is_named(saver: Saver, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("no folder")
    saver.save(1, writes("one"), {}, {})
    with pytest.raises(CheckpointError, match=r"step 1 was not written; .*Not a directory.*There is no checkpoint"):
        saver.wait()


def test_waiting_and_the_next_save_tell_of_a_failure_too(saver: Saver) -> None:
    saver.save(1, fails, {}, {})
    with pytest.raises(CheckpointError, match="There is no checkpoint in .* yet"):
        saver.wait()
    saver.save(2, fails, {}, {})
    with pytest.raises(CheckpointError, match="step 2 was not written"):
        saver.save(3, writes("never begun"), {}, {})


def test_a_slip_of_the_programmer_is_no_full_disk(saver: Saver) -> None:
    def slips(folder: Path) -> None:
        raise IndexError(folder)

    saver.save(1, lambda: slips, {}, {})
    with pytest.raises(IndexError):
        saver.wait()


def test_closing_waits_and_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When something else has ended the run, its checkpoint is still completed, and its failure hides nothing."""

    def slow(folder: Path) -> None:
        time.sleep(0.2)
        (folder / "state.bin").write_text("x")

    good, bad = Saver(tmp_path, 2, background=True), Saver(tmp_path, 2, background=True)
    good.save(1, lambda: slow, {}, {})
    good.close()
    assert cp.steps_of(tmp_path) == [1]
    bad.save(2, fails, {}, {})
    with caplog.at_level(logging.WARNING):
        bad.close()
    assert "step 2 was not written" in caplog.text


def test_folders_that_cannot_be_deleted_are_named(
    saver: Saver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_arguments: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mtvl.saving.retain", refuses)
    saver.save(1, writes("x"), {}, {})
    with pytest.raises(
        CheckpointError, match=r"old checkpoints of .* cannot be deleted .*Permission denied.* step 1 is there"
    ):
        saver.wait()


RANKS = """
import sys, time
from pathlib import Path
import torch.distributed as torch_dist
from mtvl import checkpoint, dist
from mtvl.errors import CheckpointError
from mtvl.saving import Saver
torch_dist.init_process_group("gloo")
run, rank = Path(sys.argv[1]), dist.rank()
def take():
    parts = dist.gather_objects(f"rank {rank}")
    def write(folder):
        assert rank == 0
        time.sleep(0.3)
        for number, part in enumerate(parts):
            (folder / f"rank_{number}.bin").write_text(part)
    return write
def take_failing():
    take()
    def write(folder):
        raise OSError(28, "No space left on device")
    return write
saver = Saver(run, 2, background=True)
for step in (1, 2):
    saver.save(step, take, {"a": "1"}, {})
    saver.poll()
saver.wait()
assert checkpoint.steps_of(run) == [1, 2], "every rank must know when it is there"
saver.save(3, take_failing, {"a": "1"}, {})
try:
    for _ in range(10000):
        saver.poll()
        time.sleep(0.001)
except CheckpointError as error:
    assert "step 3 was not written" in str(error) and "step_2 stays" in str(error), error
else:
    raise SystemExit("all ranks must hear of the failure")
saver.close()
if rank == 0:
    (run / "checkpoints" / "step_2" / "rank_1.bin").write_text("xy")
    (run / "checkpoints" / "step_2" / "manifest.json").write_text("{}")
dist.barrier()
checkpoint.remove_unfinished(run)
found = checkpoint.find_resumable(run)
assert found == (run / "checkpoints" / "step_1", 1), found
assert sorted(p.name for p in found[0].iterdir()) == ["manifest.json", "rank_0.bin", "rank_1.bin", "state.json"]
try:
    checkpoint.open_checkpoint(run / "checkpoints" / "step_2")
except CheckpointError as error:
    print("refused:", error)
else:
    raise SystemExit("both ranks must refuse")
torch_dist.destroy_process_group()
"""


@pytest.mark.multiproc
def test_two_ranks_decide_together(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    ends = launch_ok(script, 2, [str(tmp_path / "run")], timeout_seconds=60)
    assert all("refused: cannot resume from" in e.output for e in ends)
