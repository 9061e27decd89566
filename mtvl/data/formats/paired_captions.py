"""Captions of pictures or videos as BLIP's family of retrieval files has them: a list of one caption, or of several, each.

*Source:* the released `coco_karpathy_*.json` and `flickr30k_*.json` of BLIP, and `retrieval_*.json` of LAVIS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, read_json_list
from mtvl.data.formats.rows import CaptionRow, Clip


class PairedCaptions:
    """Reader of lists of {`item_key`: path, "caption": text or list of texts}; rows of one item are joined."""

    roles: Mapping[str, bool] = {"rows": True}
    item_key = "image"

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row an item in order of its first place in the file; its path is its id."""
        texts: dict[str, list[str]] = {}
        first: dict[str, Record] = {}
        for record in (r for file in files["rows"] for r in read_json_list(file)):
            item = record.text(self.item_key)
            texts.setdefault(item, []).extend(_captions(record))
            first.setdefault(item, record)
        return [
            CaptionRow(
                file=record.file, place=record.place, uid=item, split=split,
                captions=tuple((str(number), text) for number, text in enumerate(texts[item])), **self.visual(item),
            )
            for item, record in first.items()
        ]  # fmt: skip

    def visual(self, item: str) -> dict[str, Any]:
        """What a row has to find the item by."""
        return {"pictures": ({"image": item},)}


class VideoCaptions(PairedCaptions):
    """The same of videos: {"video": file, "caption": ...}."""

    item_key = "video"

    def visual(self, item: str) -> dict[str, Any]:
        """The file, and its stem as vid_name."""
        return {"clip": Clip(fields={"video": item, "vid_name": Path(item).stem})}


def _captions(record: Record) -> list[str]:
    """One text or several; DataError for anything else, and for none."""
    found = record.need("caption")
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise record.error(f"expected 'caption' to be a text or a list of texts, found {found!r}")
    return [text.strip() for text in texts]
