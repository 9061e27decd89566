"""The engine: one optimizer step from the micro-batches of all its slots, on any ZeRO stage."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from mtvl import dist
from mtvl.config import RunConfig
from mtvl.engine.dropout import fast_dropout
from mtvl.engine.frozen import packed_frozen_weights
from mtvl.engine.masters import Masters, full_shape
from mtvl.engine.process import start
from mtvl.engine.settings import check_precision, deepspeed_settings
from mtvl.engine.state import Snapshot, load_state, take_state
from mtvl.errors import EngineError
from mtvl.optim import FIRST_WINDOWS, ParameterGroup, build_optimizer, check_groups, learning_rate
from mtvl.types import Batch, kind_owner

log = logging.getLogger(__name__)
MAX_SKIPPED_IN_A_ROW = 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did; the same on all ranks.

    `losses` are the unweighted slot losses by task (the mean where a task has several slots), `loss` is the weighted
    loss of the step, `grad_norm` its global gradient norm before clipping (not finite when `skipped`),
    `num_examples` counts the rows of each task over all ranks. `suspects` are the uids, over all ranks, of the
    micro-batches whose loss was not finite; of a skipped step with finite losses all uids.
    """

    step: int
    losses: Mapping[str, float]
    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    num_examples: Mapping[str, int]
    suspects: tuple[str, ...] = ()


