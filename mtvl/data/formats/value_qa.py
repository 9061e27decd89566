"""Multiple-choice questions on videos as VALUE hands them around: TVQA and How2QA, one JSON object a line.

*Source:* github.com/VALUE-Leaderboard/DataRelease; TVQA also as published by its authors (`tvqa_test_public.jsonl`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtvl.data.formats.clips import read_clips, read_held_out
from mtvl.data.formats.records import Record, keyed, read_json_lines, rows_of
from mtvl.data.formats.rows import ChoiceRow, Clip

_MAX_CHOICES = 10  # a0 ... a9


class ValueQA:
    """Reader of `tvqa_*.jsonl` and `how2qa_*_release.jsonl`; role `subtitles` adds what is said."""

    roles: Mapping[str, bool] = {"rows": True, "subtitles": False}

    def read(self, files: Mapping[str, Sequence[Path]], split: str) -> list[ChoiceRow]:
        """Rows in file order; several files of a split are read one after the other. Path field: vid_name.

        The answers are a0, a1, ...; the test files leave `answer_idx` out, How2QA leaves `show_name` out.
        """
        records = keyed((r for f in files["rows"] for r in read_json_lines(f)), lambda r: r.key("qid"), "qid")
        clips = read_clips(records, files)
        return rows_of(clips.items(), lambda uid, clip: _row(uid, records[uid], clip))


def _row(uid: str, record: Record, clip: Clip) -> ChoiceRow:
    choices = _choices(record)
    answer = record.integer("answer_idx") if record.has("answer_idx") else None
    if answer is not None and not 0 <= answer < len(choices):
        raise record.error(f"expected 'answer_idx' in 0..{len(choices) - 1}, found {answer}")
    return ChoiceRow(
        file=record.file,
        place=record.place,
        uid=uid,
        clip=clip,
        question=record.text("q"),
        choices=choices,
        answer=answer,
        group=record.text("show_name") if record.has("show_name") else "",
        is_held_out=read_held_out(record),
    )


def _choices(record: Record) -> tuple[str, ...]:
    keys = [key for key in (f"a{i}" for i in range(_MAX_CHOICES)) if key in record.values]
    expected = [f"a{i}" for i in range(max(2, len(keys)))]
    return tuple(record.text(key) for key in expected)
