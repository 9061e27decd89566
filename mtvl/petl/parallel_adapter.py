"""Bottleneck adapters beside attention and feed-forward parts: they read what the part reads (parallel adapter)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError, near_names
from mtvl.petl.adapter import bottleneck_width, check_widths
from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, TaskBank, bank_of, parts_over_tasks
from mtvl.sites import Site

# Parts of a layer: the map that reads its input, and the map whose output is the part's.
PARTS = {
    "self_attn": ("self_attn.q", "self_attn.out"),
    "cross_attn": ("cross_attn.q", "cross_attn.out"),
    "ffn": ("ffn.up", "ffn.down"),
}


@dataclass(frozen=True)
class ParallelAdapterConfig(MethodConfig):
    """`reduction` and `bottleneck` as in adapter. `places`: parts of a layer (self_attn, cross_attn, ffn). `scale` of what
    is added."""

    name: str = "parallel_adapter"
    reduction: int = 8
    bottleneck: int = 0
    scale: float = 4.0
    places: tuple[str, ...] = ("ffn",)
    share: str = "all"
    train_norms: bool = True
    train_visual: bool = True


class Note(nn.Module):
    """Keeps what a part's first map is given until its last map has run, for each task whose rows run."""

    def __init__(self, active: ActiveTask) -> None:
        super().__init__()
        self._active, self._kept = [active], {}  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) is kept, y (..., d_out) stays as it is."""
        self._kept[self._active[0].name] = x
        return y

    def taken(self) -> torch.Tensor:
        """What was kept in this run of the part. A layer runs its maps in this order in every pass, recompute included."""
        kept: torch.Tensor = self._kept.pop(self._active[0].name)
        return kept


class Beside(nn.Module):
    """y + scale * up(relu(down(z))) for what the part was given, z."""

    def __init__(self, note: Note, down: TaskBank, up: TaskBank, scale: float) -> None:
        super().__init__()
        self._note = [note]  # in a list: it stands at the first map, and is nobody's child here
        self.down, self.up, self.scale = down, up, scale

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) is not used; y (..., d_out) -> (..., d_out)."""
        return torch.add(y, self.up(torch.relu(self.down(self._note[0].taken()))), alpha=self.scale)


class ParallelAdapter:
    """*Source:* He et al. 2022, the scaled parallel adapter: beside the feed-forward part, ReLU, 4 times what it says; the
    up-projection starts at zero."""

    Config = ParallelAdapterConfig

    def __init__(self, config: ParallelAdapterConfig, *, paper_compat: bool = False) -> None:
        check_widths(config.reduction, config.bottleneck)
        if unknown := [place for place in config.places if place not in PARTS]:
            raise ConfigError(f"unknown {unknown[0]!r} in 'petl.places'; {near_names(unknown[0], PARTS)}")
        if not config.places:
            raise ConfigError(f"'petl.places' is empty, expected some of {', '.join(PARTS)}")
        self.config, self.paper_compat = config, paper_compat
        self._notes: list[Note] = []  # made for a part's last map, until its first map takes it

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """For every part an adapter at its last map, and right after it a note at its first; PlanError without such parts."""
        config, chosen, injections = self.config, in_layers(sites, self.config.layers), []
        for place in dict.fromkeys(config.places):
            reads, writes = ([s for s in chosen if s.kind == kind] for kind in PARTS[place])
            places = [(s.stack, s.layer) for s in reads]
            if places != [(s.stack, s.layer) for s in writes]:
                raise PlanError(f"this backbone's {PARTS[place][0]} and {PARTS[place][1]} do not come in pairs")
            for first, last in zip(reads, writes, strict=True):
                width = bottleneck_width(last, config.reduction, config.bottleneck)
                halves = {
                    "down": (("weight", (width, first.d_in)), ("bias", (width,))),
                    "up": (("weight", (last.d_out, width)), ("bias", (last.d_out,))),
                }
                injections += [Injection(last, parts_over_tasks(halves, config.share, tasks)), Injection(first, ())]
        if not injections:
            raise PlanError(f"this backbone has none of the parts {', '.join(config.places)}")
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        options = (
            ("bottleneck", injections[0].parts[0].shapes[0][1][0]), ("scale", config.scale),
            ("places", "+".join(dict.fromkeys(config.places))), ("share", config.share), *layers_option(config.layers),
        )  # fmt: skip
        return Plan("parallel_adapter", options, tasks, tuple(sites), tuple(injections), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """An adapter at a part's last map, or the note at its first that belongs to the adapter before it in the plan."""
        if not injection.parts:
            return self._notes.pop()

        def linear(part: Part) -> nn.Linear:
            shape = dict(part.shapes)["weight"]
            layer = nn.Linear(shape[1], shape[0])
            nn.init.zeros_(layer.bias)
            if part.name == "up":
                nn.init.zeros_(layer.weight)
            return layer

        self._notes.append(Note(active))
        down, up = (bank_of(injection.parts, name, active, linear) for name in ("down", "up"))
        return Beside(self._notes[-1], down, up, self.config.scale)
