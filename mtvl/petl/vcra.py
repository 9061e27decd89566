"""One low-rank pair for all attentions, with vectors of their own (VCRA); and a side network of queries (QASN)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError, near_names
from mtvl.petl.plan import Common, Injection, Part, Plan
from mtvl.petl.select import MethodConfig, in_layers, layers_option, of_kinds
from mtvl.petl.share import WHOLE, ActiveTask, Shapes, TaskBank, parts_over_tasks
from mtvl.sites import BlockStates, Site

PLACES = ("self_attn.q", "self_attn.k", "self_attn.v", "cross_attn.q", "cross_attn.k", "cross_attn.v")
PAIRS = ("one", "by_tower")
SIDES = ("off", "zero", "text")
ACTIVATIONS = {"gelu": nn.functional.gelu, "relu": torch.relu}
ORIENTATIONS = ("as_attention", "literal")


@dataclass(frozen=True)
class VcraConfig(MethodConfig):
    """`rank` of the pair and `scale` of the change.

    `pairs`: one for all towers, or one by tower (vision and language). `decoder_pair`: a decoder beside an encoder has a
    pair of its own. `freeze_pair`: the pair stays as drawn from `pair_seed`, the vectors alone are trained. `tie_values`:
    keys and values have one set of vectors. `learn_scale`: a factor for each set, in place of `scale`.
    `side` adds the side network of queries, which starts from zero or from its input ("text"); `activation` and
    `orientation` of it are the paper's open readings. `train_heads` as in uniadapter; norms and the visual embedding, where
    a backbone has one, as in the other methods. `share` is over tasks: the half "down" is A and all a, the rest is "up".
    """

    name: str = "vcra"
    rank: int = 64
    scale: float = 1.0
    pairs: str = "one"
    decoder_pair: bool = True
    freeze_pair: bool = False
    pair_seed: int = 0
    tie_values: bool = True
    learn_scale: bool = False
    side: str = "off"
    activation: str = "gelu"
    orientation: str = "as_attention"
    train_heads: bool = True
    train_norms: bool = False
    train_visual: bool = True
    share: str = "all"


@dataclass(frozen=True)
class UniTransConfig(VcraConfig):
    """VCRA with the side network; see `VcraConfig`."""

    name: str = "unitrans"
    side: str = "zero"


class Matrix(nn.Module):
    """One of the pair: N(0, 1 / width of its input)."""

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) * d_in**-0.5)

    def forward(self) -> torch.Tensor:
        """(d_out, d_in), a new tensor, since ZeRO-3 takes parameters back after a module's forward."""
        return self.weight.clone()


class FrozenMatrix(nn.Module):
    """The same as a constant that is drawn again from its seed, and so is in no checkpoint."""

    weight: torch.Tensor

    def __init__(self, d_out: int, d_in: int, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed)) * d_in**-0.5
        self.register_buffer("weight", drawn, persistent=False)

    def forward(self) -> torch.Tensor:
        """(d_out, d_in)."""
        return self.weight


class Vectors(nn.Module):
    """Vectors by name: b and beta (D,) of zeros, all others of ones. The change is zero at first, and b alone gets a
    gradient in the first step."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.names = tuple(name for name, _ in shapes)
        for name, shape in shapes:
            self.register_parameter(
                name, nn.Parameter(torch.zeros(shape) if name in ("b", "beta") else torch.ones(shape))
            )

    def forward(self) -> tuple[torch.Tensor, ...]:
        """All of them in their order: new tensors, since ZeRO-3 takes parameters back after a module's forward."""
        return tuple(getattr(self, name).clone() for name in self.names)


Held = Mapping[str, torch.Tensor]


def held(banks: Iterable[TaskBank]) -> Held:
    """The active task's vectors by name, of one bank or of both halves."""
    found: dict[str, torch.Tensor] = {}
    for bank in banks:
        module = bank.current()
        found |= zip(module.names, module(), strict=True)  # type: ignore[arg-type]
    return found


