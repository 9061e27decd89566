"""Trained and total parameters of every row of the papers, from configurations alone (no weights, no memory).

    python tools/params_table.py [--json]

Totals count the language model with its added tokens, the visual embedding and the method's own parameters, tied ones
once; the visual tower is counted where it is trained. `paper` is the published percentage, null where there is none; `note` says
why the computed one does not round to it.
*Source:* VL-Adapter, tables 1, 2, 4 and 5, whose percentages these integers round to (those of its table 7 count a trained
tower and are not derived: CLIP-ViL's rows are counts of what is here); for BLIP the released classes, and
tables 1 to 3 of UniAdapter and 8 of UniTrans, whose millions the rows without trained heads round to. As there the one
learned temperature of contrast is not counted; it is a parameter all the same, so a plan counts one more (a note says so).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

from mtvl.backbones.blip import Blip, BlipConfig
from mtvl.backbones.clip_config import bundled_folder
from mtvl.config import RunConfig, parse_section
from mtvl.model import make_method, make_plan
from mtvl.petl.plan import Plan
from mtvl.sites import Site

IMAGE_TASKS = ("vqa", "gqa", "nlvr2", "coco")
VIDEO_TASKS = ("tvqa", "how2qa", "tvc", "yc2c")
ALL_TASKS = (*IMAGE_TASKS, *VIDEO_TASKS)
BASE = {"name": "clip_bart", "preset": "base", "tower": "rn101"}
T5_BASE = {"name": "clip_t5", "preset": "base", "tower": "rn101"}
VIL_BASE = {"name": "clip_vil", "preset": "base", "tower": "rn101"}
TINY = {"name": "clip_bart", "weights": "tiny"}  # the bundled backbone of the default run: reduction 10


@dataclass(frozen=True)
class Row:
    """One line: labels, the recipe's sections that decide it, the published percentage, and where that is off, why."""

    backbone: str
    method: str
    variant: str
    section: dict[str, Any]
    petl: dict[str, Any]
    paper: float | None = None
    tasks: tuple[str, ...] = IMAGE_TASKS
    note: str = ""
    paper_compat: bool = False


def bart(method: str, variant: str, paper: float | None = None, tasks: tuple[str, ...] = IMAGE_TASKS, note: str = "",
         **options: Any) -> Row:  # fmt: skip
    """A row of CLIP-BART base."""
    return Row("clip_bart_base", method, variant, BASE, {"name": method, **options}, paper, tasks, note)


def t5(method: str, variant: str, paper: float | None = None, paper_compat: bool = False, **options: Any) -> Row:
    """A row of CLIP-T5 base on the image tasks; bottlenecks are a quarter of the width as in the paper."""
    petl = {"name": method, **options}
    return Row("clip_t5_base", method, variant, T5_BASE, petl, paper, paper_compat=paper_compat)


def tower(method: str, variant: str, **options: Any) -> Row:
    """A row of CLIP-BART base whose RN101 is trained with it, and counted."""
    return Row("clip_bart_base", method, variant, {**BASE, "train_tower": True}, {"name": method, **options})


def vil(method: str, task: str, answers: int, label: str = "", **options: Any) -> Row:
    """A row of CLIP-ViL base on one task with so many answers; bottlenecks are a quarter of the width as in the paper."""
    section = {**VIL_BASE, "num_answers": answers}
    return Row("clip_vil_base", method, f"{label}{task}", section, {"name": method, **options}, tasks=(task,))


def large(family: str, method: str, variant: str, **options: Any) -> Row:
    """A row of a larger sibling."""
    section = {"name": f"clip_{family}", "preset": "large", "tower": "rn101"}
    return Row(f"clip_{family}_large", method, variant, section, {"name": method, **options})


