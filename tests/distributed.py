"""Run a script on N processes of this machine, as a launcher would, and leave nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
LAUNCHERS_PORT = 29500  # of deepspeed and torchrun
PROJECT_ROOT = Path(__file__).resolve().parents[1]
FORKED = Path(__file__).with_name("forked_rank.py")
IMPORT_SECONDS = 300.0  # on a busy machine


@dataclass(frozen=True)
class Finished:
    """One rank's end: exit code (negative: signal) and everything that it printed."""

    rank: int
    code: int
    output: str


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Environment of one rank: launcher variables, one thread, the project importable."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    paths = [str(PROJECT_ROOT), str(PROJECT_ROOT / "tests"), inherited.get("PYTHONPATH", "")]
    return {
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }


def leftovers(port: int) -> list[Path]:
    """Shared-memory segments that the run on `port` left behind."""
    return sorted(SHARED_MEMORY.glob(f"deepspeed_*_{os.getuid()}_*_{port}_*"))


@contextlib.contextmanager
def launchers_port() -> Iterator[None]:
    """Be the only test that starts launchers, on the port that they take when told none; nothing of theirs is left behind.

    Other workers, and other runs of the tests on this machine, wait here for their turn.
    """
    with (Path(tempfile.gettempdir()) / f"mtvl_tests_{os.getuid()}.port").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = leftovers(LAUNCHERS_PORT)
        yield
        assert set(leftovers(LAUNCHERS_PORT)) <= set(before)


class Rank:
    """Runs one script after the other in forks of one process (forked_rank.py)."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._read = b""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read when the process ends too early)
        self._process = subprocess.Popen(
            [sys.executable, str(FORKED), str(requests), str(answers)], env=rank_environment(0, 1, 0),
            pass_fds=(requests, answers), stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(requests)
        os.close(answers)
        self._script = 0  # process id
        self.code: int | None = 0

    def start(self, script: Path, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        """Start a script; `code` is None until `wait` has seen its end."""
        request = {
            "script": str(script), "arguments": list(arguments), "environment": dict(environment), "output": str(output)
        }  # fmt: skip
        os.write(self._requests, f"{json.dumps(request)}\n".encode())
        found = self._answer(IMPORT_SECONDS)
        assert found is not None, f"{FORKED} has not imported its libraries after {IMPORT_SECONDS} s"
        self._script, self.code = found, None

    def wait(self, seconds: float) -> None:
        """Until the script ends, but not longer than this; `code` is its exit code then (negative: signal)."""
        self.code = self._answer(seconds)

    def kill(self) -> None:
        """End the script at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._script, signal.SIGKILL)
        self.wait(IMPORT_SECONDS)

    def _answer(self, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            if not (more := os.read(self._answers, 4096)):
                self._log.seek(0)
                raise AssertionError(f"{FORKED} ended with {self._process.wait()}:\n{self._log.read()}")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return int(line)


# A process for each rank: two forks of one process would have the order of sets in common, and hide what hangs on it.
_RANKS: list[Rank] = []


def launch(
    script: Path,
    world_size: int,
    arguments: Sequence[str] = (),
    *,
    timeout_seconds: float = 120.0,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Finished]:
    """Run `script` on `world_size` gloo ranks and return their ends in rank order.

    Exit codes are for the caller to judge. Ranks that outlive the limit are killed and AssertionError shows what all
    of them printed. AssertionError too when the run left segments under /dev/shm; they are removed. `environment` is
    added to that of each rank, too late for what a library reads when it is imported.
    """
    port = port or free_port()
    while len(_RANKS) < world_size:
        _RANKS.append(Rank())
    ranks = _RANKS[:world_size]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{number}.txt" for number in range(world_size)]
        try:
            for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True)):
                own = {**rank_environment(number, world_size, port), **(environment or {})}
                rank.start(script, arguments, own, output)
            deadline = time.monotonic() + timeout_seconds
            for rank in ranks:
                rank.wait(deadline - time.monotonic())
        finally:
            late = [rank for rank in ranks if rank.code is None]
            for rank in late:
                rank.kill()
            left = leftovers(port)
            for segment in left:
                segment.unlink(missing_ok=True)
        ends = [
            Finished(number, -signal.SIGKILL if rank.code is None else rank.code, output.read_text(errors="replace"))
            for number, (rank, output) in enumerate(zip(ranks, outputs, strict=True))
        ]
    assert not late, f"no end within {timeout_seconds} s:\n" + describe(ends)
    assert not left, f"left in shared memory: {[p.name for p in left]}\n" + describe(ends)
    return ends


def describe(ends: Sequence[Finished]) -> str:
    """Readable account of how all ranks ended."""
    return "\n".join(f"--- rank {e.rank}: exit code {e.code}\n{e.output}" for e in ends)


def launch_ok(script: Path, world_size: int, arguments: Sequence[str] = (), **options: object) -> list[Finished]:
    """`launch`, and AssertionError with all outputs unless every rank ended with code 0."""
    ends = launch(script, world_size, arguments, **options)  # type: ignore[arg-type]
    assert all(e.code == 0 for e in ends), describe(ends)
    return ends
