"""VQA as BLIP trains it: its own files, shares as weights, validation rows and Visual Genome beside the training split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtvl.errors import ConfigError, DataError
from mtvl.tasks import load_task

ANSWERS = ["red"] * 6 + ["A red"] * 2 + ["blue", "dark"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training rows, one of validation, and two of Visual Genome, without ids of their own."""
    asked = [
        {"question_id": 7, "question": "which colour?", "image": "train2014/a.jpg", "answer": ANSWERS, "dataset": "vqa"},
        {"question_id": 8, "question": "how many?", "image": "train2014/a.jpg", "answer": ["2"] * 10, "dataset": "vqa"},
    ]  # fmt: skip
    others = [{"question": f"what is {i}?", "image": f"image/{i}.jpg", "answer": "a cup", "dataset": "vg"} for i in (1, 2)]  # fmt: skip
    for name, rows in (("vqa/vqa_train", asked), ("vqa/vqa_val", [{**asked[0], "question_id": 9}]), ("vg/vg_qa", others)):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    for picture in ("images/train2014/a.jpg", "vg/image/1.jpg", "vg/VG_100K_2/2.jpg"):
        (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / picture)
    return tmp_path


def rows(root: Path, **overlay: Any) -> dict[str, Any]:
    return {e.uid: e for e in load_task("vqa", root=root, overlay=overlay).examples("train")}


def weights(example: Any) -> dict[str, float]:
    return {t.text: t.weight for t in example.targets}


def test_weights_are_shares_of_the_annotators_where_asked(root: Path) -> None:
    assert weights(rows(root)["7"]) == {"red": 1.0, "blue": 0.3, "dark": 0.3}
    shares = weights(rows(root, answer_weights="share")["7"])
    assert shares == pytest.approx({"red": 0.8, "blue": 0.1, "dark": 0.1})


@pytest.mark.parametrize("how", ["accuracy", "share"])
def test_rows_are_added_with_their_weight(root: Path, how: str) -> None:
    found = rows(root, answer_weights=how, also=["val", "visual_genome"])
    assert list(found) == ["7", "8", "val-9", "visual_genome-vg_qa[0]", "visual_genome-vg_qa[1]"]
    assert [Path(e.visual.images[0]).name for e in found.values()] == ["a.jpg", "a.jpg", "a.jpg", "1.jpg", "2.jpg"]
    assert weights(found["visual_genome-vg_qa[1]"]) == {"cup": 0.2}
    assert weights(found["val-9"]) == weights(found["7"])
    assert len(load_task("vqa", root=root, overlay={"also": ["visual_genome"]}).examples("val")) == 1


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"also": ["visual_genom"]}, "did you mean 'visual_genome'"),
        ({"also": ["val", "val"]}, "names 'val' twice"),
        ({"additions": {"visual_genome": {"weight": 0}}}, "a weight above 0"),
        ({"additions": {"val": {"format": "blip_vqa", "files": {}, "pictures": ["x"]}}}, "no split of the task"),
        ({"answer_weights": "shares"}, "did you mean 'share'"),
        ({"decoding": {"list_file": "x.json"}}, "mode rank_list"),
        ({"kind": "answer", "answer_weights": "share", "primary": "accuracy"}, "many people answered"),
        ({"decoding": {"smoothing": 1.0}}, "'vqa.decoding.smoothing'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(overlay: dict[str, Any], words: str, root: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_task("vqa", root=root, overlay=overlay)


def test_missing_and_broken_rows_are_named(root: Path) -> None:
    (root / "vg" / "image" / "1.jpg").unlink()
    with pytest.raises(DataError, match="1.jpg|picture"):
        rows(root, also=["visual_genome"])
    (root / "vg" / "vg_qa.json").write_text('[{"question": "what?", "image": "image/2.jpg", "answer": 3}]')
    with pytest.raises(DataError, match=r"vg_qa.json, row \[0\].*'answer'"):
        rows(root, also=["visual_genome"])
    (root / "vg" / "vg_qa.json").unlink()
    with pytest.raises(DataError, match="missing vg/vg_qa.json"):
        rows(root, also=["visual_genome"])


def test_scores_alone_have_no_shares(tmp_path: Path) -> None:
    (tmp_path / "vqa").mkdir()
    row = [{"question_id": 1, "sent": "which?", "img_id": "COCO_train2014_000000000001", "label": {"red": 1}}]
    (tmp_path / "vqa" / "karpathy_train.json").write_text(json.dumps(row))
    (tmp_path / "images" / "train2014").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "train2014" / "COCO_train2014_000000000001.jpg")
    assert weights(rows(tmp_path)["1"]) == {"red": 1.0}
    with pytest.raises(DataError, match="karpathy_train.json, row .*annotators' answers"):
        rows(tmp_path, answer_weights="share")


def test_the_list_to_rank_comes_from_the_setting_a_file_or_the_training_split(root: Path) -> None:
    def listed(**decoding: Any) -> tuple[str, ...]:
        overlay = {"also": ["visual_genome"], "decoding": {"mode": "rank_list", **decoding}}
        return load_task("vqa", root=root, overlay=overlay).listed_answers()

    assert listed() == ("cup", "2", "blue", "dark", "red")
    assert listed(list_size=2) == ("cup", "2")
    assert listed(choices=["yes", "no", "yes"]) == ("yes", "no")
    (root / "vqa" / "answer_list.json").write_text('["cup", "", "red", "cup"]')
    assert listed(list_file="vqa/answer_list.json") == ("cup", "red")
    with pytest.raises(DataError, match=r"answers.json: .*task.vqa.decoding.list_file"):
        listed(list_file="vqa/answers.json")
    (root / "vqa" / "vqa_train.json").unlink()
    with pytest.raises(DataError, match="name a list with task.vqa.decoding.list_file"):
        listed()