def blip(kind: str, method: str, label: str, size: str = "base", image_size: int = 0, **options: Any) -> Row:
    """A row of BLIP: its model of one kind, at the size of pictures that it was published with unless given."""
    section = {"name": "blip", "kind": kind, "preset": size, "image_size": image_size}
    return Row(f"blip_{size}", method, f"{kind}, {label}", section, {"name": method, **options}, tasks=("task",))


def uni(label: str, bottleneck: int, **options: Any) -> Row:
    """A row of UniAdapter's tables, which count the adapters alone."""
    return blip(
        "retrieval", "uniadapter", f"{label}, r={bottleneck}", bottleneck=bottleneck, train_heads=False, **options
    )


def trans(method: str, label: str, kind: str = "retrieval", **options: Any) -> Row:
    """A row of UniTrans' tables, which count vectors and pairs alone."""
    return blip(kind, method, f"{label}, r={options.get('rank', 64)}", train_heads=False, **options)


ROUNDING = "17.71 when rounded; the paper prints 17.72, which no choice of parameters gives: taken for a slip"
TEMPERATURE = "and a temperature: plans, recipes and engines count one more"
ROWS = (
    bart("full", "image", 100.0),
    bart("adapter", "single, image", 4.18, share="all"),
    bart("adapter", "half-shared up, image", 8.36, share="up"),
    bart("adapter", "half-shared down, image", share="down"),
    bart("adapter", "multiple, image", 12.22, share="none"),
    bart("parallel_adapter", "single, image"),
    bart("hyperformer", "image", 5.79),
    bart("compacter", "single, image", 2.70, share="all"),
    bart("compacter", "multiple, image", 7.05, share="none"),
    bart("compacter", "low rank, single, image", share="all", division=4, rank=1, share_rule=True),
    bart("lora", "single, image", 5.93, share="all"),
    bart("lora", "multiple, image", 17.72, note=ROUNDING, share="none"),
    bart("prompt", "single, image", 2.00, share="all"),
    bart("prompt", "multiple, image", 4.53, share="none"),
    bart("adapter_prompt", "shared adapter, image", share="all"),
    bart("projection", "alone, image"),
    bart("projection", "with norms, image", train_norms=True),
    bart("bitfit", "image"),
    bart("ia3", "single, image", share="all"),
    bart("prefix", "single, image", share="all"),
    tower("full", "tower trained, image"),
    tower("adapter", "single, tower trained", share="all"),
    bart("full", "video", 100.0, VIDEO_TASKS),
    bart("adapter", "single, video", 3.39, VIDEO_TASKS, share="all"),
    bart("lora", "single, video", 5.17, VIDEO_TASKS, share="all"),
    bart("prompt", "single, video", 1.18, VIDEO_TASKS, share="all"),
    bart("adapter", "single, image and video", None, ALL_TASKS, share="all"),
    t5("full", "image", 100.0),
    t5("adapter", "single, image", share="all", reduction=4),
    t5("adapter", "single, paper_compat", 7.98, paper_compat=True, share="all", reduction=4),  # norms are frozen there
    t5("adapter", "half-shared up, image", share="up", reduction=4),
    t5("adapter", "multiple, image", share="none", reduction=4),
    t5("hyperformer", "image", reduction=4),
    t5("compacter", "single, image", share="all", reduction=4),
    t5("lora", "single, image", share="all"),
    t5("prompt", "single, image", share="all"),
    t5("adapter_prompt", "shared adapter, image", share="all", reduction=4),
    t5("projection", "alone, image"),
    t5("projection", "with norms, image", train_norms=True),
    t5("ia3", "single, image", share="all"),
    t5("prefix", "single, image", share="all"),
    *(
        row
        for task, answers in (("vqa", 3129), ("gqa", 1842), ("snli_ve", 3))
        for row in (
            vil("full", task, answers),
            vil("adapter", task, answers, "single, ", share="all", reduction=4),
        )
    ),
    vil("lora", "vqa", 3129, "single, ", share="all"),
    vil("probe", "vqa", 3129),
    large("bart", "full", "image"),
    large("bart", "adapter", "single, image", share="all"),
    large("t5", "full", "image"),
    large("t5", "adapter", "single, image", share="all", reduction=4),
    *(
        blip(kind, "full", f"{size} px", "base", size)
        for kind, size in (
            ("retrieval", 384),
            ("caption", 384),
            ("vqa", 480),
            ("vqa", 384),
            ("nlvr2", 384),
            ("pretrain", 224),
            ("joint", 384),
        )
    ),
    *(
        blip(kind, "full", f"{size} px", "large", size)
        for kind, size in (
            ("retrieval", 384),
            ("caption", 384),
            ("vqa", 480),
            ("vqa", 384),
            ("nlvr2", 384),
            ("pretrain", 224),
        )
    ),
    blip("retrieval", "probe", "heads"),
    uni("share down", 512),
    uni("share down", 128),
    uni("share nothing", 512, shared="none"),
    uni("share nothing", 128, shared="none"),
    uni("share up", 512, shared="up"),
    uni("share both", 512, shared="both"),
    uni("vision alone", 512, modalities=("visual",)),
    uni("own query, share nothing", 512, shared="none", query="separate"),
    uni("last 4 layers", 512, layers="last:4"),
    uni("last 8 layers", 512, layers="last:8"),
    uni("as coded", 512, variant="as_coded"),
    blip("retrieval", "uniadapter", "with heads, r=128"),
    blip("retrieval", "uniadapter", "with heads, r=128", "large"),
    trans("vcra", "one pair"),
    trans("vcra", "a pair for each tower", pairs="by_tower"),
    trans("vcra", "frozen pair", freeze_pair=True),
    trans("unitrans", "with side network"),
    trans("unitrans", "with side network", rank=128),
    trans("unitrans", "with decoder", "vqa"),
    blip("retrieval", "unitrans", "with heads, r=64", "large"),
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


def blip_sites(config: BlipConfig) -> tuple[Site, ...]:
    """The places of one model, built once however many rows ask."""
    key = (config.kind, config.preset, config.image_size)
    if key not in _BLIP_SITES:
        _BLIP_SITES[key] = tuple(Blip.build(config, meta=True).sites())
    return _BLIP_SITES[key]


_BLIP_SITES: dict[tuple[str, str, int], tuple[Site, ...]] = {}


def plan_of(row: Row) -> Plan:
    """The plan of a row, from shapes."""
    if row.section["name"] == "blip":
        sites = blip_sites(parse_section(BlipConfig, row.section, "backbone"))
        return make_method(row.petl, paper_compat=row.paper_compat).plan(list(sites), row.tasks)
    return make_plan(RunConfig(tasks=row.tasks, backbone=row.section, petl=row.petl, paper_compat=row.paper_compat))


def compute(row: Row) -> dict[str, Any]:
    """The row as plain values; `percent` has four decimals."""
    plan = plan_of(row)
    scalars = sum(s.num_parameters for s in plan.sites if s.kind == "scalar")
    trained_scalars = sum(s.num_parameters for s in plan.unfrozen if s.kind == "scalar")
    trainable, total = plan.num_trainable - trained_scalars, plan.num_total - scalars
    return {
        "backbone": row.backbone, "method": row.method, "variant": row.variant, "trainable": trainable,
        "total": total, "percent": round(100 * trainable / total, 4), "paper": row.paper,
        "note": row.note or TEMPERATURE * bool(scalars),
    }  # fmt: skip


def pretty(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [
        f"{'backbone':16} {'method':14} {'variant':34} {'trainable':>13} {'total':>13} {'percent':>9} {'paper':>7}"
    ]
    for row in rows:
        paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
        lines.append(
            f"{row['backbone']:16} {row['method']:14} {row['variant']:34} {row['trainable']:13,d} {row['total']:13,d} "
            f"{row['percent']:9.4f} {paper:>7}{'  ' * bool(row['note'])}{row['note']}"
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
