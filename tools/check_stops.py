"""Stop a run that `deepspeed` has started, through each of its processes, and go on each time with the same command.

    python tools/check_stops.py [--targets launcher,command,...] [--keep DIR] [key=value ...]

One run of the default recipe on the smallest miniworld, on two ranks, gets a SIGTERM five times: to rank 0, to rank 1, to
the node's launcher, to the command that was typed, and to its whole process group. Each time all processes have to be gone
within 25 seconds with a whole checkpoint of the last step in the log, and nothing of theirs in /dev/shm. In the end it has
the same bits in every trained tensor and moment, and the same log, as a run that nobody stopped. Exit code 1 when not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from check_kills import PATIENCE_SECONDS, ROOT, SMALL, _free_port, differences, steps_logged

from mtvl.checkpoint import find_resumable
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.errors import ConfigError, MtvlError, near_names

STEPS, EVERY = 60, 10
LIMIT_SECONDS = 25.0
TARGETS = ("rank 0", "rank 1", "launcher", "command", "group")


@dataclass(frozen=True)
class Launch:
    """The processes of one `deepspeed` command, which is the leader of a session of its own."""

    command: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> dict[str, int]:
        """The processes that run, by name."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_text().split("\0")
                if int(fields[3]) != self.command.pid or fields[0] == "Z":
                    continue
                rank = [w.removeprefix("--local_rank=") for w in words if w.startswith("--local_rank=")]
                is_launcher = "deepspeed.launcher.launch" in words
                name = "command" if int(entry.name) == self.command.pid else f"process {entry.name}"
                found[f"rank {rank[0]}" if rank else "launcher" if is_launcher else name] = int(entry.name)
        return found

    def wait(self, seconds: float) -> float | None:
        """Seconds until no process of it was left; None when some were left after `seconds`."""
        begin = time.monotonic()
        while self.command.poll() is None or self.pids():
            if time.monotonic() - begin > seconds:
                return None
            time.sleep(0.05)
        return time.monotonic() - begin

    def kill(self) -> None:
        """SIGKILL to what is left."""
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start(home: Path, run: Path, overrides: Sequence[str]) -> Launch:
    """The command as it is typed."""
    program = str(Path(sys.executable).with_name("deepspeed"))
    words = [program, "--num_accelerators", "2", "--master_port", _free_port(), str(ROOT / "launch" / "train.py"),
             "--tasks", "vqa,gqa,nlvr2,coco", "--run", str(run), *SMALL, f"train.steps={STEPS}",
             f"checkpoint.every_steps={EVERY}", f"data.root={home / 'world'}", f"data.cache={home / 'cache'}",
             *overrides]  # fmt: skip
    log = run.with_suffix(".out")
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    with log.open("ab") as file:
        command = subprocess.Popen(
            words, cwd=home, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    return Launch(command, log)


def to_the_end(home: Path, run: Path, overrides: Sequence[str]) -> None:
    """Start the run once more and wait for its end."""
    launch = start(home, run, overrides)
    try:
        if launch.wait(PATIENCE_SECONDS) is None:
            raise MtvlError(f"no end within {PATIENCE_SECONDS:.0f} s; see {launch.log}")
    finally:
        launch.kill()
    if launch.command.returncode:
        tail = "\n".join(launch.log.read_text(errors="replace").splitlines()[-15:])
        raise MtvlError(f"ended with code {launch.command.returncode}:\n{tail}")


def stop(home: Path, run: Path, overrides: Sequence[str], target: str, after: int) -> list[str]:
    """Start the run, stop it through `target` after step `after`; what is wrong with its end."""
    launch = start(home, run, overrides)
    try:
        begin = time.monotonic()
        while steps_logged(run) < after:
            if time.monotonic() - begin > PATIENCE_SECONDS or launch.command.poll() is not None:
                raise MtvlError(f"step {after} did not come; see {launch.log}")
            time.sleep(0.02)
        pids = launch.pids()
        if not {"rank 0", "rank 1", "launcher", "command"} <= pids.keys():
            raise MtvlError(f"expected two ranks, a launcher and a command, found {', '.join(sorted(pids))}")
        begin = time.time()
        os.killpg(pids["command"], signal.SIGTERM) if target == "group" else os.kill(pids[target], signal.SIGTERM)
        seconds = launch.wait(LIMIT_SECONDS)
        left = launch.pids()
    finally:
        launch.kill()
    found, last = find_resumable(run), steps_logged(run)
    print(f"SIGTERM to {target}: {'still running' if seconds is None else f'all gone after {seconds:.1f} s'}, the command with "
          f"code {launch.command.returncode}; last step {last}, newest checkpoint {found and found[1]}", flush=True)  # fmt: skip
    faults = [f"{', '.join(sorted(left))} still ran after {LIMIT_SECONDS:.0f} s"] if seconds is None else []
    if found is None or found[1] != last:
        faults.append(f"the newest checkpoint is {found and found[1]}, the log ends with step {last}")
    if f"stopped by a signal after step {last}; the state is saved" not in launch.log.read_text(errors="replace"):
        faults.append(f"nobody said that it was stopped after step {last}")
    if segments := [p.name for p in Path("/dev/shm").glob("deepspeed_*") if p.stat().st_mtime > begin]:
        faults.append(f"left in /dev/shm: {', '.join(segments)}")
    return [f"SIGTERM to {target}: {fault}" for fault in faults]


def check(home: Path, targets: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """All stops in one run; what is wrong."""
    ensure_miniworld(home / "world", size="tiny", progress=lambda _: None)
    to_the_end(home, home / "undisturbed", overrides)
    print(f"undisturbed: {STEPS} steps", flush=True)
    run, faults = home / "stopped", []
    for number, target in enumerate(targets):
        faults += stop(home, run, overrides, target, after=4 + (STEPS - 10) // len(targets) * number)
    to_the_end(home, run, overrides)
    return faults + differences(run, home / "undisturbed", STEPS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS), help="who gets the signals, in this order")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="an empty folder, in which all stays")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. engine.file=ds_configs/zero3.json")
    args = parser.parse_intermixed_args(arguments)
    if stray := [text for text in args.overrides if "=" not in text]:
        parser.error(f"expected key=value, found {stray[0]!r}")
    targets = [target.strip() for target in args.targets.split(",") if target.strip()]
    if unknown := [target for target in targets if target not in TARGETS] or ([] if targets else [""]):
        parser.error(f"unknown target {unknown[0]!r}; {near_names(unknown[0], TARGETS)}")
    with contextlib.ExitStack() as stack:
        try:
            if args.keep is not None and args.keep.exists() and any(args.keep.iterdir()):
                raise ConfigError(f"--keep expects an empty folder, {args.keep} holds files")
            home = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtvl_stops_")))
            home.mkdir(parents=True, exist_ok=True)
            faults = check(home.resolve(), targets, args.overrides)
        except MtvlError as error:
            print(f"check_stops: error: {error}", file=sys.stderr)
            return 2
    for fault in faults:
        print(f"FAIL {fault}")
    print("the run ended with the same bits and the same log" if not faults else f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
