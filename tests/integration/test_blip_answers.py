"""VQA as BLIP does it, by the trainer and the evaluation themselves: all answers in a step, a ranked list, changed pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from parity.blip_parts import build  # noqa: E402
from parity.report import Report, read_case  # noqa: E402

from mtvl.backbones.blip.backbone import Memory  # noqa: E402
from mtvl.config import RunConfig, load_run_config  # noqa: E402
from mtvl.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from mtvl.evaluate import evaluate  # noqa: E402
from mtvl.model import Model, build_model, make_method  # noqa: E402
from mtvl.train import train  # noqa: E402
from mtvl.types import Batch  # noqa: E402
from mtvl.workspace import Workspace  # noqa: E402

RECIPE = Path(__file__).parents[2] / "launch" / "recipes" / "tiny_blip.yaml"
BLIP_WAY = ("task.vqa.loss=answers", "task.vqa.answer_weights=share", "task.vqa.label_smoothing=0.1")
RANKED = ("task.vqa.decoding.mode=rank_list", "task.vqa.decoding.smoothing=0.1")
AUGMENTED = ("data.augment.least_area=0.5", "data.augment.flip=0.5", "data.augment.operations=2")
Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    cache = tmp_path_factory.mktemp("cache")

    def make(*overrides: str, tasks: tuple[str, ...] = ("vqa", "nlvr2")) -> RunConfig:
        small = [
            f"data.root={world}", f"data.cache={cache}", "train.steps=4", "train.global_batch=4", "train.micro_batch=2",
            "checkpoint.every_steps=2", "data.workers=0", "evaluate.batch=16", "backbone.image_size=32",
            "backbone.vision.layers=2", "backbone.text.layers=2", "backbone.text.width=32", "backbone.text.ffn=64",
            "backbone.vision.width=32", "mixture.block=2", "data.max_examples=24",
        ]  # fmt: skip
        return load_run_config(RECIPE, tasks, [*small, *overrides])

    return make


@pytest.fixture(scope="module")
def run(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, one of them in BLIP's way."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(recipe(*BLIP_WAY, *AUGMENTED), folder).code == 0
    return folder


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_the_loss_is_the_published_one(golden: Path) -> None:
    """Recorded numbers through `Model.forward`: question states as memory, answers as a batch's."""
    case = read_case(golden / "blip" / "vqa.json")
    backbone, inputs = build(case, Report()), case.under("input/")
    method = make_method({"name": "full"})
    model = Model(backbone, method.plan(backbone.sites(), ("asked",)), method)
    rows, per = len(inputs["question_ids"]), inputs["answers_per_question"].tolist()
    most, width = max(per), inputs["answer_ids"].shape[1] - 1
    ids, weights, at = torch.full((rows, most, width), -100), torch.zeros(rows, most), 0
    for row, count in enumerate(per):
        for place in range(count):
            given = inputs["answer_mask"][at].bool()
            wanted = inputs["answer_ids"][at][given][1:]
            ids[row, place, : len(wanted)], weights[row, place] = wanted, inputs["answer_weights"][at]
            at += 1
    image = inputs["image"]
    features = image.permute(0, 2, 3, 1).reshape(rows, 1, -1, 3)
    batch = Batch(
        "asked", tuple("abcdef"[:rows]), inputs["question_ids"], inputs["question_mask"].bool(), features, ids[:, 0],
        torch.ones(rows), loss="answers", label_smoothing=0.1, denominator=float(rows), choice_ids=ids,
        choice_weights=weights,
    )  # fmt: skip
    loss = model(batch)
    assert float(loss.detach()) == pytest.approx(float(case.get("expect/loss")), abs=2e-5)
    states = backbone.encode(batch)
    assert isinstance(states, Memory)
    torch.testing.assert_close(states.hidden, case.get("expect/question_states"), atol=2e-5, rtol=1e-4)


