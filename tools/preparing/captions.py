"""What the sets of captioned photos have in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mtvl.errors import DataError
from preparing.files import plain_name
from preparing.plan import SPLITS, Plan, by_hash, parted


def checked_captions(values: Any, file: Path, place: str) -> list[str]:
    """A list of captions, none of them blank; DataError otherwise."""
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise DataError("expected a list of captions, found something else or an empty one", file=file, row=place)
    return values


def caption_plan(name: str, src: Path, photos: list[tuple[str, int, list[str]]], *, val: int, test: int) -> Plan:
    """`photos` (file name, id, captions) below src/images as Karpathy's file of COCO, split by photo."""
    order = by_hash(plain_name(photo[0], src) for photo in photos)
    if len(order) <= val + test:
        raise DataError(f"expected more than {val + test} photos for {name}, found {len(order)}", file=src)
    split_of = parted(order, test=test, val=val)
    note = (
        f"{name}: own split by photo (ordered by the SHA-256 of the file name: {test} test, {val} val, the rest train); "
        "it is nobody's published split. Counts are photos."
    )
    plan = Plan(notes=(note,), counts={"coco": {s: sum(v == s for v in split_of.values()) for s in SPLITS}})
    for photo, number, captions in sorted(photos, key=lambda photo: photo[1]):
        sentences = [
            {"raw": text, "tokens": re.findall(r"[a-z0-9']+", text.lower()), "imgid": 0, "sentid": number * 100 + i}
            for i, text in enumerate(captions)
        ]
        plan.coco.append(
            {
                "filepath": name,
                "filename": photo,
                "cocoid": number,
                "imgid": 0,
                "split": split_of[photo],
                "sentids": [s["sentid"] for s in sentences],
                "sentences": sentences,
            }
        )
        plan.media[f"images/{name}/{photo}"] = src / "images" / photo
    return plan
