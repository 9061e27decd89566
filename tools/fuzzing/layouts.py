"""Small sound sets in the benchmarks' own files, row by row, so that a fault can be put into any row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.media import picture, video

Row = dict[str, Any]
# Values that are no value of a kind of field.
JUNK: dict[str, list[Any]] = {
    "text": [3.5, 7, [], {}, True, "", " \t "],
    "id": [3.5, [], {}, True, "  "],
    "number": ["x", 2.5, [], {}, True, "1e3"],
    "list": ["x", 7, {}, [], True],
    "truth": ["maybe", 7, [], {}],
    "span": ["x", [1], [5, 2], "9-3", {}, -1],
}


@dataclass
class Layout:
    """A set of one task. `rows` are file -> rows, the same number in each; `visuals` the files of each row.

    `fields` are (file, key, kind of JUNK, may the key be missing without being missed).
    """

    task: str
    rows: dict[str, list[Any]]
    visuals: list[dict[str, bytes]]
    uids: list[tuple[str, ...]]
    fields: tuple[tuple[str, str, str, bool], ...]
    forms: Mapping[str, str | None] = field(default_factory=dict)  # file -> key of the list of rows; None: one a line
    keyed: bool = False  # one object id -> row
    extra: dict[str, str] = field(default_factory=dict)

    def text(self, file: str) -> str:
        """Content of an annotation file."""
        rows = self.rows[file]
        if self.keyed:
            return json.dumps(dict(rows))
        key = self.forms.get(file)
        return json.dumps({key: rows}) if key else "".join(json.dumps(row) + "\n" for row in rows)

    def write(self, root: Path) -> None:
        """All files below `root`."""
        for name, content in self.extra.items():
            _put(root / name, content.encode())
        for file in self.rows:
            _put(root / file, self.text(file).encode())
        for files in self.visuals:
            for name, data in files.items():
                _put(root / name, data)


def _put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def vqa(count: int) -> Layout:
    """VQA v2: questions and annotations in two files."""
    questions, annotations = (
        "vqa/v2_OpenEnded_mscoco_train2014_questions.json",
        "vqa/v2_mscoco_train2014_annotations.json",
    )
    ids = range(100, 100 + count)
    return Layout(
        "vqa",
        {questions: [{"question_id": i, "image_id": i, "question": f"what is {i}?"} for i in ids],
         annotations: [{"question_id": i, "image_id": i,
                        "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(["yes"] * 7 + ["no"] * 3)]}
                       for i in ids]},
        [{f"images/train2014/COCO_train2014_{i:012d}.jpg": picture("JPEG")} for i in ids],
        [(str(i),) for i in ids],
        ((questions, "question_id", "id", False), (questions, "question", "text", False),
         (questions, "image_id", "number", True), (annotations, "question_id", "id", False),
         (annotations, "answers", "list", False)),
        {questions: "questions", annotations: "annotations"},
    )  # fmt: skip


def gqa(count: int) -> Layout:
    """GQA: one object id -> question."""
    file = "gqa/train_balanced_questions.json"
    rows = [
        [f"q{i}", {"question": f"is it {i}?", "imageId": f"n{i}", "answer": "no", "isBalanced": True, "entailed": []}]
        for i in range(count)
    ]
    fields = ((file, "question", "text", False), (file, "imageId", "id", False), (file, "answer", "text", False))
    return Layout("gqa", {file: rows}, [{f"gqa/images/n{i}.jpg": picture("JPEG")} for i in range(count)],
                  [(f"q{i}",) for i in range(count)], fields, keyed=True)  # fmt: skip


def nlvr2(count: int) -> Layout:
    """NLVR2: one object a line, two pictures."""
    file = "nlvr2/train.json"
    rows = [{"identifier": f"train-{i}-0-0", "sentence": f"there are {i}", "label": "True"} for i in range(count)]
    visuals = [{f"nlvr2/images/train/train-{i}-0-img{n}.png": picture() for n in (0, 1)} for i in range(count)]
    fields = ((file, "identifier", "text", False), (file, "sentence", "text", False), (file, "label", "truth", False))
    return Layout("nlvr2", {file: rows}, visuals, [(r["identifier"],) for r in rows], fields, {file: None})


def coco(count: int) -> Layout:
    """COCO in the Karpathy split: two captions a picture."""
    file = "coco/dataset_coco.json"
    rows = [
        {"cocoid": i, "filepath": "train2014", "filename": f"p{i}.jpg", "split": "train",
         "sentences": [{"raw": f"a {w} {i}", "sentid": 10 * i + n} for n, w in enumerate(("dog", "cat"))]}
        for i in range(count)
    ]  # fmt: skip
    visuals = [{f"images/train2014/p{i}.jpg": picture("JPEG")} for i in range(count)]
    fields = ((file, "cocoid", "id", False), (file, "filename", "text", False), (file, "split", "text", False),
              (file, "sentences", "list", False))  # fmt: skip
    return Layout("coco", {file: rows}, visuals, [(f"{i}_{10 * i}", f"{i}_{10 * i + 1}") for i in range(count)], fields,
                  {file: "images"})  # fmt: skip


def _subtitles(count: int) -> dict[str, str]:
    lines = [{"vid_name": f"v{i}", "sub": [{"text": "hello", "start": 0, "end": 1}]} for i in range(count)]
    return {"subtitles/tv_subtitles.jsonl": "".join(json.dumps(line) + "\n" for line in lines)}


def tvqa(count: int) -> Layout:
    """TVQA: five answers, a time span, a video."""
    file = "tvqa/tvqa_train.jsonl"
    rows = [
        {"qid": i, "q": f"who is {i}?", "vid_name": f"v{i}", "ts": "0.1-1.2", "answer_idx": i % 5,
         **{f"a{n}": f"person {n}" for n in range(5)}}
        for i in range(count)
    ]  # fmt: skip
    fields = ((file, "qid", "id", False), (file, "q", "text", False), (file, "vid_name", "id", False),
              (file, "a2", "text", False), (file, "answer_idx", "number", False), (file, "ts", "span", False))  # fmt: skip
    return Layout("tvqa", {file: rows}, [{f"videos/tv/v{i}.mp4": video()} for i in range(count)],
                  [(str(i),) for i in range(count)], fields, {file: None}, extra=_subtitles(count))  # fmt: skip


def tvc(count: int) -> Layout:
    """TVC: captions of moments."""
    file = "tvc/tvc_train_release.jsonl"
    rows = [
        {"clip_id": i, "vid_name": f"v{i}", "ts": [0, 1.5], "descs": [{"desc_id": 10 * i, "desc": f"somebody {i}"}]}
        for i in range(count)
    ]
    fields = ((file, "clip_id", "id", False), (file, "vid_name", "id", False), (file, "descs", "list", False),
              (file, "ts", "span", False))  # fmt: skip
    return Layout("tvc", {file: rows}, [{f"videos/tv/v{i}.mp4": video()} for i in range(count)],
                  [(f"{i}_{10 * i}",) for i in range(count)], fields, {file: None}, extra=_subtitles(count))  # fmt: skip


OWN_TASK = """kind: answer
primary: accuracy
limits: {source_tokens: 20, target_tokens: 10}
sources:
  - format: own_table
    files: {train: {rows: [own/train.jsonl]}, val: {rows: [own/val.jsonl]}, test: {rows: [own/test.jsonl]}}
    pictures: ["own/pictures/{name}"]
"""


def own(count: int) -> Layout:
    """A table of one's own."""
    file = "own/train.jsonl"
    rows = [
        {"id": f"r{i}", "picture": f"p{i}.png", "text": f"what {i}?", "answers": ["one", "two"]} for i in range(count)
    ]
    fields = ((file, "id", "id", False), (file, "picture", "text", False), (file, "text", "text", False),
              (file, "answers", "list", False))  # fmt: skip
    return Layout("own", {file: rows}, [{f"own/pictures/p{i}.png": picture()} for i in range(count)],
                  [(f"r{i}",) for i in range(count)], fields, {file: None}, extra={"tasks/own.yaml": OWN_TASK})  # fmt: skip


LAYOUTS: dict[str, Callable[[int], Layout]] = {
    "vqa": vqa, "gqa": gqa, "nlvr2": nlvr2, "coco": coco, "tvqa": tvqa, "tvc": tvc, "own": own,
}  # fmt: skip
