"""Soft prompts: learned vectors before the encoder's text (Single and Multiple Prompts)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mtvl.errors import ConfigError
from mtvl.petl.plan import Injection, Part, Plan
from mtvl.petl.select import MethodConfig, at_kinds, in_layers, layers_option, of_kinds
from mtvl.petl.share import ActiveTask, Shapes, TaskBank, check_whole, parts_over_tasks
from mtvl.sites import Site


@dataclass(frozen=True)
class PromptConfig(MethodConfig):
    """`length` vectors, each from a table through a hidden layer of `width`. `share`: all or none."""

    name: str = "prompt"
    length: int = 40
    width: int = 800
    share: str = "all"
    train_norms: bool = False
    train_visual: bool = True


class PromptTable(nn.Module):
    """out(tanh(hidden(table))): `length` vectors of the model's width."""

    def __init__(self, length: int, width: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, d_model)
        self.hidden = nn.Linear(d_model, width)
        self.out = nn.Linear(width, d_model)
        nn.init.normal_(self.table.weight, std=0.02)
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self) -> torch.Tensor:
        """(length, D)."""
        rows = torch.arange(self.table.num_embeddings, device=self.table.weight.device)
        return self.out(torch.tanh(self.hidden(self.table(rows))))


class InputPrompt(nn.Module):
    """Puts the active task's vectors before the text."""

    def __init__(self, prompt: TaskBank) -> None:
        super().__init__()
        self.prompt = prompt

    def forward(self, text: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedded text (B, S, D) and mask (B, S) -> (B, length + S, D) and (B, length + S)."""
        return self.prompt.by_task(self._put_before, text, mask)  # type: ignore[no-any-return]

    def _put_before(self, text: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.prompt.current()().to(text.dtype)
        rows, length = text.shape[0], vectors.shape[0]
        longer = torch.cat([vectors.expand(rows, -1, -1), text], dim=1)
        return longer, torch.cat([mask.new_ones(rows, length), mask], dim=1)


def prompt_shapes(length: int, width: int, d_model: int) -> Shapes:
    """Names and shapes of a PromptTable's parameters."""
    return (
        ("table.weight", (length, d_model)), ("hidden.weight", (width, d_model)), ("hidden.bias", (width,)),
        ("out.weight", (d_model, width)), ("out.bias", (d_model,)),
    )  # fmt: skip


class Prompt:
    """*Source:* VL-Adapter, Table 1 rows "Single / Multiple Prompts": 40 vectors, no position added to them, inside the
    encoder's embedding norm.

    The longer input is never the frozen backbone's: this method starts near it, not as it.
    """

    Config = PromptConfig

    def __init__(self, config: PromptConfig, *, paper_compat: bool = False) -> None:
        check_whole(config.share, config.name)
        if config.length < 1 or config.width < 1:
            raise ConfigError(f"'petl.length' and 'petl.width' must be at least 1, found {config}")
        self.config, self.paper_compat = config, paper_compat

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """One prompt at the encoder's input."""
        config, chosen = self.config, in_layers(sites, self.config.layers)
        injections = [
            Injection(s, parts_over_tasks({"prompt": prompt_shapes(config.length, config.width, s.d_out)}, config.share, tasks))
            for s in at_kinds(chosen, ("input",))
        ]  # fmt: skip
        options = (("length", config.length), ("width", config.width), ("share", config.share))
        unfrozen = of_kinds(
            chosen, norms=config.train_norms, visual=config.train_visual, paper_compat=self.paper_compat
        )
        return Plan("prompt", options + layers_option(config.layers), tasks, tuple(sites), tuple(injections), unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """The prompts of all owners."""

        def table(part: Part) -> PromptTable:
            return PromptTable(self.config.length, self.config.width, injection.site.d_out)

        return InputPrompt(TaskBank(injection.parts, active, table))
