"""Questions as BLIP's family of files has them: VQA v2 with ten answers a row, Visual Genome with one.

*Source:* the released `vqa_{train,val,test}.json` and `vg_qa.json` of BLIP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, keyed, read_json_list, rows_of
from mtvl.data.formats.rows import QuestionRow
from mtvl.data.formats.vqa_official import read_answers


class BlipVQA:
    """Reader of lists of {"question", "image": path, "answer": text or list of texts, "question_id" where there is one}."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[QuestionRow]:
        """Rows in file order; one without an id has that of its file and place. Picture fields: image, and its stem as name."""
        rows = (r for f in files["rows"] for r in read_json_list(f))
        return rows_of(keyed(rows, _id, "question_id").items(), _row)


def _id(record: Record) -> str:
    return record.key("question_id") if record.has("question_id") else f"{record.file.stem}{record.place}"


def _row(uid: str, record: Record) -> QuestionRow:
    image = record.text("image")
    found = record.values.get("answer")
    answers: tuple[Mapping[str, Any], ...] = ()
    if isinstance(found, list):
        answers = read_answers(Record(record.file, record.place, {"answers": found}))
    elif found is not None:
        answers = ({"answer": record.text("answer"), "answer_id": 1},)
    return QuestionRow(
        file=record.file,
        place=record.place,
        uid=uid,
        pictures=({"image": image, "name": Path(image).stem},),
        question=record.text("question"),
        answers=answers,
    )
