"""A contact sheet: test pictures with what is asked and said about them, for a person to look at."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mtvl.data.miniworld import records
from mtvl.data.miniworld.write import nlvr2_picture

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
