"""Full fine-tuning: every parameter of the language model and the visual embedding is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.errors import ConfigError, PlanError, near_names
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


@dataclass(frozen=True)
class FullConfig(MethodConfig):
    """`frozen`: stacks that stay as they are, e.g. [visual]: a language side that learns to read a finished vision tower."""

    name: str = "full"
    frozen: tuple[str, ...] = ()


class Full:
    """*Source:* VL-Adapter, Table 1, "Full fine-tuning". With a frozen vision tower: LiT (Zhai et al. 2022)."""

    Config = FullConfig

    def __init__(self, config: FullConfig, *, paper_compat: bool = False) -> None:
        self.config = config

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Unfreeze every site with parameters; ConfigError for a stack that this backbone has not."""
        layers, frozen = self.config.layers, self.config.frozen
        stacks = {s.stack for s in sites}
        if unknown := [name for name in frozen if name not in stacks]:
            raise ConfigError(f"unknown stack {unknown[0]!r} in 'petl.frozen'; {near_names(unknown[0], stacks)}")
        unfrozen = tuple(s for s in in_layers(sites, layers) if s.num_parameters and s.stack not in frozen)
        options = (*layers_option(layers), *((("frozen", "+".join(frozen)),) if frozen else ()))
        return Plan("full", options, tasks, tuple(sites), (), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Nothing is injected."""
        raise PlanError("full fine-tuning injects nothing")
