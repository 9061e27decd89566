"""Which sites a method looks at: the option that all methods share, and choices by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mtvl.errors import ConfigError, PlanError
from mtvl.sites import Site

_ENDS = re.compile(r"(first|last):(\d+)")


@dataclass(frozen=True)
class MethodConfig:
    """The options of every method.

    `layers`: "all", "first:N", "last:N", or numbers from 0, e.g. [0, 2]. They hold for each stack; what stands outside
    the layers (visual embedding, token table, embedding norms, the encoder's input) is not concerned.
    """

    layers: Any = "all"


def in_layers(sites: Sequence[Site], layers: Any) -> list[Site]:
    """The sites outside the layers and those in the chosen ones.

    Raises ConfigError for what is no choice of layers, PlanError when no stack has the layers.
    """
    depths: dict[str, int] = {}
    for site in sites:
        depths[site.stack] = max(depths.get(site.stack, 0), site.layer + 1)
    deepest = max(depths.values(), default=0)
    if layers == "all":
        return list(sites)
    numbers, match = _numbers(layers), _ENDS.fullmatch(layers) if isinstance(layers, str) else None
    count = int(match[2]) if match else 0
    highest = count or 1 + max(numbers, default=-1)
    if highest < 1:
        raise ConfigError(
            f"'petl.layers' expects all, first:N, last:N or a list of numbers from 0, found {layers!r}; e.g. petl.layers=last:2"
        )
    if highest > deepest:
        raise PlanError(f"'petl.layers' is {layers!r}, but the deepest stack has {deepest} layers")

    def is_chosen(site: Site) -> bool:
        if match is None:
            return site.layer in numbers
        return site.layer < count if match[1] == "first" else site.layer >= depths[site.stack] - count

    return [site for site in sites if site.layer < 0 or is_chosen(site)]


def _numbers(layers: Any) -> tuple[int, ...]:
    """The numbers of a list (or of one number); () for anything else."""
    items = [layers] if isinstance(layers, int) else layers
    if not isinstance(items, (list, tuple)):
        return ()
    good = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in items)
    return tuple(items) if good else ()


def layers_option(layers: Any) -> tuple[tuple[str, object], ...]:
    """The plan's option for `layers`; nothing when all are adapted."""
    return () if layers == "all" else (("layers", layers),)


def of_kinds(sites: Iterable[Site], *, norms: bool, visual: bool, paper_compat: bool = False) -> tuple[Site, ...]:
    """Norms and the visual embedding, as asked for; with `paper_compat` without the norms that the reference misses."""
    kinds = ("norm",) * norms + ("visual",) * visual
    return tuple(s for s in sites if s.kind in kinds and not (paper_compat and s.frozen_in_paper))


def with_bias(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sites of the language model that have a bias vector."""
    return tuple(s for s in sites if s.num_bias and s.kind not in ("visual", "tower", "answers"))


def at_kinds(sites: Iterable[Site], kinds: Sequence[str]) -> list[Site]:
    """Sites of the given kinds; PlanError when there are none."""
    found = [s for s in sites if s.kind in kinds]
    if not found:
        raise PlanError(
            f"this backbone has none of the sites {', '.join(kinds)}; choose another 'petl.name' ('mtvl methods' shows which "
            "work on which backbone)"
        )
    return found
