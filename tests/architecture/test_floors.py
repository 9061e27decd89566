"""Holds the picture of floors: a room imports only from lower floors, and a package has no circle inside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Room -> floor. A room is a module or a whole package directly under mtvl/, or a top-level folder.
FLOORS: dict[str, int] = {
    "__init__": 0, "errors": 0,  # everybody may raise our errors, the registry too
    "types": 1, "sites": 1, "dist": 1, "recipe": 1, "machine": 1, "signals": 1,
    "registry": 1,  # floor 2's packages hold literal Registry tables
    "config": 2, "report": 2, "cards": 2, "data": 2, "backbones": 2, "metrics": 2, "objectives": 2,
    "agreement": 3, "loader": 3, "tasks": 3, "petl": 3, "steps": 3,
    "model": 4, "checkpoint": 4, "reference_parts": 4, "optim": 4, "retrieving": 4,
    "engine": 5, "export": 5, "evaluator": 5, "workspace": 5, "reference": 5, "saving": 5,
    "train": 6, "evaluate": 6, "inspecting": 6, "compare": 6, "gallery": 6, "figures": 6, "interchange": 6,
    "estimate": 6, "nodes": 6,
    "cli": 7,
    "launch": 8, "__main__": 8,
}  # fmt: skip

_ENTRY = re.compile(r"mtvl(\.\w+)+:\w+")  # a registry entry is an import that happens later


def imported_modules(source: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted mtvl modules (or module.attribute) that `source`, the text of `module`, imports anywhere in it.

    Registry strings ("mtvl.room.file:Name") and `import_module("mtvl.x")` count as well.
    """
    found: set[str] = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found.update(f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _ENTRY.fullmatch(node.value):
            found.add(node.value.replace(":", "."))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return {name for name in found if name.split(".")[0] in ("mtvl", "launch")}


def room_of(name: str) -> str:
    """Room of a dotted name: `mtvl.petl.plan.Plan` -> petl; what `mtvl/__init__.py` itself defines -> __init__."""
    first, *rest = name.split(".")
    if first == "launch":
        return "launch"
    return rest[0] if rest and not (rest[0].startswith("__") and rest[0] != "__main__") else "__init__"


def violations(module: str, imports: Iterable[str], floors: Mapping[str, int] = FLOORS) -> list[str]:
    """What is wrong with the imports of one module, in words."""
    own = room_of(module)
    if own not in floors:
        return [f"{module}: room {own!r} has no floor; give it one in FLOORS of {Path(__file__).name}"]
    wrong = []
    for name in sorted(imports):
        other = room_of(name)
        if other == own:
            continue
        if other not in floors:
            wrong.append(f"{module} imports {name}: room {other!r} has no floor; give it one in FLOORS")
        elif floors[other] >= floors[own]:
            side = "sideways" if floors[other] == floors[own] else "upwards"
            wrong.append(f"{module} (floor {floors[own]}) imports {side} {name} (floor {floors[other]}); hand it in")
    return wrong


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of imports in module -> imported modules; [] when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def modules() -> dict[str, Path]:
    """Dotted name -> file of everything in mtvl/ and launch/."""
    found = {}
    for top in ("mtvl", "launch"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports_of(module: str) -> set[str]:
    file = MODULES[module]
    return imported_modules(file.read_text(encoding="utf-8"), module, file.name == "__init__.py")


def resolved(name: str) -> str:
    """The module behind `module` or `module.attribute`."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    assert not violations(module, imports_of(module))


def test_no_circles_inside_a_package() -> None:
    graph = {}
    for module, file in MODULES.items():
        # registry strings are lazy on purpose: a method's file may read its package's table
        source = _ENTRY.sub("", file.read_text(encoding="utf-8"))
        targets = {resolved(n) for n in imported_modules(source, module, file.name == "__init__.py")}
        graph[module] = {t for t in targets if t and room_of(t) == room_of(module)} - {module}
    assert not cycle(graph)


SNIPPET = """
from __future__ import annotations
from mtvl.errors import PlanError
def late():
    from mtvl.train import run
    from . import apply
METHODS = {"x": "mtvl.tasks.vqa:VQA"}
importlib.import_module("mtvl.cellar")
"""


def test_the_checker_finds_what_it_should() -> None:
    imports = imported_modules(SNIPPET, "mtvl.petl.bad")
    assert imports == {
        "mtvl.errors.PlanError", "mtvl.train.run", "mtvl.petl.apply", "mtvl.tasks.vqa.VQA", "mtvl.cellar",
    }  # fmt: skip
    cellar, sideways, upwards = violations("mtvl.petl.bad", imports)
    assert "cellar" in cellar and "no floor" in cellar
    assert "sideways mtvl.tasks.vqa" in sideways
    assert "upwards mtvl.train" in upwards
    assert "no floor" in violations("mtvl.attic.x", [])[0]
    assert not violations("mtvl.petl.good", {"mtvl.sites.Site", "mtvl.__version__", "mtvl.petl.plan"})
    assert violations("mtvl.data.reader", {"mtvl.config.DataConfig"})


def test_the_checker_finds_circles() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_relative_imports_are_resolved() -> None:
    assert imported_modules("from ..train import run", "mtvl.petl.bad") == {"mtvl.train.run"}
    assert imported_modules("from . import plan", "mtvl.petl", is_package=True) == {"mtvl.petl.plan"}
