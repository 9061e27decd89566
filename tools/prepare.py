#!/usr/bin/env python3
"""Turn a small public set into the official files of the benchmarks, or one's own pictures into a task of its own.

    tools/prepare.py daquar|coco_mini|flickr8k|nlvr1|msrvtt|youcook2 SRC DST [--append]
    tools/prepare.py all SRC DST
    tools/prepare.py table SRC.csv DST --name NAME --picture COL --text COL --answer COL
    tools/prepare.py table SRC.jsonl DST --name NAME --video COL --caption COL
    tools/prepare.py folder SRC DST --name NAME

After `daquar` and `coco_mini` into one DST, `data.root=DST --tasks vqa,gqa,coco` trains on them; `all` takes every set
whose folder lies in SRC; after `table` and `folder`, `data.root=DST --tasks NAME`. What was decided on the way (splits, several answers) is written to
DST/prepared.json; docs/data.md and docs/tutorial_own_data.md say more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from preparing import FOLDERS, SETS  # noqa: E402
from preparing.folder import prepare_folder  # noqa: E402
from preparing.plan import write_plan  # noqa: E402
from preparing.table import DEFAULT_SPLIT, Columns, prepare_table  # noqa: E402

from mtvl.errors import DataError, MtvlError  # noqa: E402


def make_parser() -> argparse.ArgumentParser:
    """One sub-command a set, `all`, `table` and `folder`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="set", required=True, metavar="NAME")
    for name in SETS:
        command = commands.add_parser(name, help=f"the set {name} as official files")
        command.add_argument("src", type=Path, help="folder of the set")
        command.add_argument("dst", type=Path, help="data root to write into; sets add up")
        command.add_argument("--append", action="store_true", help="add the captions to those of another set")
    command = commands.add_parser("all", help="every set whose folder lies in SRC")
    command.add_argument("src", type=Path, help="folder of the sets' folders")
    command.add_argument("dst", type=Path, help="data root to write into; sets add up")
    for name, what in (("table", "a .csv or .jsonl file"), ("folder", "a folder of pictures with captions")):
        command = commands.add_parser(name, help=f"{what} as a task of its own")
        command.add_argument("src", type=Path, help=what)
        command.add_argument("dst", type=Path, help="data root to write into; tasks add up")
        command.add_argument("--name", required=True, help="name of the task, as it will stand after --tasks")
        command.add_argument("--picture", default="", metavar="COL", help="column of picture files")
        shares = f"shares of train,val,test by picture; default: {DEFAULT_SPLIT}"
        if name == "folder":
            command.add_argument("--caption", default="", metavar="COL", help="column of captions in the table, if any")
            command.add_argument("--split", default=DEFAULT_SPLIT, metavar="F,F,F", help=shares)
        else:
            _table_arguments(command, shares)
    return parser


def _table_arguments(command: argparse.ArgumentParser, shares: str) -> None:
    columns = {"type": _names, "default": (), "metavar": "COL[,COL]"}
    command.add_argument(
        "--video", default="", metavar="COL", help="column of video files, strips or folders of frames"
    )
    command.add_argument("--text", default="", metavar="COL", help="column of questions")
    command.add_argument("--answer", **columns, help="columns of answers, or the one that says the right choice")
    command.add_argument("--caption", **columns, help="columns of captions")
    command.add_argument("--choices", **columns, help="columns of choices, or one with a list")
    command.add_argument("--answer-counts-from", type=int, choices=(0, 1), help="--answer is the number of a choice")
    command.add_argument("--id", default="", metavar="COL", help="column of ids; default: rows are numbered")
    command.add_argument("--split", default=DEFAULT_SPLIT, metavar="COL|F,F,F", help=f"column of splits, or {shares}")
    command.add_argument("--separator", default="", metavar="TEXT", help="what stands between several texts in a cell")
    command.add_argument("--media", type=Path, help="folder of the pictures or videos; default: that of the table")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    try:
        if args.set == "table":
            columns = Columns(
                picture=args.picture, video=args.video, text=args.text, answers=args.answer, captions=args.caption,
                choices=args.choices, uid=args.id, split=args.split, separator=args.separator,
                counts_from=args.answer_counts_from,
            )  # fmt: skip
            prepare_table(args.src, args.dst, args.name, columns, args.media)
        elif args.set == "folder":
            prepare_folder(args.src, args.dst, args.name, split=args.split, picture=args.picture, caption=args.caption)
        elif args.set == "all":
            prepare_all(args.src, args.dst)
        else:
            prepare(args.set, args.src, args.dst, append=args.append)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no space, no permission, ...
        print(f"error: {error}; check that {args.src} can be read and {args.dst} be written", file=sys.stderr)
        return 1
    except UnicodeEncodeError as error:
        found = ascii(error.object[error.start : error.end])
        print(f"error: {args.src}: expected text that can be written as UTF-8, found {found}; mend it", file=sys.stderr)
        return 1
    return 0


def prepare(name: str, src: Path, dst: Path, *, append: bool = False) -> None:
    """Read the set `name` from `src`, write it below `dst` and print the counts.

    Raises DataError when source files are missing or faulty, and when a file of another origin stands in the way.
    """
    if not src.is_dir():
        raise DataError(f"expected the folder of the set {name}, found none", file=src)
    nested = src / FOLDERS.get(name, name)
    write_plan(name, SETS.load(name)(nested if nested.is_dir() else src), dst, append=append)


def prepare_all(src: Path, dst: Path) -> None:
    """Prepare every set whose folder lies in `src`, captions together; sets that are not there are named.

    Raises DataError when there is none, and as `prepare`.
    """
    folders = {name: src / FOLDERS.get(name, name) for name in SETS}
    found = {name: folder for name, folder in folders.items() if folder.is_dir()}
    if not found:
        names = ", ".join(folder.name for folder in folders.values())
        raise DataError(f"expected folders of sets ({names}), found none of them", file=src)
    for name, folder in found.items():
        prepare(name, folder, dst, append=True)
    if missing := [name for name in SETS if name not in found]:
        print(f"not prepared, since there is no such folder in {src}: {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
