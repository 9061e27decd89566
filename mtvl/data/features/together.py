"""Work that all ranks do together: they leave each piece of it at the same time, with all results or one error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mtvl import dist
from mtvl.errors import DataError, MtvlError

T = TypeVar("T")


def agreed(work: Callable[[], T]) -> list[T]:
    """Run `work` on every rank and return all results (small, picklable) in order of rank.

    What `work` raises is raised on its own rank, and a DataError with the same words on the others, so that none is
    left waiting. `work` must end well within the time limit of a collective.
    """
    outcome: tuple[str, T | str] = ("failed", "an unexpected error; its own output says more")
    try:
        outcome = ("done", work())
    except (MtvlError, OSError) as error:
        outcome = ("failed", str(error))
        raise
    finally:
        outcomes = dist.gather_objects(outcome)
    failures = [f"rank {rank}: {said}" for rank, (end, said) in enumerate(outcomes) if end == "failed"]
    if failures:
        raise DataError(f"the features could not be computed on {'; '.join(failures)}")
    return [result for _, result in outcomes]
