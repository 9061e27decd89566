"""Means over seeds, ranks, the paper's columns, and labels that do not lie over one another."""

from __future__ import annotations

import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mtvl.cli import DEFAULT_RECIPE
from mtvl.compare.figure import has_plots, write_figure
from mtvl.compare.place import Box, overlap, place_labels
from mtvl.compare.recipe import Comparison, load_comparison
from mtvl.compare.tables import markdown, rank_agreement, ranks, summarise

LIST = f"""
base: {DEFAULT_RECIPE}
title: A title
paper: A paper
tasks: [vqa, coco]
methods:
  - {{name: whole, label: Everything, set: {{petl.name: full}}, paper: {{trained: 100, scores: [60, 100]}}}}
  - {{name: single, label: Single Adapter, set: {{petl.name: adapter}}, paper: {{trained: 4, scores: [70, 100]}}}}
  - {{name: norms, set: {{petl.name: projection}}}}
  - {{name: later, set: {{petl.name: ia3}}}}
"""


@pytest.fixture
def listed(tmp_path: Path) -> Comparison:
    (tmp_path / "list.yaml").write_text(LIST)
    return load_comparison(tmp_path / "list.yaml")


def record(method: str, seed: int, scores: tuple[float, float], percent: float, **more: Any) -> dict[str, Any]:
    budget = {"steps": 8, "global_batch": 4, "slots": 1, "train_seconds": 100.0, "evaluate_seconds": 20.0}
    named = dict(zip(("vqa", "coco"), scores, strict=True))
    return {
        "method": method, "seed": seed, "scores": named, "average": sum(scores) / 2, "trained_percent": percent,
        "metrics": {"vqa": "accuracy", "coco": "cider"}, "num_examples": {"vqa": 40, "coco": 30}, "trainable": 5,
        "total": 100, "seconds_per_step": 0.1 * (seed + 1), "peak_memory_bytes": 2**20 * (seed + 1), "budget": budget,
        "commit": "abc1234", "identity": {"petl.name": method, "petl.share": "all", "optim.lr": 0.1}, **more,
    }  # fmt: skip


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return [
        record("single", 2, (68.0, 104.0), 5.0), record("single", 0, (66.0, 100.0), 5.0),
        record("single", 1, (70.0, 102.0), 5.0), record("whole", 0, (80.0, 110.0), 100.0),
        record("norms", 0, (50.0, 90.0), 2.0),
    ]  # fmt: skip


def test_mean_deviation_rank_and_paper(listed: Comparison, records: list[dict[str, Any]]) -> None:
    summary = summarise(listed, records)
    whole, single, norms = summary["rows"]
    assert single["seeds"] == [0, 1, 2] and single["scores"]["vqa"]["mean"] == 68.0
    assert single["scores"]["vqa"]["std"] == pytest.approx(2.0)  # of 66, 68 and 70, with n - 1
    assert single["average"]["values"] == [83.0, 86.0, 86.0] and whole["average"]["std"] is None
    assert single["seconds_per_step"] == pytest.approx(0.2) and single["peak_memory_bytes"] == 3 * 2**20
    assert [r["rank"] for r in summary["rows"]] == [1, 2, 3]
    assert [r["paper"]["average"] for r in summary["rows"]] == [80.0, 85.0, None]
    assert [r["paper"]["rank"] for r in summary["rows"]] == [2, 1, None]
    assert summary["missing"] == ["later"] and summary["minutes"] == 10.0
    assert norms["label"] == "norms"


def test_markdown_says_all_of_it(listed: Comparison, records: list[dict[str, Any]]) -> None:
    text = markdown(summarise(listed, records))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "# A title"
    assert (
        "| Single Adapter | 0.1 | 5.00 | 68.00 ± 2.00 | 102.00 ± 2.00 | 85.00 ± 1.73 | 2 | 3 | 0.200 | 3 | 4.00 | 85.0 | 1 |"
        in lines
    )
    assert "| norms | 0.1 | 2.00 | 50.00 | 90.00 | 70.00 | 3 | 1 | 0.100 | 1 | - | - | - |" in lines
    assert "| Everything | 60.0 | 100.0 | 80.0 |" in lines  # the paper's own row
    assert "8 steps of 4" in text and "coco cider (30)" in text and "Not run yet: later" in text and "abc1234" in text


def test_rows_over_different_items_are_called_out(listed: Comparison, records: list[dict[str, Any]]) -> None:
    records[0]["num_examples"] = {"vqa": 41, "coco": 30}
    assert "cannot be compared" in markdown(summarise(listed, records))
    assert "cannot be compared" not in markdown(summarise(listed, records[1:]))


def test_memory_that_nobody_measured_is_a_dash(listed: Comparison) -> None:
    text = markdown(summarise(listed, [record("norms", 0, (1.0, 2.0), 2.0, peak_memory_bytes=None)]))
    assert "| 0.100 | - |" in " ".join(text.split())


def test_ties_share_their_ranks() -> None:
    assert ranks({"a": 3.0, "b": 5.0, "c": 3.0, "d": None, "e": 1.0}) == {"b": 1, "a": 2.5, "c": 2.5, "e": 4}
    ours = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 9.0}
    assert rank_agreement(ours, {"a": 10.0, "b": 20.0, "c": 30.0}) == pytest.approx(1.0)
    assert rank_agreement(ours, {"a": 30.0, "b": 20.0, "c": 10.0}) == pytest.approx(-1.0)
    assert rank_agreement(ours, {"a": 1.0, "b": 2.0}) is None
    assert rank_agreement(ours, {"a": 1.0, "b": 1.0, "c": 1.0}) is None


@pytest.mark.parametrize("seed", range(4))
def test_labels_keep_apart(seed: int) -> None:
    """Twelve names around points of which most lie close together, as methods of a few per cent do."""
    draw = random.Random(seed)
    anchors = [(200 + draw.gauss(0, 60), 300 + draw.gauss(0, 15)) for _ in range(10)] + [(60.0, 40.0), (590.0, 350.0)]
    sizes = [(draw.uniform(50, 110), 12.0) for _ in anchors]
    bounds: Box = (0.0, 0.0, 640.0, 400.0)
    points = [(x - 4, y - 4, x + 4, y + 4) for x, y in anchors]
    boxes = place_labels(anchors, sizes, bounds, points)
    assert all(overlap(a, b) == 0 for a, b in combinations(boxes, 2))
    assert all(overlap(box, point) == 0 for box in boxes for point in points)
    for box, (width, height) in zip(boxes, sizes, strict=True):
        assert overlap(box, bounds) == pytest.approx(width * height)


def test_overlap_is_an_area() -> None:
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == 1 and overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0


@pytest.mark.skipif(not has_plots(), reason="matplotlib is not installed (extra: plots)")
def test_the_figure_names_every_method_twice_and_is_reproducible(
    listed: Comparison, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    summary = summarise(listed, records)
    write_figure(summary, tmp_path)
    first = (tmp_path / "figure.svg").read_bytes()
    names = re.findall(r"<!-- (.*?) -->", first.decode())  # matplotlib notes each text beside its outlines
    assert names.count("Everything") == names.count("Single Adapter") == 2  # ours, and as published
    assert names.count("norms") == 1 and "as published (A paper)" in names and "A title" in names
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    write_figure(summary, tmp_path)
    assert (tmp_path / "figure.svg").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure.png", "figure.svg", "list.yaml"]
