"""Kinds of tasks, and how `tasks/NAME.yaml` becomes a Task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtvl.config import EvaluateConfig, parse_section, read_yaml
from mtvl.errors import ConfigError
from mtvl.registry import Registry
from mtvl.tasks.base import BaseTask, TaskConfig, validate
from mtvl.tasks.files import TASKS_DIR, task_file, task_names

__all__ = ["TASKS", "TASKS_DIR", "load_task", "task_names"]

TASKS = Registry(
    "kind of task",
    {
        "vqa": "mtvl.tasks.vqa:VQA",
        "gqa": "mtvl.tasks.gqa:GQA",
        "statement": "mtvl.tasks.statement:Statement",
        "label": "mtvl.tasks.label:Label",
        "caption": "mtvl.tasks.caption:Caption",
        "choice": "mtvl.tasks.choice:Choice",
        "answer": "mtvl.tasks.answer:Answer",
        "masked": "mtvl.tasks.masked:MaskedCaption",
        "matching": "mtvl.tasks.matching:Matching",
        "retrieval": "mtvl.tasks.retrieval:Retrieval",
    },
)


def load_task(
    name: str,
    *,
    root: Path | None,
    family: str = "",
    evaluate: EvaluateConfig | None = None,
    overlay: Mapping[str, Any] | None = None,
    tasks_dir: Path | None = None,
) -> BaseTask:
    """Read the file of the task and return its Task on the data below `root`; no data file is opened yet.

    The file is `tasks/NAME.yaml` of the checkout, or of `root` for one's own tasks. Without `root` nothing but the file
    can be checked. `family` names the backbone family whose `families:` section is laid over the file, `overlay` holds
    keys of the run that go over both. Raises ConfigError for an
    unknown name (with near names), for a name that is a path, and for every unknown key or wrong type.
    """
    config = read_task_config(name, task_file(name, tasks_dir, root), family, overlay)
    return TASKS.load(config.kind)(name, config, (root or Path()).absolute(), evaluate or EvaluateConfig())


def read_task_config(
    name: str, file: Path, family: str = "", overlay: Mapping[str, Any] | None = None
) -> TaskConfig:  # fmt: skip
    """Parse and check one task file, the settings of `family` and then `overlay` laid over it; ConfigError names the key."""
    values = read_yaml(file)
    families = values.get("families") or {}
    if not isinstance(families, dict) or not all(isinstance(v, dict) for v in families.values()):
        raise ConfigError(f"'{name}.families' expects a section of keys for each family, found {families!r}")
    for each in families:  # a slip in a family that is not in use now is a slip all the same
        validate(name, parse_section(TaskConfig, _overlay(values, families[each]), name), TASKS)
    config = parse_section(TaskConfig, _overlay(_overlay(values, families.get(family, {})), overlay or {}), name)
    validate(name, config, TASKS)
    return config


def _overlay(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _overlay(result[key], value) if both else value
    return result
