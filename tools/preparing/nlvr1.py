"""NLVR (statements about drawn pictures of three boxes) as NLVR2 files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from mtvl.data.formats.nlvr2_official import read_truth
from mtvl.data.formats.records import Record, once_each, read_json_list
from mtvl.data.media import open_image
from mtvl.errors import DataError
from preparing.files import Lines
from preparing.plan import Plan, by_hash

NOTES = (
    "In NLVR a statement holds for a whole picture of three boxes, not for a pair of pictures. The pair is the picture "
    "and a second view of it: the same boxes in another order, which no statement of NLVR turns on. So both pictures "
    "show the same, and the task is easier than NLVR2: scores are not comparable.",
    "dev brings its second views along (the first two of its pictures); for the training pictures, of which there is one "
    "each, the boxes were moved round by one place.",
    "train is the set's sample of 1,000 training examples; val is a quarter of the sentences of NLVR's dev and test the "
    "rest, by sentence (ordered by the SHA-256 of its number). It is nobody's published split.",
    "An identifier 1572-3 of NLVR became test1-1572-3-0: consistency is over the pictures of one sentence. The training "
    "sample has hardly more than one picture a sentence.",
)
BOX, STEP = 100, 150  # width of a box and distance of two in pixels; the bars between them are grey
SIZE = (400, 100)
_IDENTIFIER = re.compile(r"(\d+)-(\d+)")
_TRAIN_PICTURE = re.compile(r"train-(\d+)-(\d+)-\d+\.png")


@dataclass(frozen=True)
class _Row:
    number: str  # of the sentence
    picture: str  # of the picture among those of the sentence
    sentence: str
    label: bool
    views: tuple[Path, ...]


def read_nlvr1(src: Path) -> Plan:
    """NLVR's dev and a sample of its training examples as `{train,dev,test1}.json` of NLVR2."""
    train, dev = _train_rows(src), _dev_rows(src)
    clash = {row.number for row in train} & {row.number for row in dev}
    if clash:
        raise DataError(f"expected other sentences in dev than in train, found {len(clash)} in both", file=src)
    order = by_hash({row.number for row in dev})
    val = set(order[: len(order) // 4])
    splits = {
        "train": train,
        "dev": [row for row in dev if row.number in val],
        "test1": [row for row in dev if row.number not in val],
    }
    empty = [split for split, rows in splits.items() if not rows]
    if empty:
        raise DataError(f"expected at least four sentences in dev, found {len(order)}", file=src / "dev.json")
    plan = Plan(notes=NOTES)
    for split, rows in splits.items():
        lines = Lines()
        for row in rows:
            stem = f"{split}-{row.number}-{row.picture}"
            lines.append({"identifier": f"{stem}-0", "sentence": row.sentence, "label": str(row.label)})
            folder = f"nlvr2/images/{split}"
            plan.media[f"{folder}/{stem}-img0.png"] = row.views[0]
            if len(row.views) > 1:
                plan.media[f"{folder}/{stem}-img1.png"] = row.views[1]
            else:
                plan.made[f"{folder}/{stem}-img1.png"] = moved_round(row.views[0])
        plan.files[f"nlvr2/{split}.json"] = lines
    names = {"train": "train", "dev": "val", "test1": "test"}
    plan.counts = {"nlvr2": {names[split]: len(rows) for split, rows in splits.items()}}
    return plan


def moved_round(source: Path) -> Callable[[Path], None]:
    """What writes `source` with its boxes moved one place to the right, the last one to the front."""
    return partial(_move_round, source)


def _move_round(source: Path, target: Path) -> None:
    picture = open_image(str(source))
    if picture.size != SIZE:
        raise DataError("expected a picture of three boxes, {} x {}, found {} x {}".format(*SIZE, *picture.size),
                        file=source)  # fmt: skip
    view = picture.copy()
    for place in range(3):
        box: Image.Image = picture.crop((STEP * place, 0, STEP * place + BOX, SIZE[1]))
        view.paste(box, (STEP * ((place + 1) % 3), 0))
    view.save(target, format="PNG")


def _train_rows(src: Path) -> list[_Row]:
    records = read_json_list(src / "train_sample.json")
    rows = []
    for name, record in once_each(((r.text("image"), r) for r in records), "picture"):
        match = _TRAIN_PICTURE.fullmatch(name)
        if match is None:
            raise record.error(f"expected a picture like train-2321-0-4.png, found {name!r}")
        views = (src / "train_sample" / name,)
        rows.append(_Row(match[1], match[2], record.text("sentence"), read_truth(record), views))
    return _once(rows, records)


def _dev_rows(src: Path) -> list[_Row]:
    records = read_json_list(src / "dev.json")
    rows = []
    for name, record in once_each(((r.text("identifier"), r) for r in records), "identifier"):
        match = _IDENTIFIER.fullmatch(name)
        views = record.need("images")
        if match is None:
            raise record.error(f"expected an identifier like 1572-0, found {name!r}")
        if not isinstance(views, list) or len(views) < 2 or not all(_is_view(v, name) for v in views):
            raise record.error(f"expected at least two pictures like dev-{name}-0.png in 'images', found {views!r}")
        paths = tuple(src / "dev" / view for view in views[:2])
        rows.append(_Row(match[1], match[2], record.text("sentence"), read_truth(record), paths))
    return _once(rows, records)


def _is_view(name: object, identifier: str) -> bool:
    return isinstance(name, str) and re.fullmatch(rf"dev-{identifier}-\d+\.png", name) is not None


def _once(rows: list[_Row], records: list[Record]) -> list[_Row]:
    """`rows` themselves; DataError when two of them would get one identifier."""
    pairs = ((f"{row.number}-{row.picture}", record) for row, record in zip(rows, records, strict=True))
    list(once_each(pairs, "sentence with a picture"))
    return rows
