"""The command that stops a run through each of its processes: what it says of slips, and that it finds what it should."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import check_stops  # noqa: E402


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("")
    assert check_stops.main(["--keep", str(tmp_path)]) == 2
    assert f"--keep expects an empty folder, {tmp_path} holds files" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        check_stops.main(["zero3"])
    assert "expected key=value, found 'zero3'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        check_stops.main(["--targets", "rank 0,launchr"])
    assert "unknown target 'launchr'; did you mean 'launcher'?" in capsys.readouterr().err


def test_processes_of_a_launch_are_known_by_their_session(tmp_path: Path) -> None:
    """A command that is gone is no end while a rank of it runs."""
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '--local_rank=1'])"
    command = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    launch = check_stops.Launch(command, tmp_path / "log")
    try:
        deadline = time.monotonic() + 60
        while command.poll() is None or set(launch.pids()) != {"rank 1"}:
            assert time.monotonic() < deadline, launch.pids()
            time.sleep(0.02)
        assert launch.wait(0.2) is None
    finally:
        launch.kill()
    assert launch.wait(30) is not None and launch.pids() == {}
