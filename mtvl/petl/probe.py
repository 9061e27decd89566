"""Only the heads beside the language model are trained (linear probe)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


@dataclass(frozen=True)
class ProbeConfig(MethodConfig):
    """`language_head`: what turns the decoder's states into tokens is trained too, but for the token table; without it, tasks
    that write text have nothing to train. Heads stand outside the layers."""

    name: str = "probe"
    language_head: bool = False


class Probe:
    """*Source:* UniAdapter, Table 1, "Linear probe": the projections of both modalities and the matching head. The language
    head is ours, for runs that retrieve and write."""

    Config = ProbeConfig

    def __init__(self, config: ProbeConfig, *, paper_compat: bool = False) -> None:
        self.config = config

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Unfreeze the heads; PlanError when there are none."""
        kinds = ("head", "answers", *(("lm_head",) if self.config.language_head else ()))
        unfrozen = tuple(s for s in in_layers(sites, self.config.layers) if s.kind in kinds)
        if not unfrozen:
            raise PlanError(
                "this backbone has no heads beside its language model; 'probe' is defined for blip with contrast, matching "
                "or comparing heads and for clip_vil; 'projection' is the nearest method here"
            )
        options = (
            *layers_option(self.config.layers),
            *((("language_head", True),) if self.config.language_head else ()),
        )
        return Plan("probe", options, tasks, tuple(sites), (), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Nothing is injected."""
        raise PlanError("the method 'probe' injects nothing")
