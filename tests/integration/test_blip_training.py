"""BLIP by the trainer itself: pictures, videos and retrieval in one joint run, stopped and resumed, evaluated, refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtvl.config import RunConfig
from mtvl.engine import Engine
from mtvl.errors import CheckpointError, ConfigError, EngineError
from mtvl.evaluate import evaluate
from mtvl.model import build_model
from mtvl.objectives.contrast import TEMPERATURE_RANGE
from mtvl.steps.answering import compare_step
from mtvl.train import PAIRS, STOPPED_BY_SIGNAL, Run, train
from mtvl.types import Batch, Decoding

RECIPE = Path(__file__).parents[2] / "launch" / "recipes" / "tiny_blip.yaml"
TASKS = ["vqa", "nlvr2", "coco", "tvqa", "coco_retrieval"]  # one or two pictures, no text, a video, pairs
Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def recipe(small_recipe: Callable[..., Recipe]) -> Recipe:
    return small_recipe(
        RECIPE, TASKS, "train.steps=10", "train.global_batch=4", "train.micro_batch=2", "data.workers=0", "evaluate.batch=16",
        "backbone.image_size=32", "backbone.text.dropout=0.1", "backbone.vision.drop_path=0.2", "backbone.frames=3",
        "backbone.vision.layers=2", "backbone.text.layers=2", "backbone.text.width=32", "backbone.text.ffn=64",
        "backbone.vision.width=32", "pairs.queue_size=24", "pairs.ramp_steps=4", "mixture.block=5",
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps without a break: every task twice."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert train(recipe(), run).code == 0
    return run


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_every_kind_of_task_trains_in_one_run(straight: Path) -> None:
    found = records(straight)
    assert {r["task"] for r in found} == set(TASKS) and len(found) == 10
    assert all(torch.isfinite(torch.tensor(r["loss"])) and r["grad_norm"] > 0 and not r["skipped"] for r in found)
    trained = load_file(str(straight / "export" / "adapter.safetensors"))
    assert not any(name.startswith("pairs.") for name in trained)  # queue and teacher are of the training alone


def test_heads_move_in_steps_on_pairs_alone(recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    """Other steps leave them as they are, bit for bit, weight decay and moments included."""
    before = build_model(recipe()).trainable()
    trained = load_file(str(straight / "export" / "adapter.safetensors"))
    heads = [n for n in before if n.startswith(("backbone.contrast.", "backbone.match.", "backbone.temperature."))]
    assert len(heads) == 7 and not any(torch.equal(before[n], trained[n]) for n in heads)
    train(recipe("train.steps=3", tasks=["vqa", "coco"]), tmp_path / "run")
    others = load_file(str(tmp_path / "run" / "export" / "adapter.safetensors"))
    still = {n for n in before if torch.equal(before[n], others[n])}
    assert still == set(heads)


def test_stopped_and_resumed_equals_straight(
    recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, dropped paths, drawn negatives, a queue and a teacher: the same to the last bit."""
    step = Engine.train_step

    def stop_at_six(engine: Engine, number: int, batches: list) -> object:
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, number, batches)

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", stop_at_six)
        stopped = train(recipe(), run)
    assert (stopped.code, stopped.step) == (STOPPED_BY_SIGNAL, 6)
    state = run / "checkpoints" / "step_6" / PAIRS
    assert int(load_file(str(state))["count"]) == 2 * sum(r["task"] == "coco_retrieval" for r in records(run)) > 0
    assert train(recipe(), run).code == 0
    assert [r["loss"] for r in records(run)] == [r["loss"] for r in records(straight)]
    for file in ("export/adapter.safetensors", f"checkpoints/step_10/{PAIRS}"):
        a, b = (load_file(str(r / file)) for r in (run, straight))
        assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_one_checkpoint_answers_all(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "task.coco_retrieval.decoding.top=8"
    results = evaluate(straight, [*TASKS, "gqa"], overrides=[few])
    assert set(results) == {*TASKS, "gqa"} and not results["gqa"]["trained_on"]
    found = results["coco_retrieval"]
    assert found["num_items"] == 40 and found["num_examples"] == 200 and "constant" not in found
    assert found["score"] == pytest.approx((found["tr_mean"] + found["ir_mean"]) / 2)
    low, high = found["interval"]
    assert low <= found["score"] <= high
    lines = (straight / "predictions" / "coco_retrieval.jsonl").read_text().splitlines()
    assert len(lines) == 200 and set(json.loads(lines[0])["scores"]) == {"text_rank", "item_rank"}
    split = ["evaluate.partitioned=true", "engine.file=ds_configs/zero3.json"]
    with pytest.raises(
        EngineError, match="'coco_retrieval' is answered over its whole split.*evaluate.partitioned=false"
    ):
        evaluate(straight, ["vqa", "coco_retrieval"], out=straight / "split" / "eval.json", overrides=split)
    assert not (straight / "split").exists()  # before the other task was answered
    mixed = evaluate(straight, ["vqa", "tvqa", "coco", "coco_retrieval"], out=straight / "mixed.json",
                     overrides=["evaluate.mixed=true", few])  # fmt: skip
    assert {n: r["score"] for n, r in mixed.items()} == {n: results[n]["score"] for n in mixed}


def test_a_trained_temperature_stays_in_its_range(recipe: Recipe, tmp_path: Path) -> None:
    """Also its master, which ZeRO-2 keeps apart from what the model clamps: one step of 0.5 leaves the range either way."""
    one = ("train.steps=1", "optim.lr=0.5", "optim.warmup_ratio=0.0", "engine.file=ds_configs/zero2.json")
    train(recipe(*one, tasks=["coco_retrieval"]), tmp_path / "run")
    trained = load_file(str(tmp_path / "run" / "export" / "adapter.safetensors"))["backbone.temperature.value"]
    assert min(abs(float(trained) - end) for end in TEMPERATURE_RANGE) < 1e-6


def test_frames_are_weighted_by_a_text(recipe: Recipe, tmp_path: Path) -> None:
    """Without a parameter more, and for all three rules."""
    for rule in ("paper", "cosine", "as_coded"):
        run = tmp_path / rule
        assert train(recipe(f"backbone.frame_weights={rule}", "train.steps=1", tasks=["tvqa"]), run).code == 0
    plain = train(recipe("train.steps=1", tasks=["tvqa"]), tmp_path / "off")
    assert plain.code == 0
    losses = {records(tmp_path / rule)[0]["loss"] for rule in ("paper", "cosine", "as_coded", "off")}
    assert len(losses) == 4
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        train(recipe("backbone.frame_weights=cosin", tasks=["tvqa"]), tmp_path / "typo")


@pytest.mark.parametrize(
    ("overrides", "tasks", "words"),
    [
        (["backbone.kind=vqa"], ["coco_retrieval"], "heads of contrast and matching"),
        (["backbone.kind=retrieval"], ["vqa"], "has no decoder"),
        (["backbone.kind=caption"], ["vqa"], "writes captions behind one prompt"),
        (["train.global_batch=3"], ["coco_retrieval"], "no multiple of 2 pieces"),
        (["engine.file=ds_configs/zero3.json", "checkpoint.keep_best=false"], ["coco_retrieval"], "ZeRO-3 splits"),
        (["backbone.text.vocab=1000"], ["vqa"], "set 'backbone.text.vocab'"),
        (["backbone.tokenizer="], ["vqa"], "tiny_blip"),
        (["backbone.vision.width=48"], ["coco"], "task.NAME.prompt"),
        (["backbone.kind=caption", "backbone.frame_weights=paper"], ["coco"], "encodes none by itself"),
        (["pairs.targets=idss"], ["coco_retrieval"], "ids or diagonal"),
        (["backbone.kind=retrieval", "pairs.language=1"], ["coco_retrieval"], "'retrieval' is not there"),
        (["backbone.vision.width=48", "pairs.language=1"], ["coco_retrieval"], "image tokens are 48 wide"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_says_why(
    overrides: list[str], tasks: list[str], words: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(recipe(*overrides, "train.steps=1", tasks=tasks), tmp_path / "run")


def test_a_task_without_a_trained_part_is_named(recipe: Recipe, tmp_path: Path) -> None:
    """Linear probes are heads of contrast and matching, which no question reads."""
    with pytest.raises(EngineError, match="task 'vqa' trains nothing: none of the 2,178 trained parameters"):
        train(recipe("petl.name=probe", "train.steps=2", tasks=["coco_retrieval", "vqa"]), tmp_path / "run")


def test_another_queue_is_another_run(recipe: Recipe, straight: Path) -> None:
    with pytest.raises(CheckpointError, match="'pairs' was"):
        train(recipe("pairs.queue_size=32"), straight)


def test_other_rows_of_a_micro_batch_are_warned_of(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They change the loss on pairs, and no other one."""
    run = tmp_path / "run"
    assert train(recipe("train.steps=1", tasks=["coco_retrieval"]), run).code == 0
    for micro, warnings in ((2, 0), (4, 1)):
        resumed = Run(recipe("train.steps=1", f"train.micro_batch={micro}", tasks=["coco_retrieval"]), run)
        resumed.resume("auto")
        resumed.saver.close()
        found = [r.getMessage() for r in caplog.records if "rows of a micro-batch" in r.getMessage()]
        assert len(found) == warnings
    assert "were 2 on each of 1 ranks and are 4 on each of 1 ranks now" in found[0]


def test_captions_of_the_published_model_begin_behind_a_prompt(recipe: Recipe, tmp_path: Path) -> None:
    """The kind whose decoder reads pictures alone: the prompt is written first, is not scored, and is no answer."""
    config = recipe("backbone.kind=caption", "task.coco.prompt=a picture of ", "train.steps=2", tasks=["coco"])
    assert train(config, tmp_path / "run").code == 0
    assert evaluate(tmp_path / "run", ["coco"])["coco"]["num_examples"] == 40
    texts = [json.loads(line)["text"] for line in (tmp_path / "run/predictions/coco.jsonl").read_text().splitlines()]
    assert not any(text.startswith("a picture of") for text in texts)
    with pytest.raises(ConfigError, match="leaves no room"):
        evaluate(
            tmp_path / "run", ["coco"], overrides=["task.coco.decoding.max_tokens=4", "task.coco.decoding.min_tokens=0"]
        )


@pytest.mark.parametrize("method", ["adapter", "lora", "unitrans"])
def test_what_joins_two_pictures_is_trained_with_every_method(recipe: Recipe, method: str) -> None:
    """No file of a model of one picture holds it, so that a frozen one would stay as drawn."""
    model = build_model(recipe("backbone.kind=nlvr2", "backbone.text.layers=8", f"petl.name={method}", tasks=["nlvr2"]))
    drawn = {n for n, _ in model.named_parameters() if n.startswith("backbone.compare.") or ".cross.merge." in n}
    assert len(drawn) == 8 and drawn <= set(model.trainable()) and drawn <= model.added()


def test_the_published_model_of_two_pictures(recipe: Recipe, tmp_path: Path) -> None:
    """Trained and answered by its head; the loss is that of BLIP's own step."""
    config = recipe("backbone.kind=nlvr2", "train.steps=2", "optim.lr=1e-2", tasks=["nlvr2"])
    assert train(config, tmp_path / "run").code == 0
    heads = [f"backbone.compare.{n}.weight" for n in (0, 2)]
    trained, before = (
        load_file(str(tmp_path / "run" / "export" / "adapter.safetensors")),
        build_model(config).trainable(),
    )
    assert not any(torch.equal(trained[n], before[n]) for n in heads)
    assert evaluate(tmp_path / "run", ["nlvr2"])["nlvr2"]["num_examples"] > 0
    model, text = build_model(config).eval(), torch.randint(5, 900, (3, 6))
    pixels, mask, truth = (
        torch.randn(3, 2, 3, 32, 32),
        torch.arange(6)[None] < torch.tensor([[6], [4], [5]]),
        torch.tensor([1, 0, 1]),
    )
    batch = Batch(
        "nlvr2",
        ("a", "b", "c"),
        text,
        mask,
        pixels.flatten(3).transpose(2, 3),
        truth[:, None],
        torch.ones(3),
        denominator=3,
    )
    model.set_task("nlvr2")
    step = compare_step(model.backbone, pixels, text, mask, truth)
    assert torch.allclose(model(batch), step.loss, atol=1e-6)
    assert model.generate(batch, Decoding())[:, 1].tolist() == step.logits.argmax(1).tolist()
    assert model.choose(batch, [[1], [0]]).argmax(1).tolist() == (1 - step.logits.argmax(1)).tolist()
    one = replace(batch, features=batch.features[:, :1])
    with pytest.raises(ConfigError, match="two pictures, task 'nlvr2' shows 1"):
        model(one)
    with pytest.raises(ConfigError, match="true or false of two pictures and nothing else"):
        train(recipe("backbone.kind=nlvr2", "train.steps=1", tasks=["vqa"]), tmp_path / "vqa")


def test_pretraining_adds_the_loss_of_writing_the_text(recipe: Recipe, tmp_path: Path) -> None:
    """Contrast, matching, agreement of rankings and language on one pass of the vision transformer."""
    found = {}
    for name, extra in {
        "pairs": [],
        "agreement": ["pairs.agreement=1.0"],
        "language": ["pairs.language=1.0"],
        "all_ranks": ["pairs.all_ranks=true", "pairs.targets=ids"],
    }.items():
        config = recipe("backbone.kind=pretrain", "train.steps=1", *extra, tasks=["coco_retrieval"])
        assert train(config, tmp_path / name).code == 0
        found[name] = records(tmp_path / name)[0]["loss"]
    assert found["language"] > found["pairs"] + 1 and found["agreement"] > found["pairs"]
    assert found["all_ranks"] == found["pairs"]  # of one rank
