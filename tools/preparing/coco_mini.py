"""A few hundred COCO photos as Karpathy's file."""

from __future__ import annotations

import re
from pathlib import Path

from mtvl.data.formats.records import Record, read_json
from mtvl.errors import DataError
from preparing.captions import caption_plan, checked_captions
from preparing.plan import Plan

NUMBER = re.compile(r"[0-9]{1,18}")


def read_coco_mini(src: Path) -> Plan:
    """390 COCO photos with their captions; ids and sentences as in COCO."""
    file = src / "captions.json"
    values = read_json(file)
    photos = []
    for name, value in Record(file, "", values).values.items():
        captions = Record(file, name, value).need("captions")
        if not NUMBER.fullmatch(Path(name).stem):
            raise DataError(f"expected a photo called by its COCO id (000000000042.jpg), found {name!r}", file=file)
        photos.append((name, int(Path(name).stem), checked_captions(captions, file, name)))
    return caption_plan("coco_mini", src, photos, val=40, test=100)
