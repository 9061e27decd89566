"""Full fine-tuning: every parameter of the language model and the visual embedding is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


@dataclass(frozen=True)
class FullConfig(MethodConfig):
    """No options of its own."""

    name: str = "full"


class Full:
    """*Source:* VL-Adapter, Table 1, "Full fine-tuning"."""

    Config = FullConfig

    def __init__(self, config: FullConfig, *, paper_compat: bool = False) -> None:
        self.config = config

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Unfreeze every site with parameters."""
        layers = self.config.layers
        unfrozen = tuple(s for s in in_layers(sites, layers) if s.num_parameters)
        return Plan("full", layers_option(layers), tasks, tuple(sites), (), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Nothing is injected."""
        raise PlanError("full fine-tuning injects nothing")
