"""Which kinds of visual features the tasks of a run need, from their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mtvl.config import RunConfig, read_yaml

KINDS = ("grid", "frame")  # in the order of their projections


def visual_kinds(names: Sequence[str], tasks_dir: Path) -> tuple[str, ...]:
    """ "grid" for tasks on pictures, "frame" for tasks whose file has a section `video`; in a fixed order.

    A name without a file counts as a task on pictures: loading it gives the clear error.
    """
    found = set()
    for name in names:
        file = tasks_dir / f"{name}.yaml"
        found.add("frame" if file.is_file() and "video" in read_yaml(file) else "grid")
    return tuple(kind for kind in KINDS if kind in found) or KINDS[:1]


def with_visual(config: RunConfig, tasks_dir: Path) -> RunConfig:
    """`config` with `backbone.visual` filled in from its tasks unless it is given."""
    if config.backbone.get("visual"):
        return config
    return replace(config, backbone={**config.backbone, "visual": list(visual_kinds(config.tasks, tasks_dir))})
