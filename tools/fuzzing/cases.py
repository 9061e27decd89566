"""Draws a case: a small set with faults in some rows, or one that makes a whole file unreadable."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import media as made
from fuzzing.layouts import JUNK, LAYOUTS, Layout

LONG_TEXT = 100_000
STRANGE_TEXTS = (
    "ünïcödé",
    "日本語",
    "🙂" * 40,
    "\u202eabc",
    "a\x00b",
    "a\nb\r\n",
    "<pad> </s> <mask>",
    "\ud7ff",
    "%s {0} \\",
)


@dataclass
class Case:
    """A set and what its faults do to its rows.

    `bad` rows must not be trained on, `open_` ones may or may not (their bytes were changed and may still be readable);
    all others must be. `lost` says that a whole file cannot be read: an error is right, rows left without a word are not.
    """

    layout: Layout
    faults: list[str] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)
    open_: set[int] = field(default_factory=set)
    lost: bool = False
    raw: dict[str, bytes] = field(default_factory=dict)  # files written in place of the layout's
    folders: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    tar: str = ""  # one of TARS: the set is packed into shards
    tar_seed: int = 0

    def write(self, root: Path) -> None:
        """Put all files below `root`."""
        self.layout.write(root)
        for name in self.gone:
            (root / name).unlink()
        for name in self.folders:
            (root / name).unlink()
            (root / name).mkdir()
        for name, data in self.raw.items():
            (root / name).write_bytes(data)

    def uids(self, rows: set[int]) -> set[str]:
        """Uids of the examples of `rows`."""
        return {uid for row in rows for uid in self.layout.uids[row]}


def draw(chance: random.Random) -> Case:
    """A case; the same for the same state of `chance`. At least two rows stay sound."""
    count = chance.randint(5, 8)
    case = Case(LAYOUTS[chance.choice(sorted(LAYOUTS))](count))
    rows = list(range(count))
    chance.shuffle(rows)
    if chance.random() < 0.12:
        return _packed(case, rows[: chance.randint(0, 2)], chance)
    for row in rows[: chance.randint(0, count - 2)]:
        chance.choice(ROW_FAULTS)(case, row, chance)
    if chance.random() < 0.25:
        chance.choice(FILE_FAULTS)(case, chance)
    return case


def _packed(case: Case, rows: list[int], chance: random.Random) -> Case:
    """The set as tar shards, with broken pictures inside or a broken tar."""
    for row in rows:
        broken_visual(case, row, chance)
    case.tar = chance.choice(sorted(TARS))
    case.tar_seed = chance.randrange(2**31)
    case.lost = TARS[case.tar] == "lost"
    if TARS[case.tar] == "open":
        case.open_ |= set(range(len(case.layout.uids))) - case.bad
    case.faults.append(f"tar shards: {case.tar}")
    return case


TARS = {
    "whole (sound)": "sound", "cut": "lost", "flipped": "open", "missing": "lost", "noise": "lost", "index is noise": "lost",
    "index is missing": "lost", "index leaves the folder": "lost", "examples are cut": "lost",
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------- rows of JSON


def _values(case: Case, file: str, row: int) -> dict[str, Any]:
    found = case.layout.rows[file][row]
    return found[1] if case.layout.keyed else found


def wrong_type(case: Case, row: int, chance: random.Random) -> None:
    """A field with a value of another kind."""
    file, key, kind, _ = chance.choice(case.layout.fields)
    _values(case, file, row)[key] = chance.choice(JUNK[kind])
    case.bad.add(row)
    case.faults.append(f"row {row}: {key} is {_values(case, file, row)[key]!r}")


def missing_field(case: Case, row: int, chance: random.Random) -> None:
    """A field that is not there, or null."""
    file, key, _, _ = chance.choice([f for f in case.layout.fields if not f[3]])
    if chance.random() < 0.5:
        del _values(case, file, row)[key]
    else:
        _values(case, file, row)[key] = None
    case.bad.add(row)
    case.faults.append(f"row {row}: no {key}")


def not_finite(case: Case, row: int, chance: random.Random) -> None:
    """NaN or an infinity."""
    file, key, _, _ = chance.choice(case.layout.fields)
    _values(case, file, row)[key] = chance.choice([float("nan"), float("inf"), float("-inf")])
    case.bad.add(row)
    case.faults.append(f"row {row}: {key} is not finite")


def no_object(case: Case, row: int, chance: random.Random) -> None:
    """Something that is no row at all."""
    file = chance.choice(sorted(case.layout.rows))
    junk = chance.choice([None, 7, "text", [1, 2], True])
    if case.layout.keyed:
        case.layout.rows[file][row][1] = junk
    else:
        case.layout.rows[file][row] = junk
    case.bad.add(row)
    case.faults.append(f"row {row}: {junk!r}")


def _text_place(case: Case, row: int, chance: random.Random) -> tuple[dict[str, Any], str]:
    """A question, statement, answer or caption of a row: what holds it, and its key."""
    places: list[tuple[dict[str, Any], str]] = []
    for file in case.layout.rows:
        values = _values(case, file, row)
        places += [
            (values, key) for f, key, kind, _ in case.layout.fields if (f, kind) == (file, "text") and key not in NAMES
        ]
        for parts, key in (("answers", "answer"), ("sentences", "raw"), ("descs", "desc")):
            places += [(part, key) for part in values.get(parts, []) if isinstance(part, dict)]
    return chance.choice(places)


def long_text(case: Case, row: int, chance: random.Random) -> None:
    """A very long or strange text, which is sound all the same."""
    values, key = _text_place(case, row, chance)
    values[key] = chance.choice(["word " * (LONG_TEXT // 5), "x" * LONG_TEXT, *STRANGE_TEXTS])
    case.faults.append(f"row {row}: {key} of {len(values[key])} characters (sound)")


def empty_caption(case: Case, row: int, chance: random.Random) -> None:
    """A caption without a letter, or one that is no text."""
    values, key = _text_place(case, row, chance)
    values[key] = chance.choice(["", "   ", "\n", 7, ["a"]])
    # The official answers of VQA hold empty ones, which count as any other.
    (case.open_ if key == "answer" else case.bad).add(row)
    case.faults.append(f"row {row}: {key} is {values[key]!r}")


def half_character(case: Case, row: int, chance: random.Random) -> None:
    """A text that was cut inside a character of two parts."""
    values, key = _text_place(case, row, chance)
    values[key] = f"{values[key]} \ud83d"
    case.bad.add(row)
    case.faults.append(f"row {row}: half a character in {key}")


NAMES = ("identifier", "filename", "split", "picture")


def leaves_root(case: Case, row: int, chance: random.Random) -> None:
    """A name of a picture or video that leads out of the data root."""
    keys = {"vqa": "image_id", "gqa": "imageId", "nlvr2": "identifier", "coco": "filename", "own": "picture"}
    key = keys.get(case.layout.task, "vid_name")
    file = next(f for f, k, _, _ in case.layout.fields if k == key)
    _values(case, file, row)[key] = chance.choice(["../../../../etc/passwd", "/etc/passwd", "a/../../b", "a\x00b"])
    case.bad.add(row)
    case.faults.append(f"row {row}: {key} leaves the root")


# ------------------------------------------------------------------------------------------------ pictures and videos


def broken_visual(case: Case, row: int, chance: random.Random) -> None:
    """A picture or video that cannot be used, or looks so."""
    name = chance.choice(sorted(case.layout.visuals[row]))
    sound = case.layout.visuals[row][name]
    kind = chance.choice(sorted(_VIDEOS if name.endswith(".mp4") else _PICTURES))
    data, verdict = (_VIDEOS if name.endswith(".mp4") else _PICTURES)[kind](sound, chance)
    case.raw[name] = data
    {"bad": case.bad, "open": case.open_, "sound": set()}[verdict].add(row)
    case.faults.append(f"row {row}: {name} is {kind} ({verdict})")


Make = Callable[[bytes, random.Random], tuple[bytes, str]]
_ANYWHERE: dict[str, Make] = {
    "empty": lambda sound, chance: (b"", "bad"),
    "noise": lambda sound, chance: (made.noise(chance), "bad"),
    "an error page": lambda sound, chance: (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "bad"),
    "a tar": lambda sound, chance: (b"a.png".ljust(257, b"\0") + b"ustar\0" + bytes(250), "bad"),
    "flipped": lambda sound, chance: (made.flipped(sound, chance), "open"),
}
_PICTURES: dict[str, Make] = {
    **_ANYWHERE,
    "cut": lambda sound, chance: (made.cut(sound, chance), "bad"),
    "huge": lambda sound, chance: (made.huge_png(chance.choice([20_000, 2**31 - 1]), 40_000), "bad"),
    "a program": lambda sound, chance: (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "bad"),
    "an animated GIF": lambda sound, chance: (made.animation("GIF"), "sound"),
    "an animated PNG": lambda sound, chance: (made.animation("PNG"), "sound"),
    "another format": lambda sound, chance: (made.picture(chance.choice(["WEBP", "BMP", "TIFF", "GIF"])), "sound"),
    "CMYK": lambda sound, chance: (made.picture("JPEG", "CMYK"), "sound"),
    "grey with alpha": lambda sound, chance: (made.picture("PNG", "LA"), "sound"),
    "a video": lambda sound, chance: (made.video(), "bad"),
}
_VIDEOS: dict[str, Make] = {
    **_ANYWHERE,
    "cut": lambda sound, chance: (made.cut(sound, chance), "bad"),
    "sound alone": lambda sound, chance: (made.sound(), "bad"),
    "one frame": lambda sound, chance: (made.video(frames=1), "sound"),
    "another container": lambda sound, chance: (made.video(*chance.choice(_OTHERS)), "sound"),
    "a playlist": lambda sound, chance: (b"ffconcat version 1.0\nfile v0.mp4\nfile v1.mp4\n", "bad"),
    "centuries long": lambda sound, chance: (made.video("matroska", last_pts=2**33), "bad"),
    "a picture": lambda sound, chance: (made.picture("JPEG"), "bad"),
}
_OTHERS = (("avi", "mpeg4"), ("matroska", "mpeg4"), ("mpegts", "mpeg2video"), ("mov", "mpeg4"), ("flv", "flv"))


def no_visual(case: Case, row: int, chance: random.Random) -> None:
    """A picture or video that is not there, or is a folder."""
    name = chance.choice(sorted(case.layout.visuals[row]))
    is_folder = chance.random() < 0.5
    (case.folders if is_folder else case.gone).append(name)
    case.bad.add(row)
    case.faults.append(f"row {row}: {name} is {'a folder' if is_folder else 'missing'}")


def stored_features(case: Case, row: int, chance: random.Random) -> None:
    """Stored features in place of a video: of another shape, not finite, pickled, cut."""
    name = next(iter(case.layout.visuals[row]))
    if not name.endswith(".mp4"):
        broken_visual(case, row, chance)
        return
    stream = io.BytesIO()
    kind = chance.choice(["sound", "shape", "nan", "pickle", "cut", "claim"])
    rows = np.ones((4, 3 if kind != "shape" else 5), np.float16)
    if kind == "nan":
        rows[1, 1] = np.nan
    np.savez(stream, features=np.array([{"a": 1}], dtype=object) if kind == "pickle" else rows)
    data = stream.getvalue()
    if kind == "cut":
        data = made.cut(data, chance)
    if kind == "claim":  # the header claims more rows than there are
        data = data.replace(b"(4, 3)", b"(9, 3)")
    case.gone.append(name)
    stem = name.rpartition("/")[2].removesuffix(".mp4")
    case.layout.extra[f"vis_features/tv/clip-vit/{stem}.npz"] = ""  # makes the folder
    case.raw[f"vis_features/tv/clip-vit/{stem}.npz"] = data
    if kind != "sound":
        case.bad.add(row)
    case.faults.append(f"row {row}: stored features ({kind})")


ROW_FAULTS = (
    wrong_type, missing_field, not_finite, no_object, long_text, empty_caption, half_character, leaves_root, broken_visual, broken_visual, broken_visual,
    no_visual, stored_features,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------- whole files


def _main_file(case: Case) -> str:
    return next(iter(case.layout.rows))


def duplicate_row(case: Case, chance: random.Random) -> None:
    """A sound row that stands twice: the second goes, the first stays."""
    sound = sorted(set(range(len(case.layout.uids))) - case.bad - case.open_)
    file = _main_file(case)
    if case.layout.keyed or not sound:
        return
    case.layout.rows[file].append(dict(case.layout.rows[file][chance.choice(sound)]))
    case.faults.append(f"a row of {file} stands twice")


def other_encoding(case: Case, chance: random.Random) -> None:
    """UTF-16, or Latin-1 with letters that are no UTF-8; a byte order mark is sound."""
    file = _main_file(case)
    text = case.layout.text(file)
    name = chance.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1"])
    case.lost = name != "utf-8-sig"
    case.raw[file] = (text + " " if name != "latin-1" else text.replace("what", "wh\xe4t") + "\xe4").encode(name)
    case.faults.append(f"{file} in {name}")


def cut_file(case: Case, chance: random.Random) -> None:
    """An annotation file that ends early."""
    file = _main_file(case)
    data = case.layout.text(file).encode()
    case.raw[file] = data[: chance.randint(0, len(data) - 3)]
    case.lost = True
    case.faults.append(f"{file} is cut")


def noise_file(case: Case, chance: random.Random) -> None:
    """No JSON at all."""
    file = _main_file(case)
    case.raw[file] = chance.choice(
        [b"", b"\x1f\x8b\x08\x00" + made.noise(chance), made.noise(chance), b"[" * 100_000, b"[]", b"{}"]
    )
    case.lost = True
    case.faults.append(f"{file} is no JSON of rows")


FILE_FAULTS = (duplicate_row, duplicate_row, other_encoding, cut_file, noise_file)
