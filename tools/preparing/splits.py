"""Splits of one's own pictures: what they are called, and which picture falls into which.

A picture is known by the digest of its content. What an own task decided is kept beside its rows, so that the next task
below the same root, and the same one with more pictures, put a picture where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import read_json
from mtvl.errors import ConfigError, DataError, near_names
from preparing.plan import SPLITS, parted

RECORD = "splits.json"  # in the folder of the task: {split: [digest, ...]}

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
Fractions = tuple[float, float, float]


def split_named(word: str) -> str:
    """The split that `word` calls; ValueError with near names otherwise."""
    found = SPLIT_WORDS.get(word.strip().lower())
    if found is None:
        raise ValueError(f"{word!r}; {near_names(word, SPLIT_WORDS)}")
    return found


def parse_fractions(text: str) -> Fractions | None:
    """ "0.8,0.1,0.1" as numbers; None when `text` is no such list. ConfigError unless they add up to 1."""
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return None
    if len(numbers) != 3 or min(numbers) < 0 or numbers[0] <= 0 or abs(sum(numbers) - 1) > 1e-6:
        raise ConfigError(f"--split expects a column or shares of train,val,test that add up to 1, found {text!r}")
    return numbers[0], numbers[1], numbers[2]


def recorded(dst: Path, tasks: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(split, task) by digest, of every picture in the own `tasks` below `dst`; DataError where a record is gone."""
    found: dict[str, tuple[str, str]] = {}
    for task in tasks:
        file = dst / task / RECORD
        if not file.exists():
            raise DataError(
                f"expected the record of which picture of {task!r} is in which split, found none; prepare {task!r} again, "
                "or use another DST",
                file=file,
            )
        content = read_json(file)
        if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in SPLITS):
            raise DataError(f"expected lists of digests for {', '.join(SPLITS)}, found something else", file=file)
        found |= {digest: (split, task) for split in SPLITS for digest in content[split]}
    return found


def record_of(split_of: Mapping[str, str]) -> dict[str, Any]:
    """Content of the file RECORD for the splits by digest."""
    return {split: sorted(d for d, s in split_of.items() if s == split) for split in SPLITS}


def by_shares(digests: Iterable[str], fractions: Fractions, known: Mapping[str, str], source: Path) -> dict[str, str]:
    """The split of each digest: as `known`, and new ones in the order of their digests until the shares are filled.

    Raises DataError when a split that was asked for stays empty.
    """
    order: Sequence[str] = sorted(set(digests))
    kept = {d: known[d] for d in order if d in known}
    new = [d for d in order if d not in known]

    def wanted(split: str, share: float) -> int:
        number = max(1, round(len(order) * share)) if share else 0
        return max(0, number - sum(s == split for s in kept.values()))

    test, val = wanted("test", fractions[2]), wanted("val", fractions[1])
    split_of = kept | parted(new, test=test, val=val)
    asked = [split for split, share in zip(SPLITS, fractions, strict=True) if share]
    if empty := [split for split in asked if split not in split_of.values()]:
        fixed = f" ({len(kept)} of them stand in other own tasks, and stay in the splits of those)" if kept else ""
        raise DataError(
            f"expected different pictures or videos for {', '.join(asked)}, found {len(order)}{fixed} and none left for "
            f"{', '.join(empty)}; add some, give --split other shares" + (", or use another DST" if kept else ""),
            file=source,
        )
    return split_of
