"""The table of docs/reliability.md: every promise has its tests, and they exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reliability.md"
HEAD = "| | promise | tests |"
NUM_PROMISES = 30


def promises(text: str) -> dict[int, list[tuple[str, str]]]:
    """Number of a row -> (file below tests/, test) of all that it names."""
    rows = re.findall(r"^\| (\d+) \|[^|]+\|([^|]+)\|$", text.partition(HEAD)[2], re.MULTILINE)
    found = {int(number): re.findall(r"`([\w/]+\.py)::(\w+)`", tests) for number, tests in rows}
    assert len(found) == len(rows), "a number stands there twice"
    return found


@functools.cache
def defined_in(file: str) -> frozenset[str]:
    """Names of the tests in a file below tests/; none when there is no such file."""
    path = ROOT / "tests" / file
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return frozenset(n.name for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def missing(named: list[tuple[str, str]]) -> list[str]:
    """What no file of tests/ defines."""
    return [f"{file}::{test}" for file, test in named if test not in defined_in(file)]


def test_every_promise_names_tests_that_exist() -> None:
    found = promises(TABLE.read_text(encoding="utf-8"))
    assert sorted(found) == list(range(1, NUM_PROMISES + 1))
    assert not [number for number, named in found.items() if not named]
    assert not missing([name for named in found.values() for name in named])


def test_a_test_that_is_gone_would_be_noticed() -> None:
    here = "architecture/test_promises.py"
    row = f"{HEAD}\n| 3 | what | `{here}::test_every_promise_names_tests_that_exist`, `{here}::test_gone` |\n| 4 | x | none |"
    found = promises(row)
    assert list(found) == [3, 4] and found[4] == []
    assert missing(found[3]) == [f"{here}::test_gone"]
    assert missing([("no/file.py", "test_x"), (here, "promises")]) == ["no/file.py::test_x", f"{here}::promises"]
