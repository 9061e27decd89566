"""MSRVTT-QA as published: a list of questions on videos, each with one answer word.

*Source:* github.com/xudejing/video-question-answering (`{train,val,test}_qa.json`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.records import Record, keyed, read_json_list, rows_of
from mtvl.data.formats.rows import Clip, QuestionRow


class MSRVTTQA:
    """Reader of `{train,val,test}_qa.json`: {"id", "video_id", "question", "answer", "category_id"}."""

    roles: Mapping[str, bool] = {"rows": True}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[QuestionRow]:
        """Rows in file order. Path field: vid_name ("video6513" for the video_id 6513)."""
        rows = (r for f in files["rows"] for r in read_json_list(f))
        return rows_of(keyed(rows, lambda r: r.key("id"), "id").items(), _row)


def _row(uid: str, record: Record) -> QuestionRow:
    answers = ({"answer": record.text("answer")},) if record.has("answer") else ()
    return QuestionRow(
        file=record.file,
        place=record.place,
        uid=uid,
        clip=Clip(fields={"vid_name": f"video{record.integer('video_id')}"}),
        question=record.text("question"),
        answers=answers,
    )
