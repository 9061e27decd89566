"""Contact sheets: test pictures and videos with what is asked and said about them, for a person to look at."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mtvl.data.miniworld import records
from mtvl.data.miniworld.clips import FAMILIES, clip_path, vid_name
from mtvl.data.miniworld.episode import TICK_SECONDS
from mtvl.data.miniworld.video_stats import json_lines, subtitles_of
from mtvl.data.miniworld.write import VIDEO_FILES, nlvr2_picture
from mtvl.data.video import read_frames

_COLUMNS, _ROWS = 4, 3
_SIDE = 176  # pixels of a picture on the sheet
_WIDTH, _HEIGHT = 2 * _SIDE + 24, _SIDE + 210


def contact_sheet(root: Path) -> Image.Image:
    """Twelve pairs of NLVR2 test pictures; below, what all four tasks say about the left picture and the pair."""
    questions = json.loads((root / "vqa" / "v2_OpenEnded_mscoco_test2014_questions.json").read_text())["questions"]
    notes = json.loads((root / "vqa" / "v2_mscoco_test2014_annotations.json").read_text())["annotations"]
    gqa = json.loads((root / "gqa" / "testdev_balanced_questions.json").read_text())
    lines = (root / "nlvr2" / "test1.json").read_text().splitlines()
    captions = {
        image["cocoid"]: [s["raw"] for s in image["sentences"]]
        for image in json.loads((root / "coco" / "dataset_coco.json").read_text())["images"]
    }
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH, _ROWS * _HEIGHT), "white")
    firsts = [row for row in map(json.loads, lines) if row["identifier"].endswith("-0")]
    for tile, row in enumerate(firsts[: _COLUMNS * _ROWS]):
        _, number, pair, _ = row["identifier"].split("-")
        image = records.image_id("test", nlvr2_picture(int(number), int(pair), 0))
        texts = [f"NLVR2: {row['sentence']} [{row['label']}]"]
        for question, note in zip(questions, notes, strict=True):
            if question["image_id"] == image:
                texts.append(f"VQA: {question['question']} [{note['multiple_choice_answer']}]")
        texts += [f"GQA: {q['question']} [{q['answer']}]" for q in gqa.values() if q["imageId"] == f"n{image}"]
        texts += [f"COCO: {raw}" for raw in captions.get(image, [])]
        _draw_tile(sheet, root, tile, row, texts)
    return sheet


def _draw_tile(sheet: Image.Image, root: Path, tile: int, row: records.Row, texts: list[str]) -> None:
    left, top = tile % _COLUMNS * _WIDTH + 8, tile // _COLUMNS * _HEIGHT + 8
    for side, field in enumerate(("left_url", "right_url")):
        with Image.open(root / "nlvr2" / row[field]) as picture:
            sheet.paste(picture.convert("RGB").resize((_SIDE, _SIDE)), (left + side * (_SIDE + 8), top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    lines = [line for text in texts for line in textwrap.wrap(text, 62, subsequent_indent="   ")]
    for i, line in enumerate(lines[:14]):
        draw.text((left, top + _SIDE + 4 + 14 * i), line, fill="black", font=font)


_FRAME, _MARGIN, _LINE = 112, 8, 15
_VIDEOS = {"tv": 3, "how2": 2, "yc2": 4}  # of each family on the sheet


def video_sheet(root: Path) -> Image.Image:
    """Test videos as strips of the frames that a model sees; below, subtitles, questions ([right answer]), captions."""
    rows = {task: json_lines(root / task / f"{files['test']}.jsonl") for task, files in VIDEO_FILES.items()}
    tiles = []
    for family, number in _VIDEOS.items():
        subtitles = subtitles_of(root, family)
        for index in range(number):
            name = vid_name(family, "test", index)
            frames = read_frames(str(clip_path(root, family, name)))
            lines = [f"{family} {name}"]
            lines += [f"   {line['start']:5.2f}-{line['end']:5.2f} {line['text'].strip()}" for line in subtitles[name]]
            lines += [
                text for found in rows.values() for row in found if row["vid_name"] == name for text in _told(row)
            ]
            wrapped = [
                part
                for line in lines
                for part in textwrap.wrap(line, 140, subsequent_indent=" " * 8, drop_whitespace=False)
            ]
            tiles.append((frames, wrapped))
    width = max(FAMILIES[family].ticks for family in _VIDEOS) * (_FRAME + _MARGIN) + _MARGIN
    heights = [_FRAME + _LINE * (len(lines) + 2) + _MARGIN for _, lines in tiles]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    top = 0
    for (frames, lines), height in zip(tiles, heights, strict=True):
        _draw_strip(sheet, top + _MARGIN, frames, lines)
        top += height
    return sheet


def _told(row: records.Row) -> list[str]:
    """What a row of an annotation file says."""
    if "q" in row:
        options = [row[f"a{i}"] for i in range(5) if f"a{i}" in row]
        shown = "  ".join(f"[{o}]" if i == row["answer_idx"] else o for i, o in enumerate(options))
        return [f"QA {row['ts']}: {row['q']}  {shown}"]
    start, end = row.get("ts", (0.0, row["duration"]))
    return [f"CAPTION {start:.2f}-{end:.2f}: {d['desc']}" for d in row["descs"]]


def _draw_strip(sheet: Image.Image, top: int, frames: list[Image.Image], lines: list[str]) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for i, frame in enumerate(frames):
        left = _MARGIN + i * (_FRAME + _MARGIN)
        sheet.paste(frame.resize((_FRAME, _FRAME)), (left, top))
        draw.text((left, top + _FRAME + 1), f"{(i + 0.5) * TICK_SECONDS:.2f} s", fill="grey", font=font)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, top + _FRAME + _LINE * (i + 1)), line, fill="black", font=font)
