"""Before the process group: all ranks of several machines meet at the master's port, within seconds or with a reason.

Rank 0 listens, the others come with their versions and the address at which they will be spoken to. Everybody tries to
reach the next rank's address, and rank 0 tells all whether to go on. Then the port is free again for the process group,
whose own errors come after ten minutes and name no cause.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from mtvl.errors import EngineError
from mtvl.machine import differences, gloo_address, listen, versions

LIMIT_VARIABLE, LIMIT_SECONDS = "MTVL_MEETING_SECONDS", 120.0
UNREACHABLE_SECONDS, KNOCK_SECONDS, WELCOME_SECONDS = 10.0, 3.0, 15.0
GREETING = "mtvl-meeting-1"


@dataclass(frozen=True)
class Place:
    """Where and as whom this process meets the others; `address` is where gloo listens, "" under NCCL."""

    rank: int
    world_size: int
    host: str
    port: int
    address: str
    limit_seconds: float = LIMIT_SECONDS


def is_needed() -> bool:
    """True when the launcher's variables tell of several machines, and the port is not torchrun's own."""
    world, host = int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    local = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "0")))
    is_here = host == "localhost" or host.startswith("127.")
    return world > 1 and local != world and not is_here and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def limit_seconds() -> float:
    """How long ranks wait for one that does not come; EngineError when the variable is wrong."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_SECONDS))
    try:
        return float(text)
    except ValueError:
        raise EngineError(f"{LIMIT_VARIABLE} expects seconds, found {text!r}") from None


def meet_others(backend: str) -> None:
    """`meet` at the place that the launcher's variables name. EngineError when a variable is wrong."""
    limit = limit_seconds()
    address = gloo_address() if backend == "gloo" else ""
    rank, world, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    meet(Place(rank, world, os.environ["MASTER_ADDR"], port, address, limit), versions())


def meet(place: Place, own: dict[str, str]) -> None:
    """Return when all ranks have met and may go on; EngineError on all of them, with the reason, when they may not.

    `own` are this rank's versions. Reasons: a port in use, a rank that does not come, a machine that cannot be reached,
    other code or packages, an interface that the others do not reach.
    """
    with contextlib.ExitStack() as stack:
        door = None
        if place.address:
            door = stack.enter_context(listen(0, place.address))
        note = {
            "greeting": GREETING, "rank": place.rank, "world": place.world_size, "machine": socket.gethostname(),
            "versions": own, "address": place.address, "door": door.getsockname()[1] if door else 0,
        }  # fmt: skip
        reason = _receive_all(place, note) if place.rank == 0 else _visit(place, note)
    if reason:
        raise EngineError(reason)


def _send(connection: socket.socket, note: dict[str, Any]) -> None:
    connection.sendall((json.dumps(note) + "\n").encode())