def test_every_answer_of_a_row_is_in_the_batch(recipe: Recipe) -> None:
    config = recipe(*BLIP_WAY)
    workspace = Workspace(config, build_model(config).backbone, say=lambda _: None)
    rows = workspace.examples("vqa", "train")[:6]
    batch = workspace.collator.collate("vqa", rows, epoch_keys=[0] * 6, training=True)
    assert batch.choice_weights.sum(1).tolist() == pytest.approx([1.0] * 6)  # shares of all annotators
    for row, example in enumerate(rows):
        texts = [workspace.tokenizer.decode([t for t in ids if t >= 0]) for ids in batch.choice_ids[row].tolist()]
        assert texts[: len(example.targets)] == [t.text for t in example.targets]
        assert not any(texts[len(example.targets) :])
    others = workspace.examples("nlvr2", "train")[:2]
    assert not workspace.collator.collate("nlvr2", others, epoch_keys=[0, 0], training=True).choice_ids.shape[1]


def test_it_trains_resumes_and_refuses_other_settings(recipe: Recipe, run: Path, tmp_path: Path) -> None:
    found = records(run)
    assert {r["task"] for r in found} == {"vqa", "nlvr2"} and all(r["grad_norm"] > 0 for r in found)
    halves = tmp_path / "halves"
    train(recipe(*BLIP_WAY, *AUGMENTED), halves)
    for file in (halves / "checkpoints" / "step_4", halves / "export"):
        for each in sorted(file.rglob("*"), reverse=True):
            each.unlink() if each.is_file() else each.rmdir()
    (halves / "DONE").unlink()
    assert train(recipe(*BLIP_WAY, *AUGMENTED), halves).code == 0
    assert [r["loss"] for r in records(halves)] == [r["loss"] for r in found]
    with pytest.raises(CheckpointError, match="'data.augment' was"):
        train(recipe(*BLIP_WAY, "data.augment.flip=0.5"), run)
    with pytest.raises(CheckpointError, match="'examples' was"):
        train(recipe(*AUGMENTED), run)


def test_both_ways_of_answering(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = evaluate(run, ["vqa"], out=run / "written.json")
    ranked = evaluate(run, ["vqa"], out=run / "ranked.json", overrides=[*RANKED, "task.vqa.decoding.top=4"])
    assert written["vqa"]["num_examples"] == ranked["vqa"]["num_examples"] == 24
    lines = [json.loads(line) for line in (run / "predictions" / "vqa.jsonl").read_text().splitlines()]
    assert all(len(line["scores"]) == 4 and line["text"] == max(line["scores"], key=line["scores"].get) for line in lines)  # fmt: skip
    few = run / "few.json"
    few.write_text(json.dumps(["yes", "no"]))
    named = [*RANKED, f"task.vqa.decoding.list_file={few}"]
    evaluate(run, ["vqa", "nlvr2"], out=run / "mixed.json", overrides=[*named, "evaluate.mixed=true"])
    lines = [json.loads(line) for line in (run / "predictions" / "vqa.jsonl").read_text().splitlines()]
    assert {line["text"] for line in lines} <= {"yes", "no"} and {len(line["scores"]) for line in lines} == {2}
    mixed = [line["text"] for line in lines]
    evaluate(run, ["vqa"], out=run / "alone.json", overrides=named)
    lines = [json.loads(line) for line in (run / "predictions" / "vqa.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == mixed
    with pytest.raises(DataError, match="nowhere.json: .*list_file"):
        evaluate(run, ["vqa"], overrides=[*RANKED, "task.vqa.decoding.list_file=nowhere.json"])


def test_stored_features_cannot_be_changed(recipe: Recipe, tmp_path: Path) -> None:
    root = next(o for o in [recipe().data.root])
    tiny = load_run_config(
        RECIPE.with_name("tiny.yaml"), ["vqa"], [f"data.root={root}", f"data.cache={tmp_path}", "data.augment.flip=0.5"]
    )
    with pytest.raises(ConfigError, match="a frozen tower computed once"):
        train(tiny, tmp_path / "run")
    with pytest.raises(ConfigError, match="'data.augment.least_area' must lie"):
        recipe("data.augment.least_area=0")
    with pytest.raises(ConfigError, match="did you mean 'operations'"):
        recipe("data.augment.operation=2")
