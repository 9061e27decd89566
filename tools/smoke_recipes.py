"""Train every full-size recipe for a few steps with random weights on a CPU: counts, losses, and what moves.

    python tools/smoke_recipes.py [PATTERN ...] [key=value ...] [--steps 3]

PATTERN chooses recipes by name (vl_adapter/table1_*, clip_bart_image); default: all whose header has a row. Each runs in
a process of its own, one after the other, by the trainer itself and with the recipe's own model, method, optimizer and
engine file; what differs is in tools/recipe_checks/smoke.py: no public weights, features that are random numbers, and
two examples a step. A line a recipe, exit 1 when one fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

try:
    import mtvl.errors  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipe_checks.header import Header, chosen  # noqa: E402

from mtvl.config import RunConfig, load_run_config  # noqa: E402
from mtvl.errors import MtvlError  # noqa: E402
from mtvl.report import format_seconds  # noqa: E402


def run_one(header: Header, root: Path, folder: Path, steps: int, changes: Sequence[str]) -> tuple[str, list[str]]:
    """Smoke-test one recipe in a forked process; its line and what is wrong with it."""
    log = folder.with_suffix(".log")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # Forked, so that the libraries are imported once; nothing has started threads or a process group yet.
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(sender, log, header, root, folder, steps, changes)
    )
    child.start()
    sender.close()
    try:
        line, faults = receiver.recv()
    except EOFError:  # it ended without a word; its exit code and what it printed follow
        line, faults = f"FAIL {header.name}", ["no result came back"]
    except BaseException:  # asked to stop: the child must not stay behind
        child.kill()
        raise
    child.join()
    if child.exitcode:
        tail = log.read_text(errors="replace").splitlines()[-15:] if log.is_file() else []
        faults = [*faults, f"the process ended with exit code {child.exitcode}", *tail]
    return line.replace("PASS", "FAIL", 1) if faults else line, faults


def _child(
    sender: Connection, log: Path, header: Header, root: Path, folder: Path, steps: int, changes: Sequence[str]
) -> None:  # fmt: skip
    """Runs in the process of one recipe: everything that is printed goes to `log`."""
    from recipe_checks.smoke import smoke

    output = log.open("w", buffering=1)  # a line at a time: a process that dies must not take them along
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    sys.stdout = sys.stderr = output
    try:
        outcome = smoke(header, root, folder, steps=steps, changes=changes)
        sender.send((outcome.line(), list(outcome.faults)))
    except MtvlError as error:
        sender.send((f"FAIL {header.name}", [str(error)]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def smoke_all(headers: Sequence[Header], steps: int, changes: Sequence[str]) -> int:
    """Number of recipes that fail."""
    from recipe_checks import smoke  # slow, and shared by all processes
    from recipe_checks.world import make_pixel_world, make_stored_world

    from mtvl.workspace import cache_folder

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that process and files are cleared away
    begin, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="mtvl-smoke-") as temporary:
        folder = Path(temporary)
        on_pixels = {h.name for h in headers if smoke.reads_pixels(load_run_config(h.recipe))}
        stored = [h for h in headers if h.name not in on_pixels]
        tasks = dict.fromkeys(task for h in stored for task in load_run_config(h.recipe).tasks)
        miniworld = cache_folder(RunConfig()) / "miniworld-tiny"  # worth keeping: its videos take seconds

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        root = make_stored_world(folder / "root", miniworld, tasks, say) if stored else folder
        pixels = make_pixel_world(folder / "pixels", miniworld, say) if on_pixels else folder
        for done, header in enumerate(headers, start=1):
            run = folder / header.name.replace("/", "-")
            line, faults = run_one(header, pixels if header.name in on_pixels else root, run, steps, changes)
            failed += bool(faults)
            print("\n".join([line, *(f"     {fault}" for fault in faults)]), flush=True)
            spent = time.monotonic() - begin
            eta = spent / done * (len(headers) - done)
            print(
                f"{done}/{len(headers)} | {format_seconds(spent)} eta {format_seconds(eta)}",
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(run, ignore_errors=True)  # with full fine-tuning it holds gigabytes
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit 1 when a recipe fails, 2 on unusable input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN | key=value")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="training steps; default: 3")
    options = parser.parse_intermixed_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps expects a number above 0, found {options.steps}")
    changes = [word for word in options.patterns if "=" in word]
    try:
        headers = chosen([word for word in options.patterns if word not in changes])
        for header in headers:
            load_run_config(header.recipe, (), changes)
        failed = smoke_all(headers, options.steps, changes)
    except MtvlError as error:
        print(f"smoke_recipes: error: {error}", file=sys.stderr)
        return 2
    print(f"{len(headers) - failed} of {len(headers)} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
