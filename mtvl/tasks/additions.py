"""What a task is trained on beside its training split: other splits of its source, or rows of other files."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.rows import Row
from mtvl.errors import ConfigError, near_names
from mtvl.tasks.sources import AdditionConfig, Source, SourceConfig
from mtvl.types import Example

_log = logging.getLogger(__name__)


def check_additions(
    task: str, also: Sequence[str], additions: Mapping[str, AdditionConfig], sources: Sequence[SourceConfig]
) -> None:
    """ConfigError unless every name in `also` is there and stands once, and every addition has files and a weight."""
    splits = {split for source in sources for split in source.files} - {"train"}
    known = splits | set(additions)
    for number, other in enumerate(also):
        if other not in known:
            raise ConfigError(f"unknown '{task}.also' {other!r}; {near_names(other, known)}")
        if other in also[:number]:
            raise ConfigError(f"'{task}.also' names {other!r} twice")
    for other, addition in additions.items():
        if other in splits or other == "train" or not 0 < addition.weight <= 1 or "train" not in addition.files:
            raise ConfigError(
                f"'{task}.additions.{other}' expects a name that is no split of the task, files of 'train', and a weight above "
                f"0 and up to 1; found the splits {', '.join(addition.files) or '(none)'} and the weight {addition.weight:g}"
            )


def added_rows(
    name: str, additions: Mapping[str, AdditionConfig], source: Source, root: Path
) -> tuple[Sequence[Row], list[tuple[str, ...]], float]:
    """Rows of an addition, or of another split of `source`, with the files of each and the weight of their answers.

    Ids begin with `name`. DataError where files are missing or faulty.
    """
    addition = additions.get(name)
    if addition is None:
        _log.warning("task %s is trained on its split %s too: what it scores there is no measure", source.task, name)
        rows, files = source.load(name)
    else:
        rows, files = Source(source.task, addition, root).load("train")
    renamed = [dataclasses.replace(row, uid=f"{name}-{row.uid}") for row in rows]
    return renamed, files, 1.0 if addition is None else addition.weight


def weighing(example: Example, weight: float) -> Example:
    """`example` with the weights of its answers multiplied by `weight`."""
    if weight == 1:
        return example
    targets = tuple(dataclasses.replace(target, weight=weight * target.weight) for target in example.targets)
    return dataclasses.replace(example, targets=targets)
