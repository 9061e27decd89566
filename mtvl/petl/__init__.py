"""Methods of parameter-efficient training: one file each, one line here."""

from __future__ import annotations

from mtvl.registry import Registry

METHODS = Registry(
    "method",
    {
        "full": "mtvl.petl.full:Full",
        "adapter": "mtvl.petl.adapter:Adapter",
        "parallel_adapter": "mtvl.petl.parallel_adapter:ParallelAdapter",
        "compacter": "mtvl.petl.compacter:Compacter",
        "hyperformer": "mtvl.petl.hyperformer:Hyperformer",
        "lora": "mtvl.petl.lora:Lora",
        "prompt": "mtvl.petl.prompt:Prompt",
        "adapter_prompt": "mtvl.petl.adapter_prompt:AdapterPrompt",
        "prefix": "mtvl.petl.prefix:Prefix",
        "ia3": "mtvl.petl.ia3:Ia3",
        "bitfit": "mtvl.petl.bitfit:BitFit",
        "projection": "mtvl.petl.projection:Projection",
        "probe": "mtvl.petl.probe:Probe",
        "uniadapter": "mtvl.petl.uniadapter:UniAdapter",
        "vcra": "mtvl.petl.vcra:Vcra",
        "unitrans": "mtvl.petl.vcra:UniTrans",
    },
)
