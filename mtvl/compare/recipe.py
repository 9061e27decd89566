"""What is compared: a YAML file that lists methods, one a line, over one base recipe."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mtvl.config import RunConfig, load_run_config, parse_section, read_yaml
from mtvl.errors import ConfigError, PlanError, near_names

NAME = re.compile(r"[a-z0-9_]+")  # becomes the name of a file
PLAIN = re.compile(r"[\w./-]+")


@dataclass(frozen=True)
class PaperRow:
    """Published figures of a method: trained per cent, and scores in the order of `tasks` ([] when not known)."""

    trained: float | None = None
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class MethodLine:
    """One method to compare: what it sets in the base recipe, and what the paper says about it."""

    name: str
    set: dict[str, Any]
    label: str = ""
    paper: PaperRow = field(default_factory=PaperRow)


@dataclass(frozen=True)
class Budget:
    """Minutes that a run is expected to take; estimates start from them until runs have been measured."""

    train_minutes: float = 0.0
    evaluate_minutes: float = 0.0


@dataclass(frozen=True)
class CompareConfig:
    """A comparison. `base` is a run's recipe, relative to this file; `set` holds `key: value` overrides of all runs.

    `launcher` comes before launch/train.py and launch/evaluate.py ("deepspeed --num_gpus 8"); "" is plain Python.
    """

    base: str
    methods: tuple[MethodLine, ...]
    title: str = ""
    paper: str = ""
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    set: dict[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    launcher: str = ""


@dataclass(frozen=True)
class Run:
    """One training with its evaluation: a method and a seed."""

    line: MethodLine
    seed: int
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of its record and of its run folder."""
        return run_name(self.line.name, self.seed)


def run_name(method: str, seed: int) -> str:
    """E.g. `single_adapter_s0`."""
    return f"{method}_s{seed}"


@dataclass(frozen=True)
class Comparison:
    """A comparison as read from `file`, with the overrides of the command line."""

    file: Path
    config: CompareConfig
    overrides: tuple[str, ...] = ()

    @property
    def base(self) -> Path:
        """The recipe under every run."""
        return self.file.parent / self.config.base

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of every run."""
        return self.config.tasks or load_run_config(self.base).tasks

    def run(self, line: MethodLine, seed: int) -> Run:
        """The run of one method with one seed; ConfigError names the method whose settings are wrong."""
        overrides = (*as_overrides(self.config.set), *as_overrides(line.set), *self.overrides, f"seed={seed}")
        with self.naming(line):
            config = load_run_config(self.base, self.tasks, overrides)
        return Run(line, seed, overrides, config)

    @contextlib.contextmanager
    def naming(self, line: MethodLine) -> Iterator[None]:
        """ConfigError that begins with the file and the method where a setting turns out to be wrong."""
        try:
            yield
        except (ConfigError, PlanError) as error:
            raise ConfigError(f"{self.file}, method '{line.name}': {error}") from None

    def runs(self, seeds: Sequence[int] = (), only: Sequence[str] = ()) -> list[Run]:
        """All runs, seed by seed, so that a comparison that is cut short holds every method; `only` names methods."""
        names = [line.name for line in self.config.methods]
        for name in only:
            if name not in names:
                raise ConfigError(f"unknown method {name!r} in --only; {near_names(name, names)}")
        lines = [line for line in self.config.methods if not only or line.name in only]
        return [self.run(line, seed) for seed in dict.fromkeys(seeds or self.config.seeds) for line in lines]


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """`key=value` as typed on a command line."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _text(value: Any) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value) and yaml.safe_load(value) == value:  # and no "on" or "null"
        return value
    return json.dumps(value)


def load_comparison(file: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read and check a comparison; ConfigError says what is wrong with it."""
    values = read_yaml(file)
    if "methods" not in values:
        raise ConfigError(
            f"{file} compares nothing: it has no key 'methods'. A recipe of one run is trained with 'mtvl train --recipe'; "
            "launch/recipes/table1.yaml shows what a comparison looks like"
        )
    try:
        config = parse_section(CompareConfig, values)
        shlex.split(config.launcher)
    except (ConfigError, ValueError) as error:
        what = (
            error if isinstance(error, ConfigError) else f"'launcher' {config.launcher!r} is no command line: {error}"
        )
        raise ConfigError(f"{file}: {what}") from None
    comparison = Comparison(file, config, tuple(overrides))
    names = [line.name for line in config.methods]
    for line in config.methods:
        if not NAME.fullmatch(line.name):
            raise ConfigError(
                f"{file}: expected small letters, digits and _ in the name of a method, found {line.name!r}"
            )
        if names.count(line.name) > 1:
            raise ConfigError(f"{file}: two methods are called {line.name!r}; give each its own name")
        if line.paper.scores and len(line.paper.scores) != len(comparison.tasks):
            raise ConfigError(
                f"{file}, method '{line.name}': 'paper.scores' expects {len(comparison.tasks)} numbers in the order of "
                f"{', '.join(comparison.tasks)}, found {len(line.paper.scores)}"
            )
    if not config.methods or not config.seeds:
        raise ConfigError(f"{file}: 'methods' and 'seeds' need at least one entry each")
    taken = [text for text in overrides if text.partition("=")[0] == "seed"]
    if taken:
        raise ConfigError(f"{taken[0]}: seeds are given with --seeds or in {file}")
    return comparison
