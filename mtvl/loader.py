"""The training stream: this rank's micro-batches of any optimizer step, computed from the step alone.

There is no position to save. `step(n)` gives the same batches whenever, wherever and by however many threads it is
called, so resuming is calling it with another number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mtvl.config import RunConfig
from mtvl.data.collate import Collator
from mtvl.data.rows import IGNORE, without_rows
from mtvl.data.schedule import Schedule, Slot, num_micro_steps, slice_slot
from mtvl.errors import ConfigError
from mtvl.types import Batch, Example, Task

_MUCH_PADDING = 0.5  # of the cells; above it the report says so


class Loader:
    """Micro-batches of `rank` of `world_size` for every step of a run.

    `examples` are the training examples of each task of `schedule`, in the order that its ids count. A slot is split
    into `micro_steps / mixture.slots` micro-steps over all ranks; a task whose batch is scaled by the schedule takes
    as many micro-steps as any other, with more or fewer rows in each. ConfigError when tasks, examples and schedule
    do not belong together.
    """

    def __init__(
        self,
        examples: Mapping[str, Sequence[Example]],
        tasks: Mapping[str, Task],
        schedule: Schedule,
        collator: Collator,
        config: RunConfig,
        rank: int,
        world_size: int,
    ) -> None:
        for name, size in schedule.sizes.items():
            if name not in tasks or len(examples.get(name, ())) != size:
                raise ConfigError(f"the schedule plans {size} examples of '{name}', the loader was given "
                                  f"{len(examples.get(name, ()))}")  # fmt: skip
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} does not exist")
        self._examples, self._tasks, self._schedule, self._collator = examples, tasks, schedule, collator
        self._config, self._rank, self._world_size = config, rank, world_size
        self._num_micro = num_micro_steps(config.train.global_batch, config.train.micro_batch, world_size)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def micro_steps(self) -> int:
        """Micro-steps of an optimizer step: the same number on every rank and in every step."""
        return self._schedule.num_slots * self._num_micro

    def step(self, step: int) -> list[Batch]:
        """This rank's `micro_steps` batches of optimizer step `step` (from 0), slot after slot.

        `denominator` counts the whole slot: its samples, or for "token_mean" its target tokens; so the sum over ranks
        and micro-steps of (loss sum / denominator) is the slot's loss however it is sliced. `loss_weight` is the task's
        weight over the number of slots. Where a slot has fewer rows than slices, a rank gets a filler row: uid "",
        target weight 0, targets -100.
        """
        return [batch for slot in self._schedule.slots(step) for batch in self._slot_batches(slot)]

    def iterate(self, start: int, stop: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, batches) for the steps start..stop-1, prepared ahead by `data.workers` threads (0: when asked for).

        Order and content do not depend on the number of threads. An error in a thread is raised here unchanged, at the
        step that it belongs to. Closing the iterator (or the loader) ends the threads.
        """
        workers = self._config.data.workers
        if workers == 0:
            for step in range(start, stop):
                yield step, self.step(step)
            return
        pool = self._pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
        ahead: deque[Future[list[Batch]]] = deque()
        try:
            submitted = start
            for step in range(start, stop):
                while submitted < min(stop, step + 2 * workers):
                    ahead.append(pool.submit(self.step, submitted))
                    submitted += 1
                yield step, ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End the prefetch threads of the last `iterate`; may be called at any time and again."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def evaluation_batches(
        self, task: str, examples: Sequence[Example], batch_size: int, rank: int, world_size: int
    ) -> Iterator[Batch]:
        """`evaluation_batches` with this loader's tasks and collator."""
        return evaluation_batches(self._collator, self._tasks[task], examples, batch_size, rank, world_size)

    def stats(self) -> dict[str, Any]:
        """What limits and padding cost so far: the collator's counts per task, and "warnings" in words."""
        tasks = self._collator.stats()
        warnings = []
        for name, counts in tasks.items():
            for side in ("source", "target"):
                share = counts[f"{side}_padding"]
                if share > _MUCH_PADDING:
                    warnings.append(f"{name}: {share:.0%} of the {side} cells are padding; 'mixture.bucket' "
                                    "above 1 or a lower limit would save work")  # fmt: skip
            if counts["cut_keep"]:
                warnings.append(f"{name}: {counts['cut_keep']:.0f} of {counts['rows']:.0f} sources lost tokens of "
                                "segments that should be kept; raise 'limits.source_tokens'")  # fmt: skip
            if counts["cut_targets"]:
                warnings.append(f"{name}: {counts['cut_targets']:.0f} of {counts['rows']:.0f} targets were cut; raise "
                                "'limits.target_tokens'")  # fmt: skip
        return {"tasks": tasks, "warnings": warnings}

    def _slot_batches(self, slot: Slot) -> Iterator[Batch]:
        task, rows = self._tasks[slot.task], self._examples[slot.task]
        loss = task.loss
        denominator = float(len(slot.ids))
        if loss == "token_mean":
            tokens = self._collator.num_target_tokens(slot.task, [rows[i] for i in slot.ids], slot.epochs)
            denominator = float(max(1, tokens))
        weight = self._config.mixture.loss_weights.get(slot.task, 1.0) / self._schedule.num_slots
        for micro in range(self._num_micro):
            piece = slice_slot(slot, self._rank, self._world_size, micro, self._num_micro)
            chosen = [rows[i] for i in piece.ids]
            batch = self._collator.collate(slot.task, chosen, epoch_keys=piece.epochs, training=True)
            if piece.is_filler:
                batch = without_rows(batch, range(len(batch.uids)))
            yield replace(
                batch, loss=loss, label_smoothing=task.label_smoothing, denominator=denominator, loss_weight=weight
            )


def evaluation_batches(
    collator: Collator, task: Task, examples: Sequence[Example], batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """The batches of `rank` for evaluating `examples`: every example once over all ranks, none twice, no padding rows.

    Rank r takes the examples r, r + world_size, ...; ranks may differ by one example, and a rank may have none.
    `denominator` is that of the batch itself (samples, or target tokens for "token_mean").
    """
    own = examples[rank::world_size]
    for first in range(0, len(own), batch_size):
        batch = collator.collate(task.name, own[first : first + batch_size], training=False)
        count = int((batch.target_ids != IGNORE).sum()) if task.loss == "token_mean" else len(batch.uids)
        yield replace(batch, loss=task.loss, denominator=float(max(1, count)))
