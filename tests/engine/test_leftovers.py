"""Launches in a row, ending well, failing and killed: nothing stays in shared memory, and the port can be used again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from distributed import SHARED_MEMORY, describe, free_port, launch, launch_ok

SCRIPT = Path(__file__).with_name("short_job.py")


@pytest.mark.multiproc
def test_launches_in_a_row_leave_nothing() -> None:
    port = free_port()
    for end, code in (("kill", -signal.SIGKILL), ("raise", 1), ("end", 0)):  # the last one finds what the others left
        ends = launch(SCRIPT, 2, [end], port=port, timeout_seconds=120)  # fails when anything is left
        assert all(e.output.count("step done") == 1 for e in ends), describe(ends)
        assert ends[1].code == code, describe(ends)
        if end == "end":
            assert ends[0].code == 0, describe(ends)


@pytest.mark.multiproc
def test_many_launches_do_not_fill_shared_memory() -> None:
    """Each rank has a segment, as with a DeepSpeed that makes them, and takes it along; each start has a port of its own."""
    segments = []
    for _ in range(8):  # the thirty runs of tools/check_kills.py start some hundred, and look as well
        (end,) = launch_ok(SCRIPT.with_name("empty_job.py"), 1)
        segments.append(end.output.split()[-1])
    assert len(set(segments)) > 5  # a port may come again
    assert not [name for name in segments if (SHARED_MEMORY / name).exists()]
