"""Pictures with a few lines of text, as one self-contained HTML page or as one picture for documents."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG = "#1a7f37", "#b42318"
_INK, _GREY, _LINE = "#1f2328", "#57606a", "#d0d7de"


@dataclass(frozen=True)
class Card:
    """One item: its pictures in order, and (name, text) lines below them. `is_right` decides colour and word."""

    uid: str
    pictures: tuple[Image.Image, ...]
    lines: tuple[tuple[str, str], ...]
    score: float
    is_right: bool


@dataclass(frozen=True)
class Group:
    """A titled row of cards."""

    title: str
    cards: tuple[Card, ...]


# ---- HTML ---------------------------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: INK; background: #f6f8fa; margin: 2rem auto; max-width: 1200px;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; } p { color: GREY; margin: .3rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 1rem; }
.wide { grid-template-columns: repeat(auto-fill, minmax(560px, 1fr)); }
.card { background: #fff; border: 1px solid LINE; border-top: 4px solid; border-radius: 6px; padding: .7rem;
        overflow-wrap: anywhere; }
.right { border-top-color: RIGHT; } .wrong { border-top-color: WRONG; }
.pictures { display: flex; gap: 4px; } .pictures img { min-width: 0; flex: 1; object-fit: contain; max-height: 260px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .6rem; margin: .6rem 0 0; }
dt { color: GREY; } dd { margin: 0; }
.right .answer { color: RIGHT; font-weight: 600; } .wrong .answer { color: WRONG; font-weight: 600; }
"""


def page(title: str, notes: Sequence[str], groups: Sequence[Group]) -> str:
    """One HTML document without any outside reference; every text is escaped."""
    style = _STYLE
    for name, colour in (("INK", _INK), ("GREY", _GREY), ("LINE", _LINE), ("RIGHT", RIGHT), ("WRONG", WRONG)):
        style = style.replace(name, colour)
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width">\n<style>{style}</style>\n</head>\n<body>',
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
    ]
    for group in groups:
        wide = " wide" if any(len(card.pictures) > 2 for card in group.cards) else ""
        parts.append(f'<h2>{html.escape(group.title)}</h2>\n<div class="cards{wide}">')
        parts += [_html_card(card) for card in group.cards] + ["</div>"]
    return "\n".join([*parts, "</body>\n</html>\n"])


def _html_card(card: Card) -> str:
    side = 480 if len(card.pictures) <= 2 else 240
    pictures = "".join(
        f'<img alt="picture {number + 1} of {html.escape(card.uid)}" src="{_data_uri(fitted(picture, side, side))}">'
        for number, picture in enumerate(card.pictures)
    )
    lines = ""
    for name, text in card.lines:
        mark = ' class="answer"' if name == "answer" else ""
        lines += f"<dt>{html.escape(name)}</dt><dd{mark}>{html.escape(text)}</dd>"
    kind = "right" if card.is_right else "wrong"
    return f'<div class="card {kind}"><div class="pictures">{pictures}</div><dl>{lines}</dl></div>'


def _data_uri(picture: Image.Image) -> str:
    """Drawn pictures stay sharp as PNG where that is small; photos become JPEG."""
    drawn, photo = io.BytesIO(), io.BytesIO()
    picture.save(drawn, "PNG", optimize=True)
    picture.save(photo, "JPEG", quality=85)
    kind, data = ("png", drawn) if drawn.tell() <= photo.tell() else ("jpeg", photo)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """`picture` at most `width` x `height` with its aspect ratio; small ones are not enlarged."""
    scale = min(width / picture.width, height / picture.height, 1.0)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


# ---- one picture --------------------------------------------------------------------------------------------------

_MARGIN, _COLUMN, _PICTURES, _ROW = 16, 300, 256, 17  # pixels


def sheet(title: str, notes: Sequence[str], groups: Sequence[Group], columns: int = 4) -> Image.Image:
    """The same as a picture for documents; cards with many frames get rows of their own."""
    big, font = ImageFont.load_default(20), ImageFont.load_default(14)
    blocks = []
    for group in groups:
        wide = any(len(card.pictures) > 2 for card in group.cards)
        across = max(1, columns // 2) if wide else columns
        width = (columns * _COLUMN + (columns - across) * _MARGIN) // across
        tiles = [_tile(card, width) for card in group.cards]
        blocks.append((group.title, [tiles[i : i + across] for i in range(0, len(tiles), across)]))
    total = columns * (_COLUMN + _MARGIN) + _MARGIN
    lines = [line for note in notes for line in wrapped(note, font, total - 2 * _MARGIN)]
    height = _MARGIN + 32 + _ROW * len(lines)
    height += sum(40 + sum(max(t.height for t in row) + _MARGIN for row in rows) for _, rows in blocks)
    canvas = Image.new("RGB", (total, height), "white")
    draw, top = ImageDraw.Draw(canvas), _MARGIN
    draw.text((_MARGIN, top), title, fill=_INK, font=big)
    top += 32
    for line in lines:
        draw.text((_MARGIN, top), line, fill=_GREY, font=font)
        top += _ROW
    for name, rows in blocks:
        draw.text((_MARGIN, top + 12), name, fill=_INK, font=big)
        top += 40
        for row in rows:
            left = _MARGIN
            for tile in row:
                canvas.paste(tile, (left, top))
                left += tile.width + _MARGIN
            top += max(t.height for t in row) + _MARGIN
    return canvas


def _tile(card: Card, width: int) -> Image.Image:
    font, colour = ImageFont.load_default(14), RIGHT if card.is_right else WRONG
    lines = []
    for name, text in card.lines:
        lines += [(piece, colour if name == "answer" else _INK) for piece in wrapped(f"{name}: {text}", font, width)]
    room = (width - 4 * (len(card.pictures) - 1)) // max(1, len(card.pictures))
    pictures = [fitted(picture, room, _PICTURES) for picture in card.pictures]
    pictures = [_enlarged(p, room) for p in pictures]
    tall = max((p.height for p in pictures), default=0)
    tile = Image.new("RGB", (width, tall + 10 + _ROW * len(lines) + 6), "white")
    draw, left = ImageDraw.Draw(tile), 0
    for picture in pictures:
        tile.paste(picture, (left, 4))
        left += picture.width + 4
    draw.rectangle((0, 0, width, 3), fill=colour)
    for number, (line, ink) in enumerate(lines):
        draw.text((0, tall + 8 + _ROW * number), line, fill=ink, font=font)
    return tile


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """`text` as lines of at most `width` pixels; a word that is longer than a line is cut."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def _enlarged(picture: Image.Image, room: int) -> Image.Image:
    """Pictures smaller than their place by whole multiples, so that drawn ones stay sharp."""
    times = max(1, min(room // picture.width, _PICTURES // picture.height))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
