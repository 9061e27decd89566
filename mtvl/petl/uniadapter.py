"""One bottleneck a layer that both modalities and their fusion go through (UniAdapter)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError, near_names
from mtvl.petl.plan import Common, Injection, Part, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option
from mtvl.petl.share import ActiveTask, Shapes, TaskBank, parts_over_tasks
from mtvl.sites import BlockStates, Site

MODALITIES = ("visual", "text", "fusion")
SHARED_HALVES = ("down", "up", "both", "none")
QUERIES = ("shared", "separate", "off")
VARIANTS = ("paper", "as_coded")
DEPTHS = ("own", "spread")
KEY_SITES = ("cross_attn.k", "cross_attn.v")


@dataclass(frozen=True)
class UniAdapterConfig(MethodConfig):
    """`bottleneck` and `scale` of every adapter.

    `modalities` that are adapted; `shared`: the halves that they share in a layer (down, up, both or none). `query`: the
    adapter of self-attention's output where cross-attention follows: the text's ("shared"), its own ("separate"), "off".
    `depths`: where the vision tower is as wide as the text's and deeper, its blocks have banks of their own ("own"), or
    share those of the layers at the same part of the way ("spread": of 10 blocks and 6 layers, blocks 0 and 1 that of layer
    0). `share` is over tasks. `variant` as_coded adds the released code's norms and, with a `key_bottleneck`, its maps from
    visual tokens to keys and values. `train_heads` trains the heads of contrast, matching and comparing.
    """

    name: str = "uniadapter"
    bottleneck: int = 128
    scale: float = 0.1
    modalities: tuple[str, ...] = MODALITIES
    shared: str = "down"
    query: str = "shared"
    share: str = "all"
    depths: str = "own"
    variant: str = "paper"
    key_bottleneck: int = 64
    train_heads: bool = True


@dataclass(frozen=True)
class Branch:
    """Names of the parts that one modality goes through: a down-projection, then the sum of up-projections."""

    down: str
    ups: tuple[str, ...]


def branches(config: UniAdapterConfig, modalities: tuple[str, ...]) -> dict[str, Branch]:
    """Modality (and "query") -> parts, for the modalities that one bank serves.

    Fusion adds the text's up-projection to its own where both read one bottleneck. *Source:* UniAdapter, the equation of
    the cross-modal adapter, and Tables 2 and 3 for the other ways of sharing, where each modality stands alone.
    """
    found = {}
    for name in [*modalities, *(["query"] if "fusion" in modalities and config.query == "separate" else [])]:
        down = "down" if config.shared in ("down", "both") else f"down_{name}"
        ups = ["up" if config.shared in ("up", "both") else f"up_{name}"]
        if name == "fusion" and config.shared == "down" and "text" in modalities:
            ups.append("up_text")
        found[name] = Branch(down, tuple(ups))
    if config.query == "shared" and "fusion" in modalities and "text" in found:
        found["query"] = found["text"]
    return found


class UniBlock(nn.Module):
    """output + scale * (adapter of the pass) of one block, of banks that other blocks use too.

    A pass without cross-attention has its own modality's adapter; one with it + scale * T(query) + scale * C(stream).
    *Source:* UniAdapter, Eq. 5 and 6 as differences: the identity terms are the block's residuals and not added again.
    The released code's `norm` comes before every down-projection, its `cross_norm` after the fusion's sum.
    """

    def __init__(self, banks: dict[str, TaskBank], table: dict[str, Branch], own: str, scale: float) -> None:
        super().__init__()
        self._banks = [banks]  # in a list: they are nobody's children here
        self.table, self.own, self.scale = table, own, scale

    def delta(self, x: torch.Tensor, modality: str) -> torch.Tensor:
        """(B, S, D) -> (B, S, D), before scaling."""
        banks, branch = self._banks[0], self.table[modality]
        inner = torch.relu(banks[branch.down](banks["norm"](x) if "norm" in banks else x))
        total = banks[branch.ups[0]](inner)
        for name in branch.ups[1:]:
            total = total + banks[name](inner)
        return banks["cross_norm"](total) if modality == "fusion" and "cross_norm" in banks else total

    def forward(self, states: BlockStates) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) states of a block -> its output (B, S, D) and the side stream as it was."""
        if states.query is None:
            asked = {self.own: states.stream}
        else:
            asked = {"query": states.query, "fusion": states.stream}
        asked = {modality: x for modality, x in asked.items() if modality in self.table}
        if not asked:
            return states.output, states.side

        def changed(out: torch.Tensor, *streams: torch.Tensor) -> torch.Tensor:
            for modality, x in zip(asked, streams, strict=True):
                out = torch.add(out, self.delta(x, modality), alpha=self.scale)
            return out

        banks = self._banks[0].values()
        bank = next((b for b in banks if not b.is_shared), next(iter(banks)))
        return bank.by_task(changed, states.output, *asked.values()), states.side


