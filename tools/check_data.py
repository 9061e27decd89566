#!/usr/bin/env python3
"""Compare the files below a data root with what each task expects.

    tools/check_data.py ROOT --tasks vqa,gqa [--open] [--any-size]

Prints found against published sizes, looks for every picture (with --open it also decodes each one), and ends with
status 1 and a list when something is wrong. --any-size is for one's own sets, which have no published size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtvl.data.media import open_image
from mtvl.errors import MtvlError
from mtvl.tasks import load_task, task_names
from mtvl.tasks.base import BaseTask

SHOWN_PICTURES = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check the files of tasks below a data root.")
    parser.add_argument("root", type=Path, help="data root")
    parser.add_argument("--tasks", required=True, help=f"names, comma-separated, of {', '.join(task_names())}")
    parser.add_argument("--open", action="store_true", help="decode every picture")
    parser.add_argument("--any-size", action="store_true", help="do not compare with the published sizes")
    args = parser.parse_args(argv)
    problems = [
        f"{name}: {problem}"
        for name in args.tasks.split(",")
        for problem in check_task(name.strip(), args.root, decode=args.open, any_size=args.any_size)
    ]
    print(f"{len(problems)} problems" + (":" if problems else ""))
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


def check_task(name: str, root: Path, *, decode: bool = False, any_size: bool = False) -> Iterator[str]:
    """Print one line a split and yield the problems of the task `name` below `root`."""
    try:
        task = load_task(name, root=root)
        source = task.source
    except MtvlError as error:
        yield str(error)
        return
    print(f"{name}: layout {source.config.format} below {root}")
    pictures: set[str] = set()
    for split in source.config.files:
        if not source.is_complete(split) and split not in ("train", "val", "test"):
            print(f"  {split}: not there (optional)")
            continue
        yield from _check_split(task, split, pictures, any_size)
    if decode:
        yield from _check_pictures(sorted(pictures))


def _check_split(task: BaseTask, split: str, pictures: set[str], any_size: bool) -> Iterator[str]:
    try:
        examples = task.examples(split)
    except MtvlError as error:
        print(f"  {split}: see the problems below")
        yield str(error)
        return
    images = {image for example in examples for image in example.visual.images}
    pictures |= images
    published = task.source.config.published.get(split)
    expected = "no published size" if published is None else f"published {published:,}"
    print(f"  {split}: found {len(examples):,} examples on {len(images):,} pictures; {expected}")
    if published is not None and published != len(examples) and not any_size:
        yield f"split {split!r} expected {published:,} examples, found {len(examples):,} (--any-size for an own set)"


def _check_pictures(pictures: Sequence[str]) -> Iterator[str]:
    broken = []
    for done, path in enumerate(pictures, start=1):
        try:
            open_image(path)
        except MtvlError as error:
            broken.append(str(error))
        if done % 5000 == 0:
            print(f"  opened {done:,} of {len(pictures):,} pictures", file=sys.stderr)
    print(f"  opened {len(pictures):,} pictures, {len(broken)} broken")
    yield from broken[:SHOWN_PICTURES]
    if len(broken) > SHOWN_PICTURES:
        yield f"... and {len(broken) - SHOWN_PICTURES} more broken pictures"


if __name__ == "__main__":
    sys.exit(main())
