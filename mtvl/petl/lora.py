"""Low-rank changes of attention projections (LoRA); they can be merged into the backbone and taken out again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError
from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds, with_bias
from mtvl.petl.share import ActiveTask, TaskBank, bank_of, parts_over_tasks
from mtvl.sites import LINEAR_KINDS, Site

QUERY_AND_VALUE = ("self_attn.q", "self_attn.v", "cross_attn.q", "cross_attn.v")


@dataclass(frozen=True)
class LoraConfig(MethodConfig):
    """The change is scaled by `alpha / rank`; `dropout` is on its input. `places` are kinds of linear sites.

    `train_biases` trains the bias vectors of the language model as well, as the published runs did.
    """

    name: str = "lora"
    rank: int = 128
    alpha: float = 32.0
    dropout: float = 0.1
    places: tuple[str, ...] = QUERY_AND_VALUE
    share: str = "all"
    train_biases: bool = True
    train_norms: bool = False
    train_visual: bool = True


class LowRank(nn.Module):
    """y + scale * up(down(dropout(x)))."""

    def __init__(self, down: TaskBank, up: TaskBank, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.scale, self.dropout = scale, dropout

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in), y (..., d_out) -> (..., d_out)."""
        given = nn.functional.dropout(x, self.dropout, self.training)
        return y + self.up(self.down(given)) * self.scale

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Base parameters (d_out, d_in) and (d_out,) with the active task's change in them."""
        change = self.up.current().weight @ self.down.current().weight  # type: ignore[operator]
        return weight + change * self.scale, None if bias is None else bias.clone()


class Lora:
    """*Source:* Hu et al. 2022; VL-Adapter, Table 1 rows "Single / Multiple LoRA": rank 128 on q and v of all
    attentions, and every bias vector of BART trainable."""

    Config = LoraConfig

    def __init__(self, config: LoraConfig, *, paper_compat: bool = False) -> None:
        if config.rank < 1 or not 0 <= config.dropout < 1:
            raise ConfigError(f"'petl.rank' must be at least 1 and 'petl.dropout' lie in [0, 1), found {config}")
        if unknown := set(config.places) - set(LINEAR_KINDS):
            raise ConfigError(f"'petl.places' knows no {sorted(unknown)}; known: {', '.join(LINEAR_KINDS)}")
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """A low-rank change at every site of `places`."""
        config, chosen = self.config, in_layers(sites, self.config.layers)
        injections = []
        for site in at_kinds(chosen, config.places):
            halves = {"down": (("weight", (config.rank, site.d_in)),), "up": (("weight", (site.d_out, config.rank)),)}
            injections.append(Injection(site, parts_over_tasks(halves, config.share, tasks)))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        biases = with_bias(s for s in chosen if s not in unfrozen) if config.train_biases else ()
        # alpha decides no shape, but with another one the same weights are another model
        scale = ("alpha", float(config.alpha))
        options = (("rank", config.rank), scale, ("share", config.share), *layers_option(config.layers))
        return Plan("lora", options, tasks, tuple(sites), tuple(injections), unfrozen, biases)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """A LowRank whose halves are banks over tasks; the up-projection starts at zero, in the paper too."""

        def linear(part: Part) -> nn.Linear:
            shape = dict(part.shapes)["weight"]
            layer = nn.Linear(shape[1], shape[0], bias=False)  # torch's own start is the paper's for the down half
            if part.name == "up":
                nn.init.zeros_(layer.weight)
            return layer

        down, up = (bank_of(injection.parts, name, active, linear) for name in ("down", "up"))
        return LowRank(down, up, self.config.alpha / self.config.rank, self.config.dropout)
