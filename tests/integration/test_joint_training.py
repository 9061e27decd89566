"""Pictures and videos in one run: all eight tasks into one checkpoint, shards, spans, what an image-only model says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import RunConfig
from mtvl.engine import Engine
from mtvl.errors import ConfigError
from mtvl.evaluate import evaluate
from mtvl.export import load_export, write_export
from mtvl.inspecting import inspect_sample
from mtvl.model import build_model
from mtvl.train import train
from mtvl.workspace import Workspace

TASKS = ["vqa", "gqa", "nlvr2", "coco", "tvqa", "how2qa", "tvc", "yc2c"]
Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def recipe(small_recipe: Callable[..., Recipe]) -> Recipe:
    return small_recipe(DEFAULT_RECIPE, TASKS, "train.steps=8", "mixture.law=equal", "mixture.block=8")


@pytest.fixture(scope="module")
def joint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "joint"
    assert train(recipe(), run).code == 0
    return run


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def test_one_checkpoint_learns_and_is_scored_on_all_eight_tasks(joint: Path) -> None:
    records = [json.loads(line) for line in (joint / "log.jsonl").read_text().splitlines()]
    assert {r["task"] for r in records} == set(TASKS)
    results = evaluate(joint, TASKS)
    assert set(results) == set(TASKS)
    model, config, content = load_export(joint)
    assert config.backbone["visual"] == ["grid", "frame"] and set(content["tasks"]) == set(TASKS)
    assert {"visual.features.grid", "visual.features.frame"} <= {
        n.removeprefix("backbone.")[: -len(".0.weight")] for n in model.trainable()
    }
    assert 0 <= results["tvqa"]["score"] <= 100 and results["tvqa"]["constant"] > 0
    names = {line["text"] for line in map(json.loads, (joint / "predictions" / "tvqa.jsonl").read_text().splitlines())}
    assert names <= {"a0", "a1", "a2", "a3", "a4"}
    servers = {p.name for p in (joint / "results").iterdir()}
    assert len(servers) == len(TASKS), servers


def test_a_sample_on_video_can_be_looked_at(
    recipe: Recipe, joint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect_sample(recipe(tasks=["tvqa"]), "tvqa", 1, "test", str(joint))
    assert "seconds" in text and "frame  min" in text and "segment         choices" in text
    assert (tmp_path / "runs/inspect/tvqa-test-1.png").is_file()


def test_a_span_takes_its_frames_and_text_takes_all(recipe: Recipe) -> None:
    config = recipe(tasks=["tvqa"])
    backbone = build_model(config).backbone
    batches = []
    for overrides in ((), ("task.tvqa.video={span: text, subtitles: all}",)):
        space = Workspace(recipe(*overrides, tasks=["tvqa"]), backbone, say=lambda _: None)
        space.prepare([("tvqa", "test")])
        rows = list(space.examples("tvqa", "test"))
        batches.append(space.collator.collate("tvqa", rows, training=False))
    part, whole = (b.feature_mask.sum(-1).flatten() for b in batches)
    assert whole.unique().tolist() == [32]  # 12 s at 1.5 s a frame, four tokens each
    assert (part <= whole).all() and (part < whole).any()


@pytest.mark.parametrize(
    ("data", "scored", "rows"), [(0, 0, (40, 32)), (0, 7, (40, 7)), (9, 0, (9, 9)), (5, 7, (5, 5)), (9, 7, (9, 7))]
)
def test_scores_may_rest_on_fewer_rows_than_training(recipe: Recipe, data: int, scored: int, rows: tuple) -> None:
    config = recipe(f"data.max_examples={data}", f"evaluate.max_examples={scored}", tasks=["tvqa"])
    space = Workspace(config, build_model(config).backbone, say=lambda _: None)
    assert tuple(len(space.examples("tvqa", split)) for split in ("train", "test")) == rows


def test_shards_give_the_same_run_as_folders(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    from shard import main as shard

    tasks, plain = ["nlvr2", "tvqa"], recipe()
    for name in tasks:
        arguments = [name, "train", str(tmp_path / "shards"), "--shard-bytes", "100kB", f"data.root={plain.data.root}"]
        assert shard(arguments) == 0
    runs = []
    for root in (plain.data.root, str(tmp_path / "shards")):
        runs.append(tmp_path / f"run{len(runs)}")
        # A cache for each: what other tests stored may have been computed in other batches of pictures.
        options = [f"data.root={root}", f"data.cache={runs[-1]}_cache", "train.steps=4"]
        assert train(recipe(*options, tasks=tasks), runs[-1]).code == 0
    assert losses(runs[0]) == losses(runs[1])


def test_features_filled_on_first_use_give_the_same_run(recipe: Recipe, tmp_path: Path) -> None:
    runs = []
    for fill in ("eager", "lazy"):
        runs.append(tmp_path / fill)
        options = [f"data.fill={fill}", f"data.cache={tmp_path / ('cache_' + fill)}", "train.steps=3", "data.workers=2"]
        assert train(recipe(*options, tasks=["nlvr2", "yc2c"]), runs[-1]).code == 0
    # The tower sees other batches of pictures, which moves its sums in the last places.
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)
    assert list((tmp_path / "cache_lazy" / "features").rglob("*.npy"))  # written for the next run


def test_the_reference_way_of_multiple_choice_is_a_setting(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(recipe("train.steps=2", "task.tvqa.decoding.mode=generate", tasks=["tvqa"]), run).code == 0
    assert evaluate(run)["tvqa"]["num_examples"] == 32
    with pytest.raises(ConfigError, match=r"'task\.tvqaa' is not one of the tasks; .*tvqa"):
        recipe("task.tvqaa.prompt=x", tasks=["tvqa"])


def test_a_model_of_pictures_refuses_videos(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(recipe("train.steps=1", tasks=["nlvr2"]), run).code == 0
    with pytest.raises(ConfigError, match="task 'yc2c' needs 'frame' features"):
        evaluate(run, ["yc2c"])


def test_the_projection_of_the_other_kind_stands_still(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of a projection are the same to the last bit after a step without its kind of features."""
    step, moved, idle = Engine.train_step, set(), set()

    def watched(engine: Engine, number: int, batches: list) -> object:
        names = [n for n in engine.masters.parameters if ".visual.features." in n]
        before = {n: engine.masters.get(n).clone() for n in names}
        report = step(engine, number, batches)
        (kind,) = {b.feature_kind for b in batches}
        for name in names:
            if f".features.{kind}." in name:
                moved.add(kind)
            else:
                assert torch.equal(engine.masters.get(name), before[name]), (number, name)
                idle.add(kind)
        return report

    monkeypatch.setattr(Engine, "train_step", watched)
    options = ["train.steps=6", "mixture.block=2", "engine.file=ds_configs/zero1.json"]
    assert train(recipe(*options, tasks=["nlvr2", "yc2c"]), tmp_path / "run").code == 0
    assert moved == idle == {"grid", "frame"}


