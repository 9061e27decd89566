"""Full fine-tuning: every parameter of the language model and the visual embedding is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.errors import PlanError
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.share import ActiveTask
from mtvl.sites import Site


@dataclass(frozen=True)
class FullConfig:
    """No options."""

    name: str = "full"


class Full:
    """*Source:* VL-Adapter, Table 1, "Full fine-tuning"."""

    Config = FullConfig

    def __init__(self, config: FullConfig, *, paper_compat: bool = False) -> None:
        self.config = config

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Unfreeze every site."""
        return Plan("full", (), tasks, tuple(sites), (), tuple(sites))

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """Nothing is injected."""
        raise PlanError("full fine-tuning injects nothing")