class Engine:
    """Trains the parameters of `groups` in `model` with DeepSpeed.

    `model(batch)` returns this micro-batch's share of the step's loss: the sum over all micro-batches and ranks is the
    loss. `model.set_task(name)` selects the task and stays set, since activation recompute runs in backward. Where there
    is `model.bounds()`, name -> (low, high), these weights are kept in their range after each step.
    `micro_steps` is the number of micro-batches of one optimizer step on one rank, over all slots.
    Groups of tasks that are absent from a step keep parameters, moments and step count bit for bit, on every stage.
    Raises EngineError when nothing is trainable, the groups are not exactly the trainable set, or settings contradict.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        groups: Sequence[ParameterGroup],
        config: RunConfig,
        micro_steps: int,
        device: str | None = None,
    ) -> None:
        self.groups = tuple(g for g in groups if g.names)
        self.config = config
        self.micro_steps = micro_steps
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        if micro_steps < 1 or micro_steps % config.mixture.slots:
            raise EngineError(f"{micro_steps} micro-steps cannot be shared evenly by {config.mixture.slots} slots")
        parameters = dict(model.named_parameters())
        check_groups(parameters, self.groups)
        self.device = start(device)
        check_precision(config.train.precision, self.device.type)
        trainable = {name: p for name, p in parameters.items() if p.requires_grad}
        num_trainable = sum(p.numel() for p in trainable.values())
        settings = deepspeed_settings(config, micro_steps, dist.world_size(), num_trainable)
        self.optimizer = build_optimizer(trainable, self.groups, config.optim)
        dist.barrier()  # a rank that has died is noticed here; in new groups, as DeepSpeed makes, it would be waited for
        self.deepspeed = _initialize(model.to(self.device), self.optimizer, settings)
        self.masters = Masters(self.deepspeed, self.optimizer, trainable)
        self._packs = config.engine.pack_frozen and self.device.type == "cpu" and not self.is_partitioned
        self._window = 0  # micro-steps done in the present window

    @property
    def module(self) -> torch.nn.Module:
        """The model without DeepSpeed's wrapper."""
        return self.deepspeed.module

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return self.masters.stage

    @property
    def num_trainable(self) -> int:
        """Number of trained scalars."""
        return sum(math.prod(full_shape(p)) for p in self.masters.parameters.values())

    def train_step(self, step: int, batches: Sequence[Batch]) -> StepReport:
        """Run optimizer step `step` (from 0) on this rank's `micro_steps` batches, in the same task order on all ranks.

        A step whose loss or gradient is not finite anywhere is skipped everywhere and counted. Raises EngineError when
        ranks disagree on step or tasks, when five steps in a row are skipped, or when a task's own parameters get no
        gradient in their first steps.
        """
        if len(batches) != self.micro_steps:
            raise EngineError(f"step {step}: expected {self.micro_steps} micro-batches, found {len(batches)}")
        self._agree(step, batches)
        if not self.module.training:
            self.deepspeed.train()
        present = {b.task for b in batches} | {kind_owner(k) for b in batches for k in (b.feature_kind, b.loss)}
        active = [g for g in self.groups if g.task is None or g.task in present]
        lr = learning_rate(step, self.config.optim, self.config.train.steps)
        self.optimizer.begin((g.name for g in active), lr)
        self.masters.clear_gradients()
        losses = [self.micro_step(batch) for batch in batches]
        report = self._reduce(step, batches, losses, lr)
        report = self._update(report)
        if report.skipped:
            report = replace(report, suspects=_suspects(batches, losses))
            self._count_skipped(report)
        else:
            self.skipped_in_a_row = 0
            self._check_first_gradients(step, active)
            self.optimizer.commit()
            self._keep_in_bounds(active)
        return report

    def micro_step(self, batch: Batch) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns its detached loss. The update follows in `train_step`."""
        batch = batch.to(self.device)
        batch.features = batch.features.to(DTYPES[self.config.train.precision])
        cast(Any, self.module).set_task(batch.task)
        with fast_dropout(self.device), packed_frozen_weights(self._packs):
            loss = self.deepspeed(batch)
            if not loss.requires_grad:
                raise EngineError(
                    f"task '{batch.task}' trains nothing: none of the {self.num_trainable:,} trained parameters has a part in its "
                    f"loss ('{batch.loss}'); leave the task out, or train more with another 'petl'"
                )
            # DeepSpeed averages over ranks, and over micro-steps unless told not to; losses here are shares of a sum.
            self.deepspeed.backward(loss.float() * dist.world_size(), scale_wrt_gas=False)
        self._window += 1
        if self._window < self.micro_steps and self.deepspeed.managed_gradient_accumulation():
            self.deepspeed.step()  # no boundary: only counts the micro-step
        return loss.detach()

    @property
    def is_partitioned(self) -> bool:
        """True when no rank holds the whole model: all ranks then have to make the same forward passes."""
        return self.zero_stage == 3

    @torch.no_grad()
    def run(self, batch: Batch, action: Callable[[], None]) -> None:
        """Call `action`, which runs parts of the model on `batch`, as one forward pass. Collective under ZeRO-3."""
        self.deepspeed(batch, action)

    def _agree(self, step: int, batches: Sequence[Batch]) -> None:
        """EngineError on all ranks unless all are at the same step with the same tasks in the same order.

        Under ZeRO-1 to 3 another task on another rank adds gradients of unrelated parameters without any error.
        """
        mine = (step, [b.task for b in batches])
        everyone = dist.gather_objects(mine)
        if any(other != everyone[0] for other in everyone):
            lines = [f"rank {rank}: step {s}, tasks {','.join(t)}" for rank, (s, t) in enumerate(everyone)]
            raise EngineError("the ranks disagree on what to train; " + "; ".join(lines))

    def _reduce(self, step: int, batches: Sequence[Batch], losses: Sequence[torch.Tensor], lr: float) -> StepReport:
        """Sum the losses over micro-batches and ranks; `skipped` tells whether any of them was not finite."""
        values = torch.stack([loss.double() for loss in losses]).tolist()
        tasks = sorted({b.task for b in batches})
        sums = dict.fromkeys(tasks, 0.0)
        rows = dict.fromkeys(tasks, 0)
        for batch, value in zip(batches, values, strict=True):
            sums[batch.task] += value / batch.loss_weight
            rows[batch.task] += sum(bool(uid) for uid in batch.uids)  # a filler row has the uid ""
        broken = sum(not math.isfinite(v) for v in values)
        flat = dist.sum_floats(
            [float(broken), sum(values), *sums.values(), *(float(rows[t]) for t in tasks)], self.device
        )
        per_slot = self.micro_steps // self.config.mixture.slots
        slots = Counter(b.task for b in batches)
        return StepReport(
            step=step,
            losses={task: flat[2 + i] * per_slot / slots[task] for i, task in enumerate(tasks)},
            loss=flat[1],
            grad_norm=math.nan,
            lr=lr,
            skipped=flat[0] > 0,
            num_examples={task: int(flat[2 + len(tasks) + i]) for i, task in enumerate(tasks)},
        )

    def _update(self, report: StepReport) -> StepReport:
        """Clip and step unless something is not finite; returns the report with the gradient norm."""
        if self.zero_stage == 0:
            self._fill_missing_gradients()
        norm = self._plain_norm() if self.zero_stage == 0 else math.nan
        skipped = report.skipped or (self.zero_stage == 0 and not math.isfinite(norm))
        if skipped:
            # DeepSpeed must still see the end of the window; ZeRO-0 in fp32 would otherwise poison every parameter.
            self.optimizer.cancel()
        self.deepspeed.step()
        self._window = 0
        if self.zero_stage > 0:
            skipped = skipped or bool(self.deepspeed.optimizer.overflow)
            norm = math.inf if skipped else float(self.deepspeed.get_global_grad_norm())
        return replace(report, grad_norm=norm, skipped=skipped)

    def _fill_missing_gradients(self) -> None:
        """Zeros for what is active and took no part in this step, as ZeRO has: moments and decay act on every stage."""
        named = (n for g in self.groups if g.name in self.optimizer.active for n in g.names)
        for parameter in (self.masters.parameters[name] for name in named):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _plain_norm(self) -> float:
        """Global gradient norm on stage 0, where gradients are whole and already averaged on every rank."""
        grads = [p.grad for p in self.masters.parameters.values() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _count_skipped(self, report: StepReport) -> None:
        self.skipped_steps += 1
        searching_scale = self.config.train.precision == "fp16" and math.isfinite(report.loss)
        self.skipped_in_a_row = 0 if searching_scale else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise EngineError(
                f"loss or gradient was not finite in {self.skipped_in_a_row} steps in a row, the last is step "
                f"{report.step} (losses {dict(report.losses)}, lr {report.lr:.3g}; examples {_some(report.suspects)}); look "
                "at these examples, or lower optim.lr (with checkpoint.allow=[optim]); no skipped step has changed a weight, the checkpoints are good (were the "
                "losses growing before? then take one from before that: --resume DIR with another --run)"
            )

    def _check_first_gradients(self, step: int, active: Sequence[ParameterGroup]) -> None:
        """EngineError when a private group got only zeros in all its first windows: it would silently never train."""
        counts = self.optimizer.counts
        # Not the projections of features: those of a text-only baseline rightly get zeros.
        old = [g for g in active if g.task in self.config.tasks and counts[g.name] == FIRST_WINDOWS - 1]
        if not old:
            return
        touched = dist.sum_floats([float(g.name in self.optimizer.touched) for g in old], self.device)
        dead = [g for g, ranks in zip(old, touched, strict=True) if ranks == 0]
        if dead:
            raise EngineError(
                f"step {step}: the parameters of task '{dead[0].task}' (group '{dead[0].name}', {len(dead[0].names)} "
                f"tensors, first {dead[0].names[0]}) got no gradient in the first {FIRST_WINDOWS} steps of their task; is "
                "the task selected in forward, and is activation recompute the non-reentrant one?"
            )

    def _keep_in_bounds(self, active: Sequence[ParameterGroup]) -> None:
        """Clamp the weights of this step that have a range: on ZeRO-1 to 3 what the model itself clamps is a copy, and the
        master behind it would drift away."""
        bounds = getattr(self.module, "bounds", dict)()
        for name in (n for g in active for n in g.names if n in bounds):
            self.masters.clamp(name, *bounds[name])

    def trainable_state(self) -> dict[str, torch.Tensor]:
        """Full fp32 CPU copies of all trained parameters by name, on rank 0 (empty elsewhere). Collective."""
        state = {}
        for name in self.masters.parameters:
            full = self.masters.get(name)
            if dist.is_main():
                state[name] = full
        return state

    def snapshot(self) -> Snapshot:
        """The exact training state in rank 0's memory, to be written while training goes on. Collective; must not run
        inside a window."""
        facts = {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row, "sums": self._sums()}
        return take_state(self.masters, self.groups, {**facts, "loss_scale": self.masters.loss_scale()})

    def _sums(self) -> dict[str, Any]:
        """What may change in a resume, and with it nothing but the rounding of sums."""
        ranks = {"ranks": dist.world_size(), "micro-steps": self.micro_steps, "ZeRO stage": self.zero_stage}
        return {**ranks, "engine.pack_frozen": self._packs}

    def save(self, folder: Path) -> None:
        """Write the exact training state into the existing `folder`. Collective; must not run inside a window."""
        self.snapshot().write(folder)

    def load(self, folder: Path) -> None:
        """Restore a saved state on any ZeRO stage and number of ranks. Collective; CheckpointError on a mismatch."""
        facts = load_state(folder, self.masters, self.groups)
        self.skipped_steps = facts["skipped_steps"]
        self.skipped_in_a_row = facts["skipped_in_a_row"]
        self.masters.set_loss_scale(facts.get("loss_scale", {}))  # checkpoints from before have neither
        saved, now = facts.get("sums", {}), self._sums()
        changed = [f"{name} {saved[name]} -> {now[name]}" for name in saved if saved[name] != now.get(name)]
        if changed and dist.is_main():
            log.warning("%s goes on with %s: sums are rounded otherwise from here on", folder, ", ".join(changed))


def _suspects(batches: Sequence[Batch], losses: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """Uids of all ranks' micro-batches with a loss that is not finite, or of all where there is none. Collective."""
    mine = [(bool(loss.isfinite()), [u for u in b.uids if u]) for b, loss in zip(batches, losses, strict=True)]
    everyone = [cell for cells in dist.gather_objects(mine) for cell in cells]
    chosen = [uids for is_finite, uids in everyone if not is_finite] or [uids for _, uids in everyone]
    return tuple(uid for uids in chosen for uid in uids)


def _some(uids: Sequence[str], most: int = 8) -> str:
    return ", ".join(uids[:most]) + (f" and {len(uids) - most} more" if len(uids) > most else "")


def _initialize(model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine
