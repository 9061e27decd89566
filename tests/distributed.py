"""Run a script on N processes of this machine, as a launcher would, and leave nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
PROJECT_ROOT = Path(__file__).resolve().parents[1]


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
    return sorted(SHARED_MEMORY.glob(f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_{port}_*"))


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
    of them printed. AssertionError too when the run left segments under /dev/shm; they are removed.
    """
    port = port or free_port()
    command = [sys.executable, str(script), *arguments]
    processes = [
        subprocess.Popen(
            command,
            env={**rank_environment(rank, world_size, port), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs, late = [], False
    try:
        for process in processes:
            try:
                outputs.append(process.communicate(timeout=timeout_seconds)[0])
            except subprocess.TimeoutExpired:
                late = True
                for other in processes:
                    other.kill()
                outputs.append(process.communicate()[0])
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        left = leftovers(port)
        for segment in left:
            segment.unlink(missing_ok=True)
    ends = [Finished(r, p.returncode, o) for r, (p, o) in enumerate(zip(processes, outputs, strict=True))]
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
