"""Pre-training on captions: masked words, matching, and descriptions of Visual Genome; scores worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtvl.errors import ConfigError, DataError
from mtvl.tasks import load_task, read_task_config
from mtvl.tasks.files import TASKS_DIR
from mtvl.tasks.masked import mask_words, score_restored
from mtvl.types import Prediction

CAPTIONS = {
    n: [f"picture {n} shows a {colour} {animal}", f"one {animal} that is {colour}"]
    for n, (colour, animal) in enumerate(
        [("red", "dog"), ("blue", "cat"), ("green", "bird"), ("grey", "horse"), ("white", "cow"), ("black", "sheep")]
    )
}


@pytest.fixture
def coco(tmp_path: Path) -> Callable[[dict[int, list[str]]], Path]:
    """`coco(captions)`: a data root with them as COCO captions of the split train."""

    def write(captions: dict[int, list[str]]) -> Path:
        images = [
            {"filepath": "x", "filename": f"{n}.jpg", "cocoid": n, "split": "train",
             "sentences": [{"raw": t, "sentid": 10 * n + i} for i, t in enumerate(texts)]}
            for n, texts in captions.items()
        ]  # fmt: skip
        (tmp_path / "coco").mkdir(exist_ok=True)
        (tmp_path / "coco" / "dataset_coco.json").write_text(json.dumps({"images": images}))
        (tmp_path / "images" / "x").mkdir(parents=True, exist_ok=True)
        for n in captions:
            (tmp_path / "images" / "x" / f"{n}.jpg").touch()
        return tmp_path

    return write


def test_words_are_left_out_and_asked_for() -> None:
    text = "a small brown dog runs over the wet grass and barks at two cats in the rain all day"
    words, seen = text.split(), set()
    for key in range(60):
        whole = mask_words(text, 0.15, "<mask>", key)
        assert len(whole.missing) == 3 and whole.target == text  # 15 % of 19, rounded
        assert sorted(whole.missing + whole.left) == sorted(words)
        assert 1 <= whole.source.split().count("<mask>") <= 3  # neighbours share a mark
        assert [w for w in whole.source.split() if w != "<mask>"] == list(whole.left)
        pieces = mask_words(text, 0.15, "<extra_id_{}>", key)
        assert pieces.missing == whole.missing  # the mark changes nothing about the choice
        filled, answer = pieces.source, pieces.target.split("<extra_id_")[1:]
        for number, piece in enumerate(answer[:-1]):
            assert piece.startswith(f"{number}>")
            filled = filled.replace(f"<extra_id_{number}>", piece.partition(">")[2].strip())
        assert filled == text and answer[-1] == f"{len(answer) - 1}>"
        seen.add(whole.missing)
    assert len(seen) > 50
    assert mask_words(text, 0.15, "<mask>", 1) == mask_words(text, 0.15, "<mask>", 1)
    one = mask_words("dog", 0.15, "<mask>", 0)
    assert (one.source, one.target, one.missing, one.left) == ("<mask>", "dog", ("dog",), ())


@pytest.mark.parametrize(("family", "mark"), [("bart", "<mask>"), ("t5", "<extra_id_0>")])
def test_masked_captions(coco: Callable[..., Path], family: str, mark: str) -> None:
    task = load_task("masked_coco", root=coco(CAPTIONS), family=family)
    examples = task.examples("train")
    assert [e.uid for e in examples[:3]] == ["0_0", "0_1", "1_10"] and len(examples) == 12
    for example in examples:
        assert example.segments[0].text == "span prediction: " and mark in example.segments[1].text
        assert example.visual.images and example.targets[0].text
    # The right answer restores everything; copying what is seen restores nothing.
    right = task.score([Prediction(e.uid, e.targets[0].text) for e in examples], examples)
    assert right.primary == "restored" and right.metrics["restored"] == 100.0
    seen = [Prediction(e.uid, e.segments[1].text.replace(mark, "")) for e in examples]
    if family == "bart":
        assert task.score(seen, examples).metrics["restored"] == 0.0


def test_restored_words_are_counted() -> None:
    references = {"a": (["brown", "the"], ["dog", "on", "the", "grass"]), "b": (["Two"], [])}
    texts = {"a": "the brown dog on grass", "b": "two two"}
    result = score_restored(texts, references, "<mask>")
    assert result.per_item == {"a": 50.0, "b": 100.0}  # one "the" was there before
    assert result.metrics == {"restored": 75.0}
    pieces = score_restored({"a": "<extra_id_0> the <extra_id_1> red"}, {"a": (["the", "brown"], [])}, "<extra_id_{}>")
    assert pieces.per_item == {"a": 50.0}
    with pytest.raises(DataError, match="masked captions: expected one entry"):
        score_restored({"a": ""}, references, "<mask>")


def test_matching_captions(coco: Callable[..., Path]) -> None:
    many = {n: [f"{word} number {n}" for word in ("one", "another", "a third")] for n in range(60)}
    task = load_task("matching_coco", root=coco(many))
    examples = task.examples("train")
    assert len(examples) == 180 and len({e.uid for e in examples}) == 180
    answers = [e.targets[0].text for e in examples]
    assert 65 < answers.count("true") < 115  # half of 180, three standard deviations and a half
    for example, answer in zip(examples, answers, strict=True):
        picture = int(Path(example.visual.images[0]).stem)
        assert (example.segments[1].text in many[picture]) == (answer == "true")
    foreign = {e.segments[1].text for e, a in zip(examples, answers, strict=True) if a == "false"}
    assert len(foreign) > 40  # not one caption again and again
    assert task.score([Prediction(e.uid, "true") for e in examples], examples).metrics["accuracy"] == pytest.approx(
        100 * answers.count("true") / 180
    )
    assert load_task("matching_coco", root=coco(many)).examples("train") == examples


def test_matching_needs_captions_that_differ(coco: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="at least two pictures, found 1"):
        load_task("matching_coco", root=coco({0: ["a dog"]})).examples("train")
    with pytest.raises(DataError, match=r"differ from picture to picture, found none for \d"):
        load_task("matching_coco", root=coco({n: ["a dog"] * 3 for n in range(4)})).examples("train")


def test_descriptions_of_visual_genome(tmp_path: Path) -> None:
    def write(content: Any) -> None:
        (tmp_path / "vg" / "VG_100K").mkdir(parents=True, exist_ok=True)
        (tmp_path / "vg" / "region_descriptions.json").write_text(json.dumps(content))
        for n in (1, 2, 3):
            (tmp_path / "vg" / "VG_100K" / f"{n}.jpg").touch()

    rows = [
        {"id": n, "regions": [{"region_id": 10 * n + i, "image_id": n, "phrase": f"a {w} {n}", "x": 0} for i, w in
                              enumerate(words)]}
        for n, words in ((1, ("clock", "wall")), (2, ("man",)), (3, ()))
    ]  # fmt: skip
    write(rows)
    examples = load_task("masked_vg", root=tmp_path).examples("train")
    assert [e.uid for e in examples] == ["1_10", "1_11", "2_20"]  # a picture without descriptions gives no example
    assert examples[0].visual.images == (str(tmp_path / "vg" / "VG_100K" / "1.jpg"),)
    assert len(load_task("matching_vg", root=tmp_path).examples("train")) == 3
    write([*rows, rows[0]])
    with pytest.raises(DataError, match="picture id"):
        load_task("masked_vg", root=tmp_path).examples("train")
    write([{**rows[0], "regions": rows[0]["regions"] * 2}])
    with pytest.raises(DataError, match="region id"):
        load_task("masked_vg", root=tmp_path).examples("train")
    write([{"id": 1, "regions": [{"region_id": 1}]}])
    with pytest.raises(DataError, match="'phrase'"):
        load_task("masked_vg", root=tmp_path).examples("train")


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    def read(name: str, **overlay: Any) -> None:
        read_task_config(name, TASKS_DIR / f"{name}.yaml", "bart", overlay)

    with pytest.raises(ConfigError, match=r"'masked_coco.masking.share' must lie between 0 and 1, found 1.5"):
        read("masked_coco", masking={"share": 1.5})
    with pytest.raises(ConfigError, match="'coco.masking' belongs to the kind masked"):
        read("coco", masking={"share": 0.3})
    with pytest.raises(ConfigError, match="marc"):
        read("masked_coco", masking={"marc": "x"})
