"""What there is to compare: every method with its options and what it would train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtvl.config import load_run_config, to_plain
from mtvl.errors import PlanError
from mtvl.model import make_plan
from mtvl.petl import METHODS


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


def _text(value: object) -> str:
    plain = to_plain(value)
    if isinstance(plain, list):
        return "[" + ",".join(map(str, plain)) + "]"
    return str(plain).lower() if isinstance(plain, bool) else str(plain)
