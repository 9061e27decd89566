"""Common modules, hooks and private halves train under every ZeRO stage as in plain PyTorch, and idle tasks stand still."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distributed import launch_ok

SCRIPT = Path(__file__).with_name("method_cells.py")
METHODS = (
    "hyperformer",
    "compacter",
    "default_compacter",
    "prompt",
    "prefix",
    "lora",
    "ia3",
    "t5_adapter",
    "t5_prefix",
)
STAGES = ("zero0", "zero1", "zero2", "zero3")

# After three steps at rate 0.01; measured on one rank: 2.4e-7 and 1.3e-5 (prefix under ZeRO-3, keys with tiny gradients).
LOSS, PARAMETERS = 1e-5, 1e-4

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measurements of every method and stage on two ranks."""
    folder = tmp_path_factory.mktemp("methods")
    launch_ok(SCRIPT, 2, [str(folder)], timeout_seconds=600)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_as_one_process(results: dict[str, Any], method: str, stage: str) -> None:
    cell = results[f"{method}-{stage}"]
    assert cell["same_names"] and cell["private"] > 0
    assert cell["loss"] < LOSS and cell["parameters"] < PARAMETERS
    assert cell["idle_moved"] == [] and cell["active_stood"] == []
