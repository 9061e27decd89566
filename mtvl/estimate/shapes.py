"""The largest batch that a task can give, as shapes: what its file, the recipe and the backbone say about lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtvl.backbones.clip_config import frame_tower_name
from mtvl.backbones.frame_tower import FRAME_TOWERS
from mtvl.config import RunConfig
from mtvl.data.schedule import num_micro_steps
from mtvl.tasks import TASKS_DIR, read_task_config
from mtvl.tasks.base import TaskConfig
from mtvl.tasks.files import task_file
from mtvl.types import Batch

# Where a task sets no limit: as long as the longest texts of such tasks are, special tokens included.
SOURCE_TOKENS, TARGET_TOKENS, CHOICE_TOKENS = 64, 24, 4
SPECIAL_TOKENS = 2  # of a source without words
PICTURES = {"statement": 2}  # of a row, by kind of task; one elsewhere
ANSWERS = (
    3  # of a row where all are learned at once: of VQA's ten 2.70 differ on average (Antol et al. 2015, section 4)
)


def rows_of(config: RunConfig, world_size: int) -> int:
    """Most rows of a micro-batch on one device."""
    train = config.train
    micro = num_micro_steps(train.global_batch, train.micro_batch, world_size)
    return -(-train.global_batch // (micro * world_size))


def read_task(config: RunConfig, name: str, family: str) -> TaskConfig:
    """The task's file with what the run lays over it; no data are looked at."""
    root: Path | None = config.data.folder
    return read_task_config(name, task_file(name, TASKS_DIR, root), family, config.task.get(name))


def largest_batch(config: RunConfig, name: str, backbone: Any, rows: int) -> Batch:
    """A batch of `rows` rows of the task `name` at its limits; all positions count, all features are there."""
    task = read_task(config, name, backbone.family)
    has_words = task.kind != "caption" or bool(task.prompt) or task.video is not None
    source = (task.limits.source_tokens or SOURCE_TOKENS) if has_words else SPECIAL_TOKENS
    target = task.limits.target_tokens or (CHOICE_TOKENS if task.decoding.mode == "choose" else TARGET_TOKENS)
    longest = backbone.max_tokens or max(source, target)
    source, target = min(source, longest), min(target, longest)
    kind = "grid" if task.video is None else "frame"
    pictures = PICTURES.get(task.kind, 1) if kind == "grid" else 1
    cells, width = _grid(backbone, kind)
    mask = torch.ones(rows, source, dtype=torch.bool)
    mask[0, -1] = False  # as batches are: transformers leaves a mask out that hides nothing
    answers = ANSWERS if task.loss == "answers" else 0
    return Batch(
        task=name,
        uids=tuple(map(str, range(rows))),  # rows without one count for nothing
        source_ids=torch.ones(rows, source, dtype=torch.int64),
        source_mask=mask,
        features=torch.zeros(rows, pictures, cells, width),
        target_ids=torch.ones(rows, target, dtype=torch.int64),
        target_weights=torch.ones(rows),
        loss=task.loss,
        denominator=float(rows),
        feature_kind=kind,
        choice_ids=torch.ones(rows, answers, target, dtype=torch.int64),
        choice_weights=torch.ones(rows, answers),
    )


def _grid(backbone: Any, kind: str) -> tuple[int, int]:
    """(P, F) of one picture, or of one video with as many frames as are kept."""
    tower = backbone.visual_tower
    if tower is not None and kind in backbone.pixel_kinds:
        return tower.config.image_size**2 * (1 if kind == "grid" else backbone.max_frames), 3
    if kind == "grid":
        return backbone.stored_grid(kind)
    tower_config = FRAME_TOWERS.get(frame_tower_name(backbone.config))
    tokens = 1 if tower_config is None else tower_config.grid[0]
    return backbone.max_frames * tokens, backbone.widths[kind]
