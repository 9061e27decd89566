"""Processes: environment variables, the process group, and a clean end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import logging
import os
import re
import resource
import shutil
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as torch_dist

from mtvl import dist
from mtvl.engine.meeting import LIMIT_VARIABLE, is_needed, limit_seconds, meet_others
from mtvl.errors import EngineError, LostRankError
from mtvl.machine import check_interfaces, differences, versions

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_OP = "deepspeed_shm_comm"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h

log = logging.getLogger(__name__)
_device: torch.device | None = None


def start(device: str | None = None, local_rank: int | None = None) -> torch.device:
    """Join or make the process group (NCCL on GPUs, else gloo) and return this rank's device.

    Works under `deepspeed`, `torchrun`, `srun` with exported variables, and in a plain process, for which the variables
    are set here with a free port. LOCAL_RANK from the environment wins over `local_rank`. A second call returns the
    device of the first. Raises EngineError when the launcher's variables are incomplete or the device does not exist; the
    process ends with LostRankError's code when another rank does not come within MTVL_MEETING_SECONDS.
    """
    global _device
    if _device is not None:
        return _device
    _set_launcher_variables(local_rank)
    several_machines = is_needed()  # before the variables of a single machine are filled in
    chosen = _choose_device(device)
    check_interfaces()
    _set_build_variables()
    import deepspeed  # after the variables above, which it reads on import

    _quiet()
    if chosen.type == "cpu":
        _keep_freed_memory()
        _leave_out_shared_memory_op()
        atexit.register(remove_shared_memory)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if several_machines:
        meet_others(backend)
    try:
        # DeepSpeed prints what it built.
        with contextlib.redirect_stdout(io.StringIO()), _together_in_time(limit_seconds()):
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
    except torch_dist.DistNetworkError as error:
        raise EngineError(
            f"the ranks cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({error}); does another "
            "job use this port? Give the launcher another one, e.g. deepspeed --master_port 29600"
        ) from None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _compare_versions()
    _device = chosen
    return chosen


@contextlib.contextmanager
def _together_in_time(seconds: float) -> Iterator[None]:
    """End this process when the ranks are not together in time, e.g. since one has died: torch would wait for half an hour,
    and no exception reaches it there."""

    def give_up() -> None:
        print(
            f"mtvl: error: rank {dist.rank()} of {dist.world_size()} waited {seconds:g} s for the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, and one did not come; its own output says why. Start the "
            f"same command again; {LIMIT_VARIABLE} makes all wait longer",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(LostRankError.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    if dist.world_size() > 1:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _compare_versions() -> None:
    """Under torchrun, which brings the ranks together itself: EngineError unless all run the same programs."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return
    everyone = dist.gather_objects((socket.gethostname(), versions()))
    lines = differences({f"rank {rank} ({host})": own for rank, (host, own) in enumerate(everyone)})
    if lines:
        raise EngineError(
            "the ranks do not run the same programs; " + "; ".join(lines) + "; install the same on all machines"
        )


def _set_launcher_variables(local_rank: int | None) -> None:
    present = [name for name in LAUNCHER_VARIABLES if name in os.environ]
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
        return
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise EngineError(
            f"the launcher set {', '.join(present)} but not {', '.join(missing)}; set all of "
            f"{', '.join(LAUNCHER_VARIABLES)} and LOCAL_RANK, or none of them for a single process"
        )
    if "LOCAL_RANK" not in os.environ:
        if local_rank is None and torch.cuda.is_available():
            raise EngineError("LOCAL_RANK is not set and --local_rank was not given: the GPU of this rank is unknown")
        os.environ["LOCAL_RANK"] = str(local_rank if local_rank is not None else os.environ["RANK"])
    _number("RANK", 0, _number("WORLD_SIZE", 1) - 1)
    _number("LOCAL_RANK", 0)
    _number("MASTER_PORT", 0, 2**16 - 1)
    if os.environ["WORLD_SIZE"] == "1" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        # Nobody else has to find this port, and a launcher's fixed one may belong to another job of this machine.
        os.environ["MASTER_PORT"] = _free_port()


def _number(name: str, least: int, most: int | None = None) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        wanted = f"from {least}" + ("" if most is None else f" to {most}")
        raise EngineError(
            f"the launcher's variable {name} expects a number {wanted}, found {text!r}; see docs/multi_node.md for what each "
            "launcher sets"
        )
    return int(text)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _choose_device(device: str | None) -> torch.device:
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Without it DeepSpeed starts a subprocess in every micro-step to count the machine's NUMA nodes.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        return torch.device("cpu")
    index = int(os.environ["LOCAL_RANK"])
    if not kind.startswith("cuda") or index >= torch.cuda.device_count():
        raise EngineError(f"no device '{kind}' with index {index}: {torch.cuda.device_count()} GPUs are visible")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _set_build_variables() -> None:
    """Give extensions that DeepSpeed compiles a cache of this environment, and find the environment's ninja."""
    binaries = str(Path(sys.prefix) / "bin")
    if binaries not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([binaries, os.environ.get("PATH", "")])
    # The default cache is shared by all environments, which then rebuild and block each other.
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def _quiet() -> None:
    """Warnings only; and not the one about an optimizer it does not know, which is ours on purpose."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    # DeepSpeed still calls collectives by the names that torch is about to drop; a warning on each step helps nobody.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step.

    By default each large tensor is memory of its own that goes back to the system when it is freed, and whose pages are
    cleared and mapped anew in the next step: up to a seventh of a step of full fine-tuning at BART-base size.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(ctypes.c_int(M_MMAP_MAX), ctypes.c_int(0))
        libc.mallopt(ctypes.c_int(M_TRIM_THRESHOLD), ctypes.c_int(-1))


def _leave_out_shared_memory_op() -> None:
    """Tell DeepSpeed not to build its shared-memory all-reduce, which only inference uses.

    Building wants g++ and ninja and a minute at the first launch, and each rank would then leave 66 MiB in /dev/shm,
    after a kill too.
    """
    import deepspeed.ops as ops

    table = getattr(ops, "__compatible_ops__", None)
    if isinstance(table, dict) and SHARED_MEMORY_OP in table:
        table[SHARED_MEMORY_OP] = False
        return
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        raise EngineError(
            f"this version of DeepSpeed compiles a small extension at its first start on a CPU and needs "
            f"{' and '.join(missing)}; install g++ with the system's packages and ninja with 'pip install ninja'"
        )


def shared_memory_name() -> str:
    """Name of this rank's DeepSpeed segment under /dev/shm, without the folder."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    return f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{os.environ.get('RANK', '0')}"


def remove_shared_memory(folder: Path = SHARED_MEMORY) -> None:
    """Remove this rank's own segment, if a DeepSpeed with the shared-memory op made one; never another run's."""
    (folder / shared_memory_name()).unlink(missing_ok=True)


def peak_memory() -> int:
    """Most bytes that this rank has held so far: of its GPU's memory, without one of the machine's."""
    if _device is not None and _device.type == "cuda":
        return torch.cuda.max_memory_allocated(_device)
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage begins with what the parent process held when it started this one
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found is not None:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def finish(code: int = 0) -> NoReturn:
    """End this process with `code`: flush, wait for the other ranks (only when code is 0), leave.

    On a CPU the interpreter is left without its usual tear-down: under ZeRO-3 threads of the process group sometimes
    abort there, after all work is done, and the launcher would call that a failure.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 0:
        dist.barrier()
    if _device is not None and _device.type == "cpu":
        remove_shared_memory()
        os._exit(code)
    if code == 0 and dist.is_active():
        torch_dist.destroy_process_group()
    sys.exit(code)