def change(vectors: Held, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """scale * diag(b) B diag(a) A x for x (..., d_in), a (R,), b (d_out,), A (R, d_in), B (d_out, R) -> (..., d_out)."""
    inner = nn.functional.linear(x, down) * vectors["a"]
    return nn.functional.linear(inner, up) * (vectors["b"] * vectors.get("scale", scale))


def change_matrix(vectors: Held, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """The change as a matrix (d_out, d_in)."""
    return (vectors["b"] * vectors.get("scale", scale))[:, None] * (up * vectors["a"]) @ down


class SharedChange(nn.Module):
    """y + diag(b_M) B diag(a_M) A x, with the vectors of the modality M that runs.

    A backbone whose block runs in two modalities sets `modality` (`mtvl.sites.Site`).
    """

    def __init__(
        self, pair: tuple[nn.Module, nn.Module], vectors: dict[str, tuple[TaskBank, ...]], scale: float
    ) -> None:
        super().__init__()
        self._pair, self._vectors = [pair], [vectors]  # in lists: they are nobody's children here
        self.scale, self.modality = scale, next(iter(vectors))
        for i, matrix in enumerate(pair):
            if isinstance(matrix, FrozenMatrix):
                self.add_module(f"frozen_{i}", matrix)  # so that it moves with the model; it has no parameters
        if len(vectors) > 1:
            self.cannot_merge = f"this map runs in {' and '.join(vectors)} passes with vectors of their own, and one weight cannot be both"

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in), y (..., d_out) -> (..., d_out)."""
        down, up = (_matrix(m) for m in self._pair[0])
        return y + change(held(self._vectors[0][self.modality]), x, down, up, self.scale)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Base parameters with the active task's change in them."""
        down, up = (_matrix(m) for m in self._pair[0])
        added = change_matrix(held(self._vectors[0][self.modality]), down, up, self.scale)
        return weight + added, None if bias is None else bias.clone()


def _matrix(module: nn.Module) -> torch.Tensor:
    found = module.current() if isinstance(module, TaskBank) else module
    return found()


class QuerySide(nn.Module):
    """h' = h + w x and output + sigma(alpha * h' + beta), along the blocks of a pass with cross-attention.

    *Source:* UniTrans, Eq. 5 and 6. w is a shared pair with vectors of the block, and alpha (D,) of ones and beta (D,) of
    zeros; x is the block's input. With h = 0 at first and sigma(0) = 0 it starts as the frozen backbone; h = x ("text") is
    the likelier reading and does not.
    """

    def __init__(self, pair: tuple[nn.Module, nn.Module], vectors: tuple[TaskBank, ...], config: VcraConfig) -> None:
        super().__init__()
        self._pair, self._vectors = [pair], vectors  # neither a list nor a tuple makes them children here
        self.start, self.orientation = config.side, config.orientation
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, states: BlockStates) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) states of a block -> output and side stream (B, S, D)."""
        if states.query is None:
            return states.output, states.side
        given = [states.output, states.before] + ([] if states.side is None else [states.side])
        bank = next((b for b in self._vectors if not b.is_shared), self._vectors[0])
        return bank.by_task(self._step, *given)  # type: ignore[no-any-return]

    def _step(
        self, output: torch.Tensor, x: torch.Tensor, side: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For rows of one task."""
        (down, up), vectors = (_matrix(m) for m in self._pair[0]), held(self._vectors)
        if self.orientation == "as_attention":
            step = change(vectors, x, down, up, 1.0)
        else:  # x w as printed, with w = diag(b) B diag(a) A
            step = nn.functional.linear(nn.functional.linear(x * vectors["b"], up.T) * vectors["a"], down.T)
        if side is None:
            side = x + step if self.start == "text" else step
        else:
            side = side + step
        return output + self.activation(vectors["alpha"] * side + vectors["beta"]), side


