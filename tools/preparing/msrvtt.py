"""MSR-VTT videos as frame strips: captions in VALUE's form (task tvc) and for retrieval, questions as MSRVTT-QA files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, once_each, read_json, read_json_list
from mtvl.errors import DataError
from preparing.captions import checked_captions
from preparing.files import Lines
from preparing.plan import SPLITS, Plan, by_hash

NOTES = (
    "Own split by video, one for both tasks, so that a video is never in the training data of one and in the test of the "
    "other: test is a third of the videos of the official test, val a quarter of those of the official validation "
    "(ordered by the SHA-256 of their names), train all others. It is nobody's published split; MSRVTT-QA's own training "
    "file is not among these data.",
    "Frames are strips of two to eight pictures at even distances over the video; they are taken as they are, and their "
    "distance in seconds is not known.",
    "The captions stand in tvc's files without time spans. The subtitle file holds every video with no line: nothing was "
    "transcribed.",
    "msrvtt (retrieval) trains on all captions of a video and validates and tests on the first one of each, as the split 1k-A "
    "does; it has far fewer videos than that, so recalls are not comparable.",
    "MSRVTT-QA's questions were made from the captions by a program: questions and captions of one video share words.",
)
_NAME = re.compile(r"video(\d+)")
QUESTION_FILES = {"validate": "qa_val.json", "test": "qa_test.json"}


def read_msrvtt(src: Path) -> Plan:
    """Captions of all videos (tvc, msrvtt) and questions on those of the official validation and test (msrvtt_qa)."""
    videos = _videos(src)
    questions = {name: _questions(src / file, videos, name) for name, file in QUESTION_FILES.items()}
    split_of = _split(src, videos)
    plan = Plan(notes=NOTES, counts={"tvc": {}, "msrvtt_qa": {}, "msrvtt": {}})
    for split in SPLITS:
        chosen = {name: record for name, record in videos.items() if split_of[name] == split}
        plan.files[f"tvc/tvc_{split}_release.jsonl"] = Lines(_moment(name, r) for name, r in chosen.items())
        asked = [q for part in questions.values() for q in part if split_of[f"video{q['video_id']}"] == split]
        plan.files[f"msrvtt_qa/{split}_qa.json"] = asked
        paired = [_paired(name, record, is_trained=split == "train") for name, record in chosen.items()]
        plan.files[f"msrvtt/retrieval_{split}.json"] = paired
        for task, rows in (("tvc", chosen), ("msrvtt_qa", asked), ("msrvtt", paired)):
            plan.counts[task][split] = len(rows)
    plan.files["subtitles/tv_subtitles.jsonl"] = Lines({"vid_name": name, "sub": []} for name in videos)
    for name, record in videos.items():
        for folder in ("tv", "msrvtt"):
            plan.media[f"videos/{folder}/{name}.{_frames(record)}x1.jpg"] = src / "frames" / f"{name}.jpg"
    return plan


def _videos(src: Path) -> dict[str, Record]:
    file = src / "captions.json"
    videos = {name: Record(file, name, value) for name, value in Record(file, "", read_json(file)).values.items()}
    for name, record in videos.items():
        if _NAME.fullmatch(name) is None:
            raise record.error("expected a name like video1008")
        if record.text("split") not in ("train", "validate", "test"):
            raise record.error(f"expected 'split' to be train, validate or test, found {record.text('split')!r}")
        checked_captions(record.need("captions"), file, name)
        _frames(record)
    return videos


def _frames(record: Record) -> int:
    count = record.integer("num_frames")
    if count < 1:
        raise record.error(f"expected 'num_frames' above 0, found {count}")
    return count


def _split(src: Path, videos: Mapping[str, Record]) -> dict[str, str]:
    of = {name: record.text("split") for name, record in videos.items()}
    test = by_hash(name for name, split in of.items() if split == "test")
    val = by_hash(name for name, split in of.items() if split == "validate")
    held = dict.fromkeys(test[: len(test) // 3], "test") | dict.fromkeys(val[: len(val) // 4], "val")
    if set(held.values()) != {"test", "val"}:
        raise DataError(
            f"expected at least 3 test and 4 validation videos, found {len(test)} and {len(val)}",
            file=src / "captions.json",
        )
    return {name: held.get(name, "train") for name in videos}


def _moment(name: str, record: Record) -> dict[str, Any]:
    number = int(name.removeprefix("video"))
    descs = [{"desc_id": number * 100 + i, "desc": text} for i, text in enumerate(record.values["captions"])]
    return {"clip_id": number, "vid_name": name, "descs": descs}


def _paired(name: str, record: Record, *, is_trained: bool) -> dict[str, Any]:
    """A row of retrieval: all captions to train on, else the first."""
    captions = record.values["captions"]
    return {"video": f"{name}.mp4", "caption": captions if is_trained else captions[0]}


def _questions(file: Path, videos: Mapping[str, Record], split: str) -> list[dict[str, Any]]:
    """Questions in the official form; every one of them on a video of the official `split`."""
    rows = []
    for uid, record in once_each(((r.key("qid"), r) for r in read_json_list(file)), "qid"):
        name = record.text("video")
        if name not in videos or videos[name].text("split") != split:
            raise record.error(f"expected a video of the split {split!r} of captions.json, found {name!r}")
        rows.append(
            {
                "answer": record.text("answer"),
                "category_id": videos[name].integer("category"),
                "id": int(uid) if uid.isdigit() else uid,
                "question": record.text("question"),
                "video_id": int(name.removeprefix("video")),
            }
        )
    return rows
