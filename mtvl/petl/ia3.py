"""Learned rescaling of keys, values and feed-forward activations (IA3); it can be merged into the backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, TaskBank, check_whole, parts_over_tasks
from mtvl.sites import Site

OUTPUTS = ("self_attn.k", "self_attn.v", "cross_attn.k", "cross_attn.v")
INPUTS = ("ffn.down",)


@dataclass(frozen=True)
class Ia3Config(MethodConfig):
    """`share`: all or none."""

    name: str = "ia3"
    share: str = "all"
    train_norms: bool = False
    train_visual: bool = True


class Factor(nn.Module):
    """x * (1 + weight): weight decay then pulls towards the frozen backbone, not towards zero activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)."""
        return x * self.values()

    def values(self) -> torch.Tensor:
        """The factors (width,)."""
        return 1 + self.weight


class ScaledOutput(nn.Module):
    """The base output times a factor for each of its places."""

    reads_output = True

    def __init__(self, scale: TaskBank) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y (..., d_out) -> (..., d_out)."""
        return self.scale(y)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Base parameters with scaled rows."""
        values = self.scale.current().values()  # type: ignore[operator]
        return weight * values[:, None], None if bias is None else bias * values


class ScaledInput(nn.Module):
    """The base's input times a factor for each of its places."""

    def __init__(self, scale: TaskBank) -> None:
        super().__init__()
        self.scale = scale

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) -> (..., d_in), what the base is given."""
        return self.scale(x)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y (..., d_out) stays as it is."""
        return y

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Base parameters with scaled columns."""
        return weight * self.scale.current().values(), None if bias is None else bias.clone()  # type: ignore[operator]


class Ia3:
    """*Source:* Liu et al. 2022: keys and values of every attention, and the activations inside the feed-forward block.

    The factors are kept as their difference from one; the function and the start are the paper's.
    """

    Config = Ia3Config

    def __init__(self, config: Ia3Config, *, paper_compat: bool = False) -> None:
        check_whole(config.share, config.name)
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """A vector at every key, value and second feed-forward projection."""
        config, chosen = self.config, in_layers(sites, self.config.layers)
        injections = []
        for site in at_kinds(chosen, (*OUTPUTS, *INPUTS)):
            width = site.d_in if site.kind in INPUTS else site.d_out
            injections.append(
                Injection(site, parts_over_tasks({"scale": (("weight", (width,)),)}, config.share, tasks))
            )
        options = (("share", config.share), *layers_option(config.layers))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        return Plan("ia3", options, tasks, tuple(sites), tuple(injections), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Factors on the site's output, or on its input."""

        def factor(part: Part) -> Factor:
            return Factor(part.shapes[0][1][0])

        bank = TaskBank(injection.parts, active, factor)
        return ScaledInput(bank) if injection.site.kind in INPUTS else ScaledOutput(bank)
