#!/usr/bin/env python3
"""Make the embedded data: tools/miniworld.py DST [--seed N] [--size default|tiny] [--stats] [--sheet FILE.png]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtvl.data.miniworld.sheet import contact_sheet, video_sheet
from mtvl.data.miniworld.stats import text_only
from mtvl.data.miniworld.write import SIZES, ensure_miniworld
from mtvl.errors import MtvlError


def main() -> int:
    """Parse, make, and print what was asked for."""
    parser = argparse.ArgumentParser(
        description="Make the miniworld, small pictures and videos with eight benchmarks, in DST."
    )
    parser.add_argument("dst", type=Path, metavar="DST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="default")
    parser.add_argument("--stats", action="store_true", help="print how far text alone gets")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="write a sheet of 12 test items; FILE-videos.png holds videos"
    )
    arguments = parser.parse_args()
    try:
        root = ensure_miniworld(arguments.dst, seed=arguments.seed, size=arguments.size)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(root)
    if arguments.stats:
        for task, figures in text_only(root).items():
            print(f"{task:6s} " + "  ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    if arguments.sheet:
        contact_sheet(root).save(arguments.sheet)
        print(arguments.sheet)
        videos = arguments.sheet.with_stem(f"{arguments.sheet.stem}-videos")
        video_sheet(root).save(videos)
        print(videos)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
