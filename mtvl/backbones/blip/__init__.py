"""BLIP: a vision transformer and a BERT that encodes text, encodes text with pictures, and decodes (Li et al. 2022)."""

from __future__ import annotations

from mtvl.backbones.blip.backbone import BlipBackbone
from mtvl.backbones.blip.config import BlipConfig
from mtvl.backbones.blip.model import Blip

__all__ = ["Blip", "BlipBackbone", "BlipConfig"]
