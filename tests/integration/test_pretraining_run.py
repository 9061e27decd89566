"""Pre-training as VL-Adapter's Table 6 has it, by the usual trainer: words, matching and questions in one run, then a method on top."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from mtvl.cli import DEFAULT_RECIPE, RECIPES
from mtvl.config import RunConfig, load_run_config
from mtvl.errors import DataError
from mtvl.evaluate import evaluate
from mtvl.export import load_export
from mtvl.interchange.bundle import write_bundle
from mtvl.model import build_model
from mtvl.train import train

RECIPE = RECIPES / "clip_bart_pretrain.yaml"
TASKS = ["masked_coco", "matching_coco", "masked_vg", "matching_vg", "vqa", "gqa"]
Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def root(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny miniworld, with descriptions in the manner of Visual Genome beside it."""
    root = tmp_path_factory.mktemp("root")
    for entry in world.iterdir():
        (root / entry.name).symlink_to(entry)
    pictures = sorted((world / "images/train2014").glob("*"))[:6]
    (root / "vg" / "VG_100K").mkdir(parents=True)
    for number, picture in enumerate(pictures, start=1):
        (root / "vg" / "VG_100K" / f"{number}.jpg").symlink_to(picture)
    rows = [
        {"id": n, "regions": [{"region_id": 10 * n + i, "image_id": n, "phrase": f"{words} {n}"} for i, words in
                              enumerate(("a star left of a square", "the shape is"))]}
        for n in range(1, len(pictures) + 1)
    ]  # fmt: skip
    (root / "vg" / "region_descriptions.json").write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def recipe(root: Path, small_recipe: Callable[..., Recipe]) -> Recipe:
    """The default recipe of the tiny model, trained in full on all six tasks, each of them once."""
    return small_recipe(
        DEFAULT_RECIPE, TASKS, f"data.root={root}", "data.workers=0", "petl.name=full", "mixture.slots=6", "mixture.block=6",
        "train.steps=2", "data.max_examples=24", "evaluate.bootstrap=5",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    assert train(recipe(), folder).code == 0
    return folder


def test_all_six_tasks_train_together(run: Path) -> None:
    assert yaml.safe_load(RECIPE.read_text())["tasks"] == TASKS == list(load_run_config(RECIPE).tasks)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["losses"] for record in records if "losses" in record]
    assert len(losses) == 2 and all(set(found) == set(TASKS) for found in losses)
    assert all(0 < value < 20 for found in losses for value in found.values())


def test_what_has_a_split_is_scored_and_what_has_none_says_so(run: Path) -> None:
    results = evaluate(run, ["masked_coco", "matching_coco"], overrides=["data.max_examples=8"])
    assert results["masked_coco"]["primary"] == "restored" and results["matching_coco"]["primary"] == "accuracy"
    assert all(0 <= r["score"] <= 100 and r["num_examples"] == 8 for r in results.values())
    with pytest.raises(DataError, match="masked_vg.*test"):
        evaluate(run, ["masked_vg"])


def test_a_method_starts_from_what_was_pretrained(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    model, config, _ = load_export(run)
    write_bundle(tmp_path / "backbone", model, config, "")
    adapter = recipe("petl.name=adapter", f"backbone.weights={tmp_path / 'backbone'}", tasks=["vqa", "gqa"])
    further = build_model(replace(adapter, backbone={**adapter.backbone, "dropout": 0.0}))
    trained = {n: p for n, p in model.named_parameters() if n in dict(further.named_parameters())}
    assert len(trained) > 50
    assert all(torch.equal(p, further.get_parameter(n)) for n, p in trained.items())
