"""Sharing over tasks as one combinator: single, half-shared and multiple are not three methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError, near_names
from mtvl.petl.plan import SHARED, Part, check_owner

SHARES = ("all", "up", "down", "none")
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
M = TypeVar("M", bound=nn.Module)


class ActiveTask:
    """The task of the current micro-step. One object per model with one writer.

    It is set once per micro-step and not scoped: activation recompute runs in backward, after a context manager would
    have ended. A backbone that recomputes does so under `recompute_contexts`, so that a task set between forward and
    backward cannot send a layer's second run through another task's parts.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.name = ""
        self.rows: tuple[str, ...] = ()  # the tasks of a batch's rows, where they differ (inference alone)

    def set(self, name: str) -> None:
        """Make `name` the active task; a task that the model was not built for is legal while all parts are shared."""
        self.name, self.rows = name, ()

    def set_rows(self, rows: Sequence[str]) -> None:
        """Make `rows[i]` the task of row i of what comes next (of a beam search: of all its beams)."""
        if len(set(rows)) == 1:
            self.set(rows[0])
        else:
            self.name, self.rows = "", tuple(rows)

    def by_task(self, run: Callable[..., Any], *given: torch.Tensor) -> Any:
        """`run(*given)`, where rows have different tasks once for the rows of each task, with the rows put back in order.

        given: tensors whose first dimension counts the rows, each as often in a row as there are beams. `run` returns one
        tensor or a tuple of tensors.
        """
        if not self.rows:
            return run(*given)
        rows, count = self.rows, given[0].shape[0]
        times, rest = divmod(count, len(rows))
        if rest:
            raise PlanError(f"the tasks of {len(rows)} rows are set, found {count} rows")
        out: list[torch.Tensor] = []
        is_single = True
        try:
            for task in dict.fromkeys(rows):
                index = torch.tensor([i for i in range(count) if rows[i // times] == task], device=given[0].device)
                self.set(task)
                result = run(*(tensor[index] for tensor in given))
                is_single = isinstance(result, torch.Tensor)
                results = (result,) if is_single else result
                out = out or [r.new_empty(count, *r.shape[1:]) for r in results]
                for whole, part in zip(out, results, strict=True):
                    whole[index] = part
        finally:
            self.name, self.rows = "", rows
        return out[0] if is_single else tuple(out)

    def recompute_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For torch's checkpoint, which asks at the first run of a layer: (context of it, context of its recompute)."""
        return nullcontext(), _RunAs(self, self.name)


class _RunAs(AbstractContextManager["_RunAs"]):
    """Another task for a while; may be entered again (a graph can be walked twice)."""

    def __init__(self, active: ActiveTask, name: str) -> None:
        self.active, self.name, self.outer = active, name, ""

    def __enter__(self) -> _RunAs:
        self.outer = self.active.name
        self.active.set(self.name)
        return self

    def __exit__(self, *error: object) -> None:
        self.active.set(self.outer)


WHOLE = ("all", "none")  # ways of sharing for methods whose adapters have no halves


def check_whole(share: str, method: str, option: str = "share") -> None:
    """ConfigError unless `share`, the value of `option`, is a way of sharing without halves."""
    if share not in WHOLE:
        raise ConfigError(f"'petl.{option}' of {method} is all or none, found {share!r}: it has no halves to share")


def parts_over_tasks(halves: Mapping[str, Shapes], share: str, tasks: Sequence[str]) -> tuple[Part, ...]:
    """Parts of an adapter with halves such as {"down": ..., "up": ...}.

    share: "all" one adapter for all tasks (Single), "none" one per task (Multiple), "down" / "up" only that half is
    shared (Half-shared).
    """
    if share not in SHARES:
        raise ConfigError(f"unknown 'petl.share' {share!r}; {near_names(share, SHARES)}")
    return tuple(
        Part(half, owner, shapes)
        for half, shapes in halves.items()
        for owner in ([SHARED] if share in ("all", half) else tasks)
    )


class TaskBank(nn.ModuleDict):
    """The modules of one part by owner; calling it runs the shared one or the active task's."""

    def __init__(self, parts: Sequence[Part], active: ActiveTask, make: Callable[[Part], nn.Module]) -> None:
        for part in parts:
            check_owner(part.owner)
        super().__init__({p.owner: make(p) for p in parts})
        self._active = [active]  # in a list: not a submodule, not copied into state
        self._shared = SHARED in self

    @property
    def is_shared(self) -> bool:
        """True when one module serves all tasks."""
        return self._shared

    def current(self) -> nn.Module:
        """The module that serves the active task."""
        name = SHARED if self._shared else self._active[0].name
        if not name and self._active[0].rows:
            raise PlanError("rows have different tasks here; what asks for a task's module has to run in `by_task`")
        if name not in self:
            raise PlanError(f"no adapter for task {name!r}; this model has {', '.join(self.keys())}")
        return self[name]

    def by_task(self, run: Callable[..., Any], *given: torch.Tensor) -> Any:
        """As the active task's `by_task`; in one go where one module serves all tasks."""
        return run(*given) if self._shared else self._active[0].by_task(run, *given)

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Run the current module."""
        return self.current()(x)


def bank_of(
    parts: Sequence[Part], name: str, active: ActiveTask, make: Callable[[Part], nn.Module]
) -> TaskBank:  # fmt: skip
    """The bank of those of `parts` that are called `name`."""
    return TaskBank([part for part in parts if part.name == name], active, make)
