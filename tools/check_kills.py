"""Kill a training run at random moments, start it again until it ends, and compare it with one that nobody disturbed.

    python tools/check_kills.py [--runs 30] [--seed 0] [--ranks 1] [--fresh] [--keep DIR] [key=value ...]

Each run is the default recipe on the smallest miniworld, cut to seconds, with dropout and with many saves. It gets one to
three SIGKILLs: after a random time (also while it starts), at a random step, or while a checkpoint is being written; with
several ranks all of them are killed, or one, and then the others have to end by themselves. It then has to end with the
same bits in every trained tensor and moment, with the same log without gaps or repeats, and without leftovers on the disk
or in shared memory. Processes are forked from one that has imported everything; `--fresh` starts new interpreters, as
users do. A run is repeated by its seed and number (`--only N`), up to the time that the machine takes. Exit code 1 when a
run differs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    # Before torch and DeepSpeed are imported: a process that holds a GPU cannot be forked.
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")

import torch
from safetensors.torch import load_file

from mtvl.cli import DEFAULT_RECIPE
from mtvl.cli import main as run_mtvl
from mtvl.config import load_run_config
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.errors import ConfigError, MtvlError
from mtvl.report import format_seconds

ROOT = Path(__file__).resolve().parents[1]
SHARED_MEMORY = Path("/dev/shm")
STEPS = 20
MOMENTS = ("time", "step", "save")
PATIENCE_SECONDS = 180.0  # a start that takes longer hangs
ALONE_SECONDS = 60.0  # ranks that lost another one end within it
SMALL = (
    f"train.steps={STEPS}", "train.global_batch=4", "train.micro_batch=2", "checkpoint.every_steps=2",
    "checkpoint.keep_last=2", "backbone.dropout=0.1", "train.stuck_seconds=30",
)  # fmt: skip
# What depends on the clock and the machine alone.
NOT_COMPARED = ("samples_per_second", "memory_bytes", "save_stall_seconds")


@dataclass
class Attempt:
    """The processes of one start of a run, by rank."""

    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Collect what has ended; True when all have."""
        for pid in self.pids:
            if pid not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def wait(self, seconds: float) -> bool:
        """True when all ended in time."""
        until = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def kill(self, pids: Sequence[int] | None = None) -> None:
        """SIGKILL, by process id."""
        for pid in self.pids if pids is None else pids:
            if pid not in self.codes:
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Setup:
    """What all runs share."""

    home: Path
    ranks: int
    fresh: bool
    overrides: tuple[str, ...]

    def start(self, run: Path, *overrides: str) -> Attempt:
        """Start the run, or go on with it."""
        words = ["train", "--tasks", "vqa,gqa,nlvr2,coco", "--run", str(run), *SMALL, f"data.root={self.home / 'world'}",
                 f"data.cache={self.home / 'cache'}", *self.overrides, *overrides]  # fmt: skip
        port = _free_port() if self.ranks > 1 else ""
        log = run.with_suffix(".out")
        return Attempt([self._fork(words, rank, port, log) for rank in range(self.ranks)])

    def _fork(self, words: list[str], rank: int, port: str, log: Path) -> int:
        pid = os.fork()
        if pid:
            return pid
        with contextlib.suppress(OSError):
            target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
        if port:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.ranks), MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=port, MTVL_MEETING_SECONDS=f"{ALONE_SECONDS / 2:g}")  # fmt: skip
        if self.fresh:
            os.execv(sys.executable, [sys.executable, str(ROOT / "launch" / "train.py"), *words[1:]])
        os._exit(run_mtvl(words))  # nothing of the parent may run twice


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def steps_logged(run: Path) -> int:
    """Whole lines in the log."""
    file = run / "log.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written now."""
    folder = run / "checkpoints"
    with contextlib.suppress(FileNotFoundError):
        return any(name.endswith((".tmp", ".old")) for name in os.listdir(folder))
    return False


