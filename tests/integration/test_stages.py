"""Training agrees over ZeRO stages, numbers of processes and micro-batch splits, through the tool that reports it.

CI trains a part of the matrix, in one launch of one process and one of two; `python tools/check_stages.py` trains all of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
sys.path.insert(0, str(TOOLS))

import check_stages  # noqa: E402
from stage_checks.cells import ADDS_NOTHING, RUNS, STEPS, Cell, Row, matrix  # noqa: E402
from stage_checks.launching import row_file, write_row  # noqa: E402
from stage_checks.steps import backbone_of  # noqa: E402

from mtvl.config import RunConfig  # noqa: E402
from mtvl.errors import PlanError  # noqa: E402
from mtvl.model import make_plan  # noqa: E402
from mtvl.petl import METHODS  # noqa: E402

# Of every way to hold parts (at a linear map, common to all layers, before a stack, inside attention, in a head, in several
# towers) one method whose parts are split over two ranks. The others are one rank's, whose hooks gather and free the same.
SPLIT = ("adapter", "hyperformer", "prompt", "prefix", "t5_prefix", "vil_adapter", "blip_uniadapter")
# Every method where all is partitioned, and where gradients are summed over micro-batches; some on the other stages.
STEP_CELLS = (
    *(f"{method}-zero3-world{1 + (method in SPLIT)}" for method in STEPS),
    *(f"{method}-zero2-world1" for method in STEPS),
    "adapter-zero0-world1", "prompt-zero1-world1", "blip_uniadapter-zero1-world1",
    "adapter-zero1-world2", "hyperformer-zero0-world2", "compacter-zero1-world2", "vil_adapter-zero2-world2",
)  # fmt: skip
# Each recipe and each stage once, both worlds, both splits.
RUN_CELLS = (
    "multiple-zero3-world1-micro4", "half_down-zero1-world1-micro16", "hyperformer-zero2-world1-micro4",
    "single-zero0-world2-micro4", "half_up-zero2-world2-micro16", "prompt-zero3-world2-micro16",
    "uniadapter-zero2-world2-micro4",
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """What the cells of CI measured, by their names."""
    folder = tmp_path_factory.mktemp("stages")
    cells = [Cell.parse(name) for name in (*STEP_CELLS, *RUN_CELLS)]
    overrides = [f"data.root={world}", f"data.cache={folder / 'cache'}"]
    return {row.cell: row for row in check_stages.measure(folder / "cells", cells, 4, overrides)}


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("cell", [*STEP_CELLS, *RUN_CELLS])
def test_it_trains_as_in_plain_pytorch(rows: dict[str, Row], cell: str) -> None:
    """Losses and trained tensors; in three steps of a method, what is idle stands still bit for bit."""
    assert rows[cell].passed, rows[cell]


@pytest.mark.multiproc
@pytest.mark.slow
def test_each_cell_really_ran(rows: dict[str, Row]) -> None:
    assert len({rows[cell].last_loss for cell in RUN_CELLS}) == len(RUN_CELLS)
    assert len({rows[f"{method}-zero2-world1"].last_loss for method in STEPS}) == len(STEPS)
    assert {Cell.parse(c).method for c in RUN_CELLS} == set(RUNS) and len(rows) == len(STEP_CELLS) + len(RUN_CELLS)
    for kind in (STEP_CELLS, RUN_CELLS):
        assert {Cell.parse(c).stage for c in kind} == {0, 1, 2, 3} and {Cell.parse(c).world for c in kind} == {1, 2}


def test_every_method_is_here(tiny_config: Callable[..., RunConfig]) -> None:
    """With private parts, where it can have them: that is an option."""
    private, others = set(), set()
    for name in METHODS:
        options = {f.name for f in dataclasses.fields(METHODS.load(name).Config)}
        section = {"name": name, **({"share": "none"} if "share" in options else {})}
        with contextlib.suppress(PlanError):  # methods of other backbones have cells of their own
            (private if make_plan(tiny_config(section)).is_task_private else others).add(name)
    trained = {section["name"] for key, section in STEPS.items() if backbone_of(key) != "blip"}
    assert trained == private | others and others == set(ADDS_NOTHING)


def test_the_matrix_is_whole_and_names_are_read_back() -> None:
    cells = matrix(check_stages.METHODS, [0, 1, 2, 3], [1, 2])
    assert len(cells) == len({c.name for c in cells}) == 8 * len(STEPS) + 12 * len(RUNS)
    assert [Cell.parse(c.name) for c in cells] == cells
    assert {c.name for c in matrix(["prompt"], [3], [2])} == {"prompt-zero3-world2", "prompt-zero3-world2-micro16"}


GOOD = Row("lora-zero3-world2", 1e-7, 1e-6, 2.5)


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"loss": 1e-3}, False),
        ({"tensors": 1e-2}, False),
        ({"loss": float("nan")}, False),
        ({"problems": ("idle, and moved in step 1: weight/x",)}, False),
    ],
)
def test_what_is_kept_is_reported_and_not_trained_again(
    change: dict, passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert check_stages.measure(out, [], 12, []) == []
    write_row(out, GOOD)
    write_row(out, dataclasses.replace(GOOD, cell="lora-zero0-world1", **change))
    monkeypatch.setattr(check_stages, "launch", lambda *_: pytest.fail("a measured cell was trained again"))
    words = ["--methods", "lora", "--out", str(out)]
    assert check_stages.main([*words, "--cells", "lora-zero3-world2,lora-zero0-world1"]) == int(not passed)
    shown = capsys.readouterr().out
    assert f"{'PASS' if passed else 'FAIL'} lora-zero0-world1" in shown and "PASS lora-zero3-world2" in shown
    assert f"{1 + passed} of 2 cells" in shown and ("idle, and moved" in shown) == ("problems" in change)


def test_an_interrupted_matrix_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, asked = tmp_path / "out", []
    check_stages.measure(out, [], 12, ["optim.lr=1e-4"])
    write_row(out, GOOD)

    def launch(folder: Path, world: int, command: list[str]) -> None:
        names = command[command.index("--cells") + 1].split(",")
        asked.append((world, names, command[command.index("--plain") + 1], command[-1]))
        for name in filter(None, names):
            write_row(folder, dataclasses.replace(GOOD, cell=name))

    monkeypatch.setattr(check_stages, "launch", launch)
    names = ["lora-zero3-world2", "lora-zero0-world2", "single-zero1-world2-micro16"]
    rows = check_stages.measure(out, [Cell.parse(name) for name in names], 12, ["optim.lr=1e-4"])
    assert [row.cell for row in rows] == names
    assert asked == [(1, [""], "single", "optim.lr=1e-4"), (2, names[1:], "", "optim.lr=1e-4")]


def test_other_settings_and_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    check_stages.measure(out, [], 99, ["optm.lr=1"])  # a slip, before anything was trained, binds to nothing
    check_stages.measure(out, [], 12, [])
    (tmp_path / "x").write_text("")
    write_row(out, GOOD)
    row_file(out, Cell.parse(GOOD.cell)).write_text('{"cell": 1')
    for words, said in (
        (["--out", str(out), "--steps", "3"], "made with"),
        (["--out", str(tmp_path)], "holds other files"),
        (["--out", str(tmp_path / "x" / "y")], "cannot be the folder"),
        (["--out", str(out)], "delete the file to measure it again"),
    ):
        assert check_stages.main([*words, "--cells", GOOD.cell]) == 2
        assert said in capsys.readouterr().err


def test_a_rank_that_fails_ends_the_launch_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage_checks.launching.GRACE_SECONDS", 0.2)
    code = "import os, sys, time; time.sleep(60) if os.environ['RANK'] == '0' else sys.exit('the reason')"
    with pytest.raises(check_stages.MtvlError, match=r"(?s)2 processes.*-9, 1.*the reason"):
        check_stages.launch(tmp_path, 2, [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cells", "half-zero2-world1-micro8"], "half_up"),
        (["--cells", "single-zero2"], "half_up"),
        (["--cells", "lora-zero4-world1"], "no cell 'lora-zero4-world1'"),
        (["--methods", "double"], "unknown method 'double'"),
        (["--cells", "lora-zero0-world4"], "no cell 'lora-zero0-world4'"),
        (["--stages", "7"], "unknown stage 7"),
        (["--stages", "two"], "expected numbers with commas"),
        (["--worlds", "3"], "expected 1 or 2"),
        (["--steps", "0"], "above 0"),
        (["optim.lr"], "expected key=value"),
    ],
)
def test_slips_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        check_stages.main(words)
    assert end.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.multiproc
def test_the_command_prints_its_matrix(tmp_path: Path) -> None:
    """As typed, from another folder: one cell and a setting that does not exist."""
    command = [sys.executable, str(TOOLS / "check_stages.py"), "--json", "--cells", "ia3-zero1-world1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout[: done.stdout.rindex("]") + 1])
    assert (row["cell"], row["passed"]) == ("ia3-zero1-world1", True)
