"""What asks for an orderly end, and how a command says that it was asked."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

STOPPED_BY_SIGNAL = 143  # 128 + SIGTERM: what was done is saved, and the same command goes on


@contextlib.contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` have these signals until the end of the block, and then those who had them before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
