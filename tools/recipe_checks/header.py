"""The header of a full-size recipe: comments of a fixed form above its keys, read by people and by the checks.

# deepspeed launch/train.py --recipe FILE data.root=/data
# Row: which row of which table it is
# Published: the paper's scores
# Trained: 6,081,600 of 145,606,464 (4.18 %); a remark
# Still: 19,968; why as many trained parameters have no part in this task (left out where all have one)
# Hardware: what it wants, and how long it takes
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtvl.errors import ConfigError, near_names

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "launch" / "recipes"
_LABEL = re.compile(r"# (Row|Published|Trained|Still|Hardware): (.+)")
_TRAINED = re.compile(r"([\d,]+) of ([\d,]+) \((\d+\.\d\d) %\)(?:; (.+))?")


@dataclass(frozen=True)
class Header:
    """What a header says. `trained` and `total` are parameters, `percent` their quotient with two decimals."""

    recipe: Path
    row: str
    published: str
    trained: int
    total: int
    percent: str
    remark: str
    hardware: str
    still: int = 0  # trained parameters that no step of its tasks moves

    @property
    def name(self) -> str:
        """The recipe's path below launch/recipes, without its ending."""
        return str(self.recipe.relative_to(RECIPES).with_suffix("")) if _is_ours(self.recipe) else self.recipe.stem


def _is_ours(recipe: Path) -> bool:
    return recipe.is_relative_to(RECIPES)


def _labels(recipe: Path) -> dict[str, str]:
    """Label -> text of the comments above the first key; ConfigError for a label that stands twice."""
    found: dict[str, str] = {}
    for row, line in enumerate(recipe.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("#"):
            break
        if match := _LABEL.fullmatch(line):
            if match[1] in found:
                raise ConfigError(
                    f"{recipe}, row {row}: a second comment begins with '# {match[1]}:'; the labels of a header stand once, "
                    "so begin the remark with another word"
                )
            found[match[1]] = match[2]
    return found


def read_header(recipe: Path) -> Header:
    """The header of `recipe`; ConfigError that names the file and the line that is missing or malformed."""
    labels = _labels(recipe)
    for label in ("Row", "Published", "Trained", "Hardware"):
        if label not in labels:
            raise ConfigError(f"{recipe}: expected a comment '# {label}: ...' above the first key, found none")
    match = _TRAINED.fullmatch(labels["Trained"])
    if match is None:
        raise ConfigError(
            f"{recipe}: '# Trained:' expects the form '6,081,600 of 145,606,464 (4.18 %)', found {labels['Trained']!r}"
        )
    trained, total = (int(match[i].replace(",", "")) for i in (1, 2))
    still = re.match(r"([\d,]+); .", labels.get("Still", "0; all move"))
    if still is None:
        raise ConfigError(f"{recipe}: '# Still:' expects the form '19,968; why', found {labels['Still']!r}")
    return Header(
        recipe, labels["Row"], labels["Published"], trained, total, match[3], match[4] or "", labels["Hardware"],
        int(still[1].replace(",", "")),
    )  # fmt: skip


def full_size_recipes() -> list[Header]:
    """Headers of all recipes that have a '# Row:', those of launch/recipes itself first."""
    files = sorted(RECIPES.rglob("*.yaml"), key=lambda f: (len(f.relative_to(RECIPES).parts), str(f)))
    return [read_header(f) for f in files if "Row" in _labels(f)]


def chosen(patterns: Sequence[str]) -> list[Header]:
    """The full-size recipes whose name, with or without its folder, fits one of `patterns` (all without any).

    Raises ConfigError for a pattern that fits none.
    """
    headers = full_size_recipes()
    fitting: set[str] = set()
    for pattern in patterns:
        names = {h.name for h in headers if any(fnmatch.fnmatchcase(n, pattern) for n in (h.name, h.recipe.stem))}
        if not names:
            raise ConfigError(f"no full-size recipe fits {pattern!r}; {near_names(pattern, [h.name for h in headers])}")
        fitting |= names
    return [h for h in headers if not patterns or h.name in fitting]
