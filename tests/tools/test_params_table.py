"""The published counts, from configurations alone."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import params_table  # noqa: E402


def printed(*arguments: str) -> str:
    """What the tool writes to stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert params_table.main(list(arguments)) == 0
    return out.getvalue()


EXPECTED = {
    ("full", "image"): (141_156_864, 141_156_864),
    ("adapter", "single, image"): (6_081_600, 145_606_464),
    ("adapter", "half-shared up, image"): (12_725_760, 152_250_624),
    ("adapter", "half-shared down, image"): (12_786_240, 152_311_104),
    ("adapter", "multiple, image"): (19_430_400, 158_955_264),
    ("full", "video"): (139_977_216, 139_977_216),
    ("adapter", "single, video"): (4_901_952, 144_426_816),
    ("adapter", "single, image and video"): (6_477_120, 146_001_984),
}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads(printed("--json"))


def test_integers_of_the_published_rows(rows) -> None:
    found = {
        (r["method"], r["variant"]): (r["trainable"], r["total"]) for r in rows if r["backbone"] == "clip_bart_base"
    }
    assert found == EXPECTED


def test_rows_have_the_stable_keys_and_round_to_the_papers(rows) -> None:
    for row in rows:
        assert list(row) == ["backbone", "method", "variant", "trainable", "total", "percent", "paper"]
        assert row["percent"] == pytest.approx(100 * row["trainable"] / row["total"], abs=1e-4)
        if row["paper"] is not None:
            assert round(row["percent"], 2) == row["paper"], row
    assert len({(r["backbone"], r["method"], r["variant"]) for r in rows}) == len(rows)


def test_the_table_shows_every_row(rows) -> None:
    table = printed()
    assert len(table.splitlines()) == 1 + len(rows)
    assert "6,081,600   145,606,464    4.1767    4.18" in table
