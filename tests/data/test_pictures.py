"""Pictures of rows are found with one scan a folder, or counted as missing in one error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mtvl.data.formats.pictures import PictureIndex
from mtvl.data.formats.rows import Row
from mtvl.errors import ConfigError, DataError


def row(number: int, *pictures: dict[str, Any]) -> Row:
    return Row(Path("rows.json"), f"[{number}]", str(number), pictures)


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_endings_and_alternative_folders(tmp_path: Path) -> None:
    put(tmp_path, "a/one.png", "b/two.jpeg", "b/three.JPG", "a/four.jpg", "a/four.png", "b/v1.5.png")
    index = PictureIndex(tmp_path, ["a/{name}", "b/{name}"])
    names = ["one", "two", "three", "four", "v1.5", "one.jpg"]
    found = index.find_all([row(i, {"name": n}) for i, n in enumerate(names)])
    expected = ["a/one.png", "b/two.jpeg", "b/three.JPG", "a/four.jpg", "b/v1.5.png", "a/one.png"]
    assert found == [(str(tmp_path / e),) for e in expected]


def test_one_error_counts_all_missing_pictures(tmp_path: Path) -> None:
    put(tmp_path, "p/0.png")
    rows = [row(i, {"name": str(i % 5)}) for i in range(10)]
    with pytest.raises(DataError) as caught:
        PictureIndex(tmp_path, ["p/{name}", "q/{name}"]).find_all(rows)
    message = str(caught.value)
    assert "rows.json, row [1]: expected 5 pictures, found 1, missing 4, e.g. p/1, p/2, p/3" in message
    assert "p (1 files), q (0 files)" in message


def test_every_folder_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"p/{i}.png" for i in range(20)))
    scanned: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(str(path)), scandir(path))[1])
    monkeypatch.setattr(Path, "stat", lambda *_, **__: pytest.fail("a stat for a row"))
    PictureIndex(tmp_path, ["p/{name}"]).find_all([row(i, {"name": str(i)}) for i in range(20)])
    assert scanned == [str(tmp_path / "p")]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "..", "x\\..\\y", "a\0b"])
def test_annotations_do_not_lead_out_of_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    put(tmp_path, "secret.png", "root/p/a.png")
    with pytest.raises(DataError, match=r"rows\.json, row \[0\]: expected a picture below the data root"):
        PictureIndex(root, ["p/{name}"]).find_all([row(0, {"name": name})])


def test_an_absolute_name_stays_below_the_root(tmp_path: Path) -> None:
    put(tmp_path, "secret.png")
    with pytest.raises(DataError, match="missing 1|below the data root"):
        PictureIndex(tmp_path / "root", ["{name}", "p/{name}"]).find_all([row(0, {"name": str(tmp_path / "secret")})])


def test_a_pattern_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'p/{nmae}' names a field that this format has not; it has name"):
        PictureIndex(tmp_path, ["p/{nmae}"]).find_all([row(0, {"name": "a"})])
    with pytest.raises(ConfigError, match="at least one picture pattern"):
        PictureIndex(tmp_path, [])
    with pytest.raises(DataError, match="does not fit"):
        PictureIndex(tmp_path, ["p/{name:012d}"]).find_all([row(0, {"name": "a"})])
