"""The matrix of methods and backbones says what the methods say themselves."""

from __future__ import annotations

import pytest

from mtvl.backbones import BACKBONES
from mtvl.compare.methods import cell, matrix_table
from mtvl.model import make_backbone
from mtvl.petl import METHODS


@pytest.fixture(scope="module")
def table() -> str:
    return matrix_table()


def test_every_method_stands_under_every_backbone(table: str) -> None:
    lines = table.splitlines()
    assert lines[0].split() == ["petl.name", *BACKBONES]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(METHODS)]}
    assert list(rows) == list(METHODS)
    assert rows["uniadapter"].split()[1:] == ["refused", "(4)"] * 3 + ["all/up/down/none"]
    assert rows["vcra"].split()[1:] == ["all/up/down/none"] * 4 and rows["full"].split()[1:] == ["yes"] * 4


def test_every_refusal_has_its_reason_once(table: str) -> None:
    reasons = table.splitlines()[1 + len(METHODS) :]
    assert len(reasons) == len(set(reasons)) == 5
    assert all(f"refused ({i})" in table and line.startswith(f"({i}) ") for i, line in enumerate(reasons, start=1))


def test_ways_of_sharing_of_a_cell() -> None:
    sites = make_backbone({"name": "blip", "preset": "tiny"}, meta=True).sites()
    assert cell("adapter", sites) == (("all", "up", "down", "none"), "")
    assert cell("unitrans", sites) == (("all", "up", "down", "none"), "") and cell("probe", sites) == (("yes",), "")
    works, reason = cell("projection", sites)
    assert not works and "no visual embedding" in reason
