#!/usr/bin/env python3
"""Write splits of tasks as tar shards in webdataset's form, or check such shards.

    tools/shard.py TASKS SPLITS DST [--shard-bytes 256MB] [--once] [--features] [--workers N] [--recipe FILE]
                   [key=value ...]
    tools/shard.py --verify DST

`tools/shard.py vqa,gqa train,val,test DST data.root=FOLDER` writes DST/TASK/SPLIT/; then `data.root=DST` reads them in
place of the folders. A run that was broken off goes on where it stopped when it is started again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mtvl.backbones import BACKBONES
from mtvl.cli import RECIPES
from mtvl.config import RunConfig, load_run_config
from mtvl.data.shard_media import FeatureMedia, FileMedia
from mtvl.data.shard_plan import Media, Options, Plan, make_plan
from mtvl.data.shard_writer import write_split
from mtvl.data.shards import example_settings, folder_of, verify
from mtvl.errors import DataError, MtvlError
from mtvl.model import make_backbone
from mtvl.tasks import TASKS_DIR, load_task
from mtvl.tasks.base import BaseTask
from mtvl.tasks.files import OWN_FOLDER
from mtvl.tasks.visual import with_visual
from mtvl.types import Example
from mtvl.workspace import data_root, ensure_features, open_stores

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MUCH_REPEATED = 1.5  # uses a picture above which --once is pointed out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write splits of tasks as tar shards in webdataset's form.")
    parser.add_argument("tasks", nargs="?", metavar="TASKS", help="a,b,c: names of files in tasks/")
    parser.add_argument("splits", nargs="?", metavar="SPLITS", help="a,b,c: train, val, test")
    parser.add_argument("dst", nargs="?", type=Path, metavar="DST", help="folder to write TASK/SPLIT/ into")
    parser.add_argument("--verify", type=Path, metavar="DST", help="read all shards below DST and compare SHA-256")
    parser.add_argument("--recipe", type=Path, default=RECIPES / "tiny.yaml", help="for data.root, and --features")
    parser.add_argument(
        "--shard-bytes", type=parse_bytes, default=Options().shard_bytes, metavar="N", help="such as 256MB"
    )
    parser.add_argument(
        "--once", action="store_true", help="store a picture or video once a shard, not once an example"
    )
    parser.add_argument("--features", action="store_true", help="store the frozen tower's features in place of files")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="shards written at the same time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.root=/data")
    args = parser.parse_intermixed_args(argv)
    if args.verify is None and args.dst is None:
        parser.error("expected TASKS SPLITS DST, or --verify DST")
    if args.verify is not None and args.tasks is not None:
        parser.error("--verify DST takes nothing else")
    try:
        return run_verify(args.verify) if args.verify else run_write(args)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse_bytes(text: str) -> int:
    """`256MB`, `1GiB` or plain bytes as a number; a unit is decimal unless it has an i."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 256MB or 1GiB, found {text!r}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def run_verify(root: Path) -> int:
    """Print what is wrong with the shards below `root`; 1 when something is."""
    problems = list(verify(root))
    print(f"{len(problems)} problems" + (":" if problems else ""))
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def run_write(args: argparse.Namespace) -> int:
    """Write every split of every task; what is wrong with any of them is said before the first byte is written."""
    names, splits = args.tasks.split(","), args.splits.split(",")
    config = load_run_config(args.recipe, names, args.overrides)
    root = data_root(config)
    family = BACKBONES.load(str(config.backbone["name"])).family
    tasks = {
        name: load_task(name, root=root, family=family, evaluate=config.evaluate, overlay=config.task.get(name))
        for name in names
    }
    for name in names:
        for split in splits:
            if (folder := folder_of(args.dst, name, split)).exists():
                raise DataError("expected no such folder yet, found one; delete it, or choose another DST", file=folder)
    options = Options(args.shard_bytes, args.once)
    for task in tasks.values():
        for split in splits:
            write(task, split, config, args.dst, options, with_features=args.features, workers=args.workers)
        _keep_task_file(task.name, root, args.dst)
    return 0


def _keep_task_file(name: str, root: Path, dst: Path) -> None:
    """Put the file of an own task, which lies below the data root, beside its shards too."""
    file, target = root / OWN_FOLDER / f"{name}.yaml", dst / OWN_FOLDER / f"{name}.yaml"
    if file.is_file() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def write(
    task: BaseTask, split: str, config: RunConfig, dst: Path, options: Options, *, with_features: bool, workers: int
) -> None:
    """Write one split of one task below `dst` and print what it takes."""
    examples = task.examples(split)
    media: Media = feature_media(config, examples) if with_features else FileMedia()
    settings = example_settings(task.config)
    plan = make_plan(examples, media, settings, options)
    print(describe(task.name, split, len(examples), plan, options), flush=True)
    index = write_split(
        dst, task.name, split, examples, media, plan, settings=settings, workers=workers,
        progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    print(f"{index.folder}: {len(index.shards)} shards, {sum(s.num_bytes for s in index.shards) / 1e6:,.1f} MB")


def describe(task: str, split: str, count: int, plan: Plan, options: Options) -> str:
    """What will be written, and what --once would change where that is much."""
    text = (
        f"{task}/{split}: {count:,} examples, {plan.num_media:,} pictures and videos used {plan.num_uses:,} times; "
        f"{len(plan.shards)} shards, about {plan.num_bytes / 1e6:,.1f} MB"
    )
    if not options.once and plan.num_uses > MUCH_REPEATED * plan.num_media:
        text += f" (--once: {(plan.num_bytes - plan.used_bytes + plan.media_bytes) / 1e6:,.1f} MB or a little more)"
    return text


def feature_media(config: RunConfig, examples: Sequence[Example]) -> FeatureMedia:
    """The features of `examples` by the recipe's towers; what the feature store lacks is computed first."""
    config = with_visual(config, TASKS_DIR)
    backbone = make_backbone(config.backbone)
    pictures, frames, towers = open_stores(config, backbone, storing=True)
    ensure_features(pictures, frames, examples, "eager", lambda line: print(line, flush=True))
    wanted = {"frame" if example.visual.video else "grid" for example in examples}
    return FeatureMedia(pictures, frames, {kind: name for kind, name in towers.items() if kind in wanted})


if __name__ == "__main__":
    sys.exit(main())
