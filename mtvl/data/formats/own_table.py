"""One's own rows in this project's own form: one JSON object a line, as `tools/prepare.py table` and `folder` write it.

{"id", "picture" or "video", "captions": [text, ...]}
{"id", "picture" or "video", "text", "answers": [text, ...]}
{"id", "picture" or "video", "text", "choices": [text, ...], "answer": index of the right one}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, describe, each, fault, keyed, read_json_lines, rows_of
from mtvl.data.formats.rows import CaptionRow, ChoiceRow, Clip, QuestionRow, Row


class OwnTable:
    """Reader of `NAME/{train,val,test}.jsonl`. All rows of a file are of one of the three kinds."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[Row]:
        """Rows in file order. Path fields: name (the picture), vid_name (the video), both with their folders.

        Raises DataError for a row without picture or video, or with both; for a field that is missing or empty; for
        rows of two kinds; for an id that stands twice.
        """
        records = keyed((r for f in files["rows"] for r in read_json_lines(f)), lambda r: r.key("id"), "id")
        shapes = dict(each(records.items(), lambda _, record: (_kind(record), _visual(record))))
        forms = {uid: (kind, tuple(visual)) for uid, (kind, visual) in shapes.items()}
        first = next(iter(forms.values()), None)
        for uid, form in forms.items():
            if form != first:
                fault(
                    uid,
                    records[uid].error(
                        f"expected a row with {first[0] if first else ''!r} and the same visual input as the first one, found "
                        f"{', '.join(sorted(records[uid].values))}"
                    ),
                )
        alike = [(uid, shape) for uid, shape in shapes.items() if forms[uid] == first]
        return rows_of(alike, lambda uid, shape: _row(uid, records[uid], *shape, split))


def _kind(record: Record) -> str:
    found = [key for key in ("captions", "answers", "choices") if record.has(key)]
    if len(found) != 1:
        raise record.error(f"expected one of 'captions', 'answers' and 'choices', found {', '.join(found) or 'none'}")
    return found[0]


def _visual(record: Record) -> dict[str, Any]:
    if record.has("picture") == record.has("video"):
        raise record.error(f"expected 'picture' or 'video', found {'both' if record.has('picture') else 'neither'}")
    if record.has("video"):
        return {"clip": Clip(fields={"vid_name": record.text("video")})}
    return {"pictures": ({"name": record.text("picture")},)}


def _row(uid: str, record: Record, kind: str, visual: Mapping[str, Any], split: str) -> Row:
    texts = _texts(record, kind)
    common = {"file": record.file, "place": record.place, "uid": uid, **visual}
    if kind == "captions":
        return CaptionRow(**common, captions=tuple((str(i), text) for i, text in enumerate(texts)), split=split)
    if kind == "answers":
        return QuestionRow(**common, question=record.text("text"), answers=tuple({"answer": text} for text in texts))
    answer = record.integer("answer") if record.has("answer") else None
    if answer is not None and not 0 <= answer < len(texts):
        raise record.error(f"expected 'answer' in 0..{len(texts) - 1}, found {answer}")
    return ChoiceRow(**common, question=record.text("text"), choices=texts, answer=answer)


def _texts(record: Record, key: str) -> tuple[str, ...]:
    values = record.need(key)
    if not isinstance(values, list) or not values:
        raise record.error(f"expected a list of texts in {key!r}, found {describe(values)}")
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise record.error(f"expected texts in {key!r}, found {describe(value)}")
    return tuple(value.strip() for value in values)
