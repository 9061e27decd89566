"""YouCook2 steps, one frame each: captions in YC2C's files, and the choice of the step that a frame shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtvl.data.formats.records import Record, once_each, read_json_list
from mtvl.errors import DataError
from preparing.files import Lines, plain_name
from preparing.plan import SPLITS, Plan, by_hash

STEPS = 3
NOTES = (
    "Own split by video: train is YouCook2's training part; test is two thirds of the videos of its validation part "
    "(ordered by the SHA-256 of their names) and val the other third. It is nobody's published split. Counts are steps.",
    "A step is ONE frame and one caption: a video of a single frame. YC2C proper has whole clips with several frames and "
    "what is said in them; the subtitle file here holds every step with no line. Scores are not comparable.",
    "yc2_steps asks which of its video's three steps a frame shows. The choices are the same and in the same order (by the "
    "SHA-256 of name and text) for the three frames of a video: the text alone gives one in three and no more.",
)
QUESTION = "Which step is shown?"


def read_youcook2(src: Path) -> Plan:
    """Captions of steps (yc2c) and choices of steps (yc2_steps)."""
    file = src / "youcook2_600.json"
    videos = dict(once_each(((r.text("video_id"), r) for r in read_json_list(file)), "video_id"))
    names = _names(videos)
    split_of = _split(videos, file)
    plan = Plan(counts={"yc2c": {}, "yc2_steps": {}})
    alike = []
    for split in SPLITS:
        captions, choices = Lines(), Lines()
        for video, record in videos.items():
            if split_of[video] != split:
                continue
            frames, texts = _texts(record, "frames"), _texts(record, "text")
            for step, frame in enumerate(frames):
                clip = f"{names[video]}_{step}"
                descs = [{"desc_id": 0, "desc": texts[step]}]
                captions.append({"clip_id": clip, "vid_name": clip, "descs": descs})
                plan.media[f"videos/yc2/{clip}.1x1.jpg"] = src / "frames" / plain_name(frame, file, video)
            if len({text.lower() for text in texts}) < STEPS:
                alike.append(video)
            else:
                choices += _choices(names[video], texts)
        plan.files[f"yc2c/yc2c_{split}_release.jsonl"] = captions
        plan.files[f"yc2_steps/{split}.jsonl"] = choices
        plan.counts["yc2c"][split], plan.counts["yc2_steps"][split] = len(captions), len(choices)
    clips = sorted(Path(path).name.removesuffix(".1x1.jpg") for path in plan.media)
    plan.files["subtitles/yc2_subtitles.jsonl"] = Lines({"vid_name": clip, "sub": []} for clip in clips)
    plan.notes = (*NOTES, f"{len(alike)} videos with two steps of the same words are not in yc2_steps.")
    return plan


def _names(videos: dict[str, Record]) -> dict[str, str]:
    """The last part of each video_id, which is that of the video's address."""
    names = {video: video.rpartition("/")[2] for video in videos}
    list(once_each(((names[video], record) for video, record in videos.items()), "name of a video"))
    return names


def _split(videos: dict[str, Record], file: Path) -> dict[str, str]:
    parts = {video: video.partition("/")[0] for video in videos}
    for video, part in parts.items():
        if part not in ("training", "validation"):
            raise videos[video].error(f"expected a video_id that begins with training/ or validation/, found {video!r}")
    held = by_hash(video for video, part in parts.items() if part == "validation")
    if len(held) < 3 or len(held) == len(videos):
        raise DataError(
            f"expected training videos and at least 3 for validation, found {len(videos) - len(held)} and {len(held)}",
            file=file,
        )
    val = set(held[: len(held) // 3])
    return {v: "train" if part == "training" else "val" if v in val else "test" for v, part in parts.items()}


def _texts(record: Record, key: str) -> list[str]:
    values = record.need(key)
    if (
        not isinstance(values, list)
        or len(values) != STEPS
        or not all(isinstance(v, str) and v.strip() for v in values)
    ):
        raise record.error(f"expected {STEPS} texts in {key!r}, found {values!r}")
    return [value.strip() for value in values]


def _choices(name: str, texts: list[str]) -> list[dict[str, Any]]:
    order = [key.removeprefix(f"{name} ") for key in by_hash(f"{name} {text}" for text in texts)]
    listed = {f"a{i}": text for i, text in enumerate(order)}
    return [
        {
            "qid": f"{name}_{step}",
            "vid_name": f"{name}_{step}",
            "q": QUESTION,
            **listed,
            "answer_idx": order.index(text),
        }
        for step, text in enumerate(texts)
    ]
