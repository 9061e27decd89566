"""Bottleneck adapters together with soft prompts: by default one adapter for all tasks and a prompt for each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mtvl.petl.adapter import Adapter, AdapterConfig
from mtvl.petl.plan import Injection, Plan
from mtvl.petl.prompt import Prompt, PromptConfig
from mtvl.petl.share import ActiveTask, check_whole
from mtvl.sites import Site


@dataclass(frozen=True)
class AdapterPromptConfig(AdapterConfig):
    """The adapter's options; `length`, `width` and `prompt_share` (all or none) are the prompt's."""

    name: str = "adapter_prompt"
    length: int = 40
    width: int = 800
    prompt_share: str = "none"


class AdapterPrompt:
    """*Source:* VL-Adapter's two methods side by side: what is shared goes through the adapter, the prompt names the task."""

    Config = AdapterPromptConfig

    def __init__(self, config: AdapterPromptConfig, *, paper_compat: bool = False) -> None:
        check_whole(config.prompt_share, config.name, "prompt_share")
        self.config = config
        self.adapter = Adapter(config, paper_compat=paper_compat)
        options = PromptConfig(
            layers=config.layers, length=config.length, width=config.width, share=config.prompt_share
        )
        self.prompt = Prompt(options, paper_compat=paper_compat)

    def plan(self, sites: list[Site], tasks: tuple[str, ...]) -> Plan:
        """The adapter's plan with the prompt's injections."""
        adapters, prompts = self.adapter.plan(sites, tasks), self.prompt.plan(sites, tasks)
        options = adapters.options + tuple((f"prompt_{k}", v) for k, v in prompts.options if k != "layers")
        injections = adapters.injections + prompts.injections
        return Plan("adapter_prompt", options, tasks, adapters.sites, injections, adapters.unfrozen)

    def build(self, injection: Injection, active: ActiveTask) -> nn.Module:
        """An adapter or a prompt, by the place."""
        return (self.prompt if injection.site.is_hook else self.adapter).build(injection, active)
