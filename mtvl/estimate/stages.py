"""Bytes of one device and bytes on the wire by ZeRO stage, as DeepSpeed lays a run out.

*Source:* Rajbhandari et al. 2020 (ZeRO) for what is split, DeepSpeed 0.19's stage_1_and_2.py and stage3.py for what is kept
beside it (flat copies, the bucket of gradients, persistent parameters), compared with measurements by
`tools/check_estimate.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtvl.engine.settings import BUCKET
from mtvl.estimate.trace import Pass

FP32 = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
MOMENTS = {"adamw": 2, "adamw_reference": 2, "sgd": 0}
# Defaults of DeepSpeed for stage 3, in numbers of parameters.
PERSISTENT, LIVE, REUSE, PREFETCH = 100_000, 1_000_000_000, 1_000_000_000, 50_000_000


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters: `frozen` and `trained` ones of the model, each by name; `buffer_bytes` beside them.

    `tied` of them stand in several modules.
    """

    frozen: dict[str, int]
    trained: dict[str, int]
    buffer_bytes: int = 0
    tied: int = 0


@dataclass(frozen=True)
class Layout:
    """How a run is spread: ZeRO stage, number of devices, precision, optimizer, and what is offloaded to the host.

    `bucket`: number of gradients that are collected before they are sent (0: the engine's own choice); `overlaps`: others
    are collected meanwhile.
    """

    stage: int
    world_size: int
    precision: str = "fp32"
    optimizer: str = "adamw"
    offload_optimizer: bool = False
    offload_param: bool = False
    persistent: int = PERSISTENT
    live: int = LIVE
    reuse: int = REUSE
    prefetch: int = PREFETCH
    bucket: int = 0
    overlaps: bool = False

    def bucket_bytes(self, trained: int) -> int:
        """Taken with the first gradient, however few there are."""
        buffers = 2 if self.overlaps and self.stage in (1, 2) else 1
        return self.bytes * buffers * (self.bucket or min(BUCKET, trained))

    @property
    def bytes(self) -> int:
        """Of a parameter of the model."""
        return BYTES[self.precision]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment when most are alive; `host` bytes lie in the machine's memory instead.

    `activations`: with the gradients' own room, of a micro-step; or of the update of weights, where that takes more.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the device."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def memory(sizes: Sizes, layout: Layout, activations: int) -> Memory:
    """Bytes of one device. `activations`: of the widest micro-batch (`Pass.activation_bytes`)."""
    world, size = layout.world_size, layout.bytes
    frozen, trained = sum(sizes.frozen.values()), sum(sizes.trained.values())
    moments = MOMENTS[layout.optimizer]
    part = -(-trained // world)
    if layout.stage == 0:
        # When activations are gone, gradients lie in one piece while they are summed over ranks, and roots of moments beside
        # them in the update.
        return Memory(
            size * (frozen + trained) + sizes.buffer_bytes,
            FP32 * trained,
            FP32 * moments * trained,
            max(activations, FP32 * trained),
        )
    optimizer = FP32 * (1 + moments) * part  # with masters, in fp32 too
    if layout.stage in (1, 2):
        parameters = size * (frozen + trained) + sizes.buffer_bytes
        kept = FP32 * part if layout.stage == 2 else size * trained
        gradients = layout.bucket_bytes(trained) + kept
    else:
        parameters = _partitioned(sizes, layout) + sizes.buffer_bytes
        gradients = layout.bucket_bytes(trained) + FP32 * part
    host = 0
    if layout.offload_optimizer:
        host += optimizer + FP32 * part
        optimizer, gradients = 0, layout.bucket_bytes(trained)
    elif layout.stage == 2:
        activations = max(activations, 3 * FP32 * part - gradients)  # the update: gradients twice, and roots of moments
    if layout.stage == 3 and layout.offload_param:
        split = size * (-(-frozen // world) + part)
        host, parameters = host + split, max(0, parameters - split)
    return Memory(parameters, gradients, optimizer, activations, host)


def _partitioned(sizes: Sizes, layout: Layout) -> int:
    """Parameters under ZeRO-3: this rank's parts, the small ones that stay whole, and those gathered at the same time."""
    everything = {**sizes.frozen, **sizes.trained}
    small = sum(n for n in everything.values() if n < layout.persistent)
    large = sum(n for n in everything.values() if n >= layout.persistent)
    parts = sum(-(-n // layout.world_size) for n in everything.values())
    widest = max(everything.values())
    # What is used again within `reuse` parameters is not given back; only a bound below the model's size saves memory.
    gathered = max(widest, min(large, layout.live, layout.reuse))
    if layout.world_size == 1 and not layout.offload_param:
        gathered = 0  # a single device's part is the weight: nothing is copied but the small ones
    return layout.bytes * (parts + small + gathered)


def traffic(sizes: Sizes, layout: Layout, passes: Sequence[Pass], *, alternates: bool = False) -> int:
    """Bytes that one device sends in an optimizer step made of the micro-steps `passes`, with ring algorithms: for weights
    and gradients, and where the loss exchanges rows.

    `alternates`: other steps run other modules (parts of other tasks). ZeRO-3 then never learns in which order weights are
    used: it gathers all of them for forward and again for backward, small ones too, and in the first micro-step those in
    vain that the step before would have needed next (tied ones are at hand already).
    """
    if layout.world_size == 1:
        return 0
    ring = (layout.world_size - 1) / layout.world_size
    exchanged = int(ring * sum(p.exchanged_bytes for p in passes))
    return exchanged + _traffic_of_weights(sizes, layout, passes, ring, alternates=alternates)


def _traffic_of_weights(
    sizes: Sizes, layout: Layout, passes: Sequence[Pass], ring: float, *, alternates: bool
) -> int:  # fmt: skip
    size = layout.bytes
    trained = sum(sizes.trained.values())
    fired = sum(sum(p.trained.values()) for p in passes)
    if layout.stage == 0:
        return int(2 * ring * FP32 * trained)
    if layout.stage == 1:
        used = {name for p in passes for name in p.trained}
        return int(ring * size * (2 * sum(sizes.trained[n] for n in used) + trained))
    if layout.stage == 2:
        return int(ring * size * (2 * fired + trained))
    everything = {**sizes.frozen, **sizes.trained}
    large = sum(n for n in everything.values() if n >= layout.persistent)
    if alternates:
        gathered = 2 * (sum(sizes.frozen.values()) * len(passes) + fired)
        return int(ring * size * (gathered + min(layout.prefetch, large - sizes.tied) + fired))
    small = sum(n for n in sizes.trained.values() if n < layout.persistent)
    times = 1 if large <= min(layout.reuse, layout.live) else 2  # gathered again for backward when given back before
    return int(ring * size * (times * large * len(passes) + fired + small))
