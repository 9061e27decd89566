"""The scripts in launch/multi_node: what they start, with which environment; programs that are not here are stood in for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "launch" / "multi_node"
SHOW = "import os, sys\nprint(sys.argv[1:], {k: os.environ.get(k) for k in sys.stdin.read().split()})\n"
JOB = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "8",
}  # fmt: skip


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder for PATH; each program in it writes its name and arguments to `calls` and ends with the code in its file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    for name in ("mtvl", "deepspeed", "torchrun", "srun", "scontrol"):
        program = folder / name
        answer = "echo n1; echo n2" if name == "scontrol" else ":"
        program.write_text(
            f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n{answer}\nexit $(cat {folder}/{name}.code 2>/dev/null || echo 0)\n'
        )
        program.chmod(0o755)
    return folder


def start(
    stand_ins: Path, script: str, *words: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{stand_ins}:/usr/bin:/bin", "HOME": str(stand_ins), **variables}
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *words], env=environment, input=stdin, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def calls(stand_ins: Path) -> list[str]:
    file = stand_ins / "calls"
    return file.read_text().splitlines() if file.is_file() else []


def test_hostfile_tries_the_machines_first(stand_ins: Path) -> None:
    done = start(stand_ins, "hostfile.sh", "--tasks", "vqa", HOSTFILE="hosts", MASTER_PORT="29600")
    assert done.returncode == 0, done.stderr
    assert calls(stand_ins) == [
        "mtvl nodes --hostfile hosts --master-port 29600",
        "deepspeed --hostfile hosts --master_port 29600 launch/train.py --tasks vqa",
    ]
    (stand_ins / "mtvl.code").write_text("2")
    assert start(stand_ins, "hostfile.sh", HOSTFILE="hosts").returncode == 2
    assert len(calls(stand_ins)) == 3  # no second deepspeed
    assert "set HOSTFILE" in start(stand_ins, "hostfile.sh").stderr


@pytest.mark.parametrize(("gpus", "local"), [("", "1"), ("5", "0"), ("0,1", "1")])
def test_a_slurm_task_gets_its_rank(stand_ins: Path, tmp_path: Path, gpus: str, local: str) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    more = {"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}
    done = start(stand_ins, "rank.sh", "--run", "r", stdin=names, SCRIPT=str(tmp_path / "show.py"), **JOB, **more)
    expected = {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": local, "LOCAL_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "21234",
        "OMP_NUM_THREADS": "8",
    }  # fmt: skip
    assert done.stdout.strip() == f"['--run', 'r'] {expected}", done.stderr
    assert "start this file with srun" in start(stand_ins, "rank.sh").stderr


def test_a_slurm_job_that_was_stopped_queues_itself_again(stand_ins: Path) -> None:
    where = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    assert "give --run" in start(stand_ins, "slurm.sbatch", "--tasks", "vqa", **where).stderr
    assert start(stand_ins, "slurm.sbatch", "--run", "r", **where).returncode == 0
    assert calls(stand_ins) == ["srun --kill-on-bad-exit=1 launch/multi_node/rank.sh --run r"]
    assert start(stand_ins, "slurm.sbatch", "--run=r", **where).returncode == 0
    for code in (2, 143, 75):  # wrong settings; saved and stopped; a rank that was lost
        (stand_ins / "srun.code").write_text(str(code))
        assert start(stand_ins, "slurm.sbatch", "--run", "r", **where).returncode == code
        assert (calls(stand_ins)[-1] == "scontrol requeue 7") == (code != 2)


def test_torchrun_keeps_the_flags_apart(stand_ins: Path) -> None:
    done = start(stand_ins, "torchrun.sh", "--run", "r", NODES="2", MASTER="m1", GPUS="4")
    assert done.returncode == 0, done.stderr
    line = calls(stand_ins)[0]
    assert line.startswith("torchrun --nnodes 2 --nproc-per-node 4") and "--rdzv-endpoint m1:29500" in line
    assert line.endswith("-- launch/train.py --run r")


def test_the_kubernetes_job_is_consistent() -> None:
    service, job = yaml.safe_load_all((SCRIPTS / "kubernetes.yaml").read_text())
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    container = pod["containers"][0]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    nodes = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == nodes and f"--nnodes={nodes}" in container["args"]
    assert f"--master-addr={name}-0.{pod['subdomain']}" in container["args"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    engine = next(a for a in container["args"] if a.startswith("engine.file="))
    assert (ROOT / engine.removeprefix("engine.file=")).is_file()


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*")), ids=lambda p: p.name)
def test_every_script_is_documented(script: Path) -> None:
    assert script.name in (ROOT / "docs" / "multi_node.md").read_text()
    if script.suffix != ".yaml":
        assert os.access(script, os.X_OK)
