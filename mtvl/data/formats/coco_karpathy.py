"""COCO captions in the Karpathy split (`dataset_coco.json`; the Flickr files have the same form).

*Source:* cs.stanford.edu/people/karpathy/deepimagesent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.coco_captions import file_fields
from mtvl.data.formats.records import Record, keyed, read_json, rows_of
from mtvl.data.formats.rows import CaptionRow

SPLITS = ("train", "restval", "val", "test")


class COCOKarpathy:
    """Reader of one file that holds all splits; `restval` counts as training data."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[CaptionRow]:
        """One row a picture of `split` in file order. Picture fields: filepath, filename, and its stem."""
        records = [r for f in files["rows"] for r in Record(f, "", read_json(f)).records("images")]
        pairs = keyed(records, lambda r: r.key("cocoid", "imgid"), "picture id").items()
        owners: dict[str, str] = {}
        rows = rows_of(pairs, lambda uid, record: _with_new_captions(_row(uid, record), record, owners))
        chosen = [row for row in rows if row.split == split]
        if not chosen:
            raise Record(files["rows"][0], "", {}).error(
                f"expected pictures of the split {split!r}, found none among {len(rows)} pictures"
            )
        return chosen


def _with_new_captions(row: CaptionRow, record: Record, owners: dict[str, str]) -> CaptionRow:
    """The row; DataError where a caption's id stands twice. `owners`: id -> picture, of the rows before."""
    own = [caption_id for caption_id, _ in row.captions]
    twice = next((i for i in own if i in owners or own.count(i) > 1), None)
    if twice is not None:
        raise record.error(
            f"expected every sentid once, found {twice} again (first in picture {owners.get(twice, row.uid)})"
        )
    owners.update(dict.fromkeys(own, row.uid))
    return row


def _row(uid: str, record: Record) -> CaptionRow:
    split = record.text("split")
    if split not in SPLITS:
        raise record.error(f"expected 'split' to be one of {', '.join(SPLITS)}, found {split!r}")
    sentences = record.records("sentences")
    captions = [
        (s.key("sentid") if s.has("sentid") else f"{uid}-{number}", s.text("raw")) for number, s in enumerate(sentences)
    ]
    filepath = record.optional_text("filepath") or ""
    return CaptionRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=(file_fields(filepath, record.text("filename")),),
        captions=tuple(captions),
        split="train" if split == "restval" else split,
    )
