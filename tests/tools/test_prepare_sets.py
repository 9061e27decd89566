"""NLVR, MSR-VTT and YouCook2 become official files; the splits hold no picture or video twice."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtvl.tasks import load_task
from mtvl.tasks.base import BaseTask
from mtvl.types import Prediction

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from prepare import main  # noqa: E402

SPLITS = ("train", "val", "test")


def boxes(path: Path, *greys: int) -> None:
    """A picture of three boxes of one grey each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (400, 100), (128, 128, 128))
    for place, grey in enumerate(greys):
        picture.paste((grey, grey, grey), (150 * place, 0, 150 * place + 100, 100))
    picture.save(path)


def strip(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8 * frames, 6), (1, 2, 3)).save(path)


def nlvr1(src: Path) -> Path:
    dev = []
    for sentence in range(8):
        for picture in range(2):
            views = [f"dev-{sentence}-{picture}-{view}.png" for view in (0, 1)]
            boxes(src / "dev" / views[0], 10, 20, 30)
            boxes(src / "dev" / views[1], 20, 30, 10)
            label = "true" if picture else "false"
            dev.append(
                {"sentence": f"S{sentence}.", "label": label, "identifier": f"{sentence}-{picture}", "images": views}
            )
    names = [f"train-{number}-0-4.png" for number in (100, 101, 102)]
    for name in names:
        boxes(src / "train_sample" / name, 40, 50, 60)
    train = [{"sentence": "There is a box.", "label": "false", "image": name} for name in names]
    (src / "dev.json").write_text(json.dumps(dev))
    (src / "train_sample.json").write_text(json.dumps(train))
    return src


def msrvtt(src: Path) -> Path:
    official = {**dict.fromkeys(range(3), "train"), **dict.fromkeys(range(3, 11), "validate")}
    official |= dict.fromkeys(range(11, 20), "test")
    captions = {}
    for number, split in official.items():
        frames = 2 if number % 2 else 3
        strip(src / "frames" / f"video{number}.jpg", frames)
        captions[f"video{number}"] = {
            "category": 4,
            "split": split,
            "captions": ["a dog", "a cat"],
            "num_frames": frames,
        }
    (src / "captions.json").write_text(json.dumps(captions))
    for file, split, first in (("qa_val.json", "validate", 100), ("qa_test.json", "test", 200)):
        rows = [
            {"video": f"video{number}", "question": "what is it", "answer": "dog", "qid": first + number}
            for number in official if official[number] == split
        ]  # fmt: skip
        (src / file).write_text(json.dumps(rows))
    return src


def youcook2(src: Path) -> Path:
    rows = []
    for number in range(10):
        part, name = "training" if number < 4 else "validation", f"-v_{number}"
        frames = [f"{name}__frame_{i}.jpg" for i in range(3)]
        for frame in frames:
            strip(src / "frames" / frame, 1)
        texts = [f"cut {number}", f"fry {number}", f"fry {number}" if number == 0 else f"eat {number}"]
        rows.append({"video_id": f"{part}/201/{name}", "frames": frames, "text": texts})
    (src / "youcook2_600.json").write_text(json.dumps(rows))
    return src


MAKERS: dict[str, Callable[[Path], Path]] = {"nlvr1": nlvr1, "msrvtt": msrvtt, "youcook2": youcook2}


def prepared(name: str, folder: Path) -> Path:
    src = MAKERS[name](folder / "src" / name)
    assert main([name, str(src), str(folder / "dst")]) == 0
    return folder / "dst"


def videos(task: BaseTask) -> dict[str, set[str]]:
    return {s: {Path(e.visual.video).name for e in task.examples(s)} for s in SPLITS}


def test_nlvr1_becomes_nlvr2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = load_task("nlvr2", root=prepared("nlvr1", tmp_path))
    assert "nlvr1 -> nlvr2: train 3, val 4, test 12" in capsys.readouterr().out
    sentences = {s: {e.uid.split("-")[1] for e in task.examples(s)} for s in SPLITS}
    assert not sentences["val"] & sentences["test"] and len(sentences["val"] | sentences["test"]) == 8
    example = task.examples("test")[1]
    assert example.targets[0].text == "true" and [Path(p).name[-8:] for p in example.visual.images] == [
        "img0.png",
        "img1.png",
    ]
    texts = {e.uid: e.targets[0].text for e in task.examples("test")}
    wrong = {next(iter(texts)): "true"}  # one picture of one of six sentences
    scores = task.score([Prediction(u, wrong.get(u, t)) for u, t in texts.items()], task.examples("test"))
    assert scores.metrics == pytest.approx({"accuracy": 1100 / 12, "consistency": 500 / 6})


def test_the_second_view_of_a_training_picture_has_its_boxes_moved_round(tmp_path: Path) -> None:
    task = load_task("nlvr2", root=prepared("nlvr1", tmp_path))
    first, second = (np.asarray(Image.open(path).convert("L")) for path in task.examples("train")[0].visual.images)
    middles = (50, 125, 200, 275, 350)
    assert [int(first[50, x]) for x in middles] == [40, 128, 50, 128, 60]
    assert [int(second[50, x]) for x in middles] == [60, 128, 40, 128, 50]


def test_a_picture_of_another_size_is_no_picture_of_three_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = nlvr1(tmp_path / "src")
    Image.new("RGB", (300, 100)).save(src / "train_sample/train-101-0-4.png")
    assert main(["nlvr1", str(src), str(tmp_path / "dst")]) == 1
    assert "expected a picture of three boxes, 400 x 100, found 300 x 100" in capsys.readouterr().err
    assert not list(tmp_path.glob("dst/**/*.json"))


