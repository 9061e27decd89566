"""Every method with private parts trains under every ZeRO stage as in plain PyTorch, on one rank with gradients summed over
micro-batches and on two ranks, and idle tasks stand still."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import launch_ok

from mtvl.config import RunConfig
from mtvl.errors import PlanError
from mtvl.model import make_plan
from mtvl.petl import METHODS as REGISTRY

SCRIPT = Path(__file__).with_name("method_cells.py")
METHODS = (
    "adapter",
    "adapter_prompt",
    "hyperformer",
    "compacter",
    "default_compacter",
    "prompt",
    "prefix",
    "lora",
    "ia3",
    "vcra",
    "t5_adapter",
    "t5_prefix",
    "vil_adapter",
    "blip_uniadapter",
)
STAGES = ("zero0", "zero1", "zero2", "zero3")

# After three steps at rate 0.01; measured on one rank: 2.4e-7 and 1.3e-5 (prefix under ZeRO-3, keys with tiny gradients).
LOSS, PARAMETERS = 1e-5, 1e-4
# The head over answers has gradients of 5e-6 beside those of 0.3, whose rounding Adam enlarges: 2.0e-4 on every stage.
WIDER = {"vil_adapter": 1e-3}

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Measurements of every method and stage by number of ranks."""
    found = {}
    for ranks in (2, 1):
        folder = tmp_path_factory.mktemp(f"methods{ranks}")
        launch_ok(SCRIPT, ranks, [str(folder)], timeout_seconds=600)
        found[ranks] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_as_in_plain_pytorch(
    results: dict[int, dict[str, Any]], method: str, stage: str, ranks: int
) -> None:  # fmt: skip
    cell = results[ranks][f"{method}-{stage}"]
    assert cell["same_names"] and cell["private"] > 0
    assert cell["loss"] < LOSS and cell["parameters"] < WIDER.get(method, PARAMETERS)
    stood = [s for s in cell["active_stood"] if method != "vcra" or not in_first_step(s)]
    assert cell["idle_moved"] == [] and stood == []  # vcra's change starts at zero: one factor waits for the other


def in_first_step(text: str) -> bool:
    """Whether a part that stood still did so in the first step of its task (`STEPS` of method_cells.py)."""
    first = {"vqa": 0, "gqa": 0, "coco": 1}
    return any(text.startswith(f"step {step}:") and f".{task}." in text for task, step in first.items())


def test_every_method_with_private_parts_is_here(tiny_config: Callable[..., RunConfig]) -> None:
    """Private or shared is an option; a method that can have private parts is in the table of method_cells.py."""
    private = set()
    for name in REGISTRY:
        options = {f.name for f in dataclasses.fields(REGISTRY.load(name).Config)}
        section = {"name": name, **({"share": "none"} if "share" in options else {})}
        with contextlib.suppress(PlanError):  # methods of other backbones have tests of their own
            if make_plan(tiny_config(section)).is_task_private:
                private.add(name)
    nodes = ast.parse(SCRIPT.read_text(encoding="utf-8")).body
    table = next(n.value for n in nodes if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "METHODS")
    cells = ast.literal_eval(table)
    here = {section["name"] for key, section in cells.items() if not key.startswith("blip_")}
    assert tuple(cells) == METHODS and private == here


def test_ranks_with_different_recipes_stop(results: dict[int, dict[str, Any]]) -> None:
    cell = results[2]["different_recipes"]
    assert cell["seconds"] < 10 and len(cell["messages"]) == 2  # folders may differ
    assert "before the first step" in cell["messages"][0] and "'tasks' differs" in cell["messages"][0]
    assert "rank 0: ['vqa', 'gqa']; rank 1: ['vqa', 'coco']" in cell["messages"][0]
    assert "'petl' differs; rank 0: {'name': 'adapter', 'bottleneck': 4" in cell["messages"][1]
    assert results[1]["different_recipes"]["messages"] == []
