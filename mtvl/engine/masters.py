"""Full fp32 weights and moments by parameter name, whatever the ZeRO stage, and the buffers behind them.

Everything that touches DeepSpeed's insides lives here. Attributes without an API promise are reached through `_inside`,
so that another DeepSpeed version fails with a clear error and not with wrong numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtvl import dist
from mtvl.errors import EngineError
from mtvl.optim import GroupOptimizer

_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def _inside(owner: Any, name: str) -> Any:
    """Attribute `name` of a DeepSpeed object; EngineError when this version of DeepSpeed does not have it."""
    if not hasattr(owner, name):
        import deepspeed

        raise EngineError(
            f"DeepSpeed {deepspeed.__version__} has no '{type(owner).__name__}.{name}', which training with idle tasks "
            "relies on; install the version that setup.cfg names (0.19.8 is known to work)"
        )
    return getattr(owner, name)


class Masters:
    """Access to the master state of one DeepSpeed engine."""

    def __init__(self, ds_engine: Any, optimizer: GroupOptimizer, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Allocate the optimizer's moments on the tensors that DeepSpeed made of `parameters` (the trainable ones)."""
        self.zero = ds_engine.optimizer
        self.stage: int = ds_engine.zero_optimization_stage()
        self.optimizer = optimizer
        self.parameters = parameters
        optimizer.allocate(self._tensors())
        if self.stage in (1, 2):
            # DeepSpeed links moments to parameters after the first group's first step, when those of other groups
            # would not exist without our allocation; link now, so that a state can be loaded before any step.
            _inside(self.zero, "_lazy_init_hp_params_optimizer_state")()

    def _tensors(self) -> list[torch.Tensor]:
        """The tensors that DeepSpeed hands to the optimizer on this rank."""
        if self.stage == 0:
            return list(self.parameters.values())
        if self.stage == 3:
            return list(_inside(self.zero, "fp32_partitioned_groups_flat"))
        return list(_inside(self.zero, "single_partition_of_fp32_groups"))

    def clear_gradients(self) -> None:
        """Zero gradient buffers that DeepSpeed would otherwise carry into the coming window.

        ZeRO-3 (and every stage with optimizer offload) copies the gradients of the parameters that fired into a
        persistent buffer and never clears it: a parameter unused in a window would get its last gradient again. ZeRO-2
        with offload also adds to the last window's sum where a parameter is first used in a later micro-step.
        """
        if self.stage == 3:
            _inside(self.zero, "grad_partitions_flat_buffer").zero_()
        if self.stage > 0:
            for tensor in self._tensors():
                if tensor.grad is not None:
                    tensor.grad.zero_()
        if self.stage in (1, 2) and _inside(self.zero, "cpu_offload"):
            for buffer in _inside(self.zero, "accumulated_grads_in_cpu").values():
                buffer.zero_()

    def get(self, name: str, state: str | None = None) -> torch.Tensor:
        """Full fp32 CPU copy of the master weight (or of the moment `state`) of `name`. Collective from stage 1 on."""
        return self.look(name, state).to("cpu", copy=True)

    def look(self, name: str, state: str | None = None) -> torch.Tensor:
        """As `get`, on this rank's device, and perhaps the very tensor that is trained: to be copied, not kept."""
        parameter = self.parameters[name]
        if self.stage == 0:
            source = parameter if state is None else self.optimizer.state[parameter][state]
            return source.detach().float()
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        full = safe_get_full_fp32_param(parameter) if state is None else safe_get_full_optimizer_state(parameter, state)
        if full is None or full.numel() == 0:
            raise EngineError(f"DeepSpeed returned no {state or 'weight'} for {name}")
        return full.detach().float()

    @torch.no_grad()
    def set(self, name: str, value: torch.Tensor, state: str | None = None) -> None:
        """Write a full fp32 tensor (the same on all ranks) as master weight or moment; call `publish` at the end."""
        parameter = self.parameters[name]
        if self.stage == 0:
            (parameter if state is None else self.optimizer.state[parameter][state]).copy_(value)
            return
        from deepspeed import utils

        if self.stage == 3:
            part = self._partition(parameter, value)
            if state is None:
                utils.safe_set_local_fp32_param(parameter, part)
            else:
                utils.safe_set_local_optimizer_state(parameter, part, state)
        elif state is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, state)

    @torch.no_grad()
    def clamp(self, name: str, low: float, high: float) -> None:
        """Keep a weight in a range, in its master and in the model. Collective from stage 1 on."""
        found = self.look(name)
        kept = found.clamp(low, high)
        if torch.equal(kept, found):
            return
        self.set(name, kept)
        if self.stage == 3:
            self.publish()
        else:
            self.parameters[name].copy_(kept)

    def _partition(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """This rank's slice of `value` under ZeRO-3, zero-padded where the size does not divide."""
        size = _inside(parameter, "ds_tensor").numel()
        padded = torch.zeros(size * dist.world_size(), dtype=torch.float32)
        padded[: value.numel()] = value.flatten()
        return padded.narrow(0, size * dist.rank(), size)

    def loss_scale(self) -> dict[str, float]:
        """The scale that fp16 has found, and what decides when it changes; {} where nothing is scaled."""
        scaler = getattr(self.zero, "loss_scaler", None)
        return {name: _inside(scaler, name) for name in _SCALER} if getattr(scaler, "dynamic", False) else {}

    def set_loss_scale(self, state: Mapping[str, float]) -> None:
        """Go on with what `loss_scale` gave: searched anew, the scale would cost the first steps of a resumed run."""
        if self.loss_scale():
            for name, value in state.items():
                setattr(self.zero.loss_scaler, name, value)

    @torch.no_grad()
    def publish(self) -> None:
        """Bring the model's own (possibly bf16, possibly partitioned) weights in line with the masters. Collective."""
        if self.stage in (1, 2):
            _inside(self.zero, "update_lp_params")()
        elif self.stage == 3:
            from deepspeed.runtime.zero import GatheredParameters

            for name, parameter in self.parameters.items():
                full = self.get(name)
                with GatheredParameters([parameter], modifier_rank=0):
                    if dist.is_main():
                        parameter.data.copy_(full)


def full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter, also when ZeRO-3 has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
