"""VQA v2 in the Karpathy split as VL-T5 and VL-Adapter hand it around: rows with soft labels.

The ten raw answers, which the official score needs, come from the raw annotation files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, keyed, label_scores, picture_fields, read_json_list, rows_of, same_ids
from mtvl.data.formats.rows import QuestionRow
from mtvl.data.formats.vqa_official import question_types, read_annotations, read_answers


class VQAKarpathy:
    """Reader of `karpathy_{train,val,test}.json`; role `annotations` adds raw answers from one or more files."""

    roles: Mapping[str, bool] = {"rows": True, "annotations": False}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[QuestionRow]:
        """Rows in file order. Picture fields: name (img_id) and folder (train2014, ...)."""
        rows = (r for f in files["rows"] for r in read_json_list(f))
        records = keyed(rows, lambda r: r.key("question_id"), "question_id")
        annotations: dict[str, Record] = {}
        if files.get("annotations"):
            annotations = read_annotations(files["annotations"])
            # The raw files cover all of train2014 and val2014, so they hold more questions than this split.
            both = same_ids(records, annotations, files["annotations"][0], "raw annotations", extra_is_fault=False)
            records = {uid: record for uid, record in records.items() if uid in both}
        return rows_of(records.items(), lambda uid, record: _row(uid, record, annotations.get(uid)))


def _row(uid: str, record: Record, annotation: Record | None) -> QuestionRow:
    source = annotation or record
    return QuestionRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=(picture_fields(record.text("img_id")),),
        question=record.text("sent", "question"),
        answers=read_answers(source) if source.has("answers") else (),
        label=label_scores(record) if record.has("label") else None,
        details={**question_types(record), **(question_types(annotation) if annotation else {})},
    )
