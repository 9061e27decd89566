"""Adapters whose weights a network generates from vectors of the task, the layer and the place (Hyperformer)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from mtvl.errors import ConfigError, PlanError
from mtvl.petl.adapter import PLACES, bottleneck_width, check_widths
from mtvl.petl.plan import SHARED, Common, Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, Shapes, TaskBank
from mtvl.sites import Site

TASKS = "tasks"  # name of the common module with the vectors of the tasks; the others are called by their stack
BLOCKS = {place: place.partition(".")[0] for place in PLACES}  # kind of site -> name of its generators


@dataclass(frozen=True)
class HyperformerConfig(MethodConfig):
    """`task_width` of the vectors of tasks and layers, `hidden` and `code` of what the generators see of them."""

    name: str = "hyperformer"
    reduction: int = 8
    bottleneck: int = 0
    task_width: int = 512
    hidden: int = 128
    code: int = 8
    train_norms: bool = True
    train_visual: bool = True


class TaskVector(nn.Module):
    """The vector of one task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self) -> torch.Tensor:
        """A new tensor, since ZeRO-3 takes parameters back after a module's forward."""
        return self.weight.clone()


class Generators(nn.Module):
    """Weights and biases of both projections of the adapters at one kind of place."""

    def __init__(self, code: int, width: int, bottleneck: int, *, start_at_zero: bool) -> None:
        super().__init__()
        self.shapes = {
            "down_weight": (bottleneck, width), "down_bias": (bottleneck,), "up_weight": (width, bottleneck),
            "up_bias": (width,),
        }  # fmt: skip
        for name, shape in self.shapes.items():
            layer = nn.Linear(code, prod(shape))
            nn.init.normal_(layer.weight, std=0.0 if start_at_zero and name.startswith("up") else 0.02)
            nn.init.zeros_(layer.bias)
            self.add_module(name, layer)

    def forward(self, code: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """code (C,) -> weight and bias of down, weight and bias of up."""
        return tuple(self.get_submodule(name)(code).view(shape) for name, shape in self.shapes.items())


class HyperNetwork(nn.Module):
    """LayerNorm(out(relu(hidden([task, layer])))), and from that code what the adapters of a place are made of."""

    def __init__(self, part: Part, *, start_at_zero: bool) -> None:
        super().__init__()
        shapes = dict(part.shapes)
        self.layers = nn.Embedding(*shapes["layers.weight"])
        self.hidden = nn.Linear(*reversed(shapes["hidden.weight"]))
        self.out = nn.Linear(*reversed(shapes["out.weight"]))
        nn.init.normal_(self.layers.weight, std=0.02)
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        code = shapes["out.bias"][0]
        # The reference calls it so, and does not decay it for that; its other norms are called and treated otherwise.
        self.LayerNorm = nn.LayerNorm(code, eps=1e-6)
        self.blocks = nn.ModuleDict()
        for name in BLOCKS.values():
            if (key := f"blocks.{name}.up_bias.bias") in shapes:
                bottleneck = shapes[f"blocks.{name}.down_bias.bias"][0]
                self.blocks[name] = Generators(code, shapes[key][0], bottleneck, start_at_zero=start_at_zero)

    def forward(self, task: torch.Tensor, layer: int, block: str) -> tuple[torch.Tensor, ...]:
        """Weight and bias of down, weight and bias of up for one place."""
        row = self.layers(torch.tensor(layer, device=task.device))
        code = self.LayerNorm(self.out(torch.relu(self.hidden(torch.cat([task, row])))))
        return self.blocks[block](code)


class GeneratedBottleneck(nn.Module):
    """y + up(gelu(down(y))) with weights that are generated anew in every call."""

    reads_output = True

    def __init__(self, tasks: TaskBank, network: TaskBank, layer: int, block: str) -> None:
        super().__init__()
        self._banks = [tasks, network]  # in a list: they are nobody's children here
        self.layer, self.block = layer, block

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (..., d_in) is not used; y (..., d_out) -> (..., d_out)."""
        tasks, network = self._banks
        down, down_bias, up, up_bias = network.current()(tasks.current()(), self.layer, self.block)
        inner = nn.functional.gelu(nn.functional.linear(y, down, down_bias), approximate="tanh")
        return y + nn.functional.linear(inner, up, up_bias)


class Hyperformer:
    """*Source:* Mahabadi et al. 2021 (Hyperformer++); VL-Adapter, Table 1 row "Hyperformer": one network for each
    stack, one vector for each task in both, no generated norms.

    Difference: the generators of the up-projection start at zero, so that training starts from the frozen backbone. With
    `paper_compat` all linear maps start at N(0, 0.02).
    """

    Config = HyperformerConfig

    def __init__(self, config: HyperformerConfig, *, paper_compat: bool = False) -> None:
        check_widths(config.reduction, config.bottleneck)
        if min(config.task_width, config.hidden, config.code) < 1:
            raise ConfigError(f"'petl.task_width', 'petl.hidden' and 'petl.code' must be at least 1, found {config}")
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """A network for each stack, a vector for each task, and adapters without parameters of their own."""
        config, chosen = self.config, in_layers(sites, self.config.layers)
        places = at_kinds(chosen, PLACES)
        vectors = tuple(Part("vector", task, (("weight", (config.task_width,)),)) for task in tasks)
        common = [Common(TASKS, "both", vectors)]
        for stack in dict.fromkeys(s.stack for s in places):
            mine = [s for s in places if s.stack == stack]
            depth = 1 + max(s.layer for s in sites if s.stack == stack)  # a vector for layers that are left out, too
            common.append(Common(stack, stack, (Part("net", SHARED, self._shapes(mine, depth)),)))
        options = (("task_width", config.task_width), ("hidden", config.hidden), ("code", config.code))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        injections = tuple(Injection(site, ()) for site in places)
        return Plan(
            "hyperformer", options + layers_option(config.layers), tasks, tuple(sites), injections, unfrozen, (), tuple(common)
        )  # fmt: skip

    def _shapes(self, places: list[Site], depth: int) -> Shapes:
        """Parameters of the network of one stack, in the order of HyperNetwork."""
        config = self.config
        if len({s.d_out for s in places}) > 1:
            raise PlanError(f"the places of the stack {places[0].stack} differ in width; one network cannot serve them")
        width = places[0].d_out
        bottleneck = bottleneck_width(places[0], config.reduction, config.bottleneck)
        shapes: list[tuple[str, tuple[int, ...]]] = [
            ("layers.weight", (depth, config.task_width)),
            ("hidden.weight", (config.hidden, 2 * config.task_width)), ("hidden.bias", (config.hidden,)),
            ("out.weight", (config.code, config.hidden)), ("out.bias", (config.code,)),
            ("LayerNorm.weight", (config.code,)), ("LayerNorm.bias", (config.code,)),
        ]  # fmt: skip
        sizes = {
            "down_weight": bottleneck * width,
            "down_bias": bottleneck,
            "up_weight": bottleneck * width,
            "up_bias": width,
        }
        for name in dict.fromkeys(BLOCKS[s.kind] for s in places):
            for generator, size in sizes.items():
                key = f"blocks.{name}.{generator}"
                shapes += [(f"{key}.weight", (size, config.code)), (f"{key}.bias", (size,))]
        return tuple(shapes)

    def build_common(self, common: Common, part: Part) -> nn.Module:
        """The vector of a task, or the network of a stack."""
        if common.name == TASKS:
            return TaskVector(self.config.task_width)
        return HyperNetwork(part, start_at_zero=not self.paper_compat)

    def build(
        self, injection: Injection, active: ActiveTask, common: Mapping[str, Mapping[str, TaskBank]]
    ) -> nn.Module:
        """An adapter that asks its stack's network for its weights."""
        site = injection.site
        return GeneratedBottleneck(common[TASKS]["vector"], common[site.stack]["net"], site.layer, BLOCKS[site.kind])
