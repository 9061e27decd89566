"""Flickr8k photos as Karpathy's file of COCO."""

from __future__ import annotations

from pathlib import Path

from preparing.captions import caption_plan
from preparing.files import csv_rows
from preparing.plan import Plan

FIRST_ID = 20_000_000  # see daquar.py


def read_flickr8k(src: Path) -> Plan:
    """1,000 Flickr8k photos with five captions each."""
    file = src / "captions.txt"
    found: dict[str, list[str]] = {}
    for _, row in csv_rows(file, ("image", "caption")):
        found.setdefault(row["image"], []).append(row["caption"])
    photos = [(name, FIRST_ID + n, found[name]) for n, name in enumerate(sorted(found))]
    return caption_plan("flickr8k", src, photos, val=100, test=200)
