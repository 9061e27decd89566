"""Bottleneck adapters whose projections are sums of Kronecker products (Compacter)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError
from mtvl.petl.adapter import PLACES, Bottleneck, bottleneck_width, check_widths
from mtvl.petl.plan import Common, Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, Shapes, TaskBank, bank_of, parts_over_tasks
from mtvl.sites import Site


@dataclass(frozen=True)
class CompacterConfig(MethodConfig):
    """`division` is the number k of Kronecker products; `rank` of their right factors, 0 for full matrices.

    `share_rule`: one set of left factors for all places instead of one for each projection. With division=4, rank=1 and
    share_rule=true this is the original Compacter; the defaults are what VL-Adapter settled on.
    """

    name: str = "compacter"
    reduction: int = 8
    bottleneck: int = 0
    division: int = 2
    rank: int = 0
    share_rule: bool = False
    share: str = "all"
    train_norms: bool = True
    train_visual: bool = True


class Phm(nn.Module):
    """x @ sum_i kron(rule[i], W[i]) + b, with W[i] = left[i] @ right[i] when it has a rank.

    The bias is called `b` as in the reference, where it is decayed because its name has no "bias" in it.
    """

    def __init__(self, part: Part, rules: TaskBank | None) -> None:
        super().__init__()
        for name, shape in part.shapes:
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))
        self._rules = [] if rules is None else [rules]  # in a list: nobody's child here

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_out)."""
        rule: torch.Tensor = self._rules[0].current()() if self._rules else self.rule  # type: ignore[assignment]
        factors: torch.Tensor = self.left @ self.right if hasattr(self, "left") else self.W  # type: ignore[assignment,operator]
        k, rows, columns = factors.shape
        matrix = torch.einsum("npq,nio->piqo", rule, factors).reshape(k * rows, k * columns)
        return x @ matrix + self.b


class Rule(nn.Module):
    """Left factors (k, k, k) that several projections use."""

    def __init__(self, division: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(division, division, division).normal_(std=std))

    def forward(self) -> torch.Tensor:
        """A new tensor, since ZeRO-3 takes parameters back after a module's forward."""
        return self.weight.clone()


class Compacter:
    """*Source:* Mahabadi et al. 2021; VL-Adapter, Table 1 rows "Single / Multiple Compacters": k = 2, no factorisation,
    a rule for each projection.

    Differences: the up-projection's right factors start at zero, so that training starts from the frozen backbone, and
    the rules start with standard deviation k**-0.5 around 0, so that it gets gradients of a useful size. With `paper_compat` all right factors start
    Glorot-uniform with gain sqrt(2) and the rules with standard deviation 0.01.
    """

    Config = CompacterConfig

    def __init__(self, config: CompacterConfig, *, paper_compat: bool = False) -> None:
        check_widths(config.reduction, config.bottleneck)
        if config.division < 1 or config.rank < 0:
            raise ConfigError(
                f"'petl.division' must be at least 1 and 'petl.rank' at least 0, found {config.division}, {config.rank}"
            )
        self.config, self.paper_compat = config, paper_compat
        self.rule_std = 0.01 if paper_compat else config.division**-0.5

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Two PHM projections at every attention output and second feed-forward projection."""
        config, chosen, injections = self.config, in_layers(sites, self.config.layers), []
        for site in at_kinds(chosen, PLACES):
            width = bottleneck_width(site, config.reduction, config.bottleneck)
            halves = {"down": self._shapes(site, site.d_out, width), "up": self._shapes(site, width, site.d_out)}
            injections.append(Injection(site, parts_over_tasks(halves, config.share, tasks)))
        options = (
            ("division", config.division), ("rank", config.rank), ("share_rule", config.share_rule),
            ("share", config.share), *layers_option(config.layers),
        )  # fmt: skip
        common: tuple[Common, ...] = ()
        if config.share_rule:  # a rule that several tasks moved could not stand still for one of them
            shape = (("weight", (config.division,) * 3),)
            share = "all" if config.share == "all" else "none"
            common = (Common("rule", "both", parts_over_tasks({"rule": shape}, share, tasks)),)
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        return Plan("compacter", options, tasks, tuple(sites), tuple(injections), unfrozen, (), common)

    def _shapes(self, site: Site, d_in: int, d_out: int) -> Shapes:
        k, rank = self.config.division, self.config.rank
        if d_in % k or d_out % k:
            raise PlanError(f"'petl.division' {k} does not divide the widths {d_in} and {d_out} at {site.path}")
        factors: Shapes = (("W", (k, d_in // k, d_out // k)),)
        if rank:
            factors = (("left", (k, d_in // k, rank)), ("right", (k, rank, d_out // k)))
        rule: Shapes = () if self.config.share_rule else (("rule", (k, k, k)),)
        return (*rule, *factors, ("b", (d_out,)))

    def build_common(self, common: Common, part: Part) -> nn.Module:
        """The rule that all places use."""
        return Rule(self.config.division, self.rule_std)

    def build(
        self, injection: Injection, active: ActiveTask, common: Mapping[str, Mapping[str, TaskBank]] | None = None
    ) -> nn.Module:
        """A Bottleneck whose halves are banks of PHM projections over tasks."""
        rules = None if common is None else common["rule"]["rule"]

        def phm(part: Part) -> Phm:
            layer = Phm(part, rules)
            for name, parameter in layer.named_parameters():
                if name == "rule":
                    nn.init.normal_(parameter, std=self.rule_std)
                elif name != "b" and (self.paper_compat or part.name == "down" or name == "left"):
                    for factor in parameter.data:
                        nn.init.xavier_uniform_(factor, gain=2**0.5)
            return layer

        down, up = (bank_of(injection.parts, name, active, phm) for name in ("down", "up"))
        return Bottleneck(down, up)
