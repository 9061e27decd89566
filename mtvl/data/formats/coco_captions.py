"""COCO captions as published: `captions_*.json` with `images` and `annotations`.

*Source:* cocodataset.org.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mtvl.data.formats.records import Record, once_each, read_json
from mtvl.data.formats.rows import CaptionRow


class COCOCaptions:
    """Reader of `captions_{train,val}20XX.json`; the file is the split."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row a picture in file order. Picture fields: filename, its stem, and filepath (the subset, val2017)."""
        return [row for file in files["rows"] for row in _read_file(file, split)]


def _read_file(file: Path, split: str) -> list[CaptionRow]:
    whole = Record(file, "", read_json(file))
    images = dict(once_each(((r.key("id"), r) for r in whole.records("images")), "picture id"))
    captions: dict[str, list[tuple[str, str]]] = {uid: [] for uid in images}
    for uid, record in once_each(((r.key("id"), r) for r in whole.records("annotations")), "caption id"):
        image = record.key("image_id")
        if image not in captions:
            raise record.error(f"expected image_id {image} among the {len(images)} pictures, found none")
        captions[image].append((uid, record.text("caption")))
    bare = [uid for uid, texts in captions.items() if not texts]
    if bare:
        raise images[bare[0]].error(
            f"expected captions for {len(images)} pictures, found them for {len(images) - len(bare)}, "
            f"missing {len(bare)}, e.g. {', '.join(bare[:3])}"
        )
    subset = file.stem.partition("_")[2]
    return [
        CaptionRow(
            file=file,
            place=record.place,
            uid=uid,
            pictures=(file_fields(subset, record.text("file_name")),),
            captions=tuple(captions[uid]),
            split=split,
        )
        for uid, record in images.items()
    ]


def file_fields(filepath: str, filename: str) -> Mapping[str, Any]:
    """Pattern fields of a picture file; features stored under its id want the stem."""
    return {"filepath": filepath, "filename": filename, "stem": PurePosixPath(filename).stem}
