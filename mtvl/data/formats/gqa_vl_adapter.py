"""GQA as VL-T5 and VL-Adapter hand it around: a list of rows with a label, without types and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, keyed, label_scores, read_json_list, rows_of
from mtvl.data.formats.rows import QuestionRow


class GQAVLAdapter:
    """Reader of `GQA/{train,valid,testdev}.json`; several files of a split are read one after the other."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[QuestionRow]:
        """Rows in file order. Picture fields: image_id and name (the img_id, as text)."""
        rows = (r for f in files["rows"] for r in read_json_list(f))
        return rows_of(keyed(rows, lambda r: r.key("question_id"), "question_id").items(), _row)


def _row(uid: str, record: Record) -> QuestionRow:
    label = label_scores(record) if record.has("label") else None
    if label is not None and len(label) != 1:
        raise record.error(f"expected one answer in 'label', found {len(label)}")
    answer = next(iter(label)) if label else None
    if answer is not None and not answer.strip():
        raise record.error("expected text as the answer in 'label', found only blanks")
    return QuestionRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=({"image_id": record.key("img_id"), "name": record.key("img_id")},),
        question=record.text("sent", "question"),
        answers=({"answer": answer, "answer_id": 1},) if answer is not None else (),
        details={"isBalanced": True},
    )
