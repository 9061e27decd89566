"""Every registry in mtvl/ is found by reading the sources, and every entry of it imports."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from pathlib import Path

import pytest

from mtvl.errors import ConfigError
from mtvl.registry import Registry

ROOT = Path(__file__).parents[2]


def registries() -> dict[str, str]:
    """NAME -> module of every module-level `NAME = Registry(...)`."""
    found = {}
    for file in sorted((ROOT / "mtvl").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name) and isinstance(value, ast.Call) and ast.unparse(value.func) == "Registry":
                parts = file.relative_to(ROOT).with_suffix("").parts
                found[target.id] = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return found


TABLES = {name: getattr(importlib.import_module(module), name) for name, module in registries().items()}
ENTRIES = [(table, entry) for table, registry in TABLES.items() for entry in registry]


def test_the_tables_are_found() -> None:
    assert {"BACKBONES", "METHODS"} <= set(TABLES)
    assert all(isinstance(t, Registry) and len(t) for t in TABLES.values())


@pytest.mark.parametrize(("table", "entry"), ENTRIES)
def test_every_entry_imports(table: str, entry: str) -> None:
    assert TABLES[table].load(entry) is not None


@pytest.mark.parametrize(("table", "entry"), ENTRIES)
def test_a_typo_is_answered_with_the_near_name(table: str, entry: str) -> None:
    typo = entry + "x"
    assert typo not in TABLES[table]
    with pytest.raises(ConfigError) as error:
        TABLES[table].load(typo)
    assert repr(typo) in str(error.value) and "did you mean" in str(error.value) and repr(entry) in str(error.value)
    assert TABLES[table].kind in str(error.value)


@pytest.mark.parametrize(("table", "entry"), [e for e in ENTRIES if e[0] in ("BACKBONES", "METHODS")])
def test_configs_are_frozen_and_carry_the_registered_name(table: str, entry: str) -> None:
    config = TABLES[table].load(entry).Config()
    assert config.name == entry
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"
