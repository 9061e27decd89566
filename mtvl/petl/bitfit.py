"""Only bias vectors are trained (BitFit), beside the visual embedding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option, of_kinds, with_bias
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


@dataclass(frozen=True)
class BitFitConfig(MethodConfig):
    """`train_visual` trains the visual embedding as a whole, biases or not."""

    name: str = "bitfit"
    train_visual: bool = True


class BitFit:
    """*Source:* Ben Zaken et al. 2022, all bias terms, those of norms included."""

    Config = BitFitConfig

    def __init__(self, config: BitFitConfig, *, paper_compat: bool = False) -> None:
        self.config = config

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Unfreeze every bias vector of the language model; PlanError when it has none."""
        chosen = in_layers(sites, self.config.layers)
        biases = with_bias(chosen)
        if not biases:
            raise PlanError("this backbone's language model has no bias vectors; choose another 'petl.name'")
        unfrozen = of_kinds(chosen, norms=False, visual=self.config.train_visual)
        return Plan("bitfit", layers_option(self.config.layers), tasks, tuple(sites), (), unfrozen, biases)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Nothing is injected."""
        raise PlanError("the method 'bitfit' injects nothing")
