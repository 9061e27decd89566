"""`mtvl nodes`: every machine of a hostfile is tried over ssh before anything is started on it.

`python -m mtvl.nodes PORT` prints what the machine that it runs on has, as JSON; it imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtvl.errors import ConfigError, EngineError
from mtvl.machine import INTERFACE_VARIABLES, differences, interface_problem, interfaces, is_port_free, versions

LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")
CONNECT_SECONDS, ANSWER_SECONDS = 5, 60
DEFAULT_PORT = 29500  # deepspeed's


def read_hostfile(path: Path) -> dict[str, int]:
    """Host -> number of processes, in order. ConfigError with file and row, where DeepSpeed would go on with this machine
    alone (a missing file), start nothing (slots=0), or print the whole file (anything else)."""
    if not path.is_file():
        raise ConfigError(f"no hostfile {path}; expected lines such as: worker-1 slots=4")
    hosts: dict[str, int] = {}
    for row, line in enumerate(_lines(path, "worker-1 slots=4"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}, row {row}: expected 'HOST slots=NUMBER', found {line!r}")
        host, slots = match[1], int(match[2])
        if slots < 1:
            raise ConfigError(f"{path}, row {row}: {host} has slots=0; give it at least one process, or leave it out")
        if host in hosts:
            raise ConfigError(f"{path}, row {row}: {host} stands there twice; one line a machine, with all its slots")
        hosts[host] = slots
    if not hosts:
        raise ConfigError(f"{path} names no machine; expected lines such as: worker-1 slots=4")
    return hosts


def _lines(path: Path, example: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); expected text with lines such as: {example}") from None


def exported_variables() -> dict[str, str]:
    """What `deepspeed` gives the processes on other machines: the file that DS_ENV_FILE names, or .deepspeed_env, at home
    or here (the later wins). ConfigError for a line that is no NAME=value."""
    name, found = os.environ.get("DS_ENV_FILE", ".deepspeed_env"), {}
    for folder in (Path.home(), Path()):
        file = folder / name
        if not file.is_file():
            continue
        for row, line in enumerate(_lines(file, "GLOO_SOCKET_IFNAME=eth0"), 1):
            key, equals, value = line.partition("=")
            if not equals or not key.strip():
                raise ConfigError(
                    f"{file}, row {row}: expected NAME=value, found {line!r}; deepspeed ends on such a line"
                )
            found[key.strip()] = value.strip()
    return found


def probe(port: int) -> dict[str, Any]:
    """What this machine has."""
    return {
        "machine": socket.gethostname(), "versions": versions(), "interfaces": interfaces(), "cores": os.cpu_count(),
        "gpus": len(list(Path("/dev").glob("nvidia[0-9]*"))), "port_free": is_port_free(port),
    }  # fmt: skip


def ask(host: str, port: int, variables: Mapping[str, str]) -> dict[str, Any] | str:
    """`probe` of another machine, or why there is none. The project and Python are looked for where they are here."""
    exports = "".join(f"export {key}={shlex.quote(value)}; " for key, value in variables.items())
    own_path = str(Path(__file__).resolve().parents[1])
    remote = f"{exports}cd {shlex.quote(os.getcwd())} && PYTHONPATH={shlex.quote(own_path)} {shlex.quote(sys.executable)} -m mtvl.nodes {port}"
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", host, remote]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{host}: no answer over ssh within {ANSWER_SECONDS} s"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == 255:  # ssh's own
        return (
            f"{host}: ssh fails ({last}); name, address and firewall right? 'ssh -o BatchMode=yes {host} hostname' must work "
            "without a password"
        )
    if done.returncode:
        return (
            f"{host}: 'cd {os.getcwd()} && {sys.executable} -m mtvl.nodes' fails there ({last}); the project and its "
            "environment must lie at the same paths on all machines"
        )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    if not isinstance(answer, dict):
        return f"{host}: answers {done.stdout.strip()[-80:]!r} to a command over ssh and not what it has; what runs there at login?"
    return answer


def problems_of(
    hosts: Mapping[str, int], answers: Mapping[str, dict[str, Any] | str], variables: Mapping[str, str], port: int
) -> list[str]:
    """Everything that would keep a run on `hosts` from starting, a line each."""
    found = [answer for answer in answers.values() if isinstance(answer, str)]
    there = {host: answer for host, answer in answers.items() if isinstance(answer, dict)}
    first = next(iter(hosts))
    if first in there and not there[first]["port_free"]:
        found.append(
            f"{first}: port {port} is in use, by another job perhaps; give another one: mtvl nodes --master-port N and "
            "deepspeed --master_port N"
        )
    named = {name: variables[name] for name in INTERFACE_VARIABLES if name in variables}
    for host, answer in there.items():
        if problem := interface_problem(named, answer["interfaces"]):
            found.append(f"{host}: {problem}")
        if answer["gpus"] and hosts[host] > answer["gpus"]:
            found.append(f"{host}: slots={hosts[host]}, but it has {answer['gpus']} GPU(s)")
    found += [f"not the same everywhere: {line}" for line in differences({h: a["versions"] for h, a in there.items()})]
    has_gpus = any(answer["gpus"] for answer in there.values())
    if len(hosts) > 1 and not has_gpus and "GLOO_SOCKET_IFNAME" not in variables:
        found.append(
            "GLOO_SOCKET_IFNAME is not in the file that DS_ENV_FILE names (.deepspeed_env), and pdsh passes nothing else on: "
            "without it gloo often takes the loopback interface; the first machine has "
            + ", ".join(
                f"{name} {address}".strip() for name, address in there.get(first, {}).get("interfaces", {}).items()
            )
        )
    return found


def check_nodes(hostfile: Path, port: int = DEFAULT_PORT) -> str:
    """A table of the machines of `hostfile`; EngineError that lists every problem, ConfigError for the files themselves."""
    hosts = read_hostfile(hostfile)
    if not 0 < port < 2**16:
        raise ConfigError(f"--master-port expects a number from 1 to {2**16 - 1}, found {port}")
    variables = exported_variables()
    missing = [tool for tool in ("ssh", "pdsh") if shutil.which(tool) is None]
    if missing:
        raise EngineError(
            f"{' and '.join(missing)} not found here; deepspeed starts other machines with it: install it"
        )
    with ThreadPoolExecutor(min(32, len(hosts))) as pool:
        answers = dict(zip(hosts, pool.map(lambda host: ask(host, port, variables), hosts), strict=True))
    if found := problems_of(hosts, answers, variables, port):
        count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
        raise EngineError(f"{count} in {hostfile}:\n" + "\n".join(f"  {line}" for line in found))
    lines = []
    for host, answer in answers.items():
        assert isinstance(answer, dict)
        addresses = ", ".join(f"{n} {a}" for n, a in answer["interfaces"].items() if a)
        lines.append(
            f"{host} ({answer['machine']}): slots={hosts[host]}, {answer['cores']} cores, {answer['gpus']} GPUs, {addresses}"
        )
    code = next(iter(answers.values()))["versions"]["code of mtvl"]  # type: ignore[index]
    return "\n".join([*lines, f"the same programs everywhere (code {code}), port {port} is free"])


if __name__ == "__main__":
    print(json.dumps(probe(int(sys.argv[1]))))
