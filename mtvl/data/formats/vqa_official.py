"""VQA v1 and v2 as published: a questions file and an annotations file joined by question_id.

*Source:* visualqa.org (question and annotation JSON of GT-Vision-Lab/VQA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, describe, keyed, read_json, rows_of, same_ids
from mtvl.data.formats.rows import QuestionRow


class VQAOfficial:
    """Reader of `*_questions.json` and `*_annotations.json`; without annotations the rows have no answers."""

    roles: Mapping[str, bool] = {"questions": True, "annotations": False}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[QuestionRow]:
        """Rows in the order of the questions file. Picture fields: image_id (int)."""
        questions = keyed((r for f in files["questions"] for r in _rows(f, "questions")), _id, "question_id")
        annotations: dict[str, Record] = {}
        if files.get("annotations"):
            annotations = read_annotations(files["annotations"])
            both = same_ids(questions, annotations, files["annotations"][0], "annotations", extra_is_fault=True)
            questions = {uid: record for uid, record in questions.items() if uid in both}
        return rows_of(questions.items(), lambda uid, record: _row(uid, record, annotations.get(uid)))


def read_annotations(files: Sequence[Path]) -> dict[str, Record]:
    """Annotation records by question id, over several files."""
    return keyed((r for f in files for r in _rows(f, "annotations")), _id, "question_id")


def _id(record: Record) -> str:
    return record.key("question_id")


def _rows(file: Path, key: str) -> list[Record]:
    return Record(file, "", read_json(file)).records(key)


def _row(uid: str, question: Record, annotation: Record | None) -> QuestionRow:
    # Some copies drop image_id on one side; it stands on the other.
    holder = question if question.has("image_id") or annotation is None else annotation
    image_id = holder.integer("image_id")
    if annotation is not None and annotation.has("image_id") and annotation.integer("image_id") != image_id:
        raise annotation.error(
            f"expected image_id {image_id} as in the questions file, found {annotation.values['image_id']}"
        )
    return QuestionRow(
        file=question.file,
        place=question.place,
        uid=uid,
        pictures=({"image_id": image_id},),
        question=question.text("question"),
        answers=() if annotation is None else read_answers(annotation),
        details={} if annotation is None else question_types(annotation),
    )


def question_types(record: Record) -> dict[str, str]:
    """The official question_type and answer_type, as far as the row has them."""
    found = {key: record.optional_text(key) for key in ("question_type", "answer_type")}
    return {key: value for key, value in found.items() if value}


def read_answers(record: Record) -> tuple[Mapping[str, Any], ...]:
    """The annotators' answers as official dicts; plain texts and rows without answer_id get numbers from 1.

    The official score leaves one annotator out by comparing whole dicts: without ids, equal answers vanish together.
    """
    values = record.need("answers")
    if not isinstance(values, list) or not values:
        raise record.error(f"expected a list of answers in 'answers', found {describe(values)}")
    out: list[Mapping[str, Any]] = []
    for number, value in enumerate(values, start=1):
        answer = {"answer": value} if isinstance(value, str) else value
        if not isinstance(answer, dict) or not isinstance(answer.get("answer"), str):
            raise record.error(f"expected text in answers[{number - 1}].answer, found {describe(value)}")
        out.append(answer if "answer_id" in answer else {**answer, "answer_id": number})
    ids = [a["answer_id"] for a in out]
    if len({str(i) for i in ids}) != len(ids):
        raise record.error(f"expected every answer_id once in a row, found {ids}")
    return tuple(out)
