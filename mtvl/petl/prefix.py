"""Learned keys and values before those of every attention (prefix tuning)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError
from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, TaskBank, check_whole, parts_over_tasks
from mtvl.sites import Site

PLACES = ("self_attn", "cross_attn")


@dataclass(frozen=True)
class PrefixConfig(MethodConfig):
    """`length` keys and values at every attention. `share`: all or none."""

    name: str = "prefix"
    length: int = 20
    share: str = "all"
    train_norms: bool = False
    train_visual: bool = True


class Table(nn.Module):
    """Keys and values (2, length, D)."""

    def __init__(self, length: int, d_model: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(length, d_model).normal_(std=0.02))
        self.values = nn.Parameter(torch.empty(length, d_model).normal_(std=0.02))

    def forward(self) -> torch.Tensor:
        """(2, length, D): a new tensor, since ZeRO-3 takes parameters back after a module's forward."""
        return torch.stack([self.keys, self.values])


class KeyValuePrefix(nn.Module):
    """Puts the active task's keys and values before those of an attention."""

    def __init__(self, prefix: TaskBank) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, heads, S, D/heads) twice -> (B, heads, length + S, D/heads) twice."""
        return self.prefix.by_task(self._put_before, keys, values)  # type: ignore[no-any-return]

    def _put_before(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, _, width = keys.shape
        table = self.prefix.current()().to(keys.dtype)
        added = table.view(2, 1, table.shape[1], heads, width).transpose(2, 3).expand(2, rows, -1, -1, -1)
        return torch.cat([added[0], keys], dim=2), torch.cat([added[1], values], dim=2)


class Prefix:
    """*Source:* Li and Liang 2021, without their reparameterisation; as in PEFT libraries, at every attention of both stacks.

    Attention always gives the added places some weight: this method starts near the frozen backbone, not as it.
    """

    Config = PrefixConfig

    def __init__(self, config: PrefixConfig, *, paper_compat: bool = False) -> None:
        check_whole(config.share, config.name)
        if config.length < 1:
            raise ConfigError(f"'petl.length' must be at least 1, found {config.length}")
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """A table of keys and values at every attention."""
        config, chosen = self.config, in_layers(sites, self.config.layers)
        injections = []
        for site in at_kinds(chosen, PLACES):
            shape = (config.length, site.d_out)
            parts = parts_over_tasks({"prefix": (("keys", shape), ("values", shape))}, config.share, tasks)
            injections.append(Injection(site, parts))
        options = (("length", config.length), ("share", config.share), *layers_option(config.layers))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        return Plan("prefix", options, tasks, tuple(sites), tuple(injections), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """The prefixes of all owners."""

        def table(part: Part) -> Table:
            return Table(self.config.length, injection.site.d_out)

        return KeyValuePrefix(TaskBank(injection.parts, active, table))
