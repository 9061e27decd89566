"""Trained and total parameters of every row of the papers, from configurations alone (no weights, no memory).

    python tools/params_table.py [--json]

Totals count the language model with its added tokens, the visual embedding and the method's own parameters, tied ones
once; the frozen visual tower is not counted. `paper` is the published percentage, null where there is none.
*Source:* VL-Adapter, tables 1 and 4, whose percentages these integers round to.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

from mtvl.backbones.clip_bart_config import bundled_folder
from mtvl.config import RunConfig
from mtvl.model import make_plan

IMAGE_TASKS = ("vqa", "gqa", "nlvr2", "coco")
VIDEO_TASKS = ("tvqa", "how2qa", "tvc", "yc2c")
ALL_TASKS = (*IMAGE_TASKS, *VIDEO_TASKS)
BASE = {"name": "clip_bart", "preset": "base", "tower": "rn101"}
TINY = {"name": "clip_bart", "weights": "tiny"}  # the bundled backbone of the default run: reduction 10


@dataclass(frozen=True)
class Row:
    """One line: labels, the recipe's sections that decide it, and the published percentage."""

    backbone: str
    method: str
    variant: str
    section: dict[str, Any]
    petl: dict[str, Any]
    paper: float | None = None
    tasks: tuple[str, ...] = IMAGE_TASKS


ROWS = (
    Row("clip_bart_base", "full", "image", BASE, {"name": "full"}, 100.0),
    Row("clip_bart_base", "adapter", "single, image", BASE, {"name": "adapter", "share": "all"}, 4.18),
    Row("clip_bart_base", "adapter", "half-shared up, image", BASE, {"name": "adapter", "share": "up"}, 8.36),
    Row("clip_bart_base", "adapter", "half-shared down, image", BASE, {"name": "adapter", "share": "down"}),
    Row("clip_bart_base", "adapter", "multiple, image", BASE, {"name": "adapter", "share": "none"}, 12.22),
    Row("clip_bart_base", "full", "video", BASE, {"name": "full"}, 100.0, VIDEO_TASKS),
    Row("clip_bart_base", "adapter", "single, video", BASE, {"name": "adapter", "share": "all"}, 3.39, VIDEO_TASKS),
    Row(
        "clip_bart_base",
        "adapter",
        "single, image and video",
        BASE,
        {"name": "adapter", "share": "all"},
        None,
        ALL_TASKS,
    ),
    Row("clip_bart_tiny", "full", "image", TINY, {"name": "full"}),
    Row("clip_bart_tiny", "adapter", "single, image", TINY, {"name": "adapter", "reduction": 10, "share": "all"}),
    Row("clip_bart_tiny", "adapter", "multiple, image", TINY, {"name": "adapter", "reduction": 10, "share": "none"}),
)


def available_rows() -> list[Row]:
    """ROWS without those of a bundled backbone that this installation lacks; says so on stderr."""
    absent = sorted({row.section["weights"] for row in ROWS if "weights" in row.section} - {""})
    absent = [name for name in absent if bundled_folder(name) is None]
    for name in absent:
        print(f"left out: the rows of the backbone '{name}', which is not bundled here", file=sys.stderr)
    return [row for row in ROWS if row.section.get("weights", "") not in absent]


def compute(row: Row) -> dict[str, Any]:
    """The row as plain values; `percent` has four decimals."""
    plan = make_plan(RunConfig(tasks=row.tasks, backbone=row.section, petl=row.petl))
    return {
        "backbone": row.backbone, "method": row.method, "variant": row.variant, "trainable": plan.num_trainable,
        "total": plan.num_total, "percent": round(100 * plan.num_trainable / plan.num_total, 4), "paper": row.paper,
    }  # fmt: skip


def pretty(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'backbone':16} {'method':10} {'variant':25} {'trainable':>13} {'total':>13} {'percent':>9} {'paper':>7}"
    ]
    for row in rows:
        paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
        lines.append(
            f"{row['backbone']:16} {row['method']:10} {row['variant']:25} {row['trainable']:13,d} {row['total']:13,d} "
            f"{row['percent']:9.4f} {paper:>7}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    options = parser.parse_args(arguments)
    rows = [compute(row) for row in available_rows()]
    print(json.dumps(rows, indent=1) if options.json else pretty(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
