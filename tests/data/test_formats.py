"""Readers turn official files into rows, and every fault into a DataError with file and row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtvl.data.formats import FORMATS
from mtvl.errors import DataError

QUESTION = {"question_id": 42001, "image_id": 42, "question": " What is it? "}
ANSWERS = [{"answer": "cat", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
ANNOTATION = {"question_id": 42001, "image_id": 42, "answers": ANSWERS, "answer_type": "other"}
GQA_QUESTION = {
    "question": "Is it red?", "imageId": "n1", "answer": "no", "isBalanced": True, "entailed": [], "semantic": [],
    "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"}, "groups": {"global": None},
}  # fmt: skip
SNLI_ROW = {
    "gold_label": "neutral", "sentence1": "A dog runs.", "sentence2": " It is late. ", "captionID": "36979.jpg#2",
    "pairID": "36979.jpg#2r1n", "Flickr30K_ID": "36979", "annotator_labels": ["neutral"],
}  # fmt: skip
NLVR2_ROW = {"identifier": "dev-850-0-1", "sentence": "Two dogs.", "label": "True", "directory": 7}
KARPATHY_IMAGE = {
    "filepath": "val2014", "filename": "COCO_val2014_000000000009.jpg", "cocoid": 9, "imgid": 0, "split": "restval",
    "sentences": [{"raw": "A dog. ", "sentid": 1}, {"raw": "The dog.", "sentid": 2}],
}  # fmt: skip

QA_ROW = {
    "qid": 7, "q": "What falls? ", "a0": "A cup.", "a1": "a hat", "answer_idx": 1, "ts": "1.21-8.49",
    "vid_name": "met_s06e22_seg01_clip_02", "show_name": "Friends",
}  # fmt: skip
CLIP_ROW = {
    "clip_id": 9, "vid_name": "v1", "duration": 59.03, "ts": [0, 8.5],
    "descs": [{"desc": "A dog runs. ", "desc_id": 1, "type": "v"}, {"desc": "It runs.", "desc_id": 2}],
}  # fmt: skip
JSON_LINES = ("nlvr2_official", "snli_ve", "value_qa", "value_captions", "own_table")

# For each format: the roles with sound content; the first role holds the rows.
SOUND: dict[str, dict[str, Any]] = {
    "vqa_official": {"questions": {"questions": [QUESTION]}, "annotations": {"annotations": [ANNOTATION]}},
    "vqa_karpathy": {
        "rows": [
            {"question_id": 42001, "img_id": "COCO_train2014_000000000042", "sent": "What?", "label": {"cat": 0.9}}
        ]
    },
    "gqa_official": {"questions": {"101": GQA_QUESTION}, "choices": {"101": {"valid": ["no"], "plausible": ["no"]}}},
    "gqa_vl_adapter": {"rows": [{"question_id": "101", "img_id": "n1", "sent": "Is it?", "label": {"no": 1.0}}]},
    "nlvr2_official": {"rows": NLVR2_ROW},
    "nlvr2_vl_adapter": {
        "rows": [
            {"identifier": "dev-1-0-0", "img0": "dev-1-0-img0", "img1": "dev-1-0-img1", "label": 0, "sent": "Two."}
        ]
    },
    "snli_ve": {"rows": SNLI_ROW},
    "coco_karpathy": {"rows": {"images": [KARPATHY_IMAGE]}},
    "coco_captions": {
        "rows": {
            "images": [{"id": 9, "file_name": "000000000009.jpg"}],
            "annotations": [{"id": 1, "image_id": 9, "caption": "A dog."}],
        }
    },
    "value_qa": {"rows": QA_ROW, "subtitles": {"vid_name": QA_ROW["vid_name"], "sub": []}},
    "value_captions": {
        "rows": CLIP_ROW,
        "subtitles": {"vid_name": "v1", "sub": [{"text": " Ann : Run!", "start": 1, "end": 2.5}]},
    },
    "msrvtt_qa": {"rows": [{"id": 5, "video_id": 6513, "question": "What runs?", "answer": "dog", "category_id": 3}]},
    "vg_regions": {
        "rows": [{"id": 1, "regions": [{"region_id": 11, "image_id": 1, "phrase": "a red door", "x": 2, "y": 3}]}]
    },
    "blip_captions": {"rows": [{"image": "val2014/a.jpg", "caption": ["A dog. ", "It runs."]}]},
    "video_captions": {
        "rows": [{"video": "v1.mp4", "caption": "A dog runs."}, {"video": "v1.mp4", "caption": "It runs."}]
    },
    "blip_vqa": {"rows": [{"question_id": 7, "question": "What?", "image": "train2014/a.jpg", "answer": ["cat"] * 10}]},
    "own_table": {"rows": {"id": "a", "picture": "a.jpg", "text": "What is it?", "answers": ["a cat", "cat"]}},
}
FIELDS = [
    ("vqa_official", "questions[0]", ("questions", "questions", 0), ("question_id", "image_id", "question")),
    ("vqa_official", "annotations[0]", ("annotations", "annotations", 0), ("question_id", "answers")),
    ("vqa_karpathy", "[0]", ("rows", 0), ("question_id", "img_id", "sent")),
    ("gqa_official", "101", ("questions", "101"), ("question", "imageId")),
    ("gqa_official", "101", ("choices", "101"), ("valid", "plausible")),
    ("gqa_vl_adapter", "[0]", ("rows", 0), ("question_id", "img_id", "sent")),
    ("nlvr2_official", "line 1", ("rows",), ("identifier", "sentence")),
    ("nlvr2_vl_adapter", "[0]", ("rows", 0), ("identifier", "img0", "img1", "sent")),
    ("snli_ve", "line 1", ("rows",), ("pairID", "sentence2", "Flickr30K_ID")),
    ("coco_karpathy", "images[0]", ("rows", "images", 0), ("cocoid", "filename", "split", "sentences")),
    ("coco_karpathy", "images[0].sentences[1]", ("rows", "images", 0, "sentences", 1), ("raw",)),
    ("coco_captions", "images[0]", ("rows", "images", 0), ("id", "file_name")),
    ("coco_captions", "annotations[0]", ("rows", "annotations", 0), ("id", "image_id", "caption")),
    ("value_qa", "line 1", ("rows",), ("qid", "q", "a0", "a1", "vid_name")),
    ("value_qa", "line 1", ("subtitles",), ("vid_name", "sub")),
    ("value_captions", "line 1", ("rows",), ("clip_id", "vid_name", "descs")),
    ("value_captions", "line 1.descs[1]", ("rows", "descs", 1), ("desc",)),
    ("msrvtt_qa", "[0]", ("rows", 0), ("id", "video_id", "question")),
    ("vg_regions", "[0]", ("rows", 0), ("id", "regions")),
    ("vg_regions", "[0].regions[0]", ("rows", 0, "regions", 0), ("region_id", "phrase")),
    ("blip_captions", "[0]", ("rows", 0), ("image", "caption")),
    ("video_captions", "[1]", ("rows", 1), ("video", "caption")),
    ("blip_vqa", "[0]", ("rows", 0), ("question_id", "question", "image", "answer")),
    ("own_table", "line 1", ("rows",), ("id", "picture", "text", "answers")),
]
# What may be left out because it stands in another place: the annotations, or (in the Flickr files) imgid; or is no part of
# every row: ids in the file of Visual Genome, answers in that of a test.
ELSEWHERE = {
    ("vqa_official", "image_id"), ("coco_karpathy", "cocoid"), ("blip_vqa", "question_id"), ("blip_vqa", "answer"),
}  # fmt: skip
CASES = [(fmt, place, path, key) for fmt, place, path, keys in FIELDS for key in keys]


def fresh(fmt: str) -> dict[str, Any]:
    """A copy of the sound content that a test may damage."""
    return json.loads(json.dumps(SOUND[fmt]))


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Any]]:
    """`read(format, content, split)`: write the roles as JSON files and read them."""

    def run(fmt: str, content: dict[str, Any], split: str = "train") -> list[Any]:
        files = {}
        for role, values in content.items():
            file = tmp_path / f"{role}.json"
            if not isinstance(values, bytes):
                lines = values if fmt in JSON_LINES and isinstance(values, list) else [values]
                values = "\n".join(json.dumps(line) for line in lines).encode()
            file.write_bytes(values)
            files[role] = [file]
        return FORMATS.load(fmt)().read(files, split)

    return run


@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_every_format_reads_its_sound_file(fmt: str, read: Callable[..., list[Any]]) -> None:
    (row,) = read(fmt, fresh(fmt))
    assert row.uid
    assert bool(row.pictures) != (row.clip is not None)
    assert row.file.exists()


@pytest.mark.parametrize(("fmt", "place", "path", "key"), CASES)
@pytest.mark.parametrize("damage", ["missing", "null", "wrong type", "blank"])
def test_a_damaged_field_is_named(
    fmt: str, place: str, path: tuple[Any, ...], key: str, damage: str, read: Callable[..., list[Any]]
) -> None:
    content = fresh(fmt)
    node = content
    for step in path:
        node = node[step]
    if damage == "missing":
        del node[key]
    else:
        node[key] = {"null": None, "wrong type": 1.5, "blank": "  "}[damage]
    if (fmt, key) in ELSEWHERE and damage in ("missing", "null"):
        assert read(fmt, content)
        return
    with pytest.raises(DataError) as caught:
        read(fmt, content)
    assert caught.value.file is not None
    assert Path(str(caught.value.file)).name == f"{path[0]}.json"
    assert caught.value.row == place
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize("fmt", sorted(FORMATS))
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"a": 1', "found a fault in line 1"),
        (b'{"questions": [{"question_id": NaN}]}', "expected a finite number, found NaN"),
        ('{"question": "caf\u00e9"}'.encode("latin-1"), "expected UTF-8"),
        (b'"text"', "found text"),
        (b"3", "found a number"),
        (b"[" * 200_000, "nested levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected numbers of ordinary length"),
        (rb'{"a": [{"b": "what is this \ud83d"}]}', r"found half a character in text 'what is this \\ud83d'"),
        (b'{"a": 1, "a": 2}', "found 'a' twice"),
        (b"", "found"),
    ],
)
def test_a_damaged_file_is_named(fmt: str, content: bytes, words: str, read: Callable[..., list[Any]]) -> None:
    files = {**fresh(fmt), next(iter(SOUND[fmt])): content}
    with pytest.raises(DataError, match=words) as caught:
        read(fmt, files)
    assert caught.value.file is not None


@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_a_missing_file_is_named(fmt: str, tmp_path: Path) -> None:
    reader = FORMATS.load(fmt)()
    with pytest.raises(DataError, match=r"none\.json.*expected this file, found none"):
        reader.read({next(iter(reader.roles)): [tmp_path / "none.json"]}, "train")


@pytest.mark.parametrize(
    ("fmt", "path"),
    [
        ("vqa_official", ("questions", "questions")), ("vqa_official", ("annotations", "annotations")),
        ("vqa_karpathy", ("rows",)), ("gqa_vl_adapter", ("rows",)), ("nlvr2_official", ()), ("snli_ve", ()),
        ("nlvr2_vl_adapter", ("rows",)), ("coco_karpathy", ("rows", "images")),
        ("coco_captions", ("rows", "images")), ("coco_captions", ("rows", "annotations")),
        ("value_qa", ()), ("value_captions", ()), ("blip_vqa", ("rows",)),
    ],
)  # fmt: skip
def test_an_id_that_stands_twice_is_named(fmt: str, path: tuple[str, ...], read: Callable[..., list[Any]]) -> None:
    content = fresh(fmt)
    if not path:
        content["rows"] = [content["rows"], content["rows"]]
    else:
        node = content
        for step in path:
            node = node[step]
        node.append(node[0])
    with pytest.raises(DataError, match=r"once, found .* again \(first at"):
        read(fmt, content)


def test_a_gqa_id_that_stands_twice_is_named(read: Callable[..., list[Any]]) -> None:
    one = json.dumps(GQA_QUESTION)
    with pytest.raises(DataError, match="'101' twice"):
        read("gqa_official", {"questions": f'{{"101": {one}, "101": {one}}}'.encode()})


def test_vqa_questions_and_annotations_must_match(read: Callable[..., list[Any]]) -> None:
    content = fresh("vqa_official")
    content["questions"]["questions"].append({**QUESTION, "question_id": 42002})
    content["annotations"]["annotations"].append({**ANNOTATION, "question_id": 7})
    with pytest.raises(DataError, match=r"for 2 questions, found 1, missing 1, not expected 1; missing e\.g\. 42002"):
        read("vqa_official", content)


def test_vqa_takes_the_picture_from_either_file_and_refuses_two(read: Callable[..., list[Any]]) -> None:
    content = fresh("vqa_official")
    del content["questions"]["questions"][0]["image_id"]
    assert read("vqa_official", content)[0].pictures == ({"image_id": 42},)
    content = fresh("vqa_official")
    content["annotations"]["annotations"][0]["image_id"] = 43
    with pytest.raises(DataError, match="expected image_id 42 as in the questions file, found 43"):
        read("vqa_official", content)


def test_vqa_answers_get_the_ids_that_the_official_score_needs(read: Callable[..., list[Any]]) -> None:
    content = fresh("vqa_official")
    content["annotations"]["annotations"][0]["answers"] = ["cat", {"answer": "dog"}]
    assert [a["answer_id"] for a in read("vqa_official", content)[0].answers] == [1, 2]
    content["annotations"]["annotations"][0]["answers"] = [{"answer": "a", "answer_id": 1}] * 2
    with pytest.raises(DataError, match="expected every answer_id once"):
        read("vqa_official", content)


def test_vqa_without_annotations_has_no_answers(read: Callable[..., list[Any]]) -> None:
    (row,) = read("vqa_official", {"questions": SOUND["vqa_official"]["questions"]})
    assert (row.question, row.answers, row.label) == ("What is it?", (), None)


def test_karpathy_vqa_joins_the_raw_answers_of_its_own_questions(read: Callable[..., list[Any]]) -> None:
    others = [{**ANNOTATION, "question_id": n} for n in (1, 42001, 3)]
    content = {**fresh("vqa_karpathy"), "annotations": {"annotations": others}}
    (row,) = read("vqa_karpathy", content)
    assert (len(row.answers), row.label, row.details) == (10, {"cat": 0.9}, {"answer_type": "other"})
    assert row.pictures == ({"name": "COCO_train2014_000000000042", "folder": "train2014"},)
    content["annotations"] = {"annotations": others[:1]}
    with pytest.raises(DataError, match="expected raw annotations for 1 questions, found 0, missing 1"):
        read("vqa_karpathy", content)


@pytest.mark.parametrize("score", [1.5, -0.1, "1", True, None])
def test_a_label_is_a_score(score: Any, read: Callable[..., list[Any]]) -> None:
    content = fresh("vqa_karpathy")
    content["rows"][0]["label"] = {"cat": score}
    with pytest.raises(DataError, match="expected a score"):
        read("vqa_karpathy", content)


def test_gqa_keeps_the_official_fields(read: Callable[..., list[Any]]) -> None:
    (row,) = read("gqa_official", fresh("gqa_official"))
    assert row.details["types"] == GQA_QUESTION["types"]
    assert row.details["choices"] == {"valid": ["no"], "plausible": ["no"]}
    content = fresh("gqa_official")
    content["choices"] = {"999": content["choices"]["101"]}
    with pytest.raises(DataError, match="expected choices for 1 questions, found 0"):
        read("gqa_official", content)
    content = fresh("gqa_official")
    content["questions"]["101"]["types"] = ["verify"]
    with pytest.raises(DataError, match="row 101: expected dict in 'types', found a list"):
        read("gqa_official", content)


@pytest.mark.parametrize(("value", "truth"), [("True", True), ("false", False), (1, True), (0, False), (True, True)])
def test_nlvr2_labels(value: Any, truth: bool, read: Callable[..., list[Any]]) -> None:
    (row,) = read("nlvr2_official", {"rows": {**NLVR2_ROW, "label": value}})
    assert row.label is truth
    assert [p["name"] for p in row.pictures] == ["dev-850-0-img0", "dev-850-0-img1"]
    assert {p["directory"] for p in row.pictures} == {"7"}


def test_nlvr2_faults(read: Callable[..., list[Any]]) -> None:
    with pytest.raises(DataError, match="line 2: expected True or False in 'label', found text 'maybe'"):
        read("nlvr2_official", {"rows": [NLVR2_ROW, {**NLVR2_ROW, "identifier": "dev-1-0-0", "label": "maybe"}]})
    with pytest.raises(DataError, match="expected an identifier like"):
        read("nlvr2_official", {"rows": {**NLVR2_ROW, "identifier": "850-0"}})


def test_restval_is_training_data(read: Callable[..., list[Any]]) -> None:
    content = fresh("coco_karpathy")
    (row,) = read("coco_karpathy", content, "train")
    assert row.captions == (("1", "A dog."), ("2", "The dog."))
    with pytest.raises(DataError, match="expected pictures of the split 'val', found none among 1"):
        read("coco_karpathy", content, "val")
    content["rows"]["images"][0]["split"] = "tset"
    with pytest.raises(DataError, match="found 'tset'"):
        read("coco_karpathy", content)


def test_every_coco_picture_has_captions(read: Callable[..., list[Any]]) -> None:
    content = fresh("coco_captions")
    content["rows"]["images"].append({"id": 10, "file_name": "b.jpg"})
    with pytest.raises(DataError, match=r"expected captions for 2 pictures, found them for 1, missing 1, e\.g\. 10"):
        read("coco_captions", content)
    content = fresh("coco_captions")
    content["rows"]["annotations"][0]["image_id"] = 5
    with pytest.raises(DataError, match="expected image_id 5 among the 1 pictures"):
        read("coco_captions", content)


def test_published_excerpts(golden: Path) -> None:
    folder = golden / "formats"

    def rows(fmt: str, split: str, **files: str) -> list[Any]:
        return FORMATS.load(fmt)().read({role: [folder / name] for role, name in files.items()}, split)

    for version, count in (("v2", 3), ("v1", 2)):
        found = rows(
            "vqa_official",
            "train",
            questions=f"vqa/{version}_OpenEnded_mscoco_train2014_questions.json",
            annotations=f"vqa/{version}_mscoco_train2014_annotations.json",
        )
        assert len(found) == count
        assert all(len(row.answers) == 10 for row in found)
    gqa = rows("gqa_official", "val", questions="gqa/val_all_questions.json", choices="gqa/val_choices.json")
    assert [row.details["isBalanced"] for row in gqa].count(True) >= 1
    assert len(rows("gqa_official", "val", questions="gqa/val_balanced_questions.json")) == 1
    statements = rows("nlvr2_official", "val", rows="nlvr2/dev.json")
    assert len(statements) == 10
    assert statements[0].label is False
    parts = {s: rows("coco_karpathy", s, rows="coco/dataset_coco.json") for s in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 5
    captions = rows("coco_captions", "val", rows="coco/captions_val2017.json")
    assert [len(row.captions) for row in captions] == [5] * 4
