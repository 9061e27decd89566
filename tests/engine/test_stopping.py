"""What asks a run to stop: signals, and a launcher that died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtvl.checkpoint import find_resumable
from mtvl.engine.stopping import SIGNALS, StopFlag, launchers, parent_of
from mtvl.signals import STOPPED_BY_SIGNAL

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, sys.argv[1], sys.argv[2]])
time.sleep(60)
"""
CHILD = """
import os, sys, time
from mtvl.engine.stopping import StopFlag, launchers
with StopFlag().watching() as stop:
    open(sys.argv[1], "w").write(f"{stop.agreed()} {launchers()[0] == (os.getpid(), os.getppid())}")
    deadline = time.monotonic() + 60
    while not stop.agreed() and time.monotonic() < deadline:
        time.sleep(0.05)
    open(sys.argv[1] + ".end", "w").write(str(stop.agreed()))
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_a_signal_asks_for_an_end_and_the_old_handler_returns(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFlag().watching() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.agreed()
    assert signal.getsignal(number) is before
    assert signal.SIGUSR1 in SIGNALS and signal.SIGTERM in SIGNALS


def test_nothing_above_a_plain_process_is_watched() -> None:
    assert launchers() == ()  # pytest was started by a shell, which may close
    assert parent_of(os.getpid()) == os.getppid() and parent_of(2**22 + 1) is None


def test_the_death_of_the_launcher_stops_its_ranks(tmp_path: Path) -> None:
    """`deepspeed` ended by SIGTERM leaves the node's launcher and its ranks behind; here the launcher itself dies."""
    child, said = tmp_path / "child.py", tmp_path / "said"
    child.write_text(CHILD)
    launcher = tmp_path / "deepspeed.launcher.launch.py"
    launcher.write_text(PARENT)
    process = subprocess.Popen([sys.executable, str(launcher), str(child), str(said)])
    try:
        wait_for(said)
        assert said.read_text() == "False True"
    finally:
        process.kill()
        process.wait()
    wait_for(Path(f"{said}.end"))
    assert Path(f"{said}.end").read_text() == "True"


TREES = """
# Trees of a command, a node's launcher and two ranks, as `deepspeed` starts them, in forks of this one process.
import json, os, signal, sys, time
from pathlib import Path
import torch.distributed as torch_dist
from mtvl import dist
from mtvl.engine.stopping import StopFlag
from mtvl.saving import Saver
from mtvl.signals import STOPPED_BY_SIGNAL

EVENTS = ("rank 0", "rank 1", "launcher", "command", "group")

def fork(action, *arguments):
    pid = os.fork()
    if not pid:
        try:
            action(*arguments)
        finally:
            os._exit(99)
    return pid

def note(file, text):
    file.with_suffix(".new").write_text(str(text))
    os.replace(file.with_suffix(".new"), file)

def rank(number, folder):
    torch_dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    saver, take = Saver(folder, 2, background=True), lambda: lambda target: (target / "state").write_text("x")
    with StopFlag().watching() as stop:
        for step in range(1, 4000):
            time.sleep(0.01 + 0.02 * number)  # the signals find the ranks at different places
            if step == 3:
                note(folder / f"rank {number}", os.getpid())
            if stop.agreed():
                saver.save(step, take, {}, {})
                saver.wait()
                note(folder / f"last {number}", step)
                os._exit(STOPPED_BY_SIGNAL)

def launcher(folder):
    note(folder / "launcher", os.getpid())
    ranks, codes = [fork(rank, number, folder) for number in range(2)], {}

    def end(*_):  # one rank after the other, as DeepSpeed does
        for pid in ranks:
            if pid not in codes:
                os.kill(pid, signal.SIGTERM)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    while len(codes) < 2:
        if asked:
            end()
        for pid in ranks:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    note(folder / "codes", json.dumps([codes[pid] for pid in ranks]))
    os._exit(0)

def command(folder):
    os.setsid()
    note(folder / "command", os.getpid())
    os.waitpid(fork(launcher, folder), 0)
    os._exit(0)

commands = {}
for event in EVENTS:
    folder = Path(sys.argv[1]) / event.replace(" ", "")
    folder.mkdir()
    commands[event] = fork(command, folder)
for event, pid in commands.items():
    os.waitpid(pid, 0)
"""


@pytest.mark.multiproc
def test_a_signal_to_any_process_of_a_launch_saves_on_all_ranks(tmp_path: Path) -> None:
    """To each rank, the node's launcher, the command that was typed, and all of them. `tools/check_stops.py` has DeepSpeed's."""
    script = tmp_path / "deepspeed.launcher.launch.py"  # by this name a launcher is known
    script.write_text(TREES)
    targets = {"rank0": "rank 0", "rank1": "rank 1", "launcher": "launcher", "command": "command", "group": "command"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    started: dict[str, float] = {}
    try:
        for event, target in targets.items():
            for name in ("rank 0", "rank 1"):
                wait_for(tmp_path / event / name)
            pid = int((tmp_path / event / target).read_text())
            started[event] = time.monotonic()
            (os.killpg if event == "group" else os.kill)(pid, signal.SIGTERM)
        for event in targets:
            folder = tmp_path / event
            wait_for(folder / "codes")
            assert time.monotonic() - started[event] < 25, event
            assert json.loads((folder / "codes").read_text()) == [STOPPED_BY_SIGNAL] * 2, event
            last = {(folder / f"last {number}").read_text() for number in range(2)}
            assert len(last) == 1, f"{event}: the ranks stopped after different steps"
            assert find_resumable(folder) == (folder / "checkpoints" / f"step_{last.copy().pop()}", int(last.pop()))
        assert process.wait(30) == 0
        names = ("command", "launcher", "rank 0", "rank 1")
        pids = {int((tmp_path / event / name).read_text()) for event in targets for name in names}
        deadline = time.monotonic() + 25
        while left := {pid for pid in pids if is_running(pid)}:
            assert time.monotonic() < deadline, f"orphans: {left}"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked for its code is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 90
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.05)
