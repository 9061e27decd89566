"""A real two-node run: deepspeed with a hostfile, pdsh and ssh, between two network namespaces."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from two_machines import INTERFACE, OTHER, Machines, reason_to_skip, two_machines

from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import load_run_config
from mtvl.train import train

TASKS = ["vqa", "nlvr2"]
TOLERANCE = 5e-6  # of losses; the order of additions differs between one process and two. Measured: see the message
SMALL = [
    "train.steps=4", "train.global_batch=8", "train.micro_batch=4", "checkpoint.every_steps=2", "checkpoint.keep_last=3",
    "data.max_examples=24",
]  # fmt: skip

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with two_machines(tmp_path_factory.mktemp("machines")) as pair:
        pair.export({"GLOO_SOCKET_IFNAME": INTERFACE, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
        yield pair


@pytest.fixture(scope="module")
def data(world: Path, shared_folder: Path) -> list[str]:
    return [f"data.root={world}", f"data.cache={shared_folder / 'cache'}"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def deepspeed(machines: Machines, script: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    hostfile = str(machines.hostfile())
    return machines.run(
        "deepspeed", "--hostfile", hostfile, "--master_port", "29511", f"launch/{script}.py", *words, **more
    )


def test_the_machines_are_found_good(machines: Machines) -> None:
    done = machines.run(sys.executable, "-m", "mtvl.cli", "nodes", "--hostfile", str(machines.hostfile()))
    assert done.returncode == 0, done.stderr
    assert f"{INTERFACE} 10.99.0.2" in done.stdout and "the same programs everywhere" in done.stdout


def test_an_unreachable_machine_and_other_code_are_named_in_seconds(machines: Machines) -> None:
    began = time.monotonic()
    hostfile = str(machines.hostfile("10.99.0.1", OTHER, "10.99.0.9"))
    done = machines.run(sys.executable, "-m", "mtvl.cli", "nodes", "--hostfile", hostfile)
    assert done.returncode == 2 and "10.99.0.9: ssh fails" in done.stderr, done.stderr
    assert re.search(r"not the same everywhere: code of mtvl: \w+ on 10\.99\.0\.1; \w+ on other", done.stderr), (
        done.stderr
    )
    assert time.monotonic() - began < 60  # 5 s for ssh; the rest is the start of Python on a busy machine


def test_two_nodes_train_save_resume_and_evaluate_as_one(machines: Machines, data: list[str], tmp_path: Path) -> None:
    run, flags = tmp_path / "two", ["--tasks", ",".join(TASKS), "--run", str(tmp_path / "two"), *data, *SMALL]
    done = deepspeed(machines, "train", *flags)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = losses(run)
    saved = run / "checkpoints" / "step_4"
    assert json.loads((saved / "engine.json").read_text())["world_size"] == 2
    shutil.rmtree(saved)
    (run / "DONE").unlink()
    done = deepspeed(machines, "train", *flags)
    assert done.returncode == 0 and "step_2" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert losses(run) == first  # to the last bit
    assert train(load_run_config(DEFAULT_RECIPE, TASKS, [*data, *SMALL]), tmp_path / "one").code == 0
    worst = max(abs(a - b) for a, b in zip(first, losses(tmp_path / "one"), strict=True))
    print(f"largest difference between two nodes and one: {worst:.2e}")
    assert worst < TOLERANCE
    done = deepspeed(
        machines, "evaluate", "--checkpoint", str(run), *data, "evaluate.bootstrap=10", "data.max_examples=9"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((run / "eval.json").read_text())
    assert {name: result["num_examples"] for name, result in results.items()} == {"vqa": 9, "nlvr2": 9}


def test_the_wrong_interface_ends_in_seconds(machines: Machines, data: list[str], tmp_path: Path) -> None:
    """Loopback is there on both machines, and nobody reaches it from the other."""
    before = (machines.folder / "environment").read_text()
    machines.export({"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"})
    try:
        done = deepspeed(machines, "train", "--tasks", "vqa", "--run", str(tmp_path / "run"), *data, *SMALL)
    finally:
        (machines.folder / "environment").write_text(before)
    assert done.returncode != 0 and not (tmp_path / "run" / "DONE").exists()
    assert "the wrong interface; set GLOO_SOCKET_IFNAME" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout
