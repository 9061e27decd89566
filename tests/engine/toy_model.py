"""A frozen trunk with one adapter per task and a shared head: the smallest model that keeps the engine's contract."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtvl.optim import ParameterGroup
from mtvl.types import Batch

TASKS = ("a", "b", "c")
WIDTH, BOTTLENECK, LAYERS = 12, 5, 2  # sizes that do not divide by the number of ranks


class Adapter(nn.Module):
    """x + up(tanh(down(x))); `zero` starts `up` at zero as real adapters do."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.down = nn.Linear(WIDTH, BOTTLENECK)
        self.up = nn.Linear(BOTTLENECK, WIDTH)
        if zero:
            nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(torch.tanh(self.down(x)))


class Layer(nn.Module):
    """Frozen linear map followed by the selected task's adapter."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)
        self.norm = nn.LayerNorm(WIDTH)
        self.norm.requires_grad_(False)
        self.adapters = nn.ModuleDict({task: Adapter(zero) for task in TASKS})
        self.task = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.adapters[self.task](torch.relu(self.frozen(x))))


class Toy(nn.Module):
    """Rows are features (B, N, 1, WIDTH); the trunk runs once for each of the N pictures. Loss: weighted squared error."""

    def __init__(
        self,
        seed: int = 0,
        zero: bool = False,
        recompute: bool = False,
        dropout: float = 0.0,
        noise: float = 0.0,
        reentrant: bool = False,
    ) -> None:
        """`noise` moves the trained parameters away from their start; the frozen ones depend on `seed` alone."""
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([Layer(zero) for _ in range(LAYERS)])
        self.shared = nn.Linear(WIDTH, 3)
        self.dropout = nn.Dropout(dropout)
        self.recompute, self.reentrant = recompute, reentrant
        with torch.no_grad():
            for parameter in self.parameters():
                if noise and parameter.requires_grad:
                    parameter.add_(noise * torch.randn_like(parameter))
        self.dead_task = ""
        self.broken_gradient = False

    def set_task(self, name: str) -> None:
        for layer in self.layers:
            layer.task = name

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant) if self.recompute else layer(x)
        return x

    def forward(self, batch: Batch) -> torch.Tensor:
        x = sum(self.trunk(batch.features[:, n, 0]) for n in range(batch.features.shape[1]))
        if batch.task == self.dead_task:  # a silent fault: the private parameters drop out of the graph
            x = x.detach()
        if self.broken_gradient:
            x.register_hook(lambda gradient: gradient * float("inf"))
        error = self.shared(self.dropout(x)).float() - batch.target_ids.float()
        rows = error.pow(2).mean(1) * batch.target_weights
        return batch.loss_weight * rows.sum() / batch.denominator


def toy_groups(model: nn.Module) -> list[ParameterGroup]:
    """A group with and one without weight decay for every task and for the shared head."""
    groups = []
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for task in (None, *TASKS):
        own = [n for n in trained if (f".adapters.{task}." in n if task else ".adapters." not in n)]
        for decay in (True, False):
            names = tuple(n for n in own if n.endswith("weight") == decay)
            groups.append(ParameterGroup(f"{task or 'shared'}/{'decay' if decay else 'plain'}", task, decay, names))
    return groups


def toy_slot(seed: int, task: str, rows: int, slots: int = 1, loss_weight: float = 1.0) -> Batch:
    """The whole slot (all ranks and micro-batches) of `task`, the same for every split of it."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        task=task,
        uids=tuple(f"{task}{seed}-{i}" for i in range(rows)),
        source_ids=torch.zeros(rows, 1, dtype=torch.int64),
        source_mask=torch.ones(rows, 1, dtype=torch.bool),
        features=torch.randn(rows, 2 if task == "c" else 1, 1, WIDTH, generator=generator),
        target_ids=torch.randint(-3, 4, (rows, 3), generator=generator),
        target_weights=torch.rand(rows, generator=generator) + 0.5,
        denominator=float(rows),
        loss_weight=loss_weight / slots,
    )


def part_of(slot: Batch, start: int, stop: int) -> Batch:
    """Rows start..stop of a slot; the denominator stays that of the slot."""
    rows = {k: v[start:stop] for k, v in vars(slot).items() if isinstance(v, torch.Tensor)}
    return Batch(**{**vars(slot), **rows, "uids": slot.uids[start:stop]})


def split(slots: list[Batch], rank: int, world: int, micro_per_slot: int) -> list[Batch]:
    """This rank's micro-batches of a step: every slot is cut into world * micro_per_slot equal parts."""
    parts = []
    for slot in slots:
        size = len(slot.uids) // (world * micro_per_slot)
        for micro in range(micro_per_slot):
            first = (micro * world + rank) * size
            parts.append(part_of(slot, first, first + size))
    return parts
