#!/usr/bin/env python3
"""Compare the files below a data root with what each task expects.

    tools/check_data.py ROOT --tasks vqa,gqa,tvqa [--open] [--any-size]

Prints found against published sizes, looks for every picture and video, and ends with status 1 and a list when something
is wrong. Of the videos a sample is opened to read its length; with --open every picture and every frame is decoded.
--any-size is for one's own sets, which have no published size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mtvl.data.formats.pictures import STORED_ENDINGS
from mtvl.data.media import open_image
from mtvl.data.video import iterate_frames, probe_seconds
from mtvl.errors import MtvlError
from mtvl.tasks import load_task, task_names
from mtvl.tasks.base import BaseTask

SHOWN_PROBLEMS = 10
SAMPLED_VIDEOS = 20  # of a task, evenly spread


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check the files of tasks below a data root.")
    parser.add_argument("root", type=Path, help="data root")
    parser.add_argument("--tasks", required=True, help=f"names, comma-separated, of {', '.join(task_names())}")
    parser.add_argument("--open", action="store_true", help="decode every picture and video")
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
    videos: set[str] = set()
    for split in source.config.files:
        if not source.is_complete(split) and split not in ("train", "val", "test"):
            print(f"  {split}: not there (optional)")
            continue
        yield from _check_split(task, split, pictures, videos, any_size)
    if decode:
        yield from _check_files("pictures", _own_features_aside("pictures", pictures), open_image)
    if videos:
        yield from _check_videos(_own_features_aside("videos", videos), decode)


def _check_split(task: BaseTask, split: str, pictures: set[str], videos: set[str], any_size: bool) -> Iterator[str]:
    try:
        examples = task.examples(split)
    except MtvlError as error:
        print(f"  {split}: see the problems below")
        yield str(error)
        return
    images = {image for example in examples for image in example.visual.images}
    clips = {example.visual.video for example in examples if example.visual.video}
    pictures |= images
    videos |= clips
    published = task.source.config.published.get(split)
    expected = "no published size" if published is None else f"published {published:,}"
    on = f"{len(clips):,} videos" if clips else f"{len(images):,} pictures"
    _, bare = task.source.without_subtitles.get(split, (0, 0))  # shards have none to count
    silent = f" ({bare:,} without subtitles)" if bare else ""
    print(f"  {split}: found {len(examples):,} examples on {on}{silent}; {expected}")
    if published is not None and published != len(examples) and not any_size:
        yield f"split {split!r} expected {published:,} examples, found {len(examples):,} (--any-size for an own set)"


def _own_features_aside(what: str, paths: set[str]) -> list[str]:
    """The files that can be decoded, sorted; stored features are only counted: they are checked when they are read."""
    stored = sum(path.endswith(STORED_ENDINGS) for path in paths)
    if stored:
        print(f"  {stored:,} of {len(paths):,} {what} are stored features")
    return sorted(path for path in paths if not path.endswith(STORED_ENDINGS))


def _check_videos(videos: Sequence[str], decode: bool) -> Iterator[str]:
    sample = videos if decode else videos[:: max(1, -(-len(videos) // SAMPLED_VIDEOS))]
    lengths: list[float] = []

    def check(path: str) -> None:
        lengths.append(probe_seconds(path))
        if decode:
            for _frame in iterate_frames(path):
                pass

    yield from _check_files("videos", sample, check)
    if lengths:
        print(f"  {len(lengths):,} of {len(videos):,} videos last {min(lengths):.1f} to {max(lengths):.1f} s")


def _check_files(what: str, paths: Sequence[str], check: Callable[[str], object]) -> Iterator[str]:
    if not paths:
        return
    broken = []
    for done, path in enumerate(paths, start=1):
        try:
            check(path)
        except MtvlError as error:
            broken.append(str(error))
        if done % 5000 == 0:
            print(f"  opened {done:,} of {len(paths):,} {what}", file=sys.stderr)
    print(f"  opened {len(paths):,} {what}, {len(broken)} broken")
    yield from broken[:SHOWN_PROBLEMS]
    if len(broken) > SHOWN_PROBLEMS:
        yield f"... and {len(broken) - SHOWN_PROBLEMS} more broken {what}"


if __name__ == "__main__":
    sys.exit(main())
