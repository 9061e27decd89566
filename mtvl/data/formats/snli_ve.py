"""SNLI-VE as published: one JSON object a line, a sentence about a Flickr30k picture and what the picture says of it.

*Source:* github.com/necla-ml/SNLI-VE, `snli_ve_{train,dev,test}.jsonl`. Its generator writes only pairs on which SNLI's
annotators agreed, so "-" is no label here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, describe, once_each, read_json_lines
from mtvl.data.formats.rows import LabelRow

LABELS = ("entailment", "neutral", "contradiction")
_PICTURE = ("Flickr30K_ID", "Flickr30kID", "Flikr30kID")  # the last is the spelling of the first release


class SNLIVE:
    """Reader of `snli_ve_{train,dev,test}.jsonl`."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[LabelRow]:
        """Rows in file order. Picture field: name (the Flickr30k id, without ending)."""
        pairs = ((r.text("pairID"), r) for f in files["rows"] for r in read_json_lines(f))
        return [_row(uid, record) for uid, record in once_each(pairs, "pairID")]


def _row(uid: str, record: Record) -> LabelRow:
    label = record.text("gold_label") if record.has("gold_label") else None
    if label is not None and label not in LABELS:
        raise record.error(f"expected {', '.join(LABELS)} in 'gold_label', found {describe(label)}")
    return LabelRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=({"name": record.key(*_PICTURE).removesuffix(".jpg")},),
        statement=record.text("sentence2"),
        label=label,
    )
