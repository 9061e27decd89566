"""Thin helpers over torch.distributed that also work in a single process without a process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist


def is_active() -> bool:
    """True when a process group exists."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Global rank (0 in a single process). Before the group exists, the launcher's RANK counts."""
    return torch_dist.get_rank() if is_active() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of ranks (1 in a single process). Before the group exists, the launcher's WORLD_SIZE counts."""
    return torch_dist.get_world_size() if is_active() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """True on rank 0."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks."""
    if is_active():
        torch_dist.barrier()


def wait_at_most(seconds: float) -> None:
    """Let collectives wait so long from now on, in all groups that there are.

    By default that is 10 minutes among all ranks under DeepSpeed, and 10 or 30 in the groups that it makes: ranks that
    rightly wait would end, and those that wait for a stuck one would end before anybody reports where it is.
    """
    if not is_active():
        return
    c10d = torch_dist.distributed_c10d
    set_timeout = getattr(torch_dist, "set_timeout", None) or c10d._set_pg_timeout  # its name before torch 2.14
    for group in list(c10d._world.pg_map):
        set_timeout(timedelta(seconds=seconds), group)


def sum_floats(values: list[float], device: torch.device | str | None = None) -> list[float]:
    """Element-wise sum over ranks, in float64. `device` defaults to one that the group's backend can reduce on."""
    if not is_active() or world_size() == 1:
        return list(values)
    if device is None:  # NCCL refuses tensors of the CPU
        device = "cuda" if torch_dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch_dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank. Only for small trusted objects (they are pickled)."""
    if not is_active() or world_size() == 1:
        return [value]
    out: list[Any] = [None] * world_size()
    torch_dist.all_gather_object(out, value)
    return out


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if not is_active() or world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


_in_lockstep = False


@contextmanager
def lockstep() -> Iterator[None]:
    """Inside, all ranks make the same number of forward passes: loops ask `any_rank` whether to go on.

    For models whose weights are gathered pass by pass (ZeRO-3): a rank that stops earlier leaves the others waiting.
    """
    global _in_lockstep
    before, _in_lockstep = _in_lockstep, True
    try:
        yield
    finally:
        _in_lockstep = before


def any_rank(flag: bool) -> bool:
    """`flag`; inside `lockstep` whether it is true on any rank, for which all ranks have to ask."""
    return sum_floats([float(flag)])[0] > 0 if _in_lockstep else flag


class _GatherRows(torch.autograd.Function):
    """All ranks' rows; the gradient of a rank's rows is the sum of what all ranks send back."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = len(rows)
        found = [torch.empty_like(rows) for _ in range(world_size())]
        torch_dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        torch_dist.all_reduce(grad)
        return grad[rank() * ctx.count : (rank() + 1) * ctx.count]


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """`rows` (B, ...) of all ranks in rank order (ranks * B, ...), with gradients to the ranks that they came from.

    All ranks must hand in one shape. In a single process the tensor itself.
    """
    if not is_active() or world_size() == 1:
        return rows
    return _GatherRows.apply(rows)
