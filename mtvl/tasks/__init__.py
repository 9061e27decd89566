"""Kinds of tasks, and how `tasks/NAME.yaml` becomes a Task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtvl.config import EvaluateConfig, parse_section, read_yaml
from mtvl.errors import ConfigError, near_names
from mtvl.registry import Registry
from mtvl.tasks.base import BaseTask, TaskConfig, validate

__all__ = ["TASKS", "load_task", "task_names"]

TASKS = Registry(
    "kind of task",
    {
        "vqa": "mtvl.tasks.vqa:VQA",
        "gqa": "mtvl.tasks.gqa:GQA",
        "statement": "mtvl.tasks.statement:Statement",
        "caption": "mtvl.tasks.caption:Caption",
        "choice": "mtvl.tasks.choice:Choice",
    },
)

# The package is used from its checkout (an editable install), where the task files lie beside it.
TASKS_DIR = Path(__file__).resolve().parents[2] / "tasks"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def task_names(tasks_dir: Path | None = None) -> list[str]:
    """Names that may stand after `--tasks`: the YAML files in the folder of tasks."""
    return sorted(p.stem for p in (tasks_dir or TASKS_DIR).glob("*.yaml"))


def load_task(
    name: str,
    *,
    root: Path,
    family: str = "",
    evaluate: EvaluateConfig | None = None,
    overlay: Mapping[str, Any] | None = None,
    tasks_dir: Path | None = None,
) -> BaseTask:
    """Read `tasks/NAME.yaml` and return its Task on the data below `root`; no data file is opened yet.

    `family` names the backbone family whose `families:` section is laid over the file, `overlay` holds keys of the run
    that go over both. Raises ConfigError for an
    unknown name (with near names), for a name that is a path, and for every unknown key or wrong type.
    """
    folder = tasks_dir or TASKS_DIR
    if not folder.is_dir():
        raise ConfigError(f"expected the folder of task files at {folder}, found none; install from the checkout")
    if not _NAME.fullmatch(name) or ".." in name:
        raise ConfigError(f"expected the name of a file in {folder} without its ending, found {name!r}")
    if not (folder / f"{name}.yaml").is_file():
        raise ConfigError(f"unknown task {name!r}; {near_names(name, task_names(folder))}")
    config = read_task_config(name, folder / f"{name}.yaml", family, overlay)
    return TASKS.load(config.kind)(name, config, Path(root).absolute(), evaluate or EvaluateConfig())


def read_task_config(
    name: str, file: Path, family: str = "", overlay: Mapping[str, Any] | None = None
) -> TaskConfig:  # fmt: skip
    """Parse and check one task file, the settings of `family` and then `overlay` laid over it."""
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
