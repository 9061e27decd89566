"""Backbones: frozen models that declare their sites. One file per family, one line here."""

from __future__ import annotations

from mtvl.registry import Registry

BACKBONES = Registry(
    "backbone",
    {
        "clip_bart": "mtvl.backbones.clip_bart:ClipBart",
        "clip_t5": "mtvl.backbones.clip_t5:ClipT5",
        "clip_vil": "mtvl.backbones.clip_vil:ClipVil",
        "blip": "mtvl.backbones.blip:BlipBackbone",
    },
)
