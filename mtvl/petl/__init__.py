"""Methods of parameter-efficient training: one file each, one line here."""

from __future__ import annotations

from mtvl.registry import Registry

METHODS = Registry(
    "method",
    {
        "full": "mtvl.petl.full:Full",
        "adapter": "mtvl.petl.adapter:Adapter",
    },
)
