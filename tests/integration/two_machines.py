"""Two machines on one: network namespaces with a cable between them and an ssh daemon in each."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("ip", "sshd", "pdsh", "ssh-keygen", "ssh")
INTERFACE = "cable0"
OTHER = "other"  # name of the second machine with other code
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def reason_to_skip() -> str:
    """Why there can be no two machines here, or ""."""
    if os.geteuid() != 0:
        return "two-node test skipped: network namespaces need root"
    if missing := [tool for tool in TOOLS if shutil.which(tool, path=SEARCHED) is None]:
        return f"two-node test skipped: no {', '.join(missing)} (apt-get install iproute2 openssh-server pdsh)"
    name = f"mtvl{os.getpid()}x"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"two-node test skipped: network namespaces are not allowed here ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return ""


@dataclass(frozen=True)
class Machines:
    """The pair: names of the namespaces, addresses, and the folder with keys and a PATH in which ssh needs no password."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Of a command on the first machine. What pdsh passes on to both stands in the file `environment`."""
        path = f"{self.folder}:{Path(sys.prefix) / 'bin'}:/usr/sbin:/usr/bin:/bin"
        return {
            "PATH": path, "HOME": str(self.folder), "DS_ENV_FILE": str(self.folder / "environment"),
            "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more,
        }  # fmt: skip

    def export(self, variables: Mapping[str, str]) -> None:
        """Write the file that DS_ENV_FILE names."""
        (self.folder / "environment").write_text("".join(f"{k}={v}\n" for k, v in variables.items()))

    def hostfile(self, *addresses: str) -> Path:
        """One process a machine; both of them unless told otherwise."""
        file = self.folder / "hosts"
        file.write_text("".join(f"{a} slots=1\n" for a in addresses or self.addresses))
        return file

    def run(self, *words: str, seconds: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the first machine, in the project's folder; killed with all its children after `seconds`."""
        command = ["ip", "netns", "exec", self.names[0], *words]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


def _must(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[Machines]:
    """The pair, until the end of the block; processes that still run in them are ended then."""
    names = (f"mtvl{os.getpid()}a", f"mtvl{os.getpid()}b")
    addresses = ("10.99.0.1", "10.99.0.2")
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name in names:
            _must("ip", "netns", "add", name)
            _must("ip", "-n", name, "link", "set", "lo", "up")
        _must(
            "ip", "-n", names[0], "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", names[1]
        )
        for name, address in zip(names, addresses, strict=True):
            _must("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            _must("ip", "-n", name, "link", "set", INTERFACE, "up")
        _prepare_ssh(folder)
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd separates privileges; the package makes it at boot
        sshd = shutil.which("sshd", path=SEARCHED)
        options = f"-D -e -f {folder}/sshd_config"
        # The third one is the second machine with another line in one source file, seen through its door alone.
        other_code = f"mount --bind {folder}/errors.py {ROOT}/mtvl/errors.py && exec {sshd} {options} -p 2222"
        (folder / "errors.py").write_text((ROOT / "mtvl" / "errors.py").read_text() + "# another machine\n")
        for name, start in (
            (names[0], f"exec {sshd} {options}"),
            (names[1], f"exec {sshd} {options}"),
            (names[1], other_code),
        ):
            log = (folder / f"{name}.log").open("ab")
            daemons.append(subprocess.Popen(["ip", "netns", "exec", name, "sh", "-c", start], stderr=log))
        machines = Machines(names, addresses, folder)
        for address in (*addresses, OTHER):
            _wait_for_ssh(machines, address)
        yield machines
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()
        for name in names:
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for number in left.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), 9)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _prepare_ssh(folder: Path) -> None:
    """Keys, the daemons' configuration, and an `ssh` that uses them: ssh itself looks for keys in the real home alone."""
    for name in ("host_key", "user_key"):
        _must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nPidFile none\nPasswordAuthentication no\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
        f"LogLevel ERROR\nHost {OTHER}\nHostName 10.99.0.2\nPort 2222\n"
    )
    wrapper = folder / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)


def _wait_for_ssh(machines: Machines, address: str) -> None:
    deadline = time.monotonic() + 30
    while (done := machines.run("ssh", address, "true", seconds=30)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.3)
