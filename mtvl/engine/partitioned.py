"""A model whose weights are split over the ranks for inference: for one that does not fit a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mtvl.config import RunConfig
from mtvl.engine.process import start
from mtvl.engine.settings import check_sections, read_engine_file
from mtvl.errors import EngineError
from mtvl.types import Batch


class Partitioned:
    """Weights of `model` under ZeRO-3, gathered layer by layer while `run` runs parts of it; nothing is trained.

    The precision stays the model's own, whatever the engine file says, so that answers are those of the whole model.
    Raises EngineError when `engine.file` is not of stage 3.
    """

    def __init__(self, model: torch.nn.Module, config: RunConfig) -> None:
        zero = read_engine_file(config.engine.file).get("zero_optimization", {})
        if zero.get("stage", 0) != 3:
            raise EngineError(
                f"'evaluate.partitioned' splits the weights as ZeRO-3 does, and {config.engine.file} is of stage "
                f"{zero.get('stage', 0)}; add engine.file=ds_configs/zero3.json"
            )
        device = start()
        check_sections(config)
        import deepspeed

        model.requires_grad_(False)
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "steps_per_print": 2**31,
            "zero_optimization": {k: v for k, v in zero.items() if k != "offload_optimizer"},
        }
        self.deepspeed, *_ = deepspeed.initialize(model=model.to(device), config=settings, dist_init_required=False)

    @torch.no_grad()
    def run(self, batch: Batch, action: Callable[[], None]) -> None:
        """Call `action`, which runs parts of the model on `batch`, as one forward pass. Collective."""
        self.deepspeed(batch, action)