class KeyMap(nn.Module):
    """y + scale * up(down(x)): what the released code adds to the keys, or to the values, of visual tokens."""

    def __init__(self, banks: dict[str, TaskBank]) -> None:
        super().__init__()
        self._banks = [banks]

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in), y (..., d_out) -> (..., d_out)."""
        banks = self._banks[0]
        return y + banks["up"](banks["down"](x))


class ScaledLinear(nn.Linear):
    """A linear map whose result is multiplied by a learned number."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d_in) -> (..., d_out)."""
        return super().forward(x) * self.scale


class UniAdapter:
    """*Source:* Lu et al., ICLR 2024; placement after Eq. 5 and 6; Tables 1 to 3 and 12 to 15 are options.

    Bank i serves block i of the vision tower, layer i of the text encoder with and without pictures, and layer i of the
    decoder. A vision tower of another width or depth (ViT-L: 24 blocks of 1024 beside 12 layers of 768), which the paper
    leaves open, has banks of its own: one matrix cannot read two widths, and text and fusion still share. Up-projections
    start at zero; with `paper_compat` as the released retrieval code starts them: the text's at zero, the others and all
    maps of keys at N(0, 0.02). The output norm of the released code, which it froze by an accident of names, is trained.
    """

    Config = UniAdapterConfig

    def __init__(self, config: UniAdapterConfig, *, paper_compat: bool = False) -> None:
        for key, value, known in (
            ("shared", config.shared, SHARED_HALVES), ("query", config.query, QUERIES),
            ("variant", config.variant, VARIANTS), ("depths", config.depths, DEPTHS),
            *(("modalities", m, MODALITIES) for m in config.modalities),
        ):  # fmt: skip
            if value not in known:
                raise ConfigError(f"unknown 'petl.{key}' {value!r}; {near_names(value, known)}")
        if config.bottleneck < 1 or not config.modalities or config.key_bottleneck < 0:
            raise ConfigError(
                "'petl.bottleneck' must be at least 1, 'petl.key_bottleneck' not below 0 and 'petl.modalities' not empty; found "
                f"{config.bottleneck}, {config.key_bottleneck} and {list(config.modalities)}"
            )
        if config.variant == "as_coded" and config.shared != "down":
            raise ConfigError(f"the released code shares 'down' alone, found 'petl.shared' {config.shared!r}")
        self.config, self.paper_compat = config, paper_compat

    # ---- plan ---------------------------------------------------------------------------------------------------

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """An adapter at every block's hook, and banks that they use; PlanError where there are no blocks of the modalities asked for."""
        config = self.config
        blocks = [s for s in in_layers(sites, config.layers) if s.kind == "block" and self._modalities(s)]
        if not blocks:
            raise PlanError(
                "this backbone runs pictures and text through one stack: it has no towers whose adapters could share a "
                "bottleneck ('block' sites); 'uniadapter' is defined for blip; 'adapter' is the nearest method here"
            )
        common, seen = [], set()
        injections = [Injection(s, ()) for s in blocks]
        for site in blocks:
            name = bank_name(site, sites, config.depths)
            if name not in seen:
                of_bank = [s for s in blocks if bank_name(s, sites, config.depths) == name]
                served = {m for s in of_bank for m in self._modalities(s)}
                ordered = tuple(m for m in MODALITIES if m in served)
                common.append(Common(name, "shared", self._parts(ordered, site.d_out, tasks)))
            seen.add(name)
        for site in self._key_sites(sites):
            name = key_name(site)
            if name not in seen:
                common.append(Common(name, site.stack, self._key_parts(site, tasks)))
            seen.add(name)
            injections.append(Injection(site, ()))
        unfrozen = tuple(s for s in sites if s.kind == "head" and config.train_heads)
        options = (
            ("bottleneck", config.bottleneck), ("scale", config.scale), ("modalities", "+".join(config.modalities)),
            ("shared", config.shared), ("query", config.query), ("variant", config.variant), ("share", config.share),
            *((("depths", config.depths),) if config.depths != "own" else ()), *layers_option(config.layers),
        )  # fmt: skip
        return Plan("uniadapter", options, tasks, tuple(sites), tuple(injections), unfrozen, common=tuple(common))

    def _modalities(self, site: Site) -> tuple[str, ...]:
        """What runs through a block and is adapted."""
        runs = {"visual": ("visual",), "encoder": ("text", "fusion"), "decoder": ("text", "fusion")}[site.stack]
        return tuple(m for m in self.config.modalities if m in runs)

    def _key_sites(self, sites: list[Site]) -> list[Site]:
        is_asked = self.config.variant == "as_coded" and self.config.key_bottleneck
        return [s for s in in_layers(sites, self.config.layers) if is_asked and s.kind in KEY_SITES]

    def _parts(self, modalities: tuple[str, ...], width: int, tasks: tuple[str, ...]) -> tuple[Part, ...]:
        """What the branches of these modalities name, each once, and the released code's norms."""
        table, inner = branches(self.config, modalities), self.config.bottleneck
        down: Shapes = (("weight", (inner, width)), ("bias", (inner,)))
        up: Shapes = (("weight", (width, inner)), ("bias", (width,)))
        norm: Shapes = (("weight", (width,)), ("bias", (width,)))
        named = [(b.down, "down", down) for b in table.values()]
        named += [(name, "up", up) for b in table.values() for name in b.ups]
        if self.config.variant == "as_coded":
            named.append(("norm", "down", norm))
            if "fusion" in table:
                named.append(("cross_norm", "up", norm))
        return self._over_tasks(dict.fromkeys(named), tasks)

    def _key_parts(self, site: Site, tasks: tuple[str, ...]) -> tuple[Part, ...]:
        inner = self.config.key_bottleneck
        up: Shapes = (("weight", (site.d_out, inner)), ("bias", (site.d_out,)), ("scale", (1,)))
        down: Shapes = (("weight", (inner, site.d_in)), ("bias", (inner,)))
        return self._over_tasks([("down", "down", down), ("up", "up", up)], tasks)

    def _over_tasks(self, named: object, tasks: tuple[str, ...]) -> tuple[Part, ...]:
        """(name, half, shapes) -> parts, shared over tasks as that half is."""
        return tuple(
            replace(part, name=name)
            for name, half, shapes in named  # type: ignore[attr-defined]
            for part in parts_over_tasks({half: shapes}, self.config.share, tasks)
        )

    # ---- build --------------------------------------------------------------------------------------------------

    def build_common(self, common: Common, part: Part) -> nn.Module:
        """One projection or norm of a bank."""
        shapes = dict(part.shapes)
        if part.name.endswith("norm"):
            return nn.LayerNorm(shapes["weight"])
        d_out, d_in = shapes["weight"]
        layer = ScaledLinear(d_in, d_out) if "scale" in shapes else nn.Linear(d_in, d_out)
        is_keys = common.name.startswith("keys_")
        nn.init.zeros_(layer.bias)
        if is_keys and (self.paper_compat or part.name == "down"):
            nn.init.normal_(layer.weight, std=0.02)
        elif part.name.startswith("up"):
            std = 0.02 if self.paper_compat and part.name != "up_text" else 0.0
            nn.init.normal_(layer.weight, std=std)
        else:
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
        return layer

    def build(self, injection: Injection, active: ActiveTask, common: dict[str, dict[str, TaskBank]]) -> nn.Module:
        """The adapter of a block, or of the keys or values of visual tokens."""
        site = injection.site
        if not site.is_hook:
            return KeyMap(common[key_name(site)])
        banks = common[_found_bank(site, common)]
        served = self._modalities(site)
        if site.stack != "visual":
            served = tuple(m for m in MODALITIES if m in self.config.modalities and m != "visual")
        own = "visual" if site.stack == "visual" else "text"
        return UniBlock(banks, branches(self.config, served), own, self.config.scale)


