"""Bottleneck adapters after attention and feed-forward blocks (Single, Half-shared, Multiple Adapters)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError
from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, bank_of, parts_over_tasks
from mtvl.sites import Site

PLACES = ("self_attn.out", "cross_attn.out", "ffn.down")


@dataclass(frozen=True)
class AdapterConfig(MethodConfig):
    """`reduction` divides the site's width (8: 768 -> 96); `bottleneck`, when given, sets the width itself."""

    name: str = "adapter"
    reduction: int = 8
    bottleneck: int = 0
    share: str = "all"
    train_norms: bool = True
    train_visual: bool = True


def check_widths(reduction: int, bottleneck: int) -> None:
    """ConfigError unless the two options of a bottleneck's width can be used."""
    if bottleneck < 0 or reduction < 1:
        raise ConfigError(
            "'petl.reduction' must be at least 1 and 'petl.bottleneck' at least 0, "
            f"found reduction {reduction}, bottleneck {bottleneck}"
        )


def bottleneck_width(site: Site, reduction: int, bottleneck: int) -> int:
    """Width of the bottleneck at `site`; PlanError when nothing is left of it."""
    width = bottleneck or site.d_out // reduction
    if width < 1:
        raise PlanError(f"'petl.reduction' {reduction} leaves no bottleneck at {site.path} ({site.d_out})")
    return width


class Bottleneck(nn.Module):
    """y + up(gelu(down(y))), gelu in its tanh form. It sits before the sub-layer's dropout and residual."""

    reads_output = True

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
        check_widths(config.reduction, config.bottleneck)
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """One adapter at every attention output and second feed-forward projection."""
        config, chosen, injections = self.config, in_layers(sites, self.config.layers), []
        for site in at_kinds(chosen, PLACES):
            width = bottleneck_width(site, config.reduction, config.bottleneck)
            halves = {
                "down": (("weight", (width, site.d_out)), ("bias", (width,))),
                "up": (("weight", (site.d_out, width)), ("bias", (site.d_out,))),
            }
            injections.append(Injection(site, parts_over_tasks(halves, config.share, tasks)))
        options = (("bottleneck", injections[0].parts[0].shapes[0][1][0]), ("share", config.share))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        options += layers_option(config.layers)
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

        down, up = (bank_of(injection.parts, name, active, linear) for name in ("down", "up"))
        return Bottleneck(down, up)
