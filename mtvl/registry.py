"""Literal tables of lazily imported names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mtvl.errors import ConfigError, near_names


class Registry(Mapping[str, str]):
    """A frozen table name -> "module:attribute". Nothing is imported before `load`."""

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = MappingProxyType(dict(table))

    def __getitem__(self, name: str) -> str:
        try:
            return self._table[name]
        except KeyError:
            raise ConfigError(f"unknown {self.kind} {name!r}; {near_names(name, self._table)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def load(self, name: str) -> Any:
        """Import and return the entry; ConfigError with near names when `name` is unknown."""
        module, _, attribute = self[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