def bank_name(site: Site, sites: list[Site], depths: str = "own") -> str:
    """Bank of a block: one for a layer of all stacks, but for a vision tower that differs from the text's in width or
    depth. There `depths` decides; a bank that is spread names the vision blocks it serves ("layer0_v0_v1").

    PlanError where banks are to be spread over towers of two widths.
    """
    towers = [(s.stack == "visual", s.d_out) for s in sites if s.kind == "block"]
    seen = [width for is_visual, width in towers if is_visual]
    read = {(s.stack, s.d_out) for s in sites if s.kind == "block" and s.stack != "visual"}
    depth = max((s.layer + 1 for s in sites if s.kind == "block" and s.stack != "visual"), default=0)
    is_as_wide = all(width == seen[0] for _, width in read) if seen else True
    if not (read and seen and (len(seen) != depth or not is_as_wide)):
        return f"layer{site.layer}"
    if depths == "own":
        return f"visual{site.layer}" if site.stack == "visual" else f"layer{site.layer}"
    if not is_as_wide:
        raise PlanError(
            f"'petl.depths' is spread, but the vision tower is {seen[0]} wide and the text's is not: one matrix cannot "
            "read both; set petl.depths=own"
        )
    layer_of = [i * depth // len(seen) for i in range(len(seen))]
    layer = layer_of[site.layer] if site.stack == "visual" else site.layer
    return f"layer{layer}" + "".join(f"_v{i}" for i, number in enumerate(layer_of) if number == layer)


def _found_bank(site: Site, common: Iterable[str]) -> str:
    """The bank of a block among the names of a plan's common modules."""
    own, layer = f"visual{site.layer}", f"layer{site.layer}"
    for name in common:
        first, *served = name.split("_")
        if site.stack == "visual" and (name == own or f"v{site.layer}" in served):
            return name
        if site.stack != "visual" and first == layer:
            return name
    return layer


def key_name(site: Site) -> str:
    """Bank of the map of keys, or of values, of a stack."""
    return f"keys_{site.stack}_{site.kind.rpartition('.')[2]}"
