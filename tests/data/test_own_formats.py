"""MSRVTT-QA's files, and the rows of one's own tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtvl.data.formats.msrvtt_qa import MSRVTTQA
from mtvl.data.formats.own_table import OwnTable
from mtvl.data.formats.rows import CaptionRow, ChoiceRow, QuestionRow, Row
from mtvl.errors import DataError

QA = {"answer": "couch", "category_id": 14, "id": 158581, "question": "what are they sitting on?", "video_id": 6513}
ASKED = {"id": "1", "picture": "a/b.png", "text": "What?", "answers": ["x", " y "]}
TOLD = {"id": "b", "video": "c.mp4", "captions": ["one", "two"]}
CHOSEN = {"id": 3, "picture": "p.png", "text": "Which?", "choices": ["x", "y"], "answer": 1}


def read(folder: Path, *rows: Any) -> list[Row]:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return OwnTable().read({"rows": [folder / "t.jsonl"]}, "train")


def test_the_published_msrvtt_qa(golden: Path) -> None:
    rows = MSRVTTQA().read({"rows": [golden / "formats/msrvtt_qa/val_qa.json"]}, "val")
    assert len(rows) == 8
    assert (rows[0].uid, rows[0].question) == ("158581", "what are three people sitting on?")
    assert rows[0].answers == ({"answer": "couch"},)
    assert rows[0].clip is not None and rows[0].clip.fields == {"vid_name": "video6513"}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"video_id": "a"}, "expected a whole number in 'video_id'"), ({"question": ""}, "found only blanks"),
     ({"answer": 3}, "expected text in 'answer'"), ({"id": None}, "expected the field 'id'")],
)  # fmt: skip
def test_faults_of_msrvtt_qa(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([{**QA, **change}]))
    with pytest.raises(DataError, match=words):
        MSRVTTQA().read({"rows": [tmp_path / "q.json"]}, "train")


def test_hidden_and_repeated_rows_of_msrvtt_qa(tmp_path: Path) -> None:
    hidden = {key: value for key, value in QA.items() if key != "answer"}
    (tmp_path / "q.json").write_text(json.dumps([hidden]))
    assert MSRVTTQA().read({"rows": [tmp_path / "q.json"]}, "test")[0].answers == ()
    (tmp_path / "q.json").write_text(json.dumps([QA, QA]))
    with pytest.raises(DataError, match="found 158581 again"):
        MSRVTTQA().read({"rows": [tmp_path / "q.json"]}, "test")


def test_the_three_kinds_of_own_rows(tmp_path: Path) -> None:
    (asked,) = read(tmp_path, ASKED)
    assert isinstance(asked, QuestionRow) and asked.pictures == ({"name": "a/b.png"},)
    assert [a["answer"] for a in asked.answers] == ["x", "y"]
    (told,) = read(tmp_path, TOLD)
    assert isinstance(told, CaptionRow) and told.captions == (("0", "one"), ("1", "two"))
    assert told.clip is not None and told.clip.fields == {"vid_name": "c.mp4"}
    (chosen,) = read(tmp_path, CHOSEN)
    assert isinstance(chosen, ChoiceRow) and (chosen.uid, chosen.choices, chosen.answer) == ("3", ("x", "y"), 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ASKED, "video": "v"}, "expected 'picture' or 'video', found both"),
        ({**ASKED, "picture": None}, "expected 'picture' or 'video', found neither"),
        ({**ASKED, "captions": ["x"]}, "expected one of 'captions', 'answers' and 'choices', found captions, answers"),
        ({"id": 1, "picture": "p"}, "found none"),
        ({**ASKED, "answers": []}, "expected a list of texts in 'answers'"),
        ({**ASKED, "answers": ["x", " "]}, "expected texts in 'answers', found text ' '"),
        ({**ASKED, "text": None}, "expected the field 'text'"),
        ({**CHOSEN, "answer": 2}, r"expected 'answer' in 0\.\.1, found 2"),
    ],
)
def test_faults_of_own_rows(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, row)


def test_own_rows_belong_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: expected every id once, found 1 again"):
        read(tmp_path, ASKED, ASKED)
    with pytest.raises(DataError, match="line 2: expected a row with 'answers' and the same visual input"):
        read(tmp_path, ASKED, TOLD)
    with pytest.raises(DataError, match="line 2: expected a row with 'answers' and the same visual input"):
        read(tmp_path, ASKED, {**ASKED, "id": "2", "picture": None, "video": "v.mp4"})