class Vcra:
    """*Source:* Sun et al., CMC 83(1) 2025, Eq. 4; Table 8 counts 96 sets of vectors and one trained pair.

    Matrix A is shared by all maps that read one width, B by all that write one width: in the base model one pair, as in
    the paper, which leaves towers of two widths (ViT-L) open. The same rule makes it defined on any backbone with
    separate queries, keys and values. The spread of the random matrices is unstated; here a map of A or B keeps the size
    of its input.
    """

    Config = VcraConfig

    def __init__(self, config: VcraConfig, *, paper_compat: bool = False) -> None:
        for key, known in (
            ("pairs", PAIRS),
            ("side", SIDES),
            ("activation", ACTIVATIONS),
            ("orientation", ORIENTATIONS),
        ):
            if (value := getattr(config, key)) not in known:
                raise ConfigError(f"unknown 'petl.{key}' {value!r}; {near_names(value, known)}")
        if config.rank < 1:
            raise ConfigError(f"'petl.rank' must be at least 1, found {config.rank}")
        self.config, self.paper_compat = config, paper_compat

    # ---- plan ---------------------------------------------------------------------------------------------------

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """Vectors for every query, and for every pair of keys and values, and the matrices that they share.

        PlanError where the backbone has no such maps, or no blocks that a side network could follow.
        """
        config, chosen = self.config, in_layers(sites, self.config.layers)
        maps = [s for s in chosen if s.kind in PLACES]
        if not maps:
            raise PlanError("this backbone has no separate queries, keys and values for 'vcra' to change")
        stacks = {s.stack for s in sites if s.kind in PLACES}
        common: dict[str, Common] = {}
        for site in maps:
            self._add_pair(common, site.d_in, site.d_out, self._group(site.stack, stacks), tasks)
            name = vectors_name(site, tie=config.tie_values)
            if name not in common:
                runs = modalities(site, sites)
                parts = (self._vectors(modality, self._shapes_of_up(site.d_out), tasks) for modality in runs)
                common[name] = Common(name, site.stack, tuple(part for found in parts for part in found))
        injections = [Injection(s, ()) for s in maps]
        for site in self._side_sites(chosen):
            self._add_pair(common, site.d_in, site.d_out, self._group(site.stack, stacks), tasks)
            shapes: Shapes = tuple((name, (site.d_out,)) for name in ("b", "alpha", "beta"))
            name = side_name(site)
            common[name] = Common(name, site.stack, self._vectors("side", shapes, tasks))
            injections.append(Injection(site, ()))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        unfrozen += tuple(s for s in sites if s.kind == "head" and config.train_heads)
        return Plan(
            config.name,
            self._options(),
            tasks,
            tuple(sites),
            tuple(injections),
            unfrozen,
            common=tuple(common.values()),
        )

    def _options(self) -> tuple[tuple[str, object], ...]:
        config = self.config
        named = ("rank", "scale", "pairs", "decoder_pair", "freeze_pair", "pair_seed", "tie_values", "learn_scale", "side",
                 "activation", "orientation", "share")  # fmt: skip
        return (*((name, getattr(config, name)) for name in named), *layers_option(config.layers))

    def _group(self, stack: str, stacks: set[str]) -> str:
        """Which pair a stack has."""
        if stack == "decoder" and "encoder" in stacks and self.config.decoder_pair:
            return "decoder"
        return "visual" if stack == "visual" and self.config.pairs == "by_tower" else "all"

    def _add_pair(self, common: dict[str, Common], d_in: int, d_out: int, group: str, tasks: tuple[str, ...]) -> None:
        """The matrices that read `d_in` and write `d_out`, unless they are constants."""
        config = self.config
        for half, width, shape in (("down", d_in, (config.rank, d_in)), ("up", d_out, (d_out, config.rank))):
            name = pair_name(half, group, width)
            if name not in common:
                parts = parts_over_tasks({half: (("weight", shape),)}, config.share, tasks)
                named = tuple(replace(part, name="pair") for part in parts)
                common[name] = Common(name, group, () if config.freeze_pair else named)

    def _shapes_of_up(self, d_out: int) -> Shapes:
        """The vectors behind B."""
        return (("b", (d_out,)), ("scale", (1,))) if self.config.learn_scale else (("b", (d_out,)),)

    def _vectors(self, name: str, up: Shapes, tasks: tuple[str, ...]) -> tuple[Part, ...]:
        """One set of vectors, or its two halves as parts of their own, where only one of them is shared."""
        halves: dict[str, Shapes] = {"down": (("a", (self.config.rank,)),), "up": up}
        if self.config.share in WHOLE:
            return parts_over_tasks({name: halves["down"] + halves["up"]}, self.config.share, tasks)
        parts = parts_over_tasks(halves, self.config.share, tasks)
        return tuple(replace(part, name=f"{name}_{part.name}") for part in parts)

    def _side_sites(self, chosen: list[Site]) -> list[Site]:
        """Blocks in which text meets pictures: the encoder's, or the decoder's where there is no encoder."""
        if self.config.side == "off":
            return []
        across = {s.stack for s in chosen if s.kind.startswith("cross_attn.")}
        stack = "encoder" if "encoder" in across else "decoder"
        found = [s for s in chosen if s.kind == "block" and s.stack == stack]
        if not found:
            raise PlanError(
                "this backbone has no blocks that a side network could follow ('block' sites); set petl.name=vcra, which "
                "is the same without it"
            )
        return found

    # ---- build --------------------------------------------------------------------------------------------------

    def build_common(self, common: Common, part: Part) -> nn.Module:
        """A matrix of the pair, or vectors."""
        return Matrix(*dict(part.shapes)["weight"]) if part.name == "pair" else Vectors(part.shapes)

    def build(self, injection: Injection, active: ActiveTask, common: dict[str, dict[str, TaskBank]]) -> nn.Module:
        """The change of one map, or the side network's step at one block."""
        site = injection.site
        group = site.stack if pair_name("down", site.stack, site.d_in) in common else "all"
        pair = self._pair(site.d_in, site.d_out, group, common)
        if site.is_hook:
            return QuerySide(pair, tuple(common[side_name(site)].values()), self.config)
        vectors: dict[str, tuple[TaskBank, ...]] = {}
        for name, bank in common[vectors_name(site, tie=self.config.tie_values)].items():
            modality = name.partition("_")[0]
            vectors[modality] = (*vectors.get(modality, ()), bank)
        return SharedChange(pair, vectors, self.config.scale)

    def _pair(
        self, d_in: int, d_out: int, group: str, common: dict[str, dict[str, TaskBank]]
    ) -> tuple[nn.Module, nn.Module]:
        names = pair_name("down", group, d_in), pair_name("up", group, d_out)
        if not self.config.freeze_pair:
            return common[names[0]]["pair"], common[names[1]]["pair"]
        shapes = ((self.config.rank, d_in), (d_out, self.config.rank))
        return tuple(  # type: ignore[return-value]
            common[name].setdefault("frozen", FrozenMatrix(*shape, self._seed(name)))  # type: ignore[arg-type]
            for name, shape in zip(names, shapes, strict=True)
        )

    def _seed(self, name: str) -> int:
        """No two matrices of a model are alike: the name is part of the seed."""
        return self.config.pair_seed * 1_000_003 + sum(ord(c) * (i + 1) for i, c in enumerate(name))


class UniTrans(Vcra):
    """VCRA with the side network of queries; its consistency loss (MCAM) is an option of the retrieval step."""

    Config = UniTransConfig


def modalities(site: Site, sites: list[Site]) -> tuple[str, ...]:
    """The modalities that run through an attention: an encoder that has cross-attention runs with and without it."""
    if site.kind.startswith("cross_attn"):
        return ("fusion",)
    across = {s.stack for s in sites if s.kind.startswith("cross_attn.")}
    if site.stack == "encoder":
        return ("text", "fusion") if "encoder" in across else ("text",)
    return ("visual",) if site.stack == "visual" else ("fusion",)


def vectors_name(site: Site, *, tie: bool) -> str:
    """Vectors of an attention's query, or of its keys and values together."""
    attention, _, _ = site.path.rpartition(".")
    which = site.kind.rpartition(".")[2]
    name = "kv" if tie and which in ("k", "v") else which
    return f"vectors_{site.stack}_{attention.replace('.', '_')}_{name}"


def side_name(site: Site) -> str:
    """Vectors of the side network at a block."""
    return f"side_{site.stack}_{site.layer}"


def pair_name(half: str, group: str, width: int) -> str:
    """One matrix of a pair."""
    return f"{half}_{group}_w{width}"
