"""Ranks that meet before the process group: with the same programs they go on, otherwise all of them say why not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from distributed import PROJECT_ROOT, free_port

from mtvl.engine import meeting as room
from mtvl.engine.meeting import Place, is_needed, meet
from mtvl.errors import EngineError

SAME = {"torch": "2.14.1", "code of mtvl": "abc"}


def meeting(places: list[Place], versions: list[dict[str, str]]) -> list[str]:
    """The error of each rank ("" without), all ranks being threads of this process."""
    said = ["never came back"] * len(places)

    def one(index: int) -> None:
        try:
            meet(places[index], versions[index])
            said[index] = ""
        except EngineError as error:
            said[index] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said


def places(world: int, port: int, address: str = "127.0.0.1", limit: float = 20.0) -> list[Place]:
    return [Place(rank, world, "127.0.0.1", port, address, limit) for rank in range(world)]


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_the_same_programs_go_on_and_leave_the_port(address: str) -> None:
    port = free_port()
    for _ in range(3):  # at once again: nothing lingers at the port
        assert meeting(places(3, port, address), [SAME] * 3) == [""] * 3


def test_other_programs_are_named_on_all_ranks() -> None:
    other = {"torch": "2.13.0", "code of mtvl": "abc"}
    said = meeting(places(3, free_port()), [SAME, other, SAME])
    machine = socket.gethostname()
    expected = (
        f"torch: 2.14.1 on rank 0 ({machine}), rank 2 ({machine}); 2.13.0 on rank 1 ({machine}); install the same"
    )
    assert all(expected in text for text in said), said
    assert "code of mtvl" not in said[0]


def test_a_missing_rank_is_named_within_the_limit() -> None:
    began = time.monotonic()
    said = meeting(places(3, free_port(), limit=2.0)[:2], [SAME] * 2)
    assert time.monotonic() - began < 10
    assert all("rank 2 of 3 did not come" in text and "mtvl nodes --hostfile" in text for text in said), said


def test_a_port_in_use_is_named_by_rank_0() -> None:
    with socket.socket() as stranger:
        stranger.bind(("", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        said = meeting(places(2, port, limit=1.0)[:1], [SAME])
    assert f"port {port} is in use" in said[0] and "--master_port" in said[0]


def test_another_program_at_the_port_is_named_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing; nobody waits for the limit of the meeting."""
    monkeypatch.setattr(room, "WELCOME_SECONDS", 0.5)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        said = meeting([Place(1, 2, "127.0.0.1", stranger.getsockname()[1], "127.0.0.1", 60.0)], [SAME])
    assert "was not answered" in said[0] and "another program listens there" in said[0]


def test_an_address_that_others_do_not_reach_is_the_wrong_interface() -> None:
    """Rank 1 says that it listens at an address of a network for documentation (RFC 5737), which nothing reaches."""
    port, answers = free_port(), []
    rank0 = threading.Thread(target=lambda: answers.append(meeting([places(2, port)[0]], [SAME])))
    rank0.start()
    note = {"greeting": room.GREETING, "rank": 1, "world": 2, "machine": "far", "versions": SAME, "address": "192.0.2.1",
            "door": 9}  # fmt: skip
    text = room._visit(replace(places(2, port)[1]), note)
    rank0.join(60)
    for said in (text, answers[0][0]):
        assert "does not reach rank 1 on far at 192.0.2.1" in said and "set GLOO_SOCKET_IFNAME" in said


def test_unknown_and_silent_masters() -> None:
    unknown = Place(1, 2, "no-such-machine.invalid", 29500, "127.0.0.1", 2.0)
    assert "is not known here" in meeting([unknown], [SAME])[0]
    assert "nobody listens there" in meeting([Place(1, 2, "127.0.0.1", free_port(), "", 0.5)], [SAME])[0]


@pytest.mark.parametrize(
    ("variables", "needed"),
    [
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "LOCAL_SIZE": "2"}, True),
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "LOCAL_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, False),
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1"}, False),
        ({"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}, False),
    ],
)
def test_only_several_machines_meet(
    variables: dict[str, str], needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_needed() is needed


def test_a_missing_interface_ends_before_anything_else() -> None:
    """Through `start`, as a rank of two machines has it."""
    environment = {
        **os.environ, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29599", "GLOO_SOCKET_IFNAME": "eth77", "PYTHONPATH": str(PROJECT_ROOT),
    }  # fmt: skip
    code = "from mtvl.engine import start\nfrom mtvl.errors import EngineError\ntry:\n    start('cpu')\nexcept EngineError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "GLOO_SOCKET_IFNAME names the interface 'eth77'; this machine has lo 127.0.0.1" in done.stdout, done.stderr
