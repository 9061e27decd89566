"""The kind `retrieval`: examples of texts, recalls from ranks, paragraphs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtvl.errors import ConfigError, DataError
from mtvl.tasks import load_task
from mtvl.types import Prediction


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures with two captions and one, in BLIP's files."""
    rows = [
        {"image": "a/1.png", "caption": ["a cat", "a grey cat"], "image_id": "x"}, {"image": "a/2.png", "caption": "a dog"}
    ]  # fmt: skip
    write(tmp_path / "flickr30k", {"flickr30k_train": rows, "flickr30k_val": rows, "flickr30k_test": rows})
    for name in ("1", "2"):
        file = tmp_path / "flickr30k" / "a" / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    return tmp_path


def write(folder: Path, files: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))


def test_examples_are_texts(root: Path) -> None:
    task = load_task("flickr30k", root=root)
    found = task.examples("test")
    assert [(e.uid, e.segments[1].text, Path(e.visual.images[0]).name) for e in found] == [
        ("a/1.png_0", "a cat", "1.png"), ("a/1.png_1", "a grey cat", "1.png"), ("a/2.png_0", "a dog", "2.png")
    ]  # fmt: skip
    assert task.loss == "pairs" and task.decoding.mode == "retrieve" and task.decoding.top == 128


def test_recalls_of_both_directions(root: Path) -> None:
    task = load_task("flickr30k", root=root)
    examples = task.examples("test")
    ranks = [(1.0, 2.0), (7.0, 2.0), (3.0, 12.0)]
    given = [Prediction(e.uid, "", {"text_rank": a, "item_rank": b}) for e, (a, b) in zip(examples, ranks, strict=True)]
    scores = task.score(given, examples)
    third = pytest.approx(100 / 3)
    assert (scores.metrics["ir1"], scores.metrics["ir5"], scores.metrics["ir10"]) == (
        third,
        pytest.approx(200 / 3),
        100,
    )
    assert (scores.metrics["tr1"], scores.metrics["tr5"], scores.metrics["tr10"]) == (0, 50, 50)
    assert scores.metrics["r_mean"] == pytest.approx((200 / 3 + 100 / 3) / 2)
    assert (scores.metrics["tr_median"], scores.metrics["ir_median"], scores.metrics["num_items"]) == (7, 3, 2)
    assert sum(scores.per_item.values()) / 3 == pytest.approx(scores.metrics["r_mean"])
    with pytest.raises(DataError, match="expected ranks in every prediction"):
        task.score([Prediction(e.uid, "text") for e in examples], examples)
    with pytest.raises(DataError, match="missing 1"):
        task.score(given[:2], examples)


def test_a_paragraph_is_all_texts_of_a_video(tmp_path: Path) -> None:
    rows = [{"video": "v1.mp4", "caption": "it starts."}, {"video": "v1.mp4", "caption": ["it ends.", "all leave."]}]
    write(tmp_path / "didemo", {f"retrieval_{split}": rows for split in ("train", "val", "test")})
    folder = tmp_path / "videos" / "didemo" / "v1"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    (example,) = load_task("didemo", root=tmp_path).examples("test")
    assert example.segments[1].text == "it starts. it ends. all leave." and example.visual.video.endswith("v1")
    assert example.visual.span is None


@pytest.mark.parametrize(
    "rows", [[{"image": "a/1.png", "caption": []}], [{"image": "a/1.png", "caption": [3]}], [{"image": "a/1.png"}]]
)
def test_files_without_texts_are_named(rows: list[dict], root: Path) -> None:
    write(root / "flickr30k", {"flickr30k_test": rows})
    with pytest.raises(DataError, match=r"flickr30k_test\.json.*caption"):
        load_task("flickr30k", root=root).examples("test")


def test_kind_loss_and_decoding_belong_together() -> None:
    for overlay in ({"loss": "sample_mean"}, {"decoding": {"mode": "generate"}}):
        with pytest.raises(ConfigError, match="belong together"):
            load_task("flickr30k", root=None, overlay=overlay)
