"""Cases on disk, comparisons of recorded numbers with computed ones, and what is said about them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class NotYet(Exception):
    """The case needs a method, backbone or kind that is not registered yet."""


@dataclass(frozen=True)
class Tolerance:
    """|found - expected| <= atol + rtol * |expected|; both 0 means equal."""

    atol: float = 0.0
    rtol: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.atol:g}"] * bool(self.atol) + [f"{self.rtol:g}*|x|"] * bool(self.rtol)
        return "+".join(parts) or "exact"


EXACT = Tolerance()


@dataclass(frozen=True)
class Quantity:
    """One compared quantity. `use` is the largest difference as a share of what is allowed; above 1 fails."""

    name: str
    difference: float
    use: float
    tolerance: Tolerance
    note: str = ""

    @property
    def passed(self) -> bool:
        """True when the quantity lies within its tolerance (a NaN does not)."""
        return self.use <= 1


@dataclass
class Case:
    """A recorded case: its JSON, and its tensors with a memory of which were looked at."""

    file: Path
    facts: Mapping[str, Any]
    used: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The name in the JSON, or that of the file."""
        return str(self.facts.get("case", self.file.stem))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All recorded tensors."""
        return load_file(str(self.file.with_suffix(".safetensors")))

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors below `prefix` (which ends in a slash), without it; they count as looked at."""
        found = {k: v for k, v in self.tensors.items() if k.startswith(prefix)}
        self.used.update(found)
        return {k.removeprefix(prefix): v for k, v in found.items()}

    def get(self, key: str) -> torch.Tensor | None:
        """One tensor, or None when it was not recorded."""
        self.used.add(key)
        return self.tensors.get(key)

    def unused(self) -> list[str]:
        """Recorded tensors that no comparison has looked at."""
        return sorted(self.tensors.keys() - self.used)


def read_case(file: Path) -> Case:
    """Read a case's JSON; ValueError when it is no object."""
    facts = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError(f"expected an object at the top of {file.name}, found {type(facts).__name__}")
    return Case(file, facts)


@dataclass
class Report:
    """The comparisons of one case."""

    quantities: list[Quantity] = field(default_factory=list)

    def close(self, name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance) -> None:
        """Compare two tensors; another shape, and a NaN on either side, is a failure."""
        if found.shape != expected.shape:
            note = f"expected shape {tuple(expected.shape)}, found {tuple(found.shape)}"
            self.quantities.append(Quantity(name, math.inf, math.inf, tolerance, note))
            return
        found, expected = found.detach().double().cpu(), expected.double()
        difference = (found - expected).abs()
        allowed = tolerance.atol + tolerance.rtol * expected.abs()
        share = torch.where(difference == 0, 0.0, difference / allowed)
        if not difference.numel():
            self.quantities.append(Quantity(name, 0.0, 0.0, tolerance))
            return
        use = float(share.nan_to_num(nan=math.inf, posinf=math.inf).max())
        self.quantities.append(Quantity(name, float(difference.nan_to_num(nan=math.inf).max()), use, tolerance))

    def tensors(
        self, name: str, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: Tolerance
    ) -> None:
        """Compare tensors by name as one quantity; the note names the worst one. The names have to be equal."""
        self.names(f"{name} names", found, expected)
        each = Report()
        for key in found.keys() & expected.keys():
            each.close(key, found[key], expected[key], tolerance)
        if each.quantities:
            worst = each.worst()
            difference = max(q.difference for q in each.quantities)
            self.quantities.append(
                Quantity(name, difference, worst.use, tolerance, f"worst at {worst.name} {worst.note}")
            )

    def names(self, name: str, found: Collection[str], expected: Collection[str]) -> None:
        """Two sets of names have to be equal."""
        extra, absent = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
        note = f"not recorded: {extra[:3]}, recorded but not found: {absent[:3]}" if extra or absent else ""
        self.equal(name, not (extra or absent), True, note)

    def equal(self, name: str, found: object, expected: object, note: str = "") -> None:
        """Two plain values have to be equal."""
        same = found == expected
        wrong = "" if same else note or _shorten(f"expected {expected!r}, found {found!r}")
        self.quantities.append(Quantity(name, 0.0 if same else math.inf, 0.0 if same else math.inf, EXACT, wrong))

    def mapping(self, name: str, found: Mapping[str, object], expected: Mapping[str, object]) -> None:
        """Two tables of plain values have to be equal; the note shows some of the entries that are not."""
        differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
        shown = "; ".join(f"{key}: expected {expected.get(key)!r}, found {found.get(key)!r}" for key in differing[:3])
        self.equal(name, len(differing), 0, _shorten(f"{len(differing)} differ: {shown}"))

    @property
    def passed(self) -> bool:
        """True when something was compared and all of it lies within tolerance."""
        return bool(self.quantities) and all(q.passed for q in self.quantities)

    def worst(self) -> Quantity:
        """The quantity that uses most of its tolerance."""
        return max(self.quantities, key=lambda q: q.use)


def _shorten(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most] + " ..."


def check_kind(case: Case, report: Report, kinds: Mapping[str, Callable[[Case, Report], None]]) -> None:
    """Compare a case by the function of its kind; a recorded tensor that it did not look at is a difference."""
    kind = case.facts["kind"]
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(kinds)}")
    kinds[kind](case, report)
    if case.file.with_suffix(".safetensors").is_file():
        report.equal("records left uncompared", case.unused(), [])
