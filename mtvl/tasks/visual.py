"""Which kinds of visual features the tasks of a run need, from their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mtvl.config import RunConfig, read_yaml
from mtvl.tasks.files import OWN_FOLDER

KINDS = ("grid", "frame")  # in the order of their projections


def visual_kinds(names: Sequence[str], *folders: Path) -> tuple[str, ...]:
    """ "grid" for tasks on pictures, "frame" for tasks whose file has a section `video`; in a fixed order.

    Files are looked for in `folders`, the first one first. A name without a file counts as a task on pictures: loading it
    gives the clear error.
    """
    found = set()
    for name in names:
        file = next((f for folder in folders if (f := folder / f"{name}.yaml").is_file()), None)
        found.add("frame" if file is not None and "video" in read_yaml(file) else "grid")
    return tuple(kind for kind in KINDS if kind in found) or KINDS[:1]


def with_visual(config: RunConfig, tasks_dir: Path) -> RunConfig:
    """`config` with `backbone.visual` filled in from its tasks unless it is given."""
    if config.backbone.get("visual"):
        return config
    folders = [tasks_dir] + ([config.data.folder / OWN_FOLDER] if config.data.folder else [])
    return replace(config, backbone={**config.backbone, "visual": list(visual_kinds(config.tasks, *folders))})
