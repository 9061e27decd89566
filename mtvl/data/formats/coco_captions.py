"""COCO captions as published: `captions_*.json` with `images` and `annotations`.

*Source:* cocodataset.org.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mtvl.data.formats.records import Record, each, fault, keyed, read_json, rows_of
from mtvl.data.formats.rows import CaptionRow


class COCOCaptions:
    """Reader of `captions_{train,val}20XX.json`; the file is the split."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row a picture in file order. Picture fields: filename, its stem, and filepath (the subset, val2017)."""
        return [row for file in files["rows"] for row in _read_file(file, split)]


def _read_file(file: Path, split: str) -> list[CaptionRow]:
    whole = Record(file, "", read_json(file))
    images = keyed(whole.records("images"), lambda r: r.key("id"), "picture id")
    captions: dict[str, list[tuple[str, str]]] = {uid: [] for uid in images}

    def caption(uid: str, record: Record) -> None:
        image = record.key("image_id")
        if image not in captions:
            raise record.error(f"expected image_id {image} among the {len(images)} pictures, found none")
        captions[image].append((uid, record.text("caption")))

    annotations = keyed(whole.records("annotations"), lambda r: r.key("id"), "caption id")
    list(each(annotations.items(), caption))
    bare = [uid for uid, texts in captions.items() if not texts]
    for uid in bare:
        fault(
            uid,
            images[uid].error(
                f"expected captions for {len(images)} pictures, found them for {len(images) - len(bare)}, "
                f"missing {len(bare)}, e.g. {', '.join(bare[:3])}"
            ),
        )
    subset = file.stem.partition("_")[2]

    def row(uid: str, record: Record) -> CaptionRow:
        picture = file_fields(subset, record.text("file_name"))
        texts = tuple(captions[uid])
        return CaptionRow(file=file, place=record.place, uid=uid, pictures=(picture,), captions=texts, split=split)

    return rows_of(((uid, record) for uid, record in images.items() if captions[uid]), row)


def file_fields(filepath: str, filename: str) -> Mapping[str, Any]:
    """Pattern fields of a picture file; features stored under its id want the stem."""
    return {"filepath": filepath, "filename": filename, "stem": PurePosixPath(filename).stem}
