"""Small real sets become official files that the tasks read, and the checker finds what is wrong with a copy."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from mtvl.config import EvaluateConfig
from mtvl.tasks import load_task
from mtvl.types import Prediction

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


prepare = tool("prepare")  # puts tools/ on the path
check_data = tool("check_data")
from preparing import plan as plans  # noqa: E402


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (1, 2, 3)).save(path)


@pytest.fixture
def daquar(tmp_path: Path) -> Path:
    """120 images: 1 to 100 for training, the rest for the test; two questions each."""
    src = tmp_path / "daquar"
    for number in range(1, 121):
        picture(src / "images" / f"image{number}.jpg")
    (src / "train_images_list.txt").write_text("\n".join(f"image{n}" for n in range(1, 101)))
    (src / "test_images_list.txt").write_text("\n".join(f"image{n}" for n in range(101, 121)))
    rows = [f"what is left of the bed,night_stand,image{n}" for n in range(1, 121)]
    (src / "data_train.csv").write_text("question,answer,image_id\n" + "\n".join(rows) + "\n")
    rows = [f'what is on the wall,"lamp, garbage_bin, clock",image{n}' for n in range(1, 121)]
    (src / "data_eval.csv").write_text("question,answer,image_id\n" + "\n".join(rows) + "\n")
    return src


@pytest.fixture
def coco_mini(tmp_path: Path) -> Path:
    src = tmp_path / "coco_mini"
    captions = {}
    for number in range(150):
        picture(src / "images" / f"{number:012d}.jpg")
        captions[f"{number:012d}.jpg"] = {"split": "val2017", "captions": [f"photo {number}", "a photo"]}
    (src / "captions.json").write_text(json.dumps(captions))
    return src


@pytest.fixture
def flickr8k(tmp_path: Path) -> Path:
    src = tmp_path / "flickr8k_1k"
    lines = ["image,caption"]
    for number in range(310):
        picture(src / "images" / f"{number}_ab.jpg")
        lines += [f'{number}_ab.jpg,"A dog , number {number}, ""Rex"" ."', f"{number}_ab.jpg,A cat ."]
    (src / "captions.txt").write_text("\n".join(lines) + "\n")
    return src


def run(name: str, src: Path, dst: Path, *options: str) -> int:
    return prepare.main([name, str(src), str(dst), *options])


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_daquar_becomes_vqa_and_gqa(daquar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "dst"
    assert run("daquar", daquar, dst) == 0
    assert "daquar -> vqa: train 180, val 20, test 40" in capsys.readouterr().out
    vqa = load_task("vqa", root=dst)
    images: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        images[split] = {Path(i).name.rpartition("_")[2] for e in vqa.examples(split) for i in e.visual.images}
    assert [len(images[s]) for s in ("train", "val", "test")] == [90, 10, 20]
    assert not images["train"] & (images["val"] | images["test"])
    one, listed = vqa.examples("test")[0], vqa.examples("test")[-1]
    assert {t.text: t.weight for t in one.targets} == {"night stand": 1.0}
    assert {t.text: t.weight for t in listed.targets} == {"lamp": 1.0, "garbage bin": 0.9, "clock": 0.9}
    gqa = load_task("gqa", root=dst)
    examples = gqa.examples("test")
    assert len(examples) == 20  # only the question about a position, with its single answer
    scores = gqa.score([Prediction(e.uid, "night stand") for e in examples], examples)
    assert scores.metrics["accuracy"] == scores.metrics["open"] == 100
    notes = " ".join(json.loads((dst / "prepared.json").read_text())["sets"]["daquar"]["notes"])
    assert "ONE answer" in notes


def test_preparing_is_deterministic_and_repeatable(daquar: Path, coco_mini: Path, tmp_path: Path) -> None:
    for dst in (tmp_path / "a", tmp_path / "b"):
        assert run("daquar", daquar, dst) == run("coco_mini", coco_mini, dst) == 0
    first = all_files(tmp_path / "a")
    assert first == all_files(tmp_path / "b")
    assert run("coco_mini", coco_mini, tmp_path / "a") == 0
    assert all_files(tmp_path / "a") == first


def test_two_caption_sets_need_append(
    coco_mini: Path, flickr8k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst = tmp_path / "dst"
    assert run("coco_mini", coco_mini, dst) == 0
    before = all_files(dst)
    assert run("flickr8k", flickr8k, dst) == 1
    assert "--append merges them" in capsys.readouterr().err
    assert all_files(dst) == before
    assert run("flickr8k", tmp_path, dst, "--append") == 0  # SRC may also be the folder above
    task = load_task("coco", root=dst, evaluate=EvaluateConfig(captions_tokenizer="python"))
    assert [len(task.examples(s)) for s in ("train", "val", "test")] == [2 * (10 + 10), 140, 300]
    merged = all_files(dst)
    assert run("coco_mini", coco_mini, dst, "--append") == 0
    assert all_files(dst) == merged


def test_files_of_another_origin_are_kept(daquar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "dst/vqa/v2_mscoco_val2014_annotations.json"
    other.parent.mkdir(parents=True)
    other.write_text("real")
    assert run("daquar", daquar, tmp_path / "dst") == 1
    assert "of another origin" in capsys.readouterr().err
    assert other.read_text() == "real"


def test_a_broken_off_run_can_be_repeated(daquar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = plans.write_json, []

    def breaks(file: Path, content: Any) -> None:
        calls.append(file)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(file, content)

    monkeypatch.setattr(plans, "write_json", breaks)
    with pytest.raises(KeyboardInterrupt):
        run("daquar", daquar, tmp_path / "dst")
    monkeypatch.setattr(plans, "write_json", write)
    assert run("daquar", daquar, tmp_path / "dst") == 0
    assert run("daquar", daquar, tmp_path / "whole") == 0
    assert all_files(tmp_path / "dst") == all_files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data_train.csv", None, "expected this file of the set, found none"),
        ("data_train.csv", "question,image_id\n", "expected the columns question, answer, image_id"),
        ("data_train.csv", "question,answer,image_id\nq,,image1\n", "line 2: expected text"),
        ("data_train.csv", "question,answer,image_id\nq,a,image999\n", "line 2: expected an image of the two lists"),
        ("test_images_list.txt", "image1\nimage101\n", "found 1 in both, e.g. image1"),
        ("test_images_list.txt", "picture1\n", "expected names like image42"),
        ("images/image7.jpg", None, "expected 240 pictures, found 238, missing 2, e.g. image7.jpg"),
    ],
)
def test_faults_of_the_source_are_named(
    name: str, content: str | None, words: str, daquar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        (daquar / name).unlink()
    else:
        (daquar / name).write_text(content)
    assert run("daquar", daquar, tmp_path / "dst") == 1
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("dst/**/*.json"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one.jpg", "expected a photo called by its COCO id (000000000042.jpg), found 'one.jpg'"),
        ("../../../42.jpg", "expected the plain name of a file, found '../../../42.jpg'"),
        ("/42.jpg", "expected the plain name of a file, found '/42.jpg'"),
    ],
)
def test_names_of_photos(
    name: str, words: str, coco_mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that leads out of the folder would be linked into the data, or be written outside of them."""
    file = coco_mini / "captions.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: {"captions": ["a photo"]}}))
    before = sorted(tmp_path.rglob("*"))
    assert run("coco_mini", coco_mini, tmp_path / "dst") == 1
    assert words in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_a_missing_source_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flickr8k", tmp_path / "none", tmp_path / "dst") == 1
    assert "expected the folder of the set flickr8k" in capsys.readouterr().err


def test_the_checker(daquar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "dst"
    run("daquar", daquar, dst)
    arguments = [str(dst), "--tasks", "vqa,gqa", "--open"]
    assert check_data.main([*arguments, "--any-size"]) == 0
    assert "train: found 180 examples on 90 pictures; published 443,757" in capsys.readouterr().out
    assert check_data.main(arguments) == 1
    assert "vqa: split 'train' expected 443,757 examples, found 180" in capsys.readouterr().out
    broken, lost = sorted((dst / "gqa/images").iterdir())[:2]
    broken.unlink()  # a hard link: writing into it would reach the source
    broken.write_bytes(b"no picture")
    assert check_data.main([*arguments, "--any-size"]) == 1
    assert f"1 problems:\n  gqa: {broken}: expected a readable picture" in capsys.readouterr().out
    lost.unlink()
    assert check_data.main([*arguments, "--any-size"]) == 1
    assert f"missing 1, e.g. gqa/images/{lost.stem}" in capsys.readouterr().out
    assert check_data.main([str(dst), "--tasks", "vqq"]) == 1
    assert "did you mean 'vqa'" in capsys.readouterr().out
