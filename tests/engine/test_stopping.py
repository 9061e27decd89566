"""What asks a run to stop: signals, and a launcher that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtvl.engine.stopping import SIGNALS, StopFlag, launchers, parent_of

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


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 90
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.05)
