"""What all ranks must have been given alike, compared before a model is built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mtvl import dist
from mtvl.config import RunConfig, to_plain
from mtvl.errors import EngineError


def brief(backbone: dict[str, Any]) -> dict[str, Any]:
    """The section with its lists of answers, which may run to thousands, as their numbers and a hash."""
    if not (answers := backbone.get("answers")):
        return backbone
    digest = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()[:16]
    numbers = ", ".join(f"{task} {len(names)}" for task, names in answers.items())
    return {**backbone, "answers": f"{numbers} ({digest})"}


def check_ranks(config: RunConfig) -> None:
    """EngineError on all ranks unless all were given one recipe. Folders and files may differ from machine to machine.

    Ranks with other tasks or another method would make other models, and would wait for each other without end.
    """
    apart = ("data", "engine", "checkpoint", "evaluate")
    sections = {k: v for k, v in to_plain(config).items() if k not in apart}
    backbone = brief(sections["backbone"])
    sections["backbone"] = {k: v for k, v in backbone.items() if not k.endswith(("weights", "tokenizer"))}
    everyone = dist.gather_objects(sections)
    for key in ("tasks", *sections):
        if any(other[key] != everyone[0][key] for other in everyone):
            lines = [f"rank {rank}: {other[key]}" for rank, other in enumerate(everyone)]
            raise EngineError(
                f"before the first step: the ranks were given different recipes, '{key}' differs; "
                + "; ".join(lines)
                + "; start all ranks with one command"
            )


def check_identity(identity: Mapping[str, str]) -> None:
    """EngineError on all ranks unless all made the same of it: other copies of data or weights would go unnoticed.

    "examples" and "backbone" are left out, since paths are in them, and folders may differ from machine to machine.
    """
    apart = ("examples", "backbone")
    everyone = dist.gather_objects({key: value for key, value in identity.items() if key not in apart})
    for key, value in everyone[0].items():
        if any(other.get(key) != value for other in everyone):
            lines = [f"rank {rank}: {other.get(key)}" for rank, other in enumerate(everyone)]
            raise EngineError(
                f"before the first step: the ranks differ in '{key}'; {'; '.join(lines)}; give all machines the same data and "
                "weights, and start all ranks with one command"
            )
