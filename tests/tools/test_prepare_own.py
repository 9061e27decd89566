"""One's own tables and folders become tasks; what is wrong with them is counted, and then nothing is written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtvl.config import EvaluateConfig
from mtvl.tasks import load_task, task_names
from mtvl.tasks.base import BaseTask
from mtvl.types import Example, Prediction

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import prepare  # noqa: E402
from preparing import files, own  # noqa: E402
from preparing.media import Media  # noqa: E402

SPLITS = ("train", "val", "test")
ASK = ("--picture", "image", "--text", "question", "--answer", "answer")
TELL = ("--picture", "image", "--caption", "caption")


def picture(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.name


def table(file: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return file


def json_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Ten pictures p0.png ... p9.png."""
    for number in range(10):
        picture(tmp_path / "src" / f"p{number}.png", number)
    return tmp_path / "src"


def questions(count: int = 10) -> list[dict[str, Any]]:
    return [{"image": f"p{n}.png", "question": f"What, {n}?", "answer": f"a “{n}”"} for n in range(count)]


def run(*arguments: object) -> int:
    return prepare.main([str(a) for a in arguments])


def load(dst: Path, name: str = "mine") -> BaseTask:
    return load_task(name, root=dst, family="bart", evaluate=EvaluateConfig(captions_tokenizer="python"))


def examples(task: BaseTask) -> dict[str, Sequence[Example]]:
    return {split: task.examples(split) for split in SPLITS}


