"""Resume states on disk: written atomically, verified before use, kept in number.

A run folder holds `checkpoints/step_N/` with whatever the writers put there, `state.json` (step, fingerprints, progress)
and `manifest.json` (size and sha256 of every other file). A folder under its final name is complete: it is written as
`step_N.tmp`, flushed to the disk and renamed, by rank 0 alone (`mtvl.saving` does so while training goes on). All
functions with ranks in mind decide on rank 0 and tell the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtvl import dist
from mtvl.data.shards import sha256_of
from mtvl.errors import FULL_DISK, CheckpointError, ConfigError, MtvlError

FORMAT = 1
FOLDER, MANIFEST, STATE, DONE = "checkpoints", "manifest.json", "state.json", "DONE"
STEP_NAME = re.compile(r"step_(\d+)")
UNFINISHED = (".tmp", ".old")

log = logging.getLogger(__name__)


def write_checkpoint(
    run: Path,
    step: int,
    writer: Callable[[Path], None],
    fingerprints: Mapping[str, str],
    progress: Mapping[str, Any] | None = None,
) -> Path:
    """Write `run/checkpoints/step_N` and return it. One process alone may do so, in any thread: no collective.

    `writer(folder)` puts its files, those of all ranks, into the temporary folder. `fingerprints` name what the state
    belongs to (base weights, plan, tasks, groups) and are compared on resume; `progress` is plain JSON of the caller.
    Raises CheckpointError when it cannot be written (a full disk); the checkpoints that were there stay as they are, and
    what was written of this one is removed.
    """
    final = run / FOLDER / f"step_{step}"
    folder = final.with_name(final.name + ".tmp")
    state = {"format": FORMAT, "step": step, "fingerprints": dict(fingerprints), "progress": dict(progress or {})}
    try:
        _make_empty(folder)
        writer(folder)
        _seal(folder, final, state)
    except (OSError, MtvlError) as error:
        shutil.rmtree(folder, ignore_errors=True)  # half a checkpoint on a full disk helps nobody
        raise CheckpointError(f"the checkpoint of step {step} was not written; {error}. {left_of(run)}") from error
    return final


def left_of(run: Path) -> str:
    """Words on what a run that breaks off can go on from."""
    steps = steps_of(run)
    if not steps:
        return f"There is no checkpoint in {run} yet: the same command begins again"
    return f"{run / FOLDER / f'step_{steps[-1]}'} stays: the same command goes on from there"


def run_folder(run: Path | None, recipe: Path) -> Path:
    """`run`, or a new folder runs/RECIPE-TIME of this start alone, the same on all ranks; runs/latest points to it.

    ConfigError where it cannot be made.
    """
    failure = ""
    if dist.is_main():
        try:
            run = _made(run, f"{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
        except OSError as error:
            failure = f"--run {run or 'runs'}: expected a folder that can be written to, found: {error.strerror}; give another"
    run, failure = dist.broadcast_object((run, failure))  # on every rank, or the others would wait
    if run is None or failure:
        raise ConfigError(failure)
    return run


def _made(run: Path | None, name: str) -> Path:
    if run is not None:
        run.mkdir(parents=True, exist_ok=True)
    else:
        run = _new_folder(Path("runs"), name)
    if run.parent == Path("runs"):
        link = run.parent / "latest"
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # another start of the same moment has made it
                link.symlink_to(run.name)
    return run


def _new_folder(parent: Path, name: str) -> Path:
    """A folder that was not there before: two starts in one second must not write into one."""
    parent.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        number += 1


@contextlib.contextmanager
def full_disks_named(run: Path) -> Iterator[None]:
    """CheckpointError in place of an OSError of a disk that takes no more, with what is left of the run."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise CheckpointError(
            f"cannot write {error.filename or 'into ' + str(run)} ({error.strerror}); make room there. {left_of(run)}"
        ) from error


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _seal(folder: Path, final: Path, state: Mapping[str, Any]) -> None:
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    entries = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": sha256_of(p)} for p in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"format": FORMAT, "files": entries}, indent=1), encoding="utf-8")
    for path in [*files, manifest, folder]:
        flush(path)
    if final.exists():  # the same step again, after a resume from an older checkpoint
        retired = final.with_name(final.name + ".old")
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(final, retired)
        os.replace(folder, final)
        shutil.rmtree(retired)
    else:
        os.replace(folder, final)
    flush(final.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None when every file of its manifest is there, whole and unchanged."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes, expected {entry['size']}"
            if sha256_of(path) != entry["sha256"]:
                return f"{name} was changed (sha256 differs)"
        if STATE not in files:
            return f"{MANIFEST} does not list {STATE}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    return None


def steps_of(run: Path) -> list[int]:
    """Steps of the checkpoints under their final names, in order; nothing is verified."""
    matches = (STEP_NAME.fullmatch(p.name) for p in (run / FOLDER).glob("step_*") if p.is_dir())
    return sorted(int(m[1]) for m in matches if m)


def find_resumable(run: Path) -> tuple[Path, int] | None:
    """The newest undamaged checkpoint of a run and its step, or None. The same on all ranks; warns of damaged ones."""
    found = None
    if dist.is_main():
        for step in reversed(steps_of(run)):
            folder = run / FOLDER / f"step_{step}"
            problem = damage(folder)
            if problem is None:
                found = (str(folder), step)
                break
            log.warning("skipping damaged checkpoint %s: %s", folder, problem)
    found = dist.broadcast_object(found)
    return None if found is None else (Path(found[0]), int(found[1]))


def require_folder(folder: Path) -> None:
    """CheckpointError on all ranks unless rank 0 finds `folder`."""
    if not dist.broadcast_object(folder.is_dir()):
        raise CheckpointError(f"cannot resume from {folder}: there is no such folder")


def open_checkpoint(folder: Path) -> tuple[Path, int]:
    """Verify an explicitly named checkpoint (`.../step_N`, or a run folder: its newest) and return it with its step.

    Raises CheckpointError on all ranks when it is missing or damaged: a named checkpoint is never replaced by another.
    """
    require_folder(folder)
    if not STEP_NAME.fullmatch(folder.name):
        found = find_resumable(folder)
        if found is None:
            raise CheckpointError(f"no usable checkpoint in {folder / FOLDER}; expected folders named step_N")
        return found
    problem = None
    if dist.is_main():
        problem = damage(folder)
    problem = dist.broadcast_object(problem)
    if problem is not None:
        raise CheckpointError(f"cannot resume from {folder}: {problem}")
    return folder, int(folder.name.removeprefix("step_"))


def resolve_resume(mode: str, run: Path) -> tuple[Path, int] | None:
    """What `--resume auto|never|DIR` means for a run folder: the checkpoint and its step, or None for a fresh start.

    A run that branched off from DIR and was stopped goes on from its own checkpoints, so that the same command may be given
    again. CheckpointError for a DIR that cannot be used, and for one of the run folder's own that is not its newest.
    """
    if mode == "never":
        return None
    if mode != "auto":
        named, own = open_checkpoint(Path(mode)), find_resumable(run)
        if own is None or own[1] <= named[1]:
            return named
        if named[0].resolve().parent == own[0].resolve().parent:  # the log would lose the steps between
            raise CheckpointError(
                f"{run} already holds {own[0].name}, which is newer than {named[0]}; --resume auto goes on from it, and with "
                f"another --run training branches off from {named[0].name}"
            )
        if dist.is_main():
            log.info("resuming from %s, which is newer than %s", *(str(place) for place, _ in (own, named)))
        return own
    found = find_resumable(run)
    if dist.is_main():
        log.info("resuming from %s", found[0]) if found else log.info("no checkpoint in %s: starting fresh", run)
    return found


def read_state(
    folder: Path, fingerprints: Mapping[str, str] | None = None, allowed: Iterable[str] = ()
) -> dict[str, Any]:
    """Content of `state.json`; with `fingerprints` given, CheckpointError names the first that differs, with values.

    Those of the names `allowed` may differ, with a warning each. Rank 0 compares its own, for all: other machines may have
    their data in other folders.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        found, saved = state["format"], dict(state["fingerprints"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot read {folder / STATE} ({type(error).__name__}: {error})") from None
    if found != FORMAT:
        raise CheckpointError(f"{folder / STATE}: expected format {FORMAT}, found {found}")
    if fingerprints is not None:
        failure = None
        if dist.is_main():
            try:
                _compare(folder, saved, fingerprints, frozenset(allowed))
            except CheckpointError as error:
                failure = str(error)
        if failure := dist.broadcast_object(failure):
            raise CheckpointError(failure)
    return state


def _compare(folder: Path, saved: Mapping[str, str], now: Mapping[str, str], allowed: frozenset[str]) -> None:
    for name in (n for n in dict.fromkeys((*saved, *now)) if saved.get(n) != now.get(n)):
        difference = (
            f"'{name}' was {saved.get(name, '(absent)')} when it was saved and is {now.get(name, '(absent)')} now"
        )
        if name not in allowed:
            raise CheckpointError(
                f"{folder} belongs to another run: {difference}; give another --run, delete the folder to start again, or go "
                f"on all the same with \"checkpoint.allow=['{name}']\""
            )
        if dist.is_main():
            log.warning("%s: %s, as checkpoint.allow lets it", folder, difference)


def retain(run: Path, keep_last: int, protected: Iterable[int] = (), newest: int | None = None) -> list[int]:
    """Delete all but the newest `keep_last` checkpoints and the `protected` steps; returns the deleted steps.

    Name the best checkpoint and the one that was resumed from in `protected`. Steps above `newest` are left alone and
    do not count: a run that went on from an older checkpoint found them damaged. Acts on rank 0 only.
    """
    if not dist.is_main():
        return []
    steps = [step for step in steps_of(run) if newest is None or step <= newest]
    kept = {*steps[len(steps) - min(max(keep_last, 1), len(steps)) :], *protected}
    deleted = [step for step in steps if step not in kept]
    for step in deleted:
        folder = run / FOLDER / f"step_{step}"
        retired = folder.with_name(folder.name + ".old")  # a half-deleted folder must not look like a checkpoint
        os.replace(folder, retired)
        shutil.rmtree(retired)
    return deleted


def remove_unfinished(run: Path) -> None:
    """Delete what a killed process left (`step_N.tmp`, `step_N.old`). Call at the start of a run; acts on rank 0.

    A `.old` folder whose step has no other folder is the state before a rename that never came: it is put back.
    """
    if dist.is_main():
        for folder in sorted((run / FOLDER).glob("step_*")):
            if folder.suffix not in UNFINISHED:
                continue
            final = folder.with_suffix("")
            if folder.suffix == ".old" and not final.exists() and damage(folder) is None:
                os.replace(folder, final)
            else:
                shutil.rmtree(folder)
    dist.barrier()


def write_done(run: Path, step: int, metrics: Mapping[str, Any]) -> None:
    """Write the record that proves completion, atomically, on rank 0."""
    if dist.is_main():
        draft = run / (DONE + ".tmp")
        draft.write_text(json.dumps({"step": step, "metrics": dict(metrics)}, indent=1), encoding="utf-8")
        flush(draft)
        os.replace(draft, run / DONE)
        flush(run)
    dist.barrier()


def read_done(run: Path) -> dict[str, Any] | None:
    """Content of the `DONE` record of a finished run, or None."""
    path = run / DONE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
