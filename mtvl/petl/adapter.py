"""Bottleneck adapters after attention and feed-forward blocks (Single, Half-shared, Multiple Adapters)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError
from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.share import ActiveTask, TaskBank, parts_over_tasks
from mtvl.sites import Site

PLACES = ("self_attn.out", "cross_attn.out", "ffn.down")


@dataclass(frozen=True)
class AdapterConfig:
    """`reduction` divides the site's width (8: 768 -> 96); `bottleneck`, when given, sets the width itself."""

    name: str = "adapter"
    reduction: int = 8
    bottleneck: int = 0
    share: str = "all"
    train_norms: bool = True
    train_visual: bool = True


class Bottleneck(nn.Module):
    """y + up(gelu(down(y))), gelu in its tanh form. It sits before the sub-layer's dropout and residual."""

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) is not used; y (..., d_out) -> (..., d_out)."""
        return y + self.up(nn.functional.gelu(self.down(y), approximate="tanh"))


class Adapter:
    """*Source:* VL-Adapter, section 3, Houlsby placement; Table 1 rows "Single / Half-shared / Multiple Adapters".

    Difference: the up-projection starts at zero, so that training starts from the frozen backbone exactly. With
    `paper_compat` both projections start as the released code starts them on BART, N(0, 0.02) with zero biases.
    """

    Config = AdapterConfig

    def __init__(self, config: AdapterConfig, *, paper_compat: bool = False) -> None:
        if config.bottleneck < 0 or config.reduction < 1:
            raise ConfigError(f"'petl.reduction' must be at least 1 and 'petl.bottleneck' at least 0, found {config}")
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """One adapter at every attention output and second feed-forward projection."""
        injections = []
        for site in sites:
            if site.kind in PLACES:
                width = self.config.bottleneck or site.d_out // self.config.reduction
                if width < 1:
                    raise PlanError(
                        f"'petl.reduction' {self.config.reduction} leaves no bottleneck at {site.path} ({site.d_out})"
                    )
                halves = {
                    "down": (("weight", (width, site.d_out)), ("bias", (width,))),
                    "up": (("weight", (site.d_out, width)), ("bias", (site.d_out,))),
                }
                injections.append(Injection(site, parts_over_tasks(halves, self.config.share, tasks)))
        if not injections:
            raise PlanError(f"this backbone has none of the sites {', '.join(PLACES)}")
        kinds = ("norm",) * self.config.train_norms + ("visual",) * self.config.train_visual
        options = (("bottleneck", injections[0].parts[0].shapes[0][1][0]), ("share", self.config.share))
        unfrozen = tuple(s for s in sites if s.kind in kinds)
        return Plan("adapter", options, tasks, tuple(sites), tuple(injections), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """A Bottleneck whose halves are banks over tasks."""

        def linear(part: Part) -> nn.Linear:
            shape = dict(part.shapes)["weight"]
            layer = nn.Linear(shape[1], shape[0])
            nn.init.zeros_(layer.bias)
            if part.name == "up" and not self.paper_compat:
                nn.init.zeros_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=0.02)
            return layer

        def bank(name: str) -> TaskBank:
            return TaskBank([p for p in injection.parts if p.name == name], active, linear)

        return Bottleneck(bank("down"), bank("up"))
