"""VALUE's files: spans, subtitles, hidden answers, and the videos that rows name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtvl.data.formats.pictures import PictureIndex, VideoIndex
from mtvl.data.formats.rows import CaptionRow, ChoiceRow, Clip, Row, SubtitleLine
from mtvl.data.formats.value_captions import ValueCaptions
from mtvl.data.formats.value_qa import ValueQA
from mtvl.errors import ConfigError, DataError

QUESTION = {
    "qid": 7,
    "q": "What?",
    "a0": "x",
    "a1": "y",
    "a2": "z",
    "answer_idx": 1,
    "ts": "1.21-8.49",
    "vid_name": "v",
}
MOMENT = {"clip_id": 9, "vid_name": "v", "ts": [0, 59.026], "descs": [{"desc": "A dog.", "desc_id": 1}]}


def lines(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def read_qa(folder: Path, *rows: Any, subtitles: Sequence[Any] | None = None) -> list[ChoiceRow]:
    files = {"rows": [lines(folder / "qa.jsonl", rows)]}
    if subtitles is not None:
        files["subtitles"] = [lines(folder / "sub.jsonl", subtitles)]
    return ValueQA().read(files, "train")


def read_captions(folder: Path, *rows: Any, split: str = "train") -> list[CaptionRow]:
    return ValueCaptions().read({"rows": [lines(folder / "clips.jsonl", rows)]}, split)


def without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


@pytest.mark.parametrize(
    ("ts", "text", "span"),
    [
        ("1.21-8.49", "1.21-8.49", (1.21, 8.49)),
        (" 10 - 12.50 ", "10-12.50", (10, 12.5)),
        ([80.64, 85.28], "80.64-85.28", (80.64, 85.28)),
        ([0, 59.026], "0-59.026", (0, 59.026)),
        ("nan-nan", "", None),  # in the published TVQA
        ("NaN-NaN", "", None),
    ],
)
def test_spans(ts: Any, text: str, span: Any, tmp_path: Path) -> None:
    (row,) = read_qa(tmp_path, {**QUESTION, "ts": ts})
    assert row.clip == Clip(fields={"vid_name": "v"}, ts=text, span=span)


@pytest.mark.parametrize(
    "ts",
    ["8.5-1.2", "3-3", "1.2", "1.2-", "-1-2", "1.2-3.4-5", "a-b", "1-nan", "nan-3", "inf-inf", "1e1-2e1", "", [2, 1],
     [1], [1, 2, 3], ["1", "2"], [-1, 2], [True, 2], {}, 5, True, "0-" + "9" * 400],
)  # fmt: skip
def test_broken_spans_are_named(ts: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"qa\.jsonl, row line 2: expected .*'ts'"):
        read_qa(tmp_path, QUESTION, {**QUESTION, "qid": 8, "ts": ts})


def test_a_number_that_json_has_not_is_refused(tmp_path: Path) -> None:
    row = json.dumps({**MOMENT, "ts": "@"})
    with pytest.raises(DataError, match=r"line 1: expected a finite number, found NaN"):
        read_captions(tmp_path, row.replace('"@"', "[NaN, 2]"))
    with pytest.raises(DataError, match=r"line 1: expected seconds .*'ts', found a number inf"):
        read_captions(tmp_path, row.replace('"@"', "[0, 1e999]"))


def test_a_span_in_some_rows_only_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: expected the field 'ts' in every row or in none, found it in 1 of 2"):
        read_qa(tmp_path, QUESTION, without({**QUESTION, "qid": 8}, "ts"))
    (row,) = read_captions(tmp_path, without(MOMENT, "ts"))  # YC2C
    assert row.clip == Clip(fields={"vid_name": "v"})


def test_questions(tmp_path: Path) -> None:
    shown = {**QUESTION, "show_name": "Castle", "held_out": True}
    hidden = {**without(QUESTION, "answer_idx", "a2"), "qid": "8"}
    first, second = read_qa(tmp_path, shown, hidden)
    assert (first.uid, first.question, first.choices, first.answer) == ("7", "What?", ("x", "y", "z"), 1)
    assert (first.group, first.is_held_out, first.place) == ("Castle", True, "line 1")
    assert (second.uid, second.choices, second.answer, second.group) == ("8", ("x", "y"), None, "")
    assert second.is_held_out is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer_idx": 3}, r"expected 'answer_idx' in 0\.\.2, found 3"),
        ({"answer_idx": -1}, "expected 'answer_idx' in"),
        ({"answer_idx": True}, "expected an id"),
        ({"answer_idx": "two"}, "expected a whole number in 'answer_idx'"),
        ({"a2": " "}, "expected text in 'a2', found only blanks"),
        ({"a4": "gap"}, "expected the field 'a3'"),
        ({"held_out": "yes"}, "expected true or false in 'held_out'"),
        ({"show_name": 5}, "expected text in 'show_name'"),
    ],
)
def test_broken_questions_are_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"row line 1: {words}"):
        read_qa(tmp_path, {**QUESTION, **change})


def test_two_files_of_a_split_do_not_share_ids(tmp_path: Path) -> None:
    files = [lines(tmp_path / "a.jsonl", [QUESTION]), lines(tmp_path / "b.jsonl", [{**QUESTION, "qid": 8}])]
    assert [row.uid for row in ValueQA().read({"rows": files}, "test")] == ["7", "8"]
    lines(files[1], [{**QUESTION, "qid": "7"}])
    with pytest.raises(DataError, match=r"b\.jsonl, row line 1: expected every qid once, found 7 again \(first at a"):
        ValueQA().read({"rows": files}, "test")


def test_captions(tmp_path: Path) -> None:
    descs = [{"desc": " A dog. ", "desc_id": 5}, {"desc": "It."}]
    (row,) = read_captions(tmp_path, {**MOMENT, "descs": descs})
    assert (row.uid, row.captions, row.split) == ("9", (("5", "A dog."), ("1", "It.")), "train")
    for hidden in (without(MOMENT, "descs"), {**MOMENT, "descs": None}):
        assert read_captions(tmp_path, hidden, split="test")[0].captions == ()
        with pytest.raises(DataError, match="line 1: expected the field 'descs'"):
            read_captions(tmp_path, hidden)
    for broken in ([], {}, [{"desc": ""}], ["A dog."]):
        with pytest.raises(DataError, match="row line 1"):
            read_captions(tmp_path, {**MOMENT, "descs": broken}, split="test")
    with pytest.raises(DataError, match="expected every desc_id once in 'descs', found 5, 5"):
        read_captions(tmp_path, {**MOMENT, "descs": [descs[0], descs[0]]})


def test_subtitles(tmp_path: Path) -> None:
    said = [{"text": " Ann :\n Hi ", "start": 0, "end": 1.5}, {"text": "", "start": 2, "end": 2}]
    subtitles = [{"vid_name": "other", "sub": said[:1]}, {"vid_name": "v", "sub": said}, {"vid_name": 25848, "sub": []}]
    rows = [{**QUESTION, "qid": i, "vid_name": name} for i, name in enumerate(("v", "25848", "unheard"))]
    found = [row.clip.subtitles for row in read_qa(tmp_path, *rows, subtitles=subtitles) if row.clip]
    assert found == [(SubtitleLine(0, 1.5, "Ann : Hi"), SubtitleLine(2, 2, "")), (), None]
    assert [row.clip.subtitles for row in read_qa(tmp_path, *rows) if row.clip] == [()] * 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"text": "x", "start": 2, "end": 1}, "expected a line that ends after it starts"),
        ({"text": "x", "start": -1, "end": 1}, "expected seconds .* in 'start'"),
        ({"text": "x", "start": "0", "end": 1}, "expected seconds .* in 'start'"),
        ({"text": 5, "start": 0, "end": 1}, "expected text in 'text'"),
        ({"text": "x", "start": 0}, "expected the field 'end'"),
        ("x", "expected an object"),
    ],
)
def test_broken_subtitles_are_named(line: Any, words: str, tmp_path: Path) -> None:
    sound = {"vid_name": "v", "sub": []}
    with pytest.raises(DataError, match=rf"sub\.jsonl, row line 2\.sub\[0\]: {words}"):
        read_qa(tmp_path, QUESTION, subtitles=[sound, {"vid_name": "another", "sub": [line]}])


def test_subtitles_of_other_videos_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sub\.jsonl: expected subtitles of 1 videos, e\.g\. v, found none among 1"):
        read_qa(tmp_path, QUESTION, subtitles=[{"vid_name": "w", "sub": []}])
    twice = [{"vid_name": "v", "sub": []}] * 2
    with pytest.raises(DataError, match="line 2: expected every vid_name once, found v again"):
        read_qa(tmp_path, QUESTION, subtitles=twice)


# ------------------------------------------------------------------------------------------------------ finding videos


def clip_row(name: str) -> Row:
    return Row(Path("rows.jsonl"), "line 1", name, clip=Clip(fields={"vid_name": name}))


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


PATTERNS = ("videos/tv/{vid_name}", "features/{vid_name}.npz")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("s01e02", "videos/tv/s01e02.mp4"),
        ("a.b", "videos/tv/a.b.webm"),
        ("c", "videos/tv/c.MOV"),
        ("d.mp4", "videos/tv/d.mp4"),
        ("e", "videos/tv/e.jpg"),
        ("f", "videos/tv/f.12x1.png"),
        ("g", "features/g.npz"),
        ("25848", "features/25848.npz"),
    ],
)
def test_a_video_is_found(name: str, file: str, tmp_path: Path) -> None:
    put(tmp_path, file)
    assert VideoIndex(tmp_path, PATTERNS).find_all([clip_row(name)]) == [(str(tmp_path / file),)]


def test_what_stands_for_a_video_and_what_does_not(tmp_path: Path) -> None:
    put(tmp_path, "videos/tv/a/0.jpg", "videos/tv/b.mp4", "videos/tv/b/0.jpg", "features/b.npz", "features/c.npz")
    put(tmp_path, "videos/tv/d", "videos/tv/d.npz", "videos/tv/d.txt", "features/d.mp4", "videos/tv/d2.mp4")
    find = VideoIndex(tmp_path, PATTERNS).find_all
    assert find([clip_row("a"), clip_row("b"), clip_row("c")]) == [
        (str(tmp_path / file),) for file in ("videos/tv/a", "videos/tv/b.mp4", "features/c.npz")
    ]
    with pytest.raises(DataError) as caught:
        find([clip_row("a"), clip_row("d"), clip_row("e")])
    message = str(caught.value)
    assert "expected 3 videos, found 1, missing 2, e.g. videos/tv/d, videos/tv/e (.mp4, .webm" in message
    assert "or a folder of frames" in message and "features (3 files)" in message


def test_a_video_name_does_not_lead_out_of_the_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a video below the data root"):
        VideoIndex(tmp_path, PATTERNS).find_all([clip_row("../secret")])
    with pytest.raises(ConfigError, match="expected at least one video pattern, found none; mend `videos`"):
        VideoIndex(tmp_path, ())


def test_stored_features_of_pictures_want_their_pattern(tmp_path: Path) -> None:
    put(tmp_path, "p/a.h5", "h/a.h5", "h/b.h5", "p/b.jpg")
    rows = [Row(Path("r"), "", name, ({"name": name},)) for name in ("a", "b")]
    found = PictureIndex(tmp_path, ["p/{name}", "h/{name}.h5"]).find_all(rows)
    assert found == [(str(tmp_path / "h/a.h5"),), (str(tmp_path / "p/b.jpg"),)]
    with pytest.raises(DataError, match="expected 2 pictures, found 1, missing 1"):
        PictureIndex(tmp_path, ["p/{name}"]).find_all(rows)


# ---------------------------------------------------------------------------------------------------- published excerpts


def test_published_video_excerpts(golden: Path) -> None:
    folder = golden / "formats"

    def qa(name: str, group: str) -> list[ChoiceRow]:
        return ValueQA().read(
            {"rows": [folder / name], "subtitles": [folder / f"subtitles/{group}_subtitles.jsonl"]}, "val"
        )

    public = qa("tvqa/tvqa_test_public.jsonl", "tv")
    assert {len(row.choices) for row in public} == {5} and {row.answer for row in public} == {None}
    assert public[0].group == "The Big Bang Theory"
    assert public[0].clip and public[0].clip.span == (48.62, 60.02)
    assert [line.text for line in public[0].clip.subtitles or ()][0] == "Sheldon : I will write a letter."
    train = ValueQA().read({"rows": [folder / "tvqa/tvqa_train.jsonl"]}, "train")
    assert [(row.uid, row.answer) for row in train] == [("7", 4)]
    how2 = qa("how2qa/how2qa_val_release.jsonl", "how2")
    assert {len(row.choices) for row in how2} == {4} and {row.group for row in how2} == {""}
    moments = ValueCaptions().read({"rows": [folder / "tvc/tvc_val_release.jsonl"]}, "val")
    assert {len(row.captions) for row in moments} == {4}
    hidden = ValueCaptions().read({"rows": [folder / "tvc/tvc_test_public_release.jsonl"]}, "test")
    assert {row.captions for row in hidden} == {()}
    steps = {"rows": [folder / "yc2c/yc2c_val_release.jsonl"], "subtitles": [folder / "subtitles/yc2_subtitles.jsonl"]}
    rows = ValueCaptions().read(steps, "val")
    assert [len(row.captions) for row in rows] == [1] * 6
    assert sum(row.clip is not None and row.clip.subtitles is None for row in rows) == 5


def test_the_larger_published_files(golden: Path) -> None:
    rows = ValueQA().read({"rows": [golden / "metrics/how2qa/how2qa_val_release.jsonl"]}, "val")
    assert len(rows) == 312
    clips = ValueCaptions().read({"rows": [golden / "metrics/captions_yc2c/yc2c_val_release.jsonl"]}, "val")
    assert len(clips) == 180
