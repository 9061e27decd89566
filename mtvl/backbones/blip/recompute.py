"""Activation recompute for a stack of blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn


class Recompute(nn.Module):
    """A stack that can run its blocks a second time in backward in place of keeping what they computed."""

    def __init__(self) -> None:
        super().__init__()
        self.recomputes = False
        self.contexts: Callable[[], tuple[Any, Any]] = noop_context_fn

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """block(*inputs), recomputed in backward where that is switched on and a gradient is wanted.

        Non-reentrant: a frozen first block must not cut gradients off. Everything that differs between two passes
        through a block is an input of it, so that the second run is the first one again.
        """
        if not (self.recomputes and torch.is_grad_enabled()):
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=self.contexts)