def disturb(attempt: Attempt, run: Path, chance: random.Random, whole_seconds: float, surely: bool) -> str:
    """Kill `attempt` at a random moment; returns in words where it was, or "" when it ended before that.

    `surely` leaves out the moments that may come too late.
    """
    moment = chance.choice(MOMENTS[1:] if surely else MOMENTS)
    begin, seen, was_saving = time.monotonic(), 0, False
    wanted_seconds = chance.uniform(0, 1.1 * whole_seconds)
    wanted_step = chance.randint(1, STEPS - 6 if surely else STEPS)
    wanted_save = 1 if surely else chance.randint(1, 4)
    delay = chance.uniform(0, 0.02) if moment == "save" else chance.uniform(0, 0.1)
    while not attempt.poll():
        now_saving = is_saving(run)
        seen, was_saving = seen + (now_saving and not was_saving), now_saving
        if {
            "time": time.monotonic() - begin > wanted_seconds,
            "step": steps_logged(run) >= wanted_step,
            "save": seen >= wanted_save,
        }[moment]:
            time.sleep(delay)
            break
        if time.monotonic() - begin > PATIENCE_SECONDS:
            raise MtvlError(f"no end and no {moment} in {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.001)
    if attempt.poll():
        return ""
    alone = len(attempt.pids) > 1 and chance.random() < 0.5
    attempt.kill([chance.choice(attempt.pids)] if alone else None)
    place = "while saving" if is_saving(run) else f"after step {steps_logged(run)}"
    if not attempt.wait(ALONE_SECONDS):
        attempt.kill()
        attempt.wait(ALONE_SECONDS)
        raise MtvlError(f"a rank was killed {place}, and another did not end within {ALONE_SECONDS:.0f} s")
    return place + (" (one rank)" if alone else "")


def to_the_end(setup: Setup, run: Path, *overrides: str) -> None:
    """Start the run once more and wait for its end."""
    attempt = setup.start(run, *overrides)
    if not attempt.wait(PATIENCE_SECONDS):
        attempt.kill()
        raise MtvlError(f"no end within {PATIENCE_SECONDS:.0f} s")
    if any(attempt.codes.values()):
        tail = "\n".join(run.with_suffix(".out").read_text(errors="replace").splitlines()[-15:])
        raise MtvlError(f"ended with code {max(attempt.codes.values(), key=abs)}:\n{tail}")


def differences(run: Path, straight: Path, num_steps: int = STEPS) -> list[str]:
    """What differs from the undisturbed run of `num_steps` steps."""
    faults = []
    for name in (f"checkpoints/step_{num_steps}/engine.safetensors", "export/adapter.safetensors"):
        ours, theirs = load_file(run / name), load_file(straight / name)
        other = [
            k for k in sorted({*ours, *theirs}) if k not in ours or k not in theirs or not _same(ours[k], theirs[k])
        ]
        if other:
            faults.append(f"{len(other)} of {len(theirs)} tensors in {name}, e.g. {other[0]}")
    logs = [_records(folder) for folder in (run, straight)]
    steps = [r["step"] for r in logs[0]]
    if steps != list(range(1, num_steps + 1)):
        faults.append(f"the steps in the log are {steps}")
    elif logs[0] != logs[1]:
        first = next(a["step"] for a, b in zip(*logs, strict=True) if a != b)
        faults.append(f"the log differs from step {first} on")
    if json.loads((run / "DONE").read_text()) != json.loads((straight / "DONE").read_text()):
        faults.append("DONE differs")
    kept = [sorted(p.name for p in (folder / "checkpoints").iterdir()) for folder in (run, straight)]
    # The checkpoint that was resumed from is kept as well.
    if (
        not {*kept[1]} <= {*kept[0]}
        or len(kept[0]) > len(kept[1]) + 1
        or any(n.endswith((".tmp", ".old")) for n in kept[0])
    ):
        faults.append(f"the checkpoints are {', '.join(kept[0])}, expected {', '.join(kept[1])}")
    return faults


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def _records(run: Path) -> list[dict[str, object]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


def one_run(setup: Setup, number: int, seed: int, kills: int, whole_seconds: float) -> tuple[list[str], list[str]]:
    """One disturbed run: where it was killed (`kills` times; 0: one to three), and what is wrong with it."""
    chance, run = random.Random(f"{seed}:{number}"), setup.home / f"run_{number}"
    places: list[str] = []
    try:
        wanted = kills or chance.randint(1, 3)
        for _ in range(wanted):
            if place := disturb(setup.start(run), run, chance, whole_seconds, surely=kills > 0):
                places.append(place)
        if kills and len(places) < kills:
            raise MtvlError(f"{len(places)} of {kills} kills came before the run had ended; take another seed")
        to_the_end(setup, run)
        faults = differences(run, setup.home / "undisturbed")
    except (MtvlError, OSError, ValueError) as error:
        faults = [str(error)]
    if not faults:
        shutil.rmtree(run)
    return places, faults


def shared_memory() -> set[str]:
    """Segments that ranks of this user have left in shared memory."""
    return {p.name for p in SHARED_MEMORY.glob(f"deepspeed_*_{os.getuid()}_*")}


def check(setup: Setup, numbers: Sequence[int], seed: int, kills: int = 0) -> int:
    """All runs; returns how many were as undisturbed. MtvlError when they left segments in shared memory."""
    segments = shared_memory()
    ensure_miniworld(setup.home / "world", size="tiny", progress=lambda _: None)
    to_the_end(setup, setup.home / "warm_up", "train.steps=1")  # computes the features
    begin = time.monotonic()
    to_the_end(setup, setup.home / "undisturbed")
    whole = time.monotonic() - begin
    print(f"undisturbed: {STEPS} steps with {STEPS // 2} saves in {whole:.1f} s", flush=True)
    good, kinds, begin = 0, Counter[str](), time.monotonic()
    for done, number in enumerate(numbers, start=1):
        places, faults = one_run(setup, number, seed, kills, whole)
        good += not faults
        kinds.update("while saving" if "saving" in p else "while starting" if " 0" in p else "between" for p in places)
        spent = time.monotonic() - begin
        eta = format_seconds(spent / done * (len(numbers) - done))
        verdict = "same bits" if not faults else "DIFFERS: " + "; ".join(faults)
        print(f"run {number}: killed {', '.join(places) or 'never, it was faster'}: {verdict} "
              f"({done} of {len(numbers)} done, {format_seconds(spent)} eta {eta})", flush=True)  # fmt: skip
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    print(
        f"{good} of {len(numbers)} runs ended with the same bits and the same log; kills: {sum(kinds.values())} ({counts})"
    )
    if left := shared_memory() - segments:
        raise MtvlError(f"{len(left)} segments were left in {SHARED_MEMORY}, e.g. {min(left)}")
    return good


def import_all() -> None:
    """Import once, for all forks, what a run imports on its way: it takes longer than the run itself."""
    from mtvl.data.formats import FORMATS
    from mtvl.model import build_model
    from mtvl.tasks import TASKS

    # DeepSpeed and TensorBoard import the last ones late; other versions may have them elsewhere.
    for late in ("mtvl.train", "torch.utils.tensorboard", "torch._inductor.compile_fx",
                 "deepspeed.runtime.zero.muon.muon_optimizer"):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(late)
    for registry in (FORMATS, TASKS):
        for name in registry:
            registry.load(name)
    build_model(load_run_config(DEFAULT_RECIPE))


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, metavar="N", help="run N alone")
    parser.add_argument("--kills", type=int, default=0, metavar="K", help="K in each run; default: one to three")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="a new interpreter for every start")
    parser.add_argument(
        "--keep", type=Path, default=None, metavar="DIR", help="an empty folder; runs that differ stay in it"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. engine.file=ds_configs/zero3.json")
    args = parser.parse_intermixed_args()
    numbers = list(range(args.runs)) if args.only is None else [args.only]
    with contextlib.ExitStack() as stack:
        try:
            if args.runs < 1 or args.ranks < 1:
                raise ConfigError(f"--runs and --ranks expect numbers above 0, found {args.runs} and {args.ranks}")
            if args.keep is not None and args.keep.exists() and any(args.keep.iterdir()):
                raise ConfigError(f"--keep expects an empty folder, {args.keep} holds files")
            home = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtvl_kills_")))
            home.mkdir(parents=True, exist_ok=True)
            import_all()
            setup = Setup(home.resolve(), args.ranks, args.fresh, tuple(args.overrides))
            good = check(setup, numbers, args.seed, args.kills)
        except MtvlError as error:
            print(f"check_kills: error: {error}", file=sys.stderr)
            return 2
    return 0 if good == len(numbers) else 1


if __name__ == "__main__":
    sys.exit(main())
