"""What a run tells: one JSON record a step, a progress line with ETA, TensorBoard scalars, and text tables."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO


def format_seconds(seconds: float) -> str:
    """E.g. 42s, 3m05s, 2h10m."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A line that is rewritten on a terminal and printed now and then elsewhere."""

    def __init__(
        self, name: str, total: int, *, start: int = 0, every_seconds: float = 5.0, quiet: bool = False
    ) -> None:
        self.name, self.total, self.start, self.quiet = name, total, start, quiet
        self.begin = self.last = time.monotonic()
        self.every_seconds = every_seconds
        self.terminal = sys.stdout.isatty()

    def update(self, done: int, text: str = "", *, force: bool = False) -> None:
        """Show `done` of the total with an ETA; at most every few seconds unless `force`."""
        now = time.monotonic()
        if self.quiet or not (
            force or now - self.last >= (0.5 if self.terminal else self.every_seconds) or done == self.total
        ):
            return
        self.last = now
        rate = (done - self.start) / max(now - self.begin, 1e-9)
        eta = format_seconds((self.total - done) / rate) if rate > 0 else "?"
        line = (
            f"{self.name} {done}/{self.total} {text}{' ' if text else ''}| {format_seconds(now - self.begin)} eta {eta}"
        )
        ending = "\n" if not self.terminal or done == self.total else ""
        print(("\r\x1b[K" if self.terminal else "") + line, end=ending, flush=True)


class JsonLines:
    """Append-only log; a resumed run first drops the records of steps that will be run again."""

    def __init__(self, path: Path, *, keep_below_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if keep_below_step is not None and path.is_file():
            kept = [line for line in path.read_text().splitlines() if _is_before(line, keep_below_step)]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; floats keep all digits, so that runs can be compared bit for bit.

        What is not finite becomes null: NaN is not JSON, and other readers stop at it.
        """
        self._file.write(json.dumps(_strict(record)) + "\n")
        self._file.flush()

    def to_disk(self) -> None:
        """Wait until the records are on the disk: a checkpoint must not outlive the records of its steps."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_before(line: str, step: int) -> bool:
    try:
        return int(json.loads(line).get("step", 0)) <= step
    except json.JSONDecodeError:
        return False  # a record that was cut off when the run died


class Scalars:
    """TensorBoard scalars under RUN/tensorboard; does nothing on ranks other than 0."""

    def __init__(self, folder: Path | None, *, from_step: int = 0) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow import

            self._writer = SummaryWriter(str(folder), purge_step=from_step or None)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add every value under its name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


def table(rows: Sequence[Sequence[str]], header: Sequence[str], *, markdown: bool = False) -> str:
    """Aligned text columns: the first flush left, the others flush right; as Markdown when asked."""
    cells = [list(header), *[list(r) for r in rows]]
    widths = [max(len(str(row[i])) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [
            str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(parts) + " |" if markdown else "  ".join(parts).rstrip()

    rule = ["-" * w for w in widths]
    if markdown:
        rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *[line(r) for r in cells[1:]]])