def pictures(task: BaseTask) -> dict[str, set[str]]:
    return {split: {Path(p).name for e in rows for p in e.visual.images} for split, rows in examples(task).items()}


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_questions_with_answers_become_a_task(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(src / "t.csv", [*questions(), {"image": "p3.png", "question": "What, 3?", "answer": "three"}])
    assert run("table", file, tmp_path / "dst", "--name", "mine", *ASK) == 0
    assert "mine: questions train 8, val 1, test 1" in capsys.readouterr().out
    task = load(tmp_path / "dst")
    found = pictures(task)
    assert [len(found[s]) for s in SPLITS] == [8, 1, 1] and len(set().union(*found.values())) == 10
    (three,) = [e for rows in examples(task).values() for e in rows if "p3.png" in e.visual.images[0]]
    assert [t.text for t in three.targets] == ["a “3”", "three"]
    assert [s.text for s in three.segments] == ["vqa: ", "What, 3?"]
    test = task.examples("test")
    assert task.score([Prediction(e.uid, e.targets[0].text.upper()) for e in test], test).metrics["accuracy"] == 100
    assert "mine" in task_names(root=tmp_path / "dst") and "mine" not in task_names()


@pytest.mark.parametrize(
    ("delimiter", "encoding", "name"),
    [(",", "utf-8", "t.csv"), (";", "utf-8-sig", "t.csv"), ("\t", "utf-8", "t.tsv"), ("|", "utf-8", "t.txt")],
)
def test_delimiters_and_byte_order_marks(delimiter: str, encoding: str, name: str, src: Path, tmp_path: Path) -> None:
    rows = [{**row, "question": f"Is it; a, b\nor | {n}?"} for n, row in enumerate(questions())]
    file = table(src / name, rows, delimiter, encoding)
    assert run("table", file, tmp_path / "dst", "--name", "mine", *ASK) == 0
    texts = {e.segments[1].text for rows in examples(load(tmp_path / "dst")).values() for e in rows}
    assert texts == {row["question"] for row in rows}


def test_captions_of_several_columns_rows_and_lists(src: Path, tmp_path: Path) -> None:
    rows = [{"image": f"p{n}", "caption": [f"a {n}", f"b {n}"], "more": None if n else "first"} for n in range(10)]
    file = json_lines(src / "t.jsonl", [*rows, {"image": str(src / "p4.png"), "caption": "again", "more": ""}])
    options = ("--picture", "image", "--caption", "caption,more", "--split", "0.5,0,0.5")
    assert run("table", file, tmp_path / "dst", "--name", "mine", *options) == 0
    task = load(tmp_path / "dst")
    assert len({Path(e.visual.images[0]).name for e in task.examples("train")}) == len(task.examples("test")) == 5
    told = {e.uid: e.references["captions"] for e in task.examples("test")}
    told |= {Path(e.visual.images[0]).name: e.references["captions"] for e in task.examples("train")}
    assert told["p0.png"] == ("a 0", "b 0", "first") and told["p4.png"] == ("a 4", "b 4", "again")
    assert task.score([Prediction(e.uid, e.targets[0].text) for e in task.examples("test")], task.examples("test"))
    assert "val" not in task.source.config.files


@pytest.mark.parametrize("form", ["text", "column", "number", "list"])
def test_choices(form: str, src: Path, tmp_path: Path) -> None:
    options = ["--picture", "image", "--text", "question", "--answer", "answer", "--choices", "A,B,C"]
    rows = []
    for n in range(10):
        choices = {"A": f"red {n}", "B": f"blue {n}", "C": f"grey {n}"}
        answer = {"text": f"blue {n}", "column": "B", "number": "2", "list": f"blue {n}"}[form]
        row = {
            "image": f"p{n}.png",
            "question": "Which?",
            "answer": answer,
            **choices,
            "all": "|".join(choices.values()),
        }
        rows.append(row)
    if form == "number":
        options += ["--answer-counts-from", "1"]
    if form == "list":
        options[-1:] = ["all", "--separator", "|"]
    assert run("table", table(src / "t.csv", rows), tmp_path / "dst", "--name", "mine", *options) == 0
    task = load(tmp_path / "dst")
    assert task.decoding.mode == "rank" and task.decoding.choices == ("a0", "a1", "a2")
    example = task.examples("test")[0]
    assert example.references["answer"] == "a1" and example.targets[0].text == example.choices[1]
    assert [s.name for s in example.segments] == ["prompt", "question", "choices"]
    assert example.segments[2].text.startswith(" [Choices] a0: red ")
    assert task.score([Prediction(e.uid, "a1") for e in task.examples("test")], task.examples("test")).metrics == {
        "accuracy": 100.0
    }


def test_videos(tmp_path: Path) -> None:
    """Strips and folders of frames, one of them called like another video."""
    src = tmp_path / "src"
    for n in range(5):
        picture(src / "v" / f"s{n}.3x1.png", n)
    for n in range(3):
        picture(src / "v" / "s1" / f"{n}.jpg", 50 + n)
    names = [*(f"v/s{n}.3x1.png" for n in range(5)), "v/s1"]
    file = json_lines(src / "t.jsonl", [{"clip": name, "q": "What?", "a": name} for name in names])
    options = ("--name", "mine", "--video", "clip", "--text", "q", "--answer", "a", "--split", "0.4,0.3,0.3")
    assert run("table", file, tmp_path / "dst", *options) == 0
    found = {e.targets[0].text: e.visual.video for rows in examples(load(tmp_path / "dst")).values() for e in rows}
    assert found["v/s1.3x1.png"].endswith("mine/videos/v/s1.3x1.png") and found["v/s1"].endswith("v/s1.frames")
    assert len(found) == 6 and len(list(Path(found["v/s1"]).iterdir())) == 3


def test_splits_of_a_column(src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "Training", "val", "dev", "validation", "test"]
    rows = [
        {**row, "part": word, "key": f"k{n}"} for n, (row, word) in enumerate(zip(questions(6), words, strict=True))
    ]
    file = table(src / "t.csv", rows)
    options = ("--name", "mine", *ASK, "--split", "part", "--id", "key")
    assert run("table", file, tmp_path / "dst", *options) == 0
    found = {split: [e.uid for e in rows] for split, rows in examples(load(tmp_path / "dst")).items()}
    assert found == {"train": ["k0", "k1"], "val": ["k2", "k3", "k4"], "test": ["k5"]}
    (src / "copy.png").write_bytes((src / "p0.png").read_bytes())
    rows[5]["image"] = "copy.png"
    assert run("table", table(src / "u.csv", rows), tmp_path / "dst2", *options) == 1
    words_said = capsys.readouterr().err
    assert (
        "1 x picture in two splits (line 7: copy.png (the same content as p0.png) is test here and train in line 2"
        in words_said
    )
    assert not (tmp_path / "dst2").exists()


def test_the_split_hangs_on_content_not_on_names_or_order(src: Path, tmp_path: Path) -> None:
    assert run("table", table(src / "t.csv", questions()), tmp_path / "a", "--name", "mine", *ASK) == 0
    other = tmp_path / "other"
    for n in range(10):
        picture(other / f"p{9 - n}.png", n)
    assert run("table", table(other / "t.csv", questions()[::-1]), tmp_path / "b", "--name", "mine", *ASK) == 0
    first, second = pictures(load(tmp_path / "a")), pictures(load(tmp_path / "b"))
    assert first["test"] == {f"p{9 - int(name[1])}.png" for name in second["test"]}


FAULTS: dict[str, tuple[dict[int, dict[str, Any]], str]] = {
    "missing pictures": (
        {1: {"image": "no.png"}, 4: {"image": "none.jpg"}},
        "2 x missing picture (line 3: 'no.png'; line 6: 'none.jpg')",
    ),
    "empty cells": (
        {0: {"answer": " "}, 2: {"question": ""}, 3: {"image": ""}},
        "expected 10 rows without faults, found 3 with; nothing was written:\n  1 x empty 'answer' (line 2)\n"
        "  1 x empty 'question' (line 4)\n  1 x empty 'image' (line 5)",
    ),
    "unsafe": (
        {
            1: {"image": "../x.png"},
            2: {"image": "/etc/passwd"},
            3: {"image": "a\\b.png"},
            4: {"image": "http://x/y.png"},
        },
        "3 x unsafe path (line 3: '../x.png' leads out of",
    ),
    "addresses": (
        {4: {"image": "http://x/y.png"}},
        "1 x address in place of a file (line 6: 'http://x/y.png'; fetch it",
    ),
    "unreadable": ({7: {"image": "bad.png"}}, "1 x unreadable picture (line 9: "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_rows_are_counted(name: str, src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (src / "bad.png").write_bytes(b"no picture")
    (tmp_path / "x.png").write_bytes((src / "p0.png").read_bytes())
    changes, words = FAULTS[name]
    rows = [{**row, **changes.get(n, {})} for n, row in enumerate(questions())]
    assert run("table", table(src / "t.csv", rows), tmp_path / "dst", "--name", "mine", *ASK) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"image,qestion,answer\np0.png,q,a\n", ASK, "'question': did you mean 'qestion'? known: answer, image, qestion"),
        (b"image,question,answer\n", ASK, "expected rows below the header, found none"),
        (b"", ASK, "found an empty file"),
        (b"image,question,answer\np0.png,q\xe9,a\n", ASK, "expected UTF-8, found other bytes at position 30; convert"),
        ("image,question,answer\np0.png,q,a\n".encode("utf-16"), ASK, "found UTF-16; save it as 'CSV UTF-8'"),
        (b'image,question,answer\np0.png,"q,a\n', ASK, "is a quote left open?"),
        (b"image,question,answer\np0.png,q,a,b\n", ASK, "1 x wrong number of cells (line 2: 4 for 3 columns"),
        (b"image,image,answer\np0.png,q,a\n", ASK, "expected every column once in the header"),
        (b"image,question,answer,k\np0.png,q,a,1\np1.png,q,a,1\n", (*ASK, "--id", "k"), "1 x repeated id (line 3: '1', first in line 2)"),
        (b"image,question,answer,s\np0.png,q,a,tran\n", (*ASK, "--split", "s"), "1 x unknown split (line 2: 'tran'; did you mean"),
        (b"image,question,answer\np0.png,q,a\np1.png,q,a\n", ASK, "expected different pictures or videos for train, val, test, found 2 and none left for train"),
        (b"image,question,answer\n", (*ASK, "--split", "0.5,0.1,0.1"), "that add up to 1"),
        (b"image,question,answer\n", (*ASK, "--caption", "answer"), "expected --answer COL or --caption COL, found both"),
        (b"image,question,answer\n", ASK[:2], "expected --answer COL or --caption COL, found neither"),
        (b"image,question,answer\n", (*ASK[:2], *ASK[4:]), "--answer expects --text COL"),
        (b"image,question,answer,a,b\np0.png,q,c,x,y\n", (*ASK, "--choices", "a,b"), "1 x answer that is none of the choices"),
        (b"image,question,answer,a,b\np0.png,q,x,x,\n", (*ASK, "--choices", "a,b"), "not at least two different texts"),
        (b"image,question,answer,a,b,c\np0.png,q,1,,y,z\n", (*ASK, "--choices", "a,b,c", "--answer-counts-from", "1"), "1 x empty 'a' (line 2)"),
        (b"image,question,answer,a,b\np0.png,q,a,b,a\n", (*ASK, "--choices", "a,b"), "1 x answer that says two choices (line 2: 'a' is a choice here, and the column of 'b'"),
        (b"image,question,answer\np0.png,q," + b"a" * 200_000 + b"\n", ASK, "expected CSV, found a fault (field larger than"),
        (b'image,question,"' + b"a" * 200_000 + b'"\np0.png,q,a\n', ASK, "expected CSV, found a fault (field larger than"),
    ],
)  # fmt: skip
def test_faults_of_tables_are_named(
    content: bytes, options: Sequence[str], words: str, src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (src / "t.csv").write_bytes(content)
    assert run("table", src / "t.csv", tmp_path / "dst", "--name", "mine", *options) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("shared", "is taken by a part of every model"), ("items", "is taken by a part of every model"),
     ("train", "is taken by a part of every model"), ("daquar", "is taken by a set of tools/prepare.py"),
     ("vqa", "is taken by a benchmark"), ("images", "is taken by a benchmark"), ("a.b", "letters, digits, _ and -"),
     ("../x", "letters, digits, _ and -"), ("theirs", "found something of another origin")],
)  # fmt: skip
def test_names_that_cannot_be(
    name: str, words: str, src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dst/theirs").mkdir(parents=True)
    assert run("table", table(src / "t.csv", questions()), tmp_path / "dst", "--name", name, *ASK) == 1
    assert words in capsys.readouterr().err
    assert tree(tmp_path / "dst") == []


def test_a_broken_off_run_leaves_what_was_there(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dst = tmp_path / "dst"
    file = table(src / "t.csv", questions())

    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("place", "_write_task_file"):  # before the new files take their place, and after
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(own, step, breaks)
            run("table", file, dst, "--name", "mine", *ASK)
        assert not dst.exists() or tree(dst) == []
    assert run("table", file, dst, "--name", "mine", *ASK) == 0
    before = {name: (dst / name).read_bytes() for name in tree(dst)}
    table(src / "t.csv", questions(5))
    for step in ("place", "_write_task_file"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(own, step, breaks)
            run("table", file, dst, "--name", "mine", *ASK)
        assert {name: (dst / name).read_bytes() for name in tree(dst)} == before


def test_preparing_again_keeps_an_edited_task_file(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst, file = tmp_path / "dst", table(src / "t.csv", questions())
    assert run("table", file, dst, "--name", "mine", *ASK) == 0
    before = {name: (dst / name).read_bytes() for name in tree(dst)}
    assert run("table", file, dst, "--name", "mine", *ASK) == 0
    assert {name: (dst / name).read_bytes() for name in tree(dst)} == before
    yaml = dst / "tasks/mine.yaml"
    yaml.write_text(yaml.read_text().replace("vqa: ", "mine: "))
    for _ in range(2):
        capsys.readouterr()
        assert run("table", file, dst, "--name", "mine", *ASK) == 0
        assert "which was edited" in capsys.readouterr().out
    assert load(dst).config.prompt == "mine: "


def test_two_tasks_and_a_set_share_a_root(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    assert run("table", table(src / "t.csv", questions()), dst, "--name", "asked", *ASK) == 0
    told = [{"image": f"p{n}.png", "caption": f"it is {n}"} for n in range(10)]
    assert run("table", table(src / "u.csv", told), dst, "--name", "told", *TELL) == 0
    assert set(json.loads((dst / "prepared.json").read_text())["sets"]) == {"asked", "told"}
    assert pictures(load(dst, "asked")) == pictures(load(dst, "told"))  # the same pictures fall into the same splits


def prepare_pictures(src: Path, dst: Path, name: str, numbers: Sequence[int], *options: str) -> dict[str, set[str]]:
    rows = [{"image": picture(src / f"n{n}.png", 100 + n), "caption": f"it is {n}"} for n in numbers]
    assert run("table", table(src / f"{name}.csv", rows), dst, "--name", name, *TELL, *options) == 0
    return pictures(load(dst, name))


def placed(*found: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The splits of each picture over several tasks or preparations."""
    out: dict[str, set[str]] = {}
    for parts in found:
        for split, names in parts.items():
            for name in names:
                out.setdefault(name, set()).add(split)
    return out


def test_overlapping_tasks_agree_on_the_split_of_a_picture(src: Path, tmp_path: Path) -> None:
    first = prepare_pictures(src, tmp_path / "dst", "first", range(20))
    second = prepare_pictures(src, tmp_path / "dst", "second", range(40))
    third = prepare_pictures(src, tmp_path / "dst", "third", range(10, 60))
    assert [len(first[s]) for s in SPLITS] == [16, 2, 2] and [len(second[s]) for s in SPLITS] == [32, 4, 4]
    assert [len(third[s]) for s in SPLITS] == [40, 5, 5]
    found = placed(first, second, third)
    assert len(found) == 60 and all(len(splits) == 1 for splits in found.values())
    alone = prepare_pictures(src, tmp_path / "elsewhere", "second", range(40))
    assert any(len(splits) > 1 for splits in placed(first, alone).values())  # what these pictures do by rank alone


def test_more_pictures_leave_the_old_ones_where_they_were(src: Path, tmp_path: Path) -> None:
    before = prepare_pictures(src, tmp_path / "dst", "mine", range(20))
    after = prepare_pictures(src, tmp_path / "dst", "mine", range(40))
    assert [len(after[s]) for s in SPLITS] == [32, 4, 4] and all(before[s] <= after[s] for s in SPLITS)
    other = prepare_pictures(src, tmp_path / "dst", "mine", range(40), "--split", "0.5,0.25,0.25")
    assert [len(other[s]) for s in SPLITS] == [20, 10, 10]


def test_a_task_is_split_anew_when_a_split_would_be_empty(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = prepare_pictures(src, tmp_path / "dst", "mine", range(20))
    assert "split anew" not in capsys.readouterr().out
    left = sorted(int(name[1:-4]) for name in before["train"])[:10]
    after = prepare_pictures(src, tmp_path / "dst", "mine", left)
    assert "note: mine is split anew" in capsys.readouterr().out
    assert [len(after[s]) for s in SPLITS] == [8, 1, 1]


def test_splits_that_contradict_another_task_are_refused(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare_pictures(src, tmp_path / "dst", "first", range(20))
    name = min(first["test"])
    rows = [{"image": name, "caption": "x", "part": "train"}]
    options = ("--name", "second", *TELL, "--split", "part")
    assert run("table", table(src / "u.csv", rows), tmp_path / "dst", *options) == 1
    said = capsys.readouterr().err
    assert f"another task (line 2: {name} is train here and test in the task first; another DST" in said
    assert run("table", table(src / "u.csv", [{**rows[0], "part": "test"}]), tmp_path / "dst", *options) == 0
    assert run("table", table(src / "v.csv", rows), tmp_path / "dst", "--name", "third", *TELL) == 1
    assert "(1 of them stand in other own tasks" in capsys.readouterr().err
    (tmp_path / "dst/first/splits.json").unlink()
    assert run("table", table(src / "u.csv", rows), tmp_path / "dst", *options) == 1
    assert "expected the record of which picture of 'first' is in which split" in capsys.readouterr().err


def test_every_file_is_hashed_once(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    digest = Media.digest
    monkeypatch.setattr(Media, "digest", lambda media: (hashed.append(media.path), digest(media))[1])
    rows = [{**row, "question": f"{row['question']} {m}"} for row in questions() for m in range(3)]
    assert run("table", table(src / "t.csv", rows), tmp_path / "dst", "--name", "mine", *ASK) == 0
    assert len(hashed) == len(set(hashed)) == 10


def test_strips_that_cannot_be_cut_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "src"
    src.mkdir()
    Image.new("RGB", (10, 4)).save(src / "v.3x1.png")
    file = json_lines(src / "t.jsonl", [{"clip": "v.3x1.png", "q": "What?", "a": "x"}])
    options = ("--name", "mine", "--video", "clip", "--text", "q", "--answer", "a")
    assert run("table", file, tmp_path / "dst", *options) == 1
    assert "1 x unreadable video (line 1: " in (said := capsys.readouterr().err) and "found 10 pixels" in said


def test_half_characters_and_places_that_cannot_be_written(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "dst"
    lines = [json.dumps(row) for row in questions()]
    lines[2] = lines[2].replace("What", "\\ud83d")
    (src / "t.jsonl").write_text("\n".join(lines))
    assert run("table", src / "t.jsonl", dst, "--name", "mine", *ASK) == 1
    assert (
        "row line 3: expected whole characters, found half a character" in capsys.readouterr().err and not dst.exists()
    )

    file = table(src / "t.csv", questions())
    dst.write_text("mine")
    assert run("table", file, dst, "--name", "mine", *ASK) == 1
    assert "expected a folder to write into, found a file" in capsys.readouterr().err and dst.read_text() == "mine"
    dst.unlink()

    assert run("table", file, dst, "--name", "mine", *ASK) == 0
    before = {name: (dst / name).read_bytes() for name in tree(dst)}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    table(src / "t.csv", questions(9))
    for call in ("replace", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, call, full)
            patch.setattr(files.shutil, "copyfile", full)
            assert run("table", file, dst, "--name", "mine", *ASK) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "No space left on device; check that" in said
        assert {name: (dst / name).read_bytes() for name in tree(dst)} == before


def test_scripts_without_blanks_get_room(src: Path, tmp_path: Path) -> None:
    told = [
        {"image": f"p{n}.png", "caption": "一只棕色的狗在绿色的草地上跑来跑去" if n else "a dog"} for n in range(10)
    ]
    assert run("table", table(src / "t.csv", told), tmp_path / "dst", "--name", "mine", *TELL) == 0
    assert load(tmp_path / "dst").decoding.max_tokens == 3 * 13 + 2  # 17 characters of three bytes


def test_hidden_files_and_paths_through_other_folders(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captions_csv(src)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("folder", "../src", tmp_path / "dst", "--name", "mine") == 0
    assert "stand in no row" not in capsys.readouterr().out
    (src / "captions.csv").unlink()
    text_files(src)
    for name in ("._p0.png", "._p0.txt", ".hidden/x.txt"):
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).write_bytes(b"\0")
    assert run("folder", "../src", tmp_path / "dst2", "--name", "mine") == 0


def captions_csv(src: Path) -> None:
    rows = [{"image": f"p{n}.png", "caption": f"{m} of {n}"} for n in range(10) for m in (1, 2)]
    table(src / "captions.csv", rows)


def text_files(src: Path) -> None:
    for n in range(10):
        (src / f"p{n}.txt").write_bytes(b"\xef\xbb\xbf" + f"1 of {n}\n\n2 of {n}\n".encode())


def metadata(src: Path) -> None:
    json_lines(
        src / "metadata.jsonl", [{"file_name": f"p{n}.png", "text": [f"1 of {n}", f"2 of {n}"]} for n in range(10)]
    )


@pytest.mark.parametrize("kind", [captions_csv, text_files, metadata], ids=lambda kind: kind.__name__)
def test_folders_of_captioned_pictures(
    kind: Any, src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind(src)
    assert run("folder", src, tmp_path / "dst", "--name", "mine") == 0
    assert "mine: pictures train 8, val 1, test 1" in capsys.readouterr().out
    task = load(tmp_path / "dst")
    assert len(task.examples("train")) == 16
    (example,) = task.examples("test")
    n = example.uid[1]
    assert example.references["captions"] == (f"1 of {n}", f"2 of {n}")


def test_folders_of_splits_and_pictures_of_other_kinds(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for n, (part, ending) in enumerate((("Train", "webp"), ("Train", "JPG"), ("validation", "bmp"), ("TEST", "gif"))):
        name = picture(src / part / f"p{n}.{ending}", n)
        file = src / part / "metadata.csv"
        rows = ([] if not file.exists() else list(csv.DictReader(file.open()))) + [{"file_name": name, "text": f"t{n}"}]
        table(file, rows)
    assert run("folder", src, tmp_path / "dst", "--name", "mine") == 0
    task = load(tmp_path / "dst")
    found = {split: [e.uid for e in rows] for split, rows in examples(task).items()}
    assert found == {"train": ["Train/p0.webp.png_0", "Train/p1.JPG_0"], "val": ["validation/p2.bmp.png"],
                     "test": ["TEST/p3.gif.png"]}  # fmt: skip
    with Image.open(task.examples("val")[0].visual.images[0]) as made, Image.open(src / "validation/p2.bmp") as source:
        assert made.format == "PNG" and made.convert("RGB").tobytes() == source.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda src: None, "expected captions: captions.csv"),
        (lambda src: (captions_csv(src), metadata(src)), "expected captions of one kind, found captions.csv, metadata.jsonl"),
        (lambda src: (text_files(src), (src / "p3.txt").unlink()), "1 x picture without a text file (p3.png)"),
        (lambda src: (text_files(src), (src / "p3.png").unlink()), "1 x text file without a picture (p3.txt)"),
        (lambda src: (text_files(src), (src / "p3.txt").write_text(" \n")), "1 x empty text file (p3.txt)"),
        (lambda src: (text_files(src), (src / "p3.txt").write_bytes(b"\xff\xe9")), "1 x text file that is not UTF-8"),
        (lambda src: (text_files(src), picture(src / "p3.jpg", 3)), "1 x pictures that share a text file (p3.jpg"),
        (lambda src: (text_files(src), picture(src / "test" / "q.png", 50)),
         "expected all pictures in the folders of the splits (test), found 10 beside them, e.g. p0.png; move those"),
        (lambda src: (picture(src / "dogs/q.png", 50), picture(src / "Train/r.png", 51), [p.unlink() for p in src.glob("*.png")]),
         "folders of the splits (Train), found 1 beside them, e.g. dogs/q.png; move those"),
        (lambda src: table(src / "captions.csv", [{"image": "p0.png", "caption": "a", "text": "b"}]), "say which with --caption"),
        (lambda src: (metadata(src), (src / "p5.png").unlink()), "1 x missing picture (line 6: 'p5.png')"),
    ],
)  # fmt: skip
def test_faults_of_folders(
    change: Any, words: str, src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(src)
    assert run("folder", src, tmp_path / "dst", "--name", "mine") == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


def test_a_folder_is_not_prepared_into_itself(src: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions_csv(src)
    before = tree(src)
    assert run("folder", src, src / "out", "--name", "mine") == 1
    assert "expected DST outside" in capsys.readouterr().err
    assert tree(src) == before
