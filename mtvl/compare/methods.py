"""What there is to compare: every method with its options and what it would train, and on which backbones it works."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtvl.backbones import BACKBONES
from mtvl.config import load_run_config, to_plain
from mtvl.errors import ConfigError, PlanError
from mtvl.model import make_backbone, make_method, make_plan
from mtvl.petl import METHODS
from mtvl.petl.share import SHARES
from mtvl.sites import Site

MATRIX_TASKS = ("a", "b")  # stand-ins: no plan hangs on what a task is called


def methods_table(recipe: Path, tasks: Sequence[str] = (), overrides: Sequence[str] = ()) -> str:
    """One row a registered method on the backbone and tasks of `recipe`: trained numbers at its defaults, and these."""
    rows, refused = [], []
    for name in METHODS:
        options = {f.name: f.default for f in dataclasses.fields(METHODS.load(name).Config) if f.name != "name"}
        texts = [f"{key}={_text(value)}" for key, value in options.items()]
        config = dataclasses.replace(load_run_config(recipe, tasks, overrides), petl={"name": name})
        try:
            plan = make_plan(config)
        except PlanError as error:
            refused.append(f"{name}: {error}")
            rows.append(["-", "-", name, " ".join(texts)])
            continue
        percent = f"{100 * plan.num_trainable / plan.num_total:.2f}"
        rows.append([f"{plan.num_trainable:,}", percent, name, " ".join(texts)])
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{'petl.name':{widths[2]}}  {'trained':>{widths[0]}}  {'%':>{widths[1]}}  options (petl.KEY=VALUE)"]
    lines += [f"{c:{widths[2]}}  {a:>{widths[0]}}  {b:>{widths[1]}}  {d}" for a, b, c, d in rows]
    return "\n".join([*lines, *refused])


def cell(method: str, sites: list[Site]) -> tuple[tuple[str, ...], str]:
    """Ways of sharing over tasks in which `method` works on these sites (("yes",) for one without), or () and why not."""
    options = {f.name for f in dataclasses.fields(METHODS.load(method).Config)}
    works, reason = [], ""
    for share in SHARES if "share" in options else ("",):
        try:
            make_method({"name": method, **({"share": share} if share else {})}).plan(sites, MATRIX_TASKS)
        except (PlanError, ConfigError) as error:
            reason = reason or str(error)
        else:
            works.append(share or "yes")
    return tuple(works), "" if works else reason


def smallest(backbone: str) -> Any:
    """The smallest build of a backbone, shapes alone; a list of answers, where it chooses from one, has two."""
    fields = {f.name for f in dataclasses.fields(BACKBONES.load(backbone).Config)}
    answers = {"num_answers": 2} if "num_answers" in fields else {}
    return make_backbone({"name": backbone, "preset": "tiny", **answers}, meta=True)


def matrix_table() -> str:
    """Methods x backbones: the ways of sharing over tasks that work there, or a number with the reason below.

    From shapes alone, on the smallest build of every backbone; BLIP's with all its parts.
    """
    sites = {name: smallest(name).sites() for name in BACKBONES}
    reasons: list[str] = []
    rows = [["petl.name", *sites]]
    for method in METHODS:
        cells = []
        for found in sites.values():
            works, reason = cell(method, found)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append("/".join(works) if works else f"refused ({1 + reasons.index(reason)})")
        rows.append([method, *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"({i}) {reason}" for i, reason in enumerate(reasons, start=1))])


def _text(value: object) -> str:
    plain = to_plain(value)
    if isinstance(plain, list):
        return "[" + ",".join(map(str, plain)) + "]"
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
