"""Which task and which samples each slot of a run takes: a pure function of (seed, optimizer step, slot).

A step has one or more slots; a slot is one task's global batch. Nothing here knows ranks, time or a global generator:
what a run has used is a function of its step alone, so a checkpoint needs no sampler state, and the number of ranks and
the micro-batch only slice a slot (`slice_slot`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

import numpy as np

from mtvl.errors import ConfigError, near_names

LAWS = ("proportional", "equal", "temperature", "capped", "fixed")
_GROUP_SAMPLES = 4096  # epochs of a small task are shuffled together, or a batch over 100 epochs would need 100 calls


class Mixture(Protocol):
    """The settings of the mix; `mtvl.config.MixtureConfig` has this shape."""

    @property
    def law(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def cap(self) -> int: ...
    @property
    def weights(self) -> Mapping[str, float]: ...
    @property
    def slots(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def bucket(self) -> int: ...


@dataclass(frozen=True)
class Slot:
    """One task's samples (or a slice of them): indices into the task's examples, and the epoch each belongs to.

    `is_filler` marks a slice that stands only because a rank must run the micro-step: its row must not count.
    """

    task: str
    ids: tuple[int, ...]
    epochs: tuple[int, ...]
    is_filler: bool = False


def stable_bits(*parts: str | int) -> int:
    """128 bits that depend on `parts` alone, on every machine and in every process (unlike `hash`)."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def num_micro_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro-steps of a slot: the fewest in which no rank holds more than `micro_batch` rows; need not divide evenly."""
    return -(-global_batch // (micro_batch * world_size))


def slice_slot(slot: Slot, rank: int, world_size: int, micro_index: int, num_micro: int) -> Slot:
    """The contiguous piece of `slot` that `rank` takes in micro-step `micro_index`.

    Pieces in (micro, rank) order, fillers left out, are exactly the slot; their sizes differ by at most one row.
    A slot with fewer rows than pieces leaves the last pieces empty. An empty batch is no option (a rank that skips a
    forward pass leaves the others waiting), so such a piece repeats the slot's first row as a filler.
    """
    pieces, piece = world_size * num_micro, micro_index * world_size + rank
    if not (0 <= rank < world_size and 0 <= micro_index < num_micro):
        raise ValueError(f"rank {rank} of {world_size}, micro-step {micro_index} of {num_micro} does not exist")
    small, larger = divmod(len(slot.ids), pieces)
    start = piece * small + min(piece, larger)
    stop = start + small + (piece < larger)
    if start == stop:
        return replace(slot, ids=slot.ids[:1], epochs=slot.epochs[:1], is_filler=True)
    return replace(slot, ids=slot.ids[start:stop], epochs=slot.epochs[start:stop])


def _permutations(bits: int, rows: int, size: int) -> np.ndarray:
    """(rows, size) independent permutations of 0..size-1.

    Sorted raw Philox words rather than `Generator.permutation`: numpy promises the raw stream for all versions, but
    not the derived methods, and a resumed run may meet another numpy. The sort is stable, so ties cannot differ either.
    """
    words = np.random.Philox(key=bits).random_raw(rows * size).reshape(rows, size)
    return np.argsort(words, axis=1, kind="stable").astype(np.int32)


class _Quota:
    """Slots of each task before every block end, each within one of its share.

    The j-th slot of a task with share p belongs between slots (j-1)/p and j/p of the run. Taking the task with the
    earliest deadline among those whose window is open always fits, whatever the shares, and keeps every count within
    one of its target (Tijdeman 1980, the chairman assignment problem; the windows are those of Baruah et al. 1996).
    Rounding each block by itself would not: its error adds up, and rounding running totals can ask for minus one slot
    of a rare task. Integers throughout. Totals are computed once, in order, and kept: about a microsecond a slot.
    """

    def __init__(self, weights: Sequence[int], block: int) -> None:
        self.weights, self.block, self.total = tuple(weights), block, sum(weights)
        self.period = self.total // math.gcd(self.total, block)  # blocks after which every error is zero again
        self._ends = [(0,) * len(self.weights)]
        self._opens = [1] * len(self.weights)
        self._deadlines = [-(-self.total // w) for w in self.weights]
        self._lock = threading.Lock()

    def before(self, block: int) -> tuple[int, ...]:
        """Slots of each task in the blocks 0..block-1."""
        cycles, rest = divmod(block, self.period)
        if len(self._ends) <= rest:
            with self._lock:
                while len(self._ends) <= rest:
                    self._extend()
        in_cycles = cycles * (self.period * self.block // self.total)
        return tuple(in_cycles * w + c for w, c in zip(self.weights, self._ends[rest], strict=True))

    def _extend(self) -> None:
        counts, opens, deadlines = list(self._ends[-1]), self._opens, self._deadlines
        start = (len(self._ends) - 1) * self.block
        for slot in range(start + 1, start + self.block + 1):
            chosen, earliest = -1, 0
            for i, deadline in enumerate(deadlines):
                if opens[i] <= slot and (chosen < 0 or deadline < earliest):
                    chosen, earliest = i, deadline
            counts[chosen] += 1
            weight = self.weights[chosen]
            opens[chosen] = counts[chosen] * self.total // weight + 1
            deadlines[chosen] = -(-(counts[chosen] + 1) * self.total // weight)
        self._ends.append(tuple(counts))


class Schedule:
    """The plan of a run. `sizes` are examples per task, `global_batch` rows of a slot (times `batch_scale` of its task).

    The laws give shares of *slots*. proportional, temperature (n^(1/T)) and capped (min(n, cap)) set how often an
    example is seen and are therefore divided by the task's batch, so that "proportional" passes over every task equally
    often whatever the batches; equal and fixed are shares of slots as they stand. In every block of `mixture.block`
    slots each task gets its share, rounding carried on; the order within a block is shuffled by (seed, block).
    Samples follow per-task epoch permutations by (seed, task, epoch) and run over epoch ends. The order in which tasks
    are named does not matter. ConfigError: unknown law, empty task, missing, unknown or non-positive weight or scale.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        config: Mixture,
        global_batch: int,
        seed: int,
        batch_scale: Mapping[str, float] | None = None,
        lengths: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        scale = dict(batch_scale or {})
        _check(sizes, config, global_batch, scale)
        self.seed, self.num_slots, self.block, self.bucket = seed, config.slots, config.block, config.bucket
        self.tasks = tuple(sorted(sizes))
        self.sizes = {task: int(sizes[task]) for task in self.tasks}
        self.batch = {task: max(1, round(global_batch * scale.get(task, 1.0))) for task in self.tasks}
        weights = [_weight(config, task, self.sizes[task], self.batch[task]) for task in self.tasks]
        common = math.lcm(*(w.denominator for w in weights))
        whole = [int(w * common) for w in weights]
        divisor = math.gcd(*whole)
        self._quota = _Quota([w // divisor for w in whole], self.block)
        if self.bucket > 1 and lengths is None:
            raise ValueError("'mixture.bucket' above 1 needs the lengths of all examples")
        self._lengths = {t: np.asarray((lengths or {})[t]) for t in self.tasks} if self.bucket > 1 else {}
        self._bucket = lru_cache(maxsize=2 * len(self.tasks))(self._make_bucket)
        self._block = lru_cache(maxsize=16)(self._make_block)
        self._group = lru_cache(maxsize=2 * len(self.tasks) + 2)(self._make_group)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the plan does; a resume under another plan can be refused by it."""
        plan = (self.seed, self.num_slots, self.block, self._quota.weights)
        tasks = [(t, self.sizes[t], self.batch[t]) for t in self.tasks]
        plan += tuple((self.bucket, rows.tolist()) for rows in self._lengths.values())
        return f"{stable_bits(repr((plan, tasks))):032x}"

    def shares(self) -> dict[str, float]:
        """The asked share of slots per task; they sum to one."""
        return {t: w / self._quota.total for t, w in zip(self.tasks, self._quota.weights, strict=True)}

    def achieved(self, steps: int) -> dict[str, int]:
        """Slots per task in the steps 0..steps-1."""
        block, rest = divmod(steps * self.num_slots, self.block)
        counts = list(self._quota.before(block))
        for task, _ in self._block(block)[:rest] if rest else ():
            counts[task] += 1
        return dict(zip(self.tasks, counts, strict=True))

    def slots(self, step: int) -> list[Slot]:
        """All slots of optimizer step `step` (from 0), in order."""
        return [self.slot(step, index) for index in range(self.num_slots)]

    def slot(self, step: int, index: int) -> Slot:
        """Slot `index` of optimizer step `step`, both from 0."""
        if step < 0 or not 0 <= index < self.num_slots:
            raise ValueError(f"step {step}, slot {index} does not exist (steps from 0, {self.num_slots} slots a step)")
        block, place = divmod(step * self.num_slots + index, self.block)
        number, earlier = self._block(block)[place]
        task = self.tasks[number]
        if self.bucket > 1:
            return self._bucket(task, earlier // self.bucket)[earlier % self.bucket]
        return self._plain_slot(task, earlier, 1)

    def _plain_slot(self, task: str, number: int, times: int) -> Slot:
        """The samples of slot `number` of `task`, when slots are `times` as long as they are."""
        size, batch = self.sizes[task], self.batch[task] * times
        first = number * batch
        epochs = tuple((first + i) // size for i in range(batch))
        return Slot(task, self._samples(task, first, batch), epochs)

    def _make_bucket(self, task: str, number: int) -> tuple[Slot, ...]:
        """`bucket` slots of a task with rows of like length in each; which comes first is drawn."""
        whole, batch = self._plain_slot(task, number, self.bucket), self.batch[task]
        rows = np.argsort(self._lengths[task][list(whole.ids)], kind="stable").reshape(self.bucket, batch).tolist()
        order = _permutations(stable_bits(self.seed, "bucket", task, number), 1, self.bucket)[0].tolist()
        return tuple(
            Slot(task, tuple(whole.ids[i] for i in rows[k]), tuple(whole.epochs[i] for i in rows[k])) for k in order
        )

    def _make_block(self, block: int) -> tuple[tuple[int, int], ...]:
        """(task number, slots of that task earlier in the run) for every place of a block."""
        counts, ends = list(self._quota.before(block)), self._quota.before(block + 1)
        tasks = np.repeat(np.arange(len(counts)), [end - start for start, end in zip(counts, ends, strict=True)])
        order = _permutations(stable_bits(self.seed, "block", block), 1, self.block)[0]
        places = []
        for task in tasks[order].tolist():
            places.append((task, counts[task]))
            counts[task] += 1
        return tuple(places)

    def _make_group(self, task: str, group: int) -> np.ndarray:
        """Permutations of consecutive epochs in one flat row; groups have equal length for a task."""
        size = self.sizes[task]
        epochs = max(1, _GROUP_SAMPLES // size)
        return _permutations(stable_bits(self.seed, "epochs", task, group), epochs, size).reshape(-1)

    def _samples(self, task: str, first: int, count: int) -> tuple[int, ...]:
        ids: list[int] = []
        while len(ids) < count:
            length = max(1, _GROUP_SAMPLES // self.sizes[task]) * self.sizes[task]
            group, offset = divmod(first + len(ids), length)
            ids.extend(self._group(task, group)[offset : offset + count - len(ids)].tolist())
        return tuple(ids)


def _weight(config: Mixture, task: str, size: int, batch: int) -> Fraction:
    """Exact relative number of slots. Decimal weights count as typed; roots are rounded, so that no libm matters."""
    if config.law == "equal":
        return Fraction(1)
    if config.law == "fixed":
        return Fraction(repr(float(config.weights[task])))
    if config.law == "temperature":
        return Fraction(round(size ** (1.0 / config.temperature) * 10**6), 10**6) / batch
    return Fraction(size if config.law == "proportional" else min(size, config.cap), batch)


def _check(sizes: Mapping[str, int], config: Mixture, global_batch: int, scale: Mapping[str, float]) -> None:
    if config.law not in LAWS:
        raise ConfigError(f"unknown 'mixture.law' {config.law!r}; {near_names(config.law, LAWS)}")
    if not sizes:
        raise ConfigError("the schedule has no tasks; give at least one")
    for task, size in sizes.items():
        if size < 1:
            raise ConfigError(f"task '{task}' has {size} training examples; leave it out or check its training files")
    for name, value in (("train.global_batch", global_batch), ("mixture.slots", config.slots),
                        ("mixture.block", config.block), ("mixture.bucket", config.bucket)):  # fmt: skip
        if value < 1:
            raise ConfigError(f"'{name}' must be at least 1, found {value}")
    for name, table in (("mixture.weights", config.weights), ("batch scale", scale)):
        for task, factor in table.items():
            if task not in sizes:
                raise ConfigError(f"'{name}' names '{task}', which is not one of the tasks; {near_names(task, sizes)}")
            if not (factor > 0 and math.isfinite(factor)):
                raise ConfigError(f"'{name}' of '{task}' must be above 0, found {factor}; to leave a task out, "
                                  "take it off the list of tasks")  # fmt: skip
    if config.law == "fixed":
        missing = sorted(set(sizes) - set(config.weights))
        if missing:
            raise ConfigError(f"the law 'fixed' needs a weight for every task; missing in 'mixture.weights': {missing}")
    elif config.weights:
        raise ConfigError(f"'mixture.weights' belong to the law 'fixed', found 'mixture.law' {config.law!r}; "
                          "set the law to fixed or remove the weights")  # fmt: skip
    if config.law == "capped" and config.cap < 1:
        raise ConfigError(f"the law 'capped' needs 'mixture.cap' of at least 1, found {config.cap}")
    if config.law == "temperature" and not config.temperature > 0:
        raise ConfigError(f"'mixture.temperature' must be above 0, found {config.temperature}")
