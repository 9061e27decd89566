"""A recorded case of the metrics, its inputs and the comparisons made with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXACT = 1e-6
# A figure printed with two decimals may lie half a unit off; the rest is room for a tie.
ROUNDED = 0.005 + 1e-9
SNIFFED_BYTES = 400


class InputError(Exception):
    """A file that cannot be read as what it claims to be: exit code 2."""


@dataclass
class Case:
    """One expected file with the comparisons made so far."""

    name: str
    path: Path
    expected: dict[str, Any]
    largest: float = 0.0  # in units of the tolerance that went with it
    difference: float = 0.0
    tolerance: float = EXACT
    failures: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    comparisons: int = 0

    def number(self, what: str, found: float | None, expected: float | None, tolerance: float = EXACT) -> None:
        """Compare two numbers, or two nulls."""
        self.comparisons += 1
        if found is None or expected is None:
            if found is not expected:
                self.failures.append(f"{what}: expected {expected}, found {found}")
            return
        difference = abs(found - expected)
        if not difference <= tolerance:  # also catches NaN
            self.failures.append(f"{what}: expected {expected}, found {found}")
        if not difference / tolerance <= self.largest:
            self.largest, self.difference, self.tolerance = difference / tolerance, difference, tolerance

    def same(self, what: str, found: object, expected: object) -> None:
        """Compare two values that must be equal."""
        self.comparisons += 1
        if found != expected:
            self.failures.append(f"{what}: expected {_short(expected)}, found {_short(found)}")

    def numbers(
        self,
        what: str,
        found: Mapping[str, float | None],
        expected: Mapping[str, float | None],
        tolerance: float = EXACT,
    ) -> None:
        """Compare two tables of numbers over the same names."""
        self.same(f"names in {what}", sorted(found), sorted(expected))
        for key in expected.keys() & found.keys():
            self.number(f"{what}[{key}]", found[key], expected[key], tolerance)

    def read(self, role: str) -> Any:
        """The input file of `role`: JSON, or JSON lines as a list."""
        inputs = self.expected.get("inputs") or {}
        if role not in inputs:
            raise InputError(f"{self.path}: expected an input {role!r}, found {sorted(inputs)}")
        # Some entries carry a remark after the file name.
        return read_json(self.file(str(inputs[role]).split(" (")[0].strip()))

    def file(self, name: str) -> Path:
        """Path of a file beside the case; InputError when it is not there."""
        path = self.path.parent / name
        if not path.is_file():
            raise InputError(f"{self.path}: expected the input file {name} beside it, found none")
        return path


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def read_json(path: Path) -> Any:
    """Content of a JSON or JSON-lines file; InputError with file and line when it is neither."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a readable UTF-8 file, found: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        rows = []
        for number, line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise InputError(f"{path}: expected JSON or JSON lines, found {whole} (line {number})") from whole
        return rows


def _is_case(path: Path) -> bool:
    if path.name.endswith("expected.json"):
        return True
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"(family|kind)"\s*:', file.read(SNIFFED_BYTES)) is not None


def find_cases(root: Path) -> Iterator[Case]:
    """All cases under `root` in order of their paths; InputError for broken files."""
    for path in sorted(root.rglob("*.json")):
        if not _is_case(path):
            continue
        expected = read_json(path)
        if not isinstance(expected, dict):
            raise InputError(
                f"{path}: expected a JSON object with `family` and `kind`, found {type(expected).__name__}"
            )
        name = str(path.relative_to(root).with_suffix("")).removesuffix("expected").rstrip("_/.") or root.resolve().name
        yield Case(name, path, expected)
