"""Whole runs of a tiny CLIP-ViL on four tasks at once: trained, resumed, evaluated, asked, and what users get wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import RunConfig, load_run_config
from mtvl.errors import CheckpointError, ConfigError
from mtvl.evaluate import evaluate
from mtvl.inspecting import inspect_sample, predict_one
from mtvl.model import make_plan
from mtvl.train import train

RECIPE = Path(__file__).parents[2] / "launch" / "recipes" / "tiny_vil.yaml"
TASKS = ["vqa", "gqa", "nlvr2", "snli_ve"]
LABELS = ("entailment", "neutral", "contradiction")
Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def root(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny miniworld, with sentences that have labels beside it."""
    root = tmp_path_factory.mktemp("root")
    for entry in world.iterdir():
        (root / entry.name).symlink_to(entry)
    pictures = sorted((world / "images/train2014").iterdir())[:9]
    (root / "flickr30k").mkdir()
    (root / "flickr30k/images").symlink_to(world / "images/train2014")
    (root / "snli_ve").mkdir()
    for split in ("train", "dev", "test"):
        rows = [
            {"pairID": f"{split}{i}", "Flickr30K_ID": p.stem, "sentence2": "There is a star.", "gold_label": LABELS[i % 3]}
            for i, p in enumerate(pictures)
        ]  # fmt: skip
        (root / "snli_ve" / f"snli_ve_{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


@pytest.fixture(scope="module")
def recipe(root: Path, small_recipe: Callable[..., Recipe]) -> Recipe:
    return small_recipe(
        RECIPE, TASKS, f"data.root={root}", "data.workers=0", "train.steps=8", "checkpoint.every_steps=4",
        "petl={name: adapter, share: none, bottleneck: 4}", "backbone.dropout=0.1", "backbone.visual_tokens=9",
        "backbone.text={num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64}", "optim.lr=0.01", "mixture.block=4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps on four tasks."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(recipe(), folder).code == 0
    return folder


@pytest.fixture(scope="module")
def lists(run: Path) -> dict[str, list[str]]:
    """The answers that the run wrote down."""
    return yaml.safe_load((run / "config.yaml").read_text())["backbone"]["answers"]


def test_the_lists_are_written_down(run: Path, lists: dict[str, list[str]]) -> None:
    assert list(lists) == TASKS
    assert lists["snli_ve"] == list(LABELS) and lists["nlvr2"] == ["true", "false"]
    assert {"yes", "no"} < set(lists["vqa"]) & set(lists["gqa"]) and len(lists["vqa"]) > 10
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {r["task"] for r in records} == set(TASKS)
    exported = json.loads((run / "export" / "adapter.json").read_text())["config"]["backbone"]
    assert exported["answers"] == lists and exported["exclusive"] == ["nlvr2", "snli_ve"]


def test_a_resumed_run_is_the_same(recipe: Recipe, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step_4", tmp_path / "again" / "checkpoints" / "step_4")
    assert train(recipe(), tmp_path / "again").code == 0
    a, b = (load_file(str(folder / "export" / "adapter.safetensors")) for folder in (run, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert "backbone.head.out.weight" in a


def test_other_answers_are_another_run(recipe: Recipe, run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'backbone' was .*vqa \d+, gqa \d+, nlvr2 2, snli_ve 3 \(") as error:
        train(recipe("backbone.num_answers=30"), run)
    assert len(str(error.value)) < 3000  # thousands of answers are no message


def test_evaluation_answers_from_each_tasks_list(run: Path, lists: dict[str, list[str]], tmp_path: Path) -> None:
    results = evaluate(run, TASKS)
    assert set(results) == set(TASKS) and all(0 <= r["score"] <= 100 for r in results.values())
    predictions = {}
    for task in TASKS:
        rows = [json.loads(line) for line in (run / "predictions" / f"{task}.jsonl").read_text().splitlines()]
        assert {row["text"] for row in rows} <= set(lists[task])
        predictions[task] = {row["uid"]: row["text"] for row in rows}
    assert set(json.loads((run / "predictions" / "snli_ve.jsonl").read_text().splitlines()[0])["scores"]) == set(LABELS)
    mixed = evaluate(run, TASKS, out=tmp_path / "mixed.json", overrides=["evaluate.mixed=true"])
    for task in TASKS:
        rows = [json.loads(line) for line in (tmp_path / "predictions" / f"{task}.jsonl").read_text().splitlines()]
        assert {row["uid"]: row["text"] for row in rows} == predictions[task]
        assert mixed[task]["score"] == results[task]["score"]


def test_one_sample_and_one_picture(
    run: Path, root: Path, recipe: Recipe, lists: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the pictures are drawn
    text = inspect_sample(recipe(tasks=["vqa"]), "vqa", 0, "test", str(run))
    assert f"binary cross entropy against all targets' weights, summed over {len(lists['vqa'])} answers" in text
    assert text.split("answer now      '")[1].split("'")[0] in lists["vqa"]
    start = inspect_sample(recipe(tasks=["snli_ve"]), "snli_ve", 1, "train")
    assert "mean over tokens x target weight 1.00" in start and "decoded labels  'neutral'" in start
    picture = next((root / "images/train2014").iterdir())
    answer = predict_one(run, "gqa", [picture], "what color is the star?")
    assert answer in lists["gqa"]


def test_what_users_get_wrong(recipe: Recipe, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task 'coco': .* that is free text|only .* of task 'coco' have one of"):
        train(recipe(tasks=["coco"]), tmp_path / "coco")
    with pytest.raises(ConfigError, match=r"clip_vil reads pictures; for tasks on videos|ranks each row's own choices"):
        train(recipe(tasks=["tvqa"]), tmp_path / "tvqa")
    with pytest.raises(ConfigError, match=r"task\.vqaa|'backbone\.answer_files\.vqaa' is not one of the tasks"):
        train(recipe("backbone.answer_files={vqaa: x.json}", tasks=["vqa"]), tmp_path / "files")
    with pytest.raises(ConfigError, match=r"'backbone\.answers' has no list for gqa; add one"):
        train(recipe("backbone.answers={vqa: ['yes', 'no']}", tasks=["vqa", "gqa"]), tmp_path / "half")
    with pytest.raises(ConfigError, match=r"'backbone\.num_answers'"):
        make_plan(recipe("backbone.num_answers=0"))
    shared = tmp_path / "shared"
    train(recipe("petl={name: adapter, bottleneck: 4}", "train.steps=1", tasks=["vqa"]), shared)
    with pytest.raises(ConfigError, match="a choice of this task is none of the answers"):
        evaluate(shared, ["snli_ve"], split="val")
    assert 0 <= evaluate(shared, ["gqa"], split="val")["gqa"]["score"] <= 100  # with the answers of vqa


def test_labels_on_a_backbone_that_writes(root: Path, recipe: Recipe, tmp_path: Path) -> None:
    """SNLI-VE is a choice between first tokens there."""
    small = ["train.steps=2", "train.global_batch=6", "train.micro_batch=6", "data.workers=0"]
    data = [f"data.root={root}", f"data.cache={recipe().data.cache}"]
    assert train(load_run_config(DEFAULT_RECIPE, ["snli_ve"], [*small, *data]), tmp_path / "bart").code == 0
    result = evaluate(tmp_path / "bart", ["snli_ve"], split="val")["snli_ve"]
    assert result["num_examples"] == 9 and {f"accuracy_{label}" for label in LABELS} < set(result)
