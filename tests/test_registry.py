"""Registries: literal, frozen, lazy, and helpful when a name is wrong."""

from __future__ import annotations

import sys

import pytest

from mtvl.errors import ConfigError, near_names
from mtvl.registry import Registry


def test_entries_are_imported_when_asked_for() -> None:
    registry = Registry("clock", {"wave": "wave:open", "absent": "mtvl.no_such_module:X"})
    sys.modules.pop("wave", None)
    assert list(registry) == ["wave", "absent"] and len(registry) == 2 and "wave" in registry
    assert registry["wave"] == "wave:open"
    assert "wave" not in sys.modules
    assert registry.load("wave") is sys.modules["wave"].open
    with pytest.raises(ModuleNotFoundError):
        registry.load("absent")


def test_the_table_cannot_be_changed() -> None:
    table = {"a": "os:getcwd"}
    registry = Registry("thing", table)
    table["b"] = "os:getcwd"
    assert "b" not in registry
    with pytest.raises(TypeError):
        registry["b"] = "os:getcwd"  # type: ignore[index]


def test_unknown_names() -> None:
    registry = Registry("method", {"adapter": "x:A", "full": "x:F"})
    with pytest.raises(ConfigError) as error:
        registry.load("adaptor")
    assert str(error.value) == "unknown method 'adaptor'; did you mean 'adapter'? known: adapter, full"
    assert "zebra" not in registry


def test_near_names() -> None:
    assert near_names("x", []) == "known: (none)"
    assert near_names("zzz", ["b", "a"]) == "known: a, b"
    assert near_names("vqaa", ["vqa", "gqa"]).startswith("did you mean 'vqa' or 'gqa'?")
