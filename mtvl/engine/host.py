"""Copies of tensors in the machine's memory, that stay as they are while training goes on."""

from __future__ import annotations

import torch


class HostCopies:
    """Tensors by name, copied when they are added.

    From a GPU the copies are pinned and arrive while the GPU goes on computing: call `wait` before they are read. What
    is queued on the GPU later, an optimizer's update too, comes after them.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._arrival: torch.cuda.Event | None = None

    @torch.no_grad()
    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Copy `tensor`; on the CPU at once."""
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copy.copy_(tensor, non_blocking=tensor.is_cuda)
        self.tensors[name] = copy
        if tensor.is_cuda:
            if self._arrival is None:
                self._arrival = torch.cuda.Event()
            self._arrival.record()  # of the last copy so far: those of a stream arrive in order

    def wait(self) -> None:
        """Until all copies are there; may be called in another thread."""
        if self._arrival is not None:
            self._arrival.synchronize()
