#!/usr/bin/env python3
"""Compute the frozen features of tasks before training, into the store that a run with the same settings reads.

    tools/extract_features.py --tasks a,b,c [--recipe FILE] [--splits train,val,test] [--verify] [key=value ...]

The same file runs on several ranks and nodes: `deepspeed tools/extract_features.py --tasks a,b,c data.root=/data`.
What is stored already is not computed again, so a run that was stopped, or ended at a damaged picture, goes on where it
was. With --verify every shard is compared with its hash first; damaged ones are set aside and computed again.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtvl import dist  # noqa: E402
from mtvl.cli import DEFAULT_RECIPE  # noqa: E402
from mtvl.config import load_run_config  # noqa: E402
from mtvl.data.features import Store  # noqa: E402
from mtvl.engine import finish, start  # noqa: E402
from mtvl.errors import ConfigError, MtvlError  # noqa: E402
from mtvl.model import make_backbone  # noqa: E402
from mtvl.tasks import TASKS_DIR, load_task  # noqa: E402
from mtvl.tasks.visual import with_visual  # noqa: E402
from mtvl.workspace import Workspace  # noqa: E402

SPLITS = ("train", "val", "test")


def parser() -> argparse.ArgumentParser:
    """The flags."""

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    flags.add_argument("--tasks", type=names, default=[], help="comma-separated; default: those of the recipe")
    flags.add_argument(
        "--recipe", type=Path, default=DEFAULT_RECIPE, help="the recipe of the run; default: the small one"
    )
    flags.add_argument("--splits", type=names, default=list(SPLITS), help=f"default: {','.join(SPLITS)}")
    flags.add_argument("--verify", action="store_true", help="compare all shards with their hashes first")
    flags.add_argument("--local_rank", type=int, default=None, help="set by launchers; the environment wins")
    flags.add_argument("overrides", nargs="*", metavar="key=value", help="as for training, e.g. data.root=/data")
    return flags


def extract(arguments: Sequence[str]) -> None:
    """Fill the stores. Collective under a launcher. Raises MtvlError; what was computed before stays."""
    args = parser().parse_intermixed_args(arguments)
    config = load_run_config(args.recipe, args.tasks, args.overrides)
    if config.data.text_only:
        raise ConfigError("a run with data.text_only=true reads no features; leave it out")
    if not args.splits or len(set(args.splits)) != len(args.splits):
        raise ConfigError(f"--splits expects different names such as {','.join(SPLITS)}, found {','.join(args.splits)}")
    for name in config.tasks:
        load_task(name, root=config.data.folder, overlay=config.task.get(name))  # a typo shows before towers are built
    device = start(local_rank=args.local_rank)
    say: Callable[[str], None] = _print if dist.is_main() else _silent
    config = replace(with_visual(config, TASKS_DIR), data=replace(config.data, fill="eager"))
    backbone = make_backbone(config.backbone)
    if backbone.visual_tower is not None:
        backbone.tower("grid")  # the error that says why nothing can be stored
    workspace = Workspace(config, backbone, say=say)
    stores = [store for store in (workspace.features, workspace.frames) if store is not None]
    for store in stores:
        store.to(device)
        if args.verify:
            store.verify(say)
    try:
        workspace.prepare([(task, split) for task in config.tasks for split in args.splits])
    finally:
        for store in stores:
            say(summary(store))


def summary(store: Store) -> str:
    """One line on what a store holds and what was computed now."""
    usage = store.usage()
    rate = f" in {usage.seconds:.1f} s, {usage.computed / usage.seconds:.1f}/s" if usage.computed else ""
    return (f"{store.noun}: {usage.computed:,} computed now{rate}; {usage.items:,} stored, {usage.num_bytes / 1e6:,.1f} MB "
            f"in {usage.folder}")  # fmt: skip


def _print(text: str) -> None:
    print(text, flush=True)


def _silent(_text: str) -> None:
    """What ranks other than 0 say."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; errors that a user can mend are printed without a traceback, the exit code is then 2."""
    try:
        extract(sys.argv[1:] if arguments is None else arguments)
    except MtvlError as error:
        print(f"extract_features: error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def run() -> int:
    """`main`, then the end of the process group: after an unexpected error too, or other ranks would wait."""
    code = 1
    try:
        code = main()
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 2
    except BaseException:
        traceback.print_exc()
    return finish(code)


if __name__ == "__main__":
    sys.exit(run())
