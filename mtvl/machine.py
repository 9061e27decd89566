"""What has to be the same on all machines of a run, and what this one has: code, packages, interfaces, ports."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import socket
import struct
from importlib import metadata
from pathlib import Path

from mtvl import __version__
from mtvl.errors import EngineError

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy")
ROOT = Path(__file__).resolve().parents[1]
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def versions() -> dict[str, str]:
    """Versions of Python, of the packages that decide numbers, and of this project, with a hash of its code and tasks."""
    found = {"python": platform.python_version(), "mtvl": __version__, "code of mtvl": code_hash()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_hash(root: Path = ROOT) -> str:
    """16 hex digits that change with every source file of `mtvl/` and every task file."""
    digest = hashlib.sha256()
    for folder in ("mtvl", "tasks"):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in (".py", ".yaml") and file.is_file():
                digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def differences(versions_by_place: dict[str, dict[str, str]]) -> list[str]:
    """One line for each item that is not the same everywhere; `versions_by_place`: `versions()` of ranks or hosts."""
    places = list(versions_by_place)
    lines = []
    for item in dict.fromkeys(key for found in versions_by_place.values() for key in found):
        by_value: dict[str, list[str]] = {}
        for place in places:
            by_value.setdefault(versions_by_place[place].get(item, "nothing"), []).append(place)
        if len(by_value) > 1:
            lines.append(f"{item}: " + "; ".join(f"{value} on {', '.join(own)}" for value, own in by_value.items()))
    return lines


def interfaces() -> dict[str, str]:
    """IPv4 address of each network interface, "" where it has none."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                packed = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(packed[20:24])
            except OSError:  # no address
                found[name] = ""
    return found


def interface_problem(variables: dict[str, str], present: dict[str, str]) -> str:
    """What is wrong with the interfaces that `variables` name on a machine that has `present`, or ""."""
    here = ", ".join(f"{name} {address}".strip() for name, address in present.items())
    for variable in INTERFACE_VARIABLES:
        value = variables.get(variable, "")
        if not value or (variable.startswith("NCCL") and value[0] == "^"):
            continue
        for name in value.lstrip("=").split(","):
            is_there = name in present or (
                variable.startswith("NCCL") and value[0] != "=" and any(n.startswith(name) for n in present)
            )
            if not is_there:
                return f"{variable} names the interface {name!r}; this machine has {here}; set it to one that all machines have"
    return ""


def gloo_address() -> str:
    """Address at which gloo will listen: that of GLOO_SOCKET_IFNAME, else what the host name stands for, else loopback."""
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if named:
        return interfaces().get(named) or "127.0.0.1"
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
    return address if address in interfaces().values() or address.startswith("127.") else "127.0.0.1"


def check_interfaces() -> None:
    """EngineError when GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names an interface that this machine does not have."""
    named = {name: os.environ[name] for name in INTERFACE_VARIABLES if os.environ.get(name)}
    if named and (problem := interface_problem(named, interfaces())):
        raise EngineError(f"{socket.gethostname()}: {problem}")


def listen(port: int, address: str = "") -> socket.socket:
    """A socket that listens at `port` (0: any); EngineError when another program does."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((address, port))
        server.listen(1024)
    except OSError as error:
        server.close()
        if error.errno != errno.EADDRINUSE:
            raise EngineError(f"{socket.gethostname()}: cannot listen at {address or '*'}:{port}: {error}") from None
        raise EngineError(
            f"{socket.gethostname()}: port {port} is in use, by another job perhaps; give the launcher another one, e.g. "
            "deepspeed --master_port 29600"
        ) from None
    return server


def is_port_free(port: int) -> bool:
    """Whether this machine could listen at `port`."""
    try:
        listen(port).close()
    except EngineError:
        return False
    return True