def test_msrvtt_becomes_captions_and_questions_with_one_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst = prepared("msrvtt", tmp_path)
    out = capsys.readouterr().out
    assert "msrvtt -> tvc: train 15, val 2, test 3" in out and "msrvtt -> msrvtt_qa: train 12, val 2, test 3" in out
    captions, questions = load_task("tvc", root=dst), load_task("msrvtt_qa", root=dst)
    told, asked = videos(captions), videos(questions)
    assert asked["val"] == told["val"] and asked["test"] == told["test"] and asked["train"] < told["train"]
    assert not told["train"] & (told["val"] | told["test"])
    assert len(captions.examples("train")) == 30 and len(captions.examples("test")[0].references["captions"]) == 2
    assert {Path(e.visual.video).name for e in captions.examples("train")} >= {"video0.3x1.jpg", "video1.2x1.jpg"}
    paired = load_task("msrvtt", root=dst)
    assert videos(paired) == told and "msrvtt -> msrvtt: train 15, val 2, test 3" in out
    assert [len(paired.examples(s)) for s in SPLITS] == [30, 2, 3]  # every caption to train on, else the first
    test = questions.examples("test")
    assert questions.score([Prediction(e.uid, " Dog") for e in test], test).metrics == {"accuracy": 100.0}
    assert questions.score([Prediction(e.uid, "hot dog") for e in test], test).metrics == {"accuracy": 0.0}


def test_youcook2_becomes_captions_and_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = prepared("youcook2", tmp_path)
    out = capsys.readouterr().out
    assert (
        "youcook2 -> yc2c: train 12, val 6, test 12" in out and "youcook2 -> yc2_steps: train 9, val 6, test 12" in out
    )
    steps = load_task("yc2_steps", root=dst)
    of = {s: {v.rpartition("_")[0] for v in names} for s, names in videos(steps).items()}
    assert not of["train"] & of["val"] and not of["val"] & of["test"] and len(of["val"] | of["test"]) == 6
    for split in SPLITS:
        examples = steps.examples(split)
        assert all(e.targets[0].text in e.choices for e in examples)
        assert len({e.choices for e in examples}) == len(of[split])  # the text of a video's three questions is one
        assert set(Counter(e.references["answer"] for e in examples).values()) == {len(of[split])}
    assert len(load_task("yc2c", root=dst).examples("test")[0].references["captions"]) == 1
    notes = json.loads((dst / "prepared.json").read_text())["sets"]["youcook2"]["notes"]
    assert "1 videos with two steps of the same words" in notes[-1]


@pytest.mark.parametrize("name", MAKERS)
def test_two_runs_give_the_same_files(name: str, tmp_path: Path) -> None:
    for half in ("a", "b"):
        prepared(name, tmp_path / half)
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        for root in (tmp_path / "a/dst", tmp_path / "b/dst")
    )
    assert first == second and len(first) > 5
    assert main([name, str(tmp_path / "a/src"), str(tmp_path / "a/dst")]) == 0  # again, from the folder above
    assert {p.relative_to(tmp_path / "a/dst") for p in (tmp_path / "a/dst").rglob("*") if p.is_file()} == first.keys()


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "words"),
    [
        ("nlvr1", "dev.json", '"0-0"', '"zero"', "expected an identifier like 1572-0"),
        ("nlvr1", "dev.json", '"0-0"', '"0-1"', "expected at least two pictures like dev-0-1-0.png"),
        ("nlvr1", "dev.json", '"label": "false"', '"label": "maybe"', "expected True or False in 'label'"),
        ("nlvr1", "train_sample.json", "train-100-0-4", "train-7-0-4", "found 1 in both"),
        ("msrvtt", "captions.json", '"split": "test"', '"split": "tst"', "expected 'split' to be"),
        ("msrvtt", "qa_test.json", '"video11"', '"video1"', "expected a video of the split 'test'"),
        ("msrvtt", "qa_val.json", '"answer": "dog"', '"answer": " "', "found only blanks"),
        ("youcook2", "youcook2_600.json", "training/201/-v_0", "other/201/-v_0", "begins with training/"),
        ("youcook2", "youcook2_600.json", '"cut 1"', '""', "expected 3 texts in 'text'"),
        ("youcook2", "youcook2_600.json", "-v_1__frame_0", "-v_1__frame_9", "missing 1, e.g. -v_1__frame_9.jpg"),
        ("youcook2", "youcook2_600.json", "-v_1__frame_0", "../../x", "expected the plain name of a file, found '../../x.jpg'"),
    ],
)  # fmt: skip
def test_faults_are_named_and_nothing_is_written(
    name: str, file: str, old: str, new: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = MAKERS[name](tmp_path / "src")
    text = (src / file).read_text()
    assert old in text
    (src / file).write_text(text.replace(old, new, 1))
    assert main([name, str(src), str(tmp_path / "dst")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()


def test_all_sets_of_a_folder_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "src"
    for name in ("nlvr1", "youcook2"):
        MAKERS[name](src / name)
    for name in ("nlvr1", "youcook2"):
        assert main([name, str(src), str(tmp_path / "one by one")]) == 0
    assert main(["all", str(src), str(tmp_path / "at once")]) == 0
    said = capsys.readouterr().out
    assert "no such folder" in said and said.rstrip().endswith("daquar, coco_mini, flickr8k, msrvtt")
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one by one", tmp_path / "at once")
    )
    assert first == second and len(first) > 10
    (tmp_path / "empty").mkdir()
    assert main(["all", str(tmp_path / "empty"), str(tmp_path / "nothing")]) == 1
    assert "(daquar, coco_mini, flickr8k_1k, nlvr1, msrvtt, youcook2), found none" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
