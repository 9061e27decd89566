"""GQA as published: one JSON object question id -> question, with programs, types, groups and entailments.

*Source:* cs.stanford.edu/people/dorarad/gqa. Answers are absent in the submission file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, describe, each, finite_record, keyed, read_json, rows_of, same_ids
from mtvl.data.formats.rows import QuestionRow

_DETAILS = ("types", "groups", "semantic", "entailed", "equivalent", "semanticStr")


class GQAOfficial:
    """Reader of `*_balanced_questions.json`, `*_all_questions.json` and, optional, `*_choices.json`."""

    roles: Mapping[str, bool] = {"questions": True, "choices": False}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[QuestionRow]:
        """Rows in file order. Picture fields: image_id (text). `details` are the official fields and `choices`."""
        records = keyed((r for f in files["questions"] for r in _entries(f)), lambda r: r.place, "question id")
        choices: dict[str, Record] = {}
        if files.get("choices"):
            choices = keyed((r for f in files["choices"] for r in _entries(f)), lambda r: r.place, "question id")
            known = dict(each(records.items(), lambda _, record: _is_balanced(record)))
            balanced = [uid for uid, is_balanced in known.items() if is_balanced]
            both = same_ids(balanced, choices, files["choices"][0], "choices", extra_is_fault=False)
            records = {uid: records[uid] for uid, is_balanced in known.items() if uid in both or not is_balanced}
        return rows_of(records.items(), lambda uid, record: _row(uid, record, choices.get(uid)))


def _entries(file: Path) -> list[Record]:
    values = read_json(file)
    if not isinstance(values, dict):
        raise Record(file, "", {}).error(f"expected an object question id -> question, found {describe(values)}")
    if not values:
        raise Record(file, "", {}).error("expected questions, found an empty object")
    return rows_of(values.items(), lambda key, value: finite_record(file, key, value))


def _is_balanced(record: Record) -> bool:
    value = record.values.get("isBalanced", True)  # only cut-down copies of the balanced file leave it out
    if not isinstance(value, bool):
        raise record.error(f"expected true or false in 'isBalanced', found {describe(value)}")
    return value


def _row(uid: str, record: Record, choices: Record | None) -> QuestionRow:
    answer = record.optional_text("answer")
    if answer is not None and not answer.strip():
        raise record.error("expected text in 'answer', found only blanks")
    details: dict[str, Any] = {key: record.values[key] for key in _DETAILS if record.has(key)}
    for key, kind in (("types", dict), ("groups", dict), ("semantic", list), ("entailed", list)):
        if key in details and not isinstance(details[key], kind):
            raise record.error(f"expected {kind.__name__} in {key!r}, found {describe(details[key])}")
    details["isBalanced"] = _is_balanced(record)
    if choices is not None:
        details["choices"] = {key: _words(choices, key) for key in ("valid", "plausible")}
    return QuestionRow(
        file=record.file,
        place=uid,
        uid=uid,
        pictures=({"image_id": record.key("imageId"), "name": record.key("imageId")},),
        question=record.text("question"),
        answers=({"answer": answer, "answer_id": 1},) if answer is not None else (),
        details=details,
    )


def _words(record: Record, key: str) -> list[str]:
    words = record.need(key)
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise record.error(f"expected a list of texts in {key!r}, found {describe(words)}")
    return words