def test_a_split_without_public_answers_is_predicted_and_the_others_are_scored(
    recipe: Recipe, joint: Path, tmp_path: Path
) -> None:
    world = Path(recipe().data.root)
    hidden = tmp_path / "world"
    shutil.copytree(world, hidden, symlinks=True)
    file = hidden / "how2qa/how2qa_test_public_release.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "answer_idx"}) + "\n" for r in rows))
    out = tmp_path / "out" / "eval.json"
    results = evaluate(joint, ["how2qa", "nlvr2"], out=out, overrides=[f"data.root={hidden}"])
    assert set(results) == set(json.loads(out.read_text())) == {"nlvr2"}
    assert len(json.loads((out.parent / "results" / "how2qa_test_predictions.json").read_text())) == len(rows)


def test_batches_that_mix_all_tasks_answer_as_those_of_one(recipe: Recipe, joint: Path, tmp_path: Path) -> None:
    """Pictures, pairs and videos, generated, chosen and ranked answers, an adapter for each task. `joint` has made the features."""
    config = recipe("petl.share=none")
    model, random = build_model(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in model.plan.owners():
            parameter = model.backbone.get_parameter(name)
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    write_export(tmp_path / "export", model, config)
    results = {}
    for name, more in (("single", []), ("mixed", ["evaluate.mixed=true"])):
        overrides = ["data.max_examples=5", "evaluate.batch=16", "evaluate.bootstrap=5", *more]
        out = tmp_path / name / "eval.json"
        results[name] = evaluate(tmp_path / "export", TASKS, split="val", out=out, overrides=overrides)
    assert results["single"] == results["mixed"]
    answers = set()
    for task in TASKS:
        single, mixed = (tmp_path / n / "predictions_val" / f"{task}.jsonl" for n in ("single", "mixed"))
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in (single, mixed)]
        assert [(r["uid"], r["text"]) for r in rows[0]] == [(r["uid"], r["text"]) for r in rows[1]]
        for one, other in zip(*rows, strict=True):
            assert one.get("scores", {}) == pytest.approx(other.get("scores", {}), abs=1e-4)
        answers |= {r["text"] for r in rows[0]}
    assert len(answers) > 8
