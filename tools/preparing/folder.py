"""A folder of pictures with captions: a table in it, or a text file beside each picture.

The table is `captions.csv`, `captions.txt` or `captions.jsonl`, or `metadata.jsonl` or `metadata.csv` as Hugging Face's
imagefolder writes it. Folders train, val(idation) and test inside are taken as splits when no table lies above them; then
all pictures have to lie in them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mtvl.data.formats.records import decode_utf8
from mtvl.errors import ConfigError, DataError
from preparing.media import READABLE, Media
from preparing.own import OwnRow, OwnSet, write_own
from preparing.problems import Problems
from preparing.splits import SPLIT_WORDS, parse_fractions, split_named
from preparing.table import DEFAULT_SPLIT, Columns, table_rows
from preparing.tables import read_table

TABLES = ("captions.csv", "captions.txt", "captions.jsonl", "metadata.jsonl", "metadata.csv")
PICTURE_COLUMNS = ("file_name", "image", "picture", "file", "filename", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "description")


def prepare_folder(
    src: Path, dst: Path, name: str, *, split: str = DEFAULT_SPLIT, picture: str = "", caption: str = ""
) -> None:  # fmt: skip
    """Turn the pictures of `src` with their captions into the task `name` below `dst`.

    `picture` and `caption` name columns of the table where they are not called as usual. Raises DataError with all faults
    counted, and when there are no captions or captions of two kinds.
    """
    if not src.is_dir():
        raise DataError("expected a folder of pictures, found none; for a table: prepare.py table", file=src)
    if dst.resolve().is_relative_to(src.resolve()):
        raise ConfigError(f"expected DST outside of the folder of pictures, found {dst} in {src}")
    if not parse_fractions(split):
        raise ConfigError(f"--split expects shares of train,val,test here, found {split!r}")
    problems, notes = Problems(src), [f"From the folder {src.resolve().name}."]
    parts = _parts(src)
    rows: list[OwnRow] = []
    num_rows = 0
    for word, folder in parts.items():
        found, total = _captioned(folder, picture, caption, problems, notes)
        num_rows += total
        for row in found:
            relative = f"{word}/{row.media.relative}" if word else row.media.relative
            place = f"{word}/{row.place}" if word else row.place
            media = replace(row.media, relative=relative)
            rows.append(replace(row, media=media, place=place, split=split_named(word) if word else ""))
    fractions = None if any(parts) else parse_fractions(split)
    own = OwnSet(name, src, "caption", "captions", rows, fractions, num_rows, notes)
    if fractions is None:
        own.notes.append("The splits are the folders of the source.")
    write_own(own, dst, problems)


def _parts(src: Path) -> dict[str, Path]:
    """Folder of each split by its name; {"": src} where there are none, or a table of all pictures lies in `src` itself.

    DataError for pictures beside the folders of splits: it is not known where they belong.
    """
    folders = {p.name: p for p in sorted(src.iterdir()) if p.is_dir() and p.name.lower() in SPLIT_WORDS}
    if not folders or any((src / table).is_file() for table in TABLES):
        return {"": src}
    called = [split_named(word) for word in folders]
    if len(set(called)) != len(called):
        raise DataError(f"expected one folder a split, found {', '.join(folders)}", file=src)
    beside = [p for path in _pictures(src) if (p := path.relative_to(src)).parts[0] not in folders]
    if beside:
        raise DataError(
            f"expected all pictures in the folders of the splits ({', '.join(folders)}), found {len(beside):,} beside them, "
            f"e.g. {beside[0].as_posix()}; move those into one of the folders, or, where {', '.join(folders)} are no splits, "
            "give these folders other names",
            file=src,
        )
    return folders


def _captioned(
    folder: Path, picture: str, caption: str, problems: Problems, notes: list[str]
) -> tuple[list[OwnRow], int]:  # fmt: skip
    """The rows of one folder without faults, and how many there are with those."""
    tables = [folder / table for table in TABLES if (folder / table).is_file()]
    pictures = _pictures(folder)
    texts = [p for p in pictures if p.with_suffix(".txt").is_file()]
    if len(tables) + bool(texts) > 1:
        found = [t.name for t in tables] + (["a text file beside a picture"] if texts else [])
        raise DataError(f"expected captions of one kind, found {', '.join(found)}; move the others away", file=folder)
    if texts:
        return _from_texts(folder, pictures, problems)
    if not tables:
        raise DataError(
            f"expected captions: {', '.join(TABLES)}, or NAME.txt beside each NAME.jpg; found {len(pictures)} pictures "
            "and none of these",
            file=folder,
        )
    columns = _columns(tables[0], picture, caption)
    table = read_table(tables[0], columns.all(), problems)
    rows = table_rows(table, columns, folder, problems)
    named = {row.media.path for row in rows}
    others = [p for p in pictures if Path(os.path.abspath(p)) not in named]
    if others and len(rows) == table.num_rows:
        note = f"{len(others)} pictures in {folder.name} stand in no row of {tables[0].name}, e.g. {others[0].name}."
        print(f"note: {note}")
        notes.append(note)
    return rows, table.num_rows


def _pictures(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in READABLE]


def _visible(folder: Path) -> list[Path]:
    """All files below `folder` but hidden ones, such as the ._NAME that macOS leaves beside copies."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _columns(table: Path, picture: str, caption: str) -> Columns:
    """The columns of pictures and captions: as they were named, or the only ones that are called as usual."""
    known = read_table(table, (), Problems(table)).columns

    def choose(given: str, usual: Sequence[str], flag: str) -> str:
        found = [given] if given else [name for name in usual if name in known]
        if len(found) != 1:
            raise DataError(
                f"expected one column of {', '.join(usual)}, found {', '.join(found) or 'none'} among "
                f"{', '.join(known)}; say which with {flag}",
                file=table,
            )
        return found[0]

    return Columns(
        picture=choose(picture, PICTURE_COLUMNS, "--picture"), captions=(choose(caption, CAPTION_COLUMNS, "--caption"),)
    )


def _from_texts(folder: Path, pictures: Sequence[Path], problems: Problems) -> tuple[list[OwnRow], int]:
    """One row a picture: every line of NAME.txt that is not blank is a caption of NAME.jpg."""
    rows = []
    for path in pictures:
        relative = path.relative_to(folder).as_posix()
        file = path.with_suffix(".txt")
        if not file.is_file():
            problems.add("picture without a text file", relative)
            continue
        try:
            text = decode_utf8(file.read_bytes(), file)
        except DataError as error:
            problems.add("text file that is not UTF-8", file.name, str(error))
            continue
        captions = tuple(line.strip() for line in text.splitlines() if line.strip())
        if captions:
            rows.append(OwnRow(relative, Media(Path(os.path.abspath(path)), relative, is_video=False), captions))
        else:
            problems.add("empty text file", file.relative_to(folder).as_posix())
    with_text: dict[Path, list[Path]] = {}
    for path in pictures:
        with_text.setdefault(path.with_suffix(""), []).append(path)
    for same in with_text.values():
        if len(same) > 1:
            problems.add("pictures that share a text file", same[0].name, ", ".join(p.name for p in same))
    for file in (f for f in _visible(folder) if f.suffix == ".txt"):
        if file.with_suffix("") not in with_text and not file.name.lower().startswith(("readme", "license")):
            problems.add("text file without a picture", file.relative_to(folder).as_posix())
    return rows, len(pictures)
