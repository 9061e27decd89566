"""Only the projection of visual features into the language model is trained, and on request its norms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


@dataclass(frozen=True)
class ProjectionConfig(MethodConfig):
    """`train_norms` also trains the language model's norms (in the chosen layers)."""

    name: str = "projection"
    train_norms: bool = False


class Projection:
    """*Source:* VL-Adapter, Table 5: visual projection alone, and with layer norms."""

    Config = ProjectionConfig

    def __init__(self, config: ProjectionConfig, *, paper_compat: bool = False) -> None:
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Unfreeze the visual embedding, and the norms on request; PlanError without one."""
        layers, norms = self.config.layers, self.config.train_norms
        unfrozen = of_kinds(in_layers(sites, layers), norms=norms, visual=True, paper_compat=self.paper_compat)
        if not any(s.kind == "visual" for s in unfrozen):
            raise PlanError("this backbone has no visual embedding to train; choose another 'petl.name'")
        options = (("train_norms", self.config.train_norms), *layers_option(layers))
        return Plan("projection", options, tasks, tuple(sites), (), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Nothing is injected."""
        raise PlanError("the method 'projection' injects nothing")
