"""`mtvl estimate`: what a recipe needs on a number of devices, by ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mtvl.config import RunConfig
from mtvl.data.schedule import num_micro_steps
from mtvl.engine.settings import check_agreement, check_sections, precision_of, read_engine_file
from mtvl.errors import ConfigError
from mtvl.estimate.devices import Device, load_device
from mtvl.estimate.shapes import largest_batch, rows_of
from mtvl.estimate.stages import Layout, Memory, Sizes, memory, traffic
from mtvl.estimate.trace import Pass, fake_tensors, make_fake, micro_step
from mtvl.model import Model, build_model
from mtvl.report import table

GIB = 2**30
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Work:
    """What one device computes, whatever the stage: sizes of the model, and one micro-step of every task."""

    sizes: Sizes
    passes: Mapping[str, Pass]
    micro_steps: int  # of an optimizer step on one device, over all slots
    rows: int  # most rows of a micro-step
    has_pairs: bool = False  # pictures are matched with texts, by a teacher that reads whole weights

    @property
    def alternates(self) -> bool:
        """Whether tasks take turns that train parts of their own."""
        return len({frozenset(p.trained) for p in self.passes.values()}) > 1

    def sent_bytes(self, layout: Layout, task: str) -> int:
        """Of one device, in a step of `task`."""
        return traffic(self.sizes, layout, [self.passes[task]] * self.micro_steps, alternates=self.alternates)


@dataclass(frozen=True)
class Row:
    """One ZeRO stage: bytes on the device and on the wire, seconds of an optimizer step, and whether it fits."""

    layout: Layout
    memory: Memory
    sent_bytes: int
    seconds: float
    fits: bool


def trace_work(config: RunConfig, world_size: int) -> Work:
    """Run one micro-step of every task of `config` on shapes alone, with the rows that fall to one of `world_size` devices."""
    model = build_model(config, meta=True)
    rows, passes, batches = rows_of(config, world_size), {}, {}
    with fake_tensors():
        make_fake(model, DTYPES[config.train.precision])
        for name in config.tasks:
            batch = largest_batch(config, name, model.backbone, rows)
            if batch.loss == "pairs" and model.pairs is None:
                model.begin_pairs(config.pairs)
                model.pairs.step.teacher.float()  # whatever the precision of the model
            batches[name] = batch
        for name, batch in batches.items():
            batch.features = batch.features.to(DTYPES[config.train.precision])
            passes[name] = micro_step(model, batch, world_size)
    micro = num_micro_steps(config.train.global_batch, config.train.micro_batch, world_size)
    return Work(_sizes(model), passes, micro * config.mixture.slots, rows, model.pairs is not None)


def _sizes(model: Model) -> Sizes:
    frozen = {n: p.numel() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    tied = sum(p.numel() for p in model.parameters() if names[id(p)] > 1)
    return Sizes(frozen, trained, sum(b.numel() * b.element_size() for b in model.buffers()), tied)


def layouts(config: RunConfig, world_size: int) -> list[Layout]:
    """The stages that the recipe's precision allows, with the offload and the bounds of its engine file."""
    values = read_engine_file(config.engine.file)
    check_sections(config)
    check_agreement(config, values)
    given = values.get("zero_optimization", {})
    zero = {key: value for key, value in given.items() if value != "auto"}  # which is DeepSpeed's default
    precision = precision_of(values)
    common = Layout(
        0, world_size, precision, config.optim.name,
        persistent=int(zero.get("stage3_param_persistence_threshold", Layout.persistent)),
        live=int(zero.get("stage3_max_live_parameters", Layout.live)),
        reuse=int(zero.get("stage3_max_reuse_distance", Layout.reuse)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", Layout.prefetch)),
        bucket=int(zero.get("reduce_bucket_size", Layout.bucket)), overlaps=bool(zero.get("overlap_comm", False)),
    )  # fmt: skip
    offload = {
        "offload_optimizer": zero.get("offload_optimizer", {}).get("device", "none") == "cpu",
        "offload_param": zero.get("offload_param", {}).get("device", "none") == "cpu",
    }
    stages = (0, 1, 2, 3) if precision == "fp32" else (2, 3)
    found = [replace(common, stage=stage) for stage in stages]
    own = replace(common, stage=int(zero.get("stage", 0)), **offload)
    return found if own in found else [*found, own]


def estimate_rows(config: RunConfig, nodes: int, gpus_per_node: int, device: Device, work: Work) -> list[Row]:
    """One row for each layout."""
    world = nodes * gpus_per_node
    activations = max(p.activation_bytes for p in work.passes.values())
    mean_flops = sum(p.flops for p in work.passes.values()) / len(work.passes)
    compute = device.seconds(mean_flops * work.micro_steps, config.train.precision)
    link = 1e9 * (min(device.link_gb, device.network_gb) if nodes > 1 else device.link_gb)
    rows = []
    for layout in layouts(config, world):
        if layout.stage == 3 and work.has_pairs:
            continue  # refused by the trainer
        needed = memory(work.sizes, layout, activations)
        per_task = [work.sent_bytes(layout, task) for task in work.passes]
        sent = sum(per_task) // len(per_task)
        fits = needed.total + device.reserve_gib * GIB <= device.memory_gib * GIB
        rows.append(Row(layout, needed, sent, compute + sent / link, fits))
    return rows


def estimate(config: RunConfig, nodes: int, gpus_per_node: int, device_name: str) -> str:
    """The table that `mtvl estimate` prints. ConfigError for numbers below 1, an unknown device or another precision."""
    for flag, number in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if number < 1:
            raise ConfigError(f"{flag} must be 1 or more, found {number}")
    device = load_device(device_name, config.train.precision)
    work = trace_work(config, nodes * gpus_per_node)
    rows = estimate_rows(config, nodes, gpus_per_node, device, work)
    return "\n".join(
        [*_head(config, nodes, gpus_per_node, device_name, device, work), _table(rows, device), *_notes(rows, work)]
    )


def _head(config: RunConfig, nodes: int, gpus: int, name: str, device: Device, work: Work) -> list[str]:
    frozen, trained = sum(work.sizes.frozen.values()), sum(work.sizes.trained.values())
    widest = max(work.passes.values(), key=lambda p: p.activation_bytes)
    return [
        f"{nodes} x {gpus} {name} ({device.memory_gib:g} GiB, {device.tflops[config.train.precision]:g} TFLOPS in "
        f"{config.train.precision}, of which {device.share:.0%} are reached)",
        f"parameters {frozen + trained:,}, trained {trained:,}; {work.micro_steps} micro-steps of at most {work.rows} rows a step; "
        f"the widest task is {widest.task}{', layers are computed again in backward' if config.train.recompute else ''}",
        "",
    ]


def _table(rows: list[Row], device: Device) -> str:
    gib = lambda number: f"{number / GIB:.2f}"  # noqa: E731
    lines = []
    for row in rows:
        layout, used = row.layout, row.memory
        offloaded = [
            n for n, on in (("optimizer", layout.offload_optimizer), ("parameters", layout.offload_param)) if on
        ]
        lines.append([
            f"ZeRO {layout.stage}" + (f", {' and '.join(offloaded)} offloaded" if offloaded else ""),
            gib(used.parameters), gib(used.gradients), gib(used.optimizer), gib(used.activations), gib(used.total),
            "yes" if row.fits else f"NO, {gib(used.total + device.reserve_gib * GIB - device.memory_gib * GIB)} too much",
            gib(used.host), f"{row.sent_bytes / 1e6:,.1f}", f"{row.seconds:.3g}",
        ])  # fmt: skip
    header = [
        "GiB per device", "parameters", "gradients", "optimizer", "activations", "total", "fits", "host", "MB sent a step",
        "s a step",
    ]  # fmt: skip
    return table(lines, header)


def _notes(rows: list[Row], work: Work) -> list[str]:
    notes = [
        "",
        "Batches at the limits of the task files; activations of forward and backward at their highest point; sent",
    ]
    notes.append("bytes of one device by ring algorithms; seconds are the mean of the tasks, and nothing overlaps.")
    if work.has_pairs:
        notes.append("ZeRO-3 is left out: the teacher of tasks on pairs reads whole weights.")
    if not any(row.fits for row in rows):
        notes.append(
            "Nothing fits: lower train.micro_batch (the result stays the same), set train.recompute=true, or take bf16."
        )
    return notes


def as_plain(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as JSON values."""
    return [
        {
            "stage": r.layout.stage, "offload_optimizer": r.layout.offload_optimizer,
            "offload_param": r.layout.offload_param, **vars(r.memory), "total": r.memory.total,
            "sent_bytes": r.sent_bytes, "seconds": r.seconds, "fits": r.fits,
        }
        for r in rows
    ]  # fmt: skip
