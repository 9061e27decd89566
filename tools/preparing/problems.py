"""Faults of one's own data, all of them counted before anything is written."""

from __future__ import annotations

from pathlib import Path

from mtvl.errors import DataError

SHOWN = 3  # examples of each kind of fault


class Problems:
    """Collects faults by kind, with the places where they stand."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: dict[str, list[str]] = {}
        self._places: set[str] = set()

    def add(self, kind: str, place: str, detail: str = "") -> None:
        """One fault: its kind in words, the row, and what was found there."""
        self._found.setdefault(kind, []).append(f"{place}: {detail}" if detail else place)
        self._places.add(place)

    def raise_if_any(self, total: int, noun: str = "rows") -> None:
        """DataError that counts everything found so far."""
        if not self._found:
            return
        lines = []
        for kind, places in self._found.items():
            more = "; ..." if len(places) > SHOWN else ""
            lines.append(f"\n  {len(places)} x {kind} ({'; '.join(places[:SHOWN])}{more})")
        raise DataError(
            f"expected {total:,} {noun} without faults, found {len(self._places):,} with; nothing was written:"
            + "".join(lines),
            file=self.file,
        )
