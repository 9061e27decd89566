"""Where task files lie: `tasks/` of the checkout, and `tasks/` below the data root for one's own tasks."""

from __future__ import annotations

import re
from pathlib import Path

from mtvl.errors import ConfigError, near_names

# The package is used from its checkout (an editable install), where the task files lie beside it.
TASKS_DIR = Path(__file__).resolve().parents[2] / "tasks"
OWN_FOLDER = "tasks"  # below the data root
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def task_names(tasks_dir: Path | None = None, root: Path | None = None) -> list[str]:
    """Names that may stand after `--tasks`: the YAML files in the folder of tasks, and in that of the data root."""
    return sorted({p.stem for folder in _folders(tasks_dir, root) for p in folder.glob("*.yaml")})


def is_task_name(name: str) -> bool:
    """True when `name` can be that of a task: a plain file name."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def task_file(name: str, tasks_dir: Path | None = None, root: Path | None = None) -> Path:
    """The file of the task `name` in `tasks_dir` (default: that of the checkout) or in `root`/tasks.

    Raises ConfigError for an unknown name (with near names), for a name that is a path, and for a name that both
    folders have: which one is meant would depend on the order of looking.
    """
    first = tasks_dir or TASKS_DIR
    if not first.is_dir():
        raise ConfigError(f"expected the folder of task files at {first}, found none; install from the checkout")
    if not is_task_name(name):
        raise ConfigError(f"expected the name of a file in {first} without its ending, found {name!r}")
    found = [file for folder in _folders(tasks_dir, root) if (file := folder / f"{name}.yaml").is_file()]
    if not found:
        own = f" (own tasks are looked for in {root / OWN_FOLDER})" if root else " (own tasks need 'data.root')"
        raise ConfigError(f"unknown task {name!r}; {near_names(name, task_names(tasks_dir, root))}{own}")
    if len(found) > 1 and not found[0].samefile(found[1]):
        raise ConfigError(f"the task {name!r} has two files, {found[0]} and {found[1]}; rename your own")
    return found[0]


def _folders(tasks_dir: Path | None, root: Path | None) -> list[Path]:
    return [tasks_dir or TASKS_DIR, *([root / OWN_FOLDER] if root else [])]
