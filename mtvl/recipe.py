"""Recipe files as plain values: one YAML file, or a chain of them in which each is laid over its `base`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mtvl.errors import ConfigError, near_names

# Sections whose keys depend on their `name`, and the name that stands when a recipe leaves the section out.
NAMED_SECTIONS = {"backbone": "clip_bart", "petl": "adapter"}
MAX_VALUES = 100_000  # of a file; ten lines of aliases to aliases are billions
BASE = "base"  # key of a recipe: the recipe that it is laid over, a path from its own folder


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping; never executes tags. ConfigError for anything else, with file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = Path(path).parent
        known = [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []
        near = near_names(Path(path).name, known) if known else f"there is no .yaml file in {folder.absolute()}"
        raise ConfigError(f"no file {path}; {near}") from None
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else f"bytes that are no text ({error.reason})"
        raise ConfigError(f"{path}: expected a YAML file, found: {found}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: expected YAML of ordinary depth, found hundreds of nested levels") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, found {type(values).__name__}")
    _check_size(values, path)
    return values


def _check_size(values: Any, path: str | Path) -> None:
    """ConfigError for a file whose aliases unfold into more than `MAX_VALUES`, or into themselves."""
    count, rest = 0, [values]
    while rest:
        value = rest.pop()
        count += 1
        if count > MAX_VALUES:
            raise ConfigError(f"{path}: expected at most {MAX_VALUES} values, found more once its aliases are unfolded")
        rest += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Plain values of a recipe, laid over the recipe that its key `base` names, which may have a base of its own.

    Sections are merged key by key; lists and single values are replaced. Another `backbone.name` or `petl.name` drops
    the options of the base's, and other `tasks` drop what the base sets for tasks that are gone. The result has no
    `base`. Raises ConfigError for a base that is no text, is missing, or leads back to a recipe that named it.
    """
    chain: list[Path] = []
    layers: list[dict[str, Any]] = []
    file: Path | None = Path(path)
    while file is not None:
        chain.append(file)
        if file.resolve() in [f.resolve() for f in chain[:-1]]:
            raise ConfigError("a recipe cannot be its own base: " + " -> ".join(str(f) for f in chain))
        values = read_yaml(file)
        file = _base_of(values.pop(BASE, None), file) if BASE in values else None
        layers.append(values)
    result = layers.pop()
    while layers:
        result = _lay_over(result, layers.pop())
    return result


def _base_of(name: Any, recipe: Path) -> Path:
    """The file that `recipe` names as its base."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{recipe}: '{BASE}' expects the path of a recipe, found {name!r}")
    file = Path(os.path.normpath(recipe.parent / Path(name).expanduser()))
    if not file.is_file():
        near = near_names(file.name, [p.name for p in file.parent.glob("*.yaml")])
        raise ConfigError(f"{recipe}: its base {name!r} is looked for in {file.parent}, no such file; {near}")
    return file


def _lay_over(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The recipe `values` over the recipe `below`."""
    result = narrowed(below, values["tasks"]) if isinstance(values.get("tasks"), list) else below
    switched = {
        key: value for key, value in values.items() if key in NAMED_SECTIONS and isinstance(value, dict)
        and value.get("name", _name_of(result, key)) != _name_of(result, key)
    }  # fmt: skip
    return {**_merged(result, values), **switched}


def _name_of(values: dict[str, Any], section: str) -> Any:
    """The `name` of a named section, or the one that stands when it is left out."""
    found = values.get(section)
    return (found if isinstance(found, dict) else {}).get("name", NAMED_SECTIONS[section])


def _merged(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def narrowed(values: dict[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """A recipe's values without what they set under `task` for those of their own tasks that are not in `tasks`."""
    settings, own = values.get("task"), values.get("tasks")
    if not isinstance(settings, dict) or not isinstance(own, list):
        return values
    return {**values, "task": {name: value for name, value in settings.items() if name in tasks or name not in own}}