def _read(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """One line of JSON; ValueError for anything else, OSError when nothing comes."""
    text = bytearray()
    while not text.endswith(b"\n"):
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        piece = connection.recv(1)  # no more than the line: the next one may follow at once
        if not piece or len(text) > 2**22:
            raise ValueError("the connection ended before the line did")
        text += piece
    note = json.loads(text)
    if not isinstance(note, dict) or note.get("greeting") != GREETING:
        raise ValueError("no note of a meeting")
    return note


def _receive_all(place: Place, own: dict[str, Any]) -> str:
    """Rank 0: wait for the others, tell them whom to try, collect what they found, tell the verdict; "" when all is well."""
    deadline = time.monotonic() + place.limit_seconds
    notes = {0: own}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(listen(place.port))
        guests: dict[int, socket.socket] = {}
        while len(notes) < place.world_size and time.monotonic() < deadline:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                guest = stack.enter_context(server.accept()[0])
                note = _read(guest, min(deadline, time.monotonic() + KNOCK_SECONDS))
                _send(guest, {"greeting": GREETING})  # welcome: no other program listens at this port
            except (OSError, ValueError):  # a stranger, or nobody before the deadline
                continue
            notes[note["rank"]], guests[note["rank"]] = note, guest
        reason = _judge(place, notes)
        if not reason:
            found = {0: _knock(notes, 0)}
            for guest in guests.values():
                _send(guest, {"greeting": GREETING, "reason": "", "notes": {str(r): n for r, n in notes.items()}})
            for rank, guest in guests.items():
                found[rank] = _answer(guest, rank)
            reason = "\n".join(text for _, text in sorted(found.items()) if text)
        for guest in guests.values():
            with contextlib.suppress(OSError):  # it may have gone; the reason stands here
                _send(guest, {"greeting": GREETING, "reason": reason, "notes": {}})
                guest.shutdown(socket.SHUT_WR)
                guest.settimeout(1.0)
                guest.recv(1)  # the guest closes first, so that the port is free at once
    return reason


def _answer(guest: socket.socket, rank: int) -> str:
    try:
        return str(_read(guest, time.monotonic() + 3 * KNOCK_SECONDS)["reason"])
    except (OSError, ValueError) as error:
        return f"rank {rank} was lost while the ranks met ({error})"


def _visit(place: Place, own: dict[str, Any]) -> str:
    """Another rank: go to rank 0, try the next rank's address when asked, hear the verdict; "" when all is well."""
    with _reach(place) as connection:
        try:
            _send(connection, own)
            _read(connection, time.monotonic() + WELCOME_SECONDS)
            deadline = time.monotonic() + place.limit_seconds + 10 * KNOCK_SECONDS
            asked = _read(connection, deadline)
            if asked["reason"]:
                return str(asked["reason"])
            notes = {int(rank): note for rank, note in asked["notes"].items()}
            _send(connection, {"greeting": GREETING, "reason": _knock(notes, place.rank)})
            return str(_read(connection, deadline)["reason"])
        except (OSError, ValueError) as error:
            return (
                f"rank {place.rank} on {own['machine']} came to {place.host}:{place.port} and was not answered ({error}): another "
                "program listens there, or rank 0 was lost; its own message says more"
            )


def _reach(place: Place) -> socket.socket:
    """A connection to rank 0, which may still be starting; EngineError when its machine is unknown or out of reach."""
    began = time.monotonic()
    where = f"rank {place.rank} on {socket.gethostname()}"
    while True:
        try:
            return socket.create_connection((place.host, place.port), timeout=KNOCK_SECONDS)
        except socket.gaierror as error:
            raise EngineError(
                f"{where}: the master's name {place.host!r} is not known here ({error}); give an address that all machines "
                "reach, e.g. deepspeed --master_addr 10.0.0.1"
            ) from None
        except ConnectionRefusedError:
            waited = place.limit_seconds
            problem = "nobody listens there: did rank 0 start? Its own message says more"
        except OSError as error:
            waited = min(UNREACHABLE_SECONDS, place.limit_seconds)
            problem = f"out of reach ({error}); is it the address of the right interface, and does a firewall let ports through?"
        if time.monotonic() - began > waited:
            raise EngineError(f"{where} tried {place.host}:{place.port} for {waited:.0f} s: {problem}")
        time.sleep(0.2)


def _judge(place: Place, notes: dict[int, dict[str, Any]]) -> str:
    """What speaks against going on, from the notes of the ranks that came."""
    missing = [str(rank) for rank in range(place.world_size) if rank not in notes]
    if missing:
        came = ", ".join(f"{rank} ({note['machine']})" for rank, note in sorted(notes.items()))
        return (
            f"rank {', '.join(missing)} of {place.world_size} did not come to {place.host}:{place.port} within "
            f"{place.limit_seconds:.0f} s; there are {came}. Look at what the missing ranks printed; mtvl nodes --hostfile FILE "
            f"tries every machine, and {LIMIT_VARIABLE} sets the limit where programs load slowly"
        )
    by_place = {f"rank {rank} ({note['machine']})": note["versions"] for rank, note in sorted(notes.items())}
    if lines := differences(by_place):
        return "the ranks do not run the same programs; " + "; ".join(lines) + "; install the same on all machines"
    return ""


def _knock(notes: dict[int, dict[str, Any]], rank: int) -> str:
    """Try the next rank's address; "" when it opens, or is not needed."""
    target = (rank + 1) % len(notes)
    note = notes[target]
    if not note["address"]:
        return ""
    try:
        socket.create_connection((note["address"], note["door"]), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        return (
            f"rank {rank} on {notes[rank]['machine']} does not reach rank {target} on {note['machine']} at {note['address']} "
            f"({error}): the wrong interface; set GLOO_SOCKET_IFNAME on every machine to the one that the others reach (for "
            "pdsh in the file that DS_ENV_FILE names)"
        )
    return ""
