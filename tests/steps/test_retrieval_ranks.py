"""Negatives from all ranks: gradients cross ranks and the queue holds everybody's features."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import launch_ok


@pytest.mark.multiproc
def test_two_ranks_give_the_gradients_of_one_process_with_both() -> None:
    for finished in launch_ok(Path(__file__).parent / "retrieval_rank.py", 2):
        assert "same" in finished.output
