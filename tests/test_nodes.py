"""Hostfiles, and what is wrong with machines before anything is started on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtvl import nodes
from mtvl.errors import ConfigError, EngineError
from mtvl.machine import code_hash, differences, interface_problem, interfaces, versions
from mtvl.nodes import check_nodes, exported_variables, problems_of, read_hostfile

GOOD: dict[str, Any] = {
    "machine": "m", "versions": {"torch": "2.14.1"}, "interfaces": {"lo": "127.0.0.1", "eth0": "10.0.0.1"}, "cores": 8,
    "gpus": 0, "port_free": True,
}  # fmt: skip
VARIABLES = {"GLOO_SOCKET_IFNAME": "eth0"}


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# machines\n\nworker-1 slots=4\nworker-2   slots=2  # the old one\n")
    assert read_hostfile(file) == {"worker-1": 4, "worker-2": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a slots=1\nb slot=1\n", "row 2: expected 'HOST slots=NUMBER', found 'b slot=1'"),
        ("a slots=1\na slots=1\n", "row 2: a stands there twice"),
        ("a slots=0\n", "row 1: a has slots=0"),
        ("# nothing\n", "names no machine"),
        (None, "no hostfile"),
    ],
)
def test_a_bad_hostfile_is_refused_with_its_row(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "hosts"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        read_hostfile(file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"port_free": False}, "a: port 29500 is in use"),
        ({"interfaces": {"lo": "127.0.0.1"}}, "a: GLOO_SOCKET_IFNAME names the interface 'eth0'; this machine has lo 127.0.0.1"),
        ({"versions": {"torch": "2.13.0"}}, "not the same everywhere: torch: 2.13.0 on a; 2.14.1 on b"),
        ({"gpus": 1}, "a: slots=2, but it has 1 GPU(s)"),
    ],
)  # fmt: skip
def test_every_problem_is_told(change: dict[str, Any], expected: str) -> None:
    hosts = {"a": 2, "b": 2}
    assert problems_of(hosts, {"a": GOOD, "b": GOOD}, VARIABLES, 29500) == []
    found = problems_of(hosts, {"a": {**GOOD, **change}, "b": GOOD}, VARIABLES, 29500)
    assert len(found) == 1 and expected in found[0]


def test_unreadable_files_and_impossible_ports_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(b"\xff\xfe slots=1\n")
    with pytest.raises(ConfigError, match="hosts cannot be read .*expected text with lines such as: worker-1 slots=4"):
        read_hostfile(file)
    monkeypatch.setenv("DS_ENV_FILE", str(file))
    with pytest.raises(ConfigError, match="hosts cannot be read .*GLOO_SOCKET_IFNAME=eth0"):
        exported_variables()
    file.write_text("a slots=1\n")
    with pytest.raises(ConfigError, match="--master-port expects a number from 1 to 65535, found 99999"):
        check_nodes(file, 99999)


def test_gloo_without_an_interface_is_told() -> None:
    found = problems_of({"a": 1, "b": 1}, {"a": GOOD, "b": GOOD}, {}, 29500)
    assert len(found) == 1 and "GLOO_SOCKET_IFNAME is not in the file" in found[0] and "eth0 10.0.0.1" in found[0]


def test_all_problems_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    monkeypatch.setattr(
        nodes, "ask", lambda host, *_: f"{host}: ssh fails" if host == "b" else {**GOOD, "port_free": False}
    )
    monkeypatch.setattr(nodes.shutil, "which", lambda name: name)
    monkeypatch.setattr(nodes, "exported_variables", lambda: VARIABLES)
    with pytest.raises(EngineError, match="2 problems in .*hosts:\n  b: ssh fails\n  a: port 29500 is in use"):
        check_nodes(tmp_path / "hosts")


@pytest.mark.parametrize("printed", ["", "bye", "5"])
def test_a_machine_that_answers_something_else_is_told(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho {printed}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert f"worker: answers '{printed}' to a command over ssh" in nodes.ask("worker", 29500, {})


def test_the_exported_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "environment"
    file.write_text("GLOO_SOCKET_IFNAME=eth0\nTOKEN=a=b\n")
    monkeypatch.setenv("DS_ENV_FILE", str(file))
    assert exported_variables() == {"GLOO_SOCKET_IFNAME": "eth0", "TOKEN": "a=b"}
    file.write_text("GLOO_SOCKET_IFNAME=eth0\n\n")
    with pytest.raises(ConfigError, match="row 2: expected NAME=value"):
        exported_variables()


@pytest.mark.parametrize(
    ("variables", "fine"),
    [
        ({}, True),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, True),
        ({"GLOO_SOCKET_IFNAME": "eth"}, False),  # gloo wants the whole name
        ({"NCCL_SOCKET_IFNAME": "eth"}, True),  # NCCL takes what begins so
        ({"NCCL_SOCKET_IFNAME": "=eth"}, False),
        ({"NCCL_SOCKET_IFNAME": "^lo"}, True),
        ({"NCCL_SOCKET_IFNAME": "ib0"}, False),
    ],
)
def test_names_of_interfaces(variables: dict[str, str], fine: bool) -> None:
    assert (interface_problem(variables, GOOD["interfaces"]) == "") is fine


def test_the_hash_follows_code_and_tasks(tmp_path: Path) -> None:
    for name in ("mtvl/a.py", "tasks/b.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    before = code_hash(tmp_path)
    (tmp_path / "mtvl" / "notes.txt").write_text("1")
    assert code_hash(tmp_path) == before
    (tmp_path / "tasks" / "b.yaml").write_text("2")
    assert code_hash(tmp_path) != before


def test_this_machine_as_another_would_see_it() -> None:
    """What runs on the other machines: light, and one line of JSON."""
    root = str(Path(nodes.__file__).resolve().parents[1])
    code = "import sys, runpy\nsys.argv = ['nodes', '0']\nrunpy.run_module('mtvl.nodes', run_name='__main__')\nassert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert found["versions"] == versions() and found["interfaces"]["lo"] == interfaces()["lo"] == "127.0.0.1"
    assert differences({"a": versions(), "b": found["versions"]}) == []
