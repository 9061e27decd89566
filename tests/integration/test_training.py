"""Whole runs on the smallest miniworld: training, stopping, resuming, evaluating, and what users get wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mtvl.backbones.clip_config import BUNDLED
from mtvl.checkpoint import find_resumable, steps_of
from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import RunConfig
from mtvl.engine import Engine, state
from mtvl.errors import CheckpointError, ConfigError, DataError, EngineError
from mtvl.evaluate import evaluate, format_results
from mtvl.export import load_export
from mtvl.inspecting import inspect_sample, predict_one
from mtvl.model import build_model
from mtvl.train import STOPPED_BY_SIGNAL, train

TASKS = ["vqa", "gqa", "nlvr2", "coco"]
Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def recipe(small_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    # A cache of its own, which a test makes read-only.
    cache = tmp_path_factory.mktemp("cache")
    return small_recipe(DEFAULT_RECIPE, TASKS, f"data.cache={cache}", "train.steps=12", "backbone.dropout=0.1")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines() if "loss" in line]


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps without a break."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert train(recipe(), run).code == 0
    return run


def test_run_folder_is_complete(straight: Path) -> None:
    records = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 13))
    assert {"step", "task", "loss", "lr", "grad_norm", "samples_per_second"} <= set(records[0])
    assert json.loads((straight / "DONE").read_text())["step"] == 12
    assert (straight / "config.yaml").is_file() and list((straight / "tensorboard").iterdir())
    assert {r["task"] for r in records} <= set(TASKS)
    assert sum(records[-1]["samples"].values()) == 12 * 8  # the achieved mix


def test_stopped_and_resumed_equals_straight(
    recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, in the middle of an epoch: losses and trained tensors are the same to the last bit."""
    step = Engine.train_step

    def stop_at_five(engine: Engine, number: int, batches: list) -> object:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, number, batches)

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", stop_at_five)
        stopped = train(recipe(), run)
    assert (stopped.code, stopped.step) == (STOPPED_BY_SIGNAL, 5)
    assert not (run / "DONE").exists()
    assert train(recipe(), run).code == 0
    assert losses(run) == losses(straight)
    a, b = (load_file(str(r / "export" / "adapter.safetensors")) for r in (run, straight))
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_complete_run_is_left_alone(recipe: Recipe, straight: Path) -> None:
    before = (straight / "DONE").read_text()
    assert train(recipe(), straight).code == 0
    assert (straight / "DONE").read_text() == before


def test_resume_refuses_another_run(recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="petl|plan"):
        train(recipe("petl.share=none"), straight)
    with pytest.raises(CheckpointError, match="already holds"):
        train(recipe(), straight, resume="never")
    with pytest.raises(CheckpointError):
        train(recipe(), tmp_path / "new", resume=str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["backbone.weights={other_base}"], "base"),
        (["petl.reduction=5"], "plan"),
        (["tasks"], "tasks"),
        (["optim.name=sgd"], "optim"),
    ],
    ids=["base", "shapes", "tasks", "optimizer"],
)
def test_what_was_changed_is_named(
    changed: list[str], named: str, recipe: Recipe, straight: Path, tmp_path: Path
) -> None:
    """Other base weights (one number of one file), other sizes, other tasks, other groups of the optimizer."""
    other = tmp_path / "base"
    if named == "base":
        shutil.copytree(BUNDLED / "tiny", other)
        tensors = load_file(str(other / "model.safetensors"))
        name = next(n for n in sorted(tensors) if "encoder.layers.0.fc1.weight" in n)
        tensors[name].view(-1)[0] += 1.0
        save_file(tensors, str(other / "model.safetensors"))
    tasks, overrides = (
        (TASKS[:3], []) if changed == ["tasks"] else (TASKS, [c.format(other_base=other) for c in changed])
    )
    with pytest.raises(CheckpointError, match=rf"step_12 belongs to another run: '{named}' was .* is .* now"):
        train(recipe(*overrides, tasks=tasks), straight)


def test_a_changed_item_may_be_allowed(
    recipe: Recipe, straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, with a warning; what cannot be loaded stays an error that names the tensor or the optimizer."""
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    longer = (
        "optim.weight_decay=0.5",
        "train.steps=13",
        "checkpoint.allow=[optim,train.steps]",
        "engine.pack_frozen=false",
    )
    step, is_done, waits = Engine.train_step, [], []

    def watched(*arguments: Any) -> object:
        is_done.append((run / "DONE").exists())
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", watched)
        patched.setattr("mtvl.dist.wait_at_most", waits.append)
        assert train(recipe(*longer), run).code == 0
    assert waits == [1800 + 70]  # a stuck step is reported before a collective gives up
    assert is_done == [False] and (run / "DONE").exists()  # that of the shorter run proved nothing any more
    assert losses(run)[:12] == losses(straight) and len(losses(run)) == 13
    assert "'train.steps' was 12 when it was saved and is 13 now, as checkpoint.allow lets it" in caplog.text
    assert "goes on with engine.pack_frozen True -> False: sums are rounded otherwise from here on" in caplog.text
    with pytest.raises(CheckpointError, match=r"'weight/.*' differs: saved shape \("):
        train(recipe("petl.reduction=5", "checkpoint.allow=[petl,plan]"), straight)
    with pytest.raises(CheckpointError, match="saved with optimizer AdamW, this run uses SGD"):
        train(recipe("optim.name=sgd", "checkpoint.allow=[optim]"), straight)


def test_evaluate_scores_every_task_once(recipe: Recipe, straight: Path, world: Path) -> None:
    results = evaluate(straight, TASKS, split="test")
    written = json.loads((straight / "eval.json").read_text())
    assert set(results) == set(TASKS) == set(written)
    for name in TASKS:
        low, high = results[name]["interval"]
        assert results[name]["num_examples"] >= 40 and low <= high
        assert "constant" in results[name]
        assert (
            len((straight / "predictions" / f"{name}.jsonl").read_text().splitlines()) == results[name]["num_examples"]
        )
    assert "average of primary metrics" in format_results(results)
    before = (straight / "eval.json").read_bytes()
    assert evaluate(straight, ["nlvr2"], split="val")["nlvr2"]["split"] == "val"
    assert (straight / "eval_val.json").is_file() and (straight / "eval.json").read_bytes() == before
    subset = evaluate(straight, ["vqa"], out=straight / "one.json")
    assert subset["vqa"]["score"] == results["vqa"]["score"]


def test_export_round_trip(straight: Path) -> None:
    model, config, content = load_export(straight)
    saved = load_file(str(straight / "export" / "adapter.safetensors"))
    own = {n: p.detach() for n, p in model.trainable().items()}
    assert all(torch.equal(own[n], saved[n]) for n in own)
    assert any(k.startswith("rows/") for k in saved)  # the random slot rows
    assert content["tasks"] == TASKS and config.petl["name"] == "adapter"
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_export(straight, ["backbone.dropout=0.0", "backbone.init_seed=3", "backbone.weights=", "backbone.preset=tiny",
                               "backbone.tower=tiny", "backbone.text={vocab_size: 1600}"])  # fmt: skip


def test_private_parts_refuse_unknown_tasks(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "private"
    train(recipe("petl.share=none", "train.steps=2", tasks=["vqa", "gqa"]), run)
    with pytest.raises(ConfigError, match="vqa, gqa"):
        evaluate(run, ["nlvr2"])


def test_untrained_task_with_shared_parts_is_marked(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "shared"
    train(recipe("train.steps=2", tasks=["vqa"]), run)
    results = evaluate(run, ["gqa"])
    assert results["gqa"]["trained_on"] is False and "not trained on" in format_results(results)


def test_text_only_baseline_stands_beside(recipe: Recipe, straight: Path) -> None:
    train(recipe("data.text_only=true"), straight / "text_only")
    results = evaluate(straight, ["vqa", "nlvr2"])
    assert all("text_only" in r and "gain" in r for r in results.values())


def test_validation_keeps_the_best(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "validated"
    overrides = ("train.steps=6", "train.validate_every=2", "train.validate_examples=16", "checkpoint.keep_last=1",
                 "checkpoint.keep_best=true")  # fmt: skip
    result = train(recipe(*overrides, tasks=["vqa", "nlvr2"]), run)
    assert set(result.metrics) == {"vqa", "nlvr2", "average"}
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    assert "step_6" in kept and len(kept) <= 2
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    averages = {r["step"]: r["validation"]["average"] for r in records if "validation" in r}
    assert sorted(averages) == [2, 4, 6]
    best = load_export(run / "best")[2]
    assert averages[best["step"]] == max(averages.values()) and f"step_{best['step']}" in kept


def test_inspect_and_predict(
    recipe: Recipe, straight: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect_sample(recipe(tasks=["vqa"]), "vqa", 3, "train")
    assert "segment" in text and "loss" in text and "decoded labels" in text
    assert list((tmp_path / "runs" / "inspect").glob("*.png"))
    picture = next((world / "images" / "test2014").iterdir())
    assert isinstance(predict_one(straight, "vqa", [picture], "what color is the star?"), str)
    with pytest.raises(DataError, match="index"):
        inspect_sample(recipe(tasks=["vqa"]), "vqa", 10**6, "train")
    # Without a root of its own a checkpoint is looked at with the data it was trained on.
    text = inspect_sample(recipe("data.root=", tasks=["vqa"]), "vqa", 0, "test", str(straight))
    assert str(world) in text


def test_fp16_on_a_cpu_is_refused_before_data_are_read(recipe: Recipe, tmp_path: Path) -> None:
    given = recipe(
        "train.precision=fp16", "engine.file=ds_configs/zero2_fp16.json", f"data.root={tmp_path / 'missing'}"
    )
    with pytest.raises(
        EngineError, match=r"fp16 trains on GPUs alone.*train\.precision=bf16 engine\.file=ds_configs/zero2_bf16"
    ):
        train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_roots_are_errors(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        train(recipe(f"data.root={tmp_path / 'missing'}"), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        train(recipe(f"data.root={tmp_path / 'empty'}"), tmp_path / "run")


def test_a_tower_that_trains_goes_through_a_run(recipe: Recipe, tmp_path: Path) -> None:
    """Pixels in place of stored features; the export holds the tower, and evaluation uses it."""
    overrides = ["backbone.train_tower=true", "optim.tower.lr=1e-3", "train.steps=3", "train.global_batch=4",
                 "data.max_examples=6", f"data.cache={tmp_path / 'cache'}", "checkpoint.keep_best=false"]  # fmt: skip
    run = tmp_path / "run"
    assert train(recipe(*overrides, tasks=["vqa", "tvqa"]), run).code == 0
    trained = load_file(str(run / "export" / "adapter.safetensors"))
    start = build_model(recipe(*overrides, tasks=["vqa", "tvqa"]))
    tower = {n: trained[n] for n in start.tower_parameters()}
    assert any(not torch.equal(v, start.get_parameter(n)) for n, v in tower.items())
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1  # those of videos; nothing of pictures is stored
    results = evaluate(run, ["vqa"], overrides=["data.max_examples=4", "evaluate.bootstrap=5"])
    assert results["vqa"]["num_examples"] == 4
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "p.png")
    assert isinstance(predict_one(run / "export", "vqa", [tmp_path / "p.png"], "what?"), str)


# ------------------------------------------------------------------------------------------------------ reliability


def same_export(a: Path, b: Path) -> bool:
    ours, theirs = (load_file(str(run / "export" / "adapter.safetensors")) for run in (a, b))
    return set(ours) == set(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_saved_state_is_small_and_readable(straight: Path) -> None:
    """Position, schedule and identity as JSON; beside the tensors there is next to nothing."""
    folder = straight / "checkpoints" / "step_12"
    content = json.loads((folder / "state.json").read_text())
    assert content["step"] == 12 and {"seed", "schedule", "mixture", "base", "plan"} <= set(content["fingerprints"])
    assert sum(content["progress"]["samples"].values()) == 12 * 8
    assert {p.name for p in folder.iterdir()} == {
        "engine.safetensors", "engine.json", "random_0.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    assert sum(p.stat().st_size for p in folder.iterdir() if p.name != "engine.safetensors") < 50_000


def test_usr1_saves_and_the_same_command_goes_on(
    recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a damaged checkpoint is named and skipped, without counting among those that are kept."""
    step, run, config = (
        Engine.train_step,
        tmp_path / "run",
        recipe("checkpoint.every_steps=2", "checkpoint.keep_last=1"),
    )

    def stop_at_five(engine: Engine, number: int, batches: list) -> object:
        if number == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(engine, number, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", stop_at_five)
        assert train(config, run).code == STOPPED_BY_SIGNAL == 143
    newest = run / "checkpoints" / "step_5"
    shutil.copytree(newest, run / "checkpoints" / "step_9")
    (run / "checkpoints" / "step_9" / "engine.json").write_text("{}")
    assert find_resumable(run) == (newest, 5)
    assert train(config, run).code == 0
    assert losses(run) == losses(straight) and same_export(run, straight)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step_5", "step_12"}  # resumed from, and the last


def test_losses_that_are_not_finite_end_the_run_and_harm_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", Engine.train_step
    config = recipe("train.steps=10", "checkpoint.every_steps=2", tasks=["vqa"])

    def poisoned(engine: Engine, number: int, batches: list) -> object:
        if number >= 4:
            batches[0].features[:] = float("nan")
        return step(engine, number, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", poisoned)
        with pytest.raises(EngineError, match=r"5 steps in a row.*the last is step 8.*examples .*checkpoints are good"):
            train(config, run)
    records = [json.loads(line, parse_constant=pytest.fail) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in records] == [False] * 4 + [True] * 4
    assert records[4]["loss"] is None and len(records[4]["suspects"]) == 4  # the rows of that micro-batch
    assert "suspects" not in records[0]
    good, after = (load_file(str(run / "checkpoints" / f"step_{n}" / "engine.safetensors")) for n in (6, 8))
    assert all(torch.equal(good[k], after[k]) and good[k].isfinite().all() for k in good)
    assert steps_of(run) == [2, 4, 6, 8]  # more than keep_last: nobody knows which of them is from before the trouble
    assert train(config, run).code == 0 and steps_of(run) == [8, 10]


def test_weights_that_are_not_finite_replace_no_checkpoint(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss may be finite once more while the update after it is not."""
    run, step = tmp_path / "run", Engine.train_step

    def diverges(engine: Engine, number: int, batches: list) -> object:
        report = step(engine, number, batches)
        if number == 3:
            next(iter(engine.masters.parameters.values())).data.view(-1)[0] = float("inf")
        return report

    monkeypatch.setattr(Engine, "train_step", diverges)
    with pytest.raises(CheckpointError, match=r"step 4 was not written; 'weight/.*' is no longer finite.*step_2 stays"):
        zero0 = "engine.file=ds_configs/zero0.json"  # its weights are the masters
        train(recipe("train.steps=10", "checkpoint.every_steps=2", zero0, tasks=["vqa"]), run)
    assert steps_of(run) == [2]


def test_a_disk_that_is_full_at_the_start_changes_nothing(
    recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write = tmp_path / "run", Path.write_text
    shutil.copytree(straight, run)
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "log.jsonl")}

    def full(path: Path, text: str, *rest: Any, **named: Any) -> int:
        if path.name.startswith("config.yaml"):
            write(path, text[:9])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, text, *rest, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*config\.yaml.*No space left on device.*step_12 stays"):
        train(recipe("train.steps=13", "checkpoint.allow=[train.steps]"), run)
    assert before == {name: (run / name).read_bytes() for name in before}


@pytest.mark.parametrize("where", ["engine.safetensors", "log.jsonl", "adapter.safetensors"])
def test_a_full_disk_is_named_and_leaves_the_checkpoint(
    where: str, recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config, saved = tmp_path / "run", recipe("checkpoint.every_steps=6"), state.save_file
    count = {"log.jsonl": 0}

    def full(*_args: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def save(tensors: Any, file: str) -> None:
        if file.endswith("step_12.tmp/engine.safetensors"):
            Path(file).write_bytes(b"half")
            full()
        saved(tensors, file)

    def fsync(number: int) -> None:
        if "log.jsonl" in os.readlink(f"/proc/self/fd/{number}"):
            count["log.jsonl"] += 1
            if count["log.jsonl"] == 2:
                full()

    with monkeypatch.context() as patched:
        if where == "engine.safetensors":
            patched.setattr("mtvl.engine.state.save_file", save)
        elif where == "log.jsonl":
            patched.setattr("mtvl.report.os.fsync", fsync)
        else:
            patched.setattr("mtvl.export.save_file", full)
        with pytest.raises(CheckpointError, match="No space left on device") as error:
            train(config, run)
    kept = 12 if where == "adapter.safetensors" else 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
    assert where == "adapter.safetensors" or f"step_{kept} stays: the same command goes on" in str(error.value)
    assert find_resumable(run) == (run / "checkpoints" / f"step_{kept}", kept) and not (run / "DONE").exists()
    assert not list(run.rglob("*.tmp"))
    assert train(config, run).code == 0 and same_export(run, straight)


def test_saves_in_the_background_leave_the_same(
    recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow disks: training goes on beside the saves, the files are the same, and a signal meets a save on its way."""
    saved, step = state.save_file, Engine.train_step
    often = ("checkpoint.every_steps=4", "checkpoint.keep_last=9")
    writing: list[bool] = []

    def slow(tensors: Any, file: str) -> None:
        time.sleep(0.4 if file.endswith("engine.safetensors") else 0.0)
        saved(tensors, file)

    def watched(engine: Engine, number: int, batches: list) -> object:
        writing.append(any((tmp_path / "beside" / "checkpoints").glob("*.tmp")))
        if number == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, number, batches)

    with monkeypatch.context() as patched:
        patched.setattr("mtvl.engine.state.save_file", slow)
        assert train(recipe(*often, "checkpoint.background=false"), tmp_path / "waiting").code == 0
        patched.setattr(Engine, "train_step", watched)
        assert train(recipe(*often), tmp_path / "beside").code == STOPPED_BY_SIGNAL
        assert {p.name for p in (tmp_path / "beside" / "checkpoints").iterdir()} == {"step_4", "step_8", "step_9"}
        assert train(recipe(*often), tmp_path / "beside").code == 0
    assert any(writing) and losses(tmp_path / "beside") == losses(tmp_path / "waiting") == losses(straight)
    waiting, beside = (tmp_path / name / "checkpoints" for name in ("waiting", "beside"))
    for name in ("step_4", "step_8", "step_12"):
        for file in (waiting / name).iterdir():
            assert file.read_bytes() == (beside / name / file.name).read_bytes(), file
    records = [json.loads(line) for line in (tmp_path / "waiting" / "log.jsonl").read_text().splitlines()]
    stalls = {r["step"]: r["save_stall_seconds"] for r in records if "save_stall_seconds" in r}
    assert set(stalls) == {5, 9} and all(seconds > 0.4 for seconds in stalls.values())


def test_a_disk_that_fills_up_in_the_background_ends_the_run_soon(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saved = tmp_path / "run", state.save_file

    def save(tensors: Any, file: str) -> None:
        if file.endswith("step_4.tmp/engine.safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        saved(tensors, file)

    with monkeypatch.context() as patched:
        patched.setattr("mtvl.engine.state.save_file", save)
        with pytest.raises(CheckpointError, match=r"step 4 was not written; .*No space left.*step_2 stays"):
            train(recipe("checkpoint.every_steps=2", "train.steps=30"), run)
    assert 4 <= len(losses(run)) <= 6  # at the latest the next save would tell
    assert find_resumable(run) == (run / "checkpoints" / "step_2", 2) and not list(run.rglob("*.tmp"))


WRITES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.utime", "os.link", "os.symlink"}
guarded: list[str] = []


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: refuse to write below `guarded`, as a file system that is mounted read-only does, for root too."""
    if not guarded or event not in WRITES:
        return
    if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
        return
    for path in arguments[:2]:
        if isinstance(path, (str, os.PathLike)) and any(os.fspath(path).startswith(root) for root in guarded):
            raise OSError(errno.EROFS, "Read-only file system", os.fspath(path))


sys.addaudithook(guard)


SOME = ["data.max_examples=4", "evaluate.bootstrap=5"]


@pytest.fixture
def read_only(straight: Path, world: Path, recipe: Recipe, tmp_path: Path) -> Iterator[RunConfig]:
    """A recipe whose data and full cache cannot be written."""
    config = recipe("train.steps=2", tasks=["vqa", "nlvr2"])
    evaluate(straight, ["nlvr2"], out=tmp_path / "fills_the_cache" / "eval.json", overrides=SOME)
    guarded.extend([str(world), config.data.cache])
    yield config
    guarded.clear()


def test_read_only_data_and_caches_are_enough(read_only: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (Path(read_only.data.root) / "x").write_text("")
    run = tmp_path / "run"
    assert train(read_only, run).code == 0
    evaluate(run, ["nlvr2"], overrides=SOME)
    guarded.append(str(tmp_path / "cold"))
    with pytest.raises(DataError, match=r"cannot write features.*set 'data\.cache' to another folder"):
        evaluate(run, ["nlvr2"], overrides=["data.max_examples=4", f"data.cache={tmp_path / 'cold'}"])


def test_bad_pictures_are_left_out_and_written_down(recipe: Recipe, world: Path, tmp_path: Path) -> None:
    """Found before training (eager), or only when they are wanted (lazy): the others are trained on all the same."""
    root = tmp_path / "world"
    shutil.copytree(world, root)
    pictures = sorted((root / "images" / "train2014").iterdir())
    pictures[0].write_bytes(b"")
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])
    pictures[2].unlink()
    few = [f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "train.steps=12", "train.global_batch=16"]
    with pytest.raises(DataError, match=r"split train: \d+ of \d+ cannot be used, expected at most 1\.000%"):
        train(recipe(*few, tasks=["vqa"]), tmp_path / "strict")
    with pytest.raises(DataError, match="missing 1"):
        train(recipe(*few, "task.vqa.bad_input.train=refuse", tasks=["vqa"]), tmp_path / "refused")

    run, some = tmp_path / "run", "task.vqa.bad_input.most=0.5"
    assert train(recipe(*few, some, tasks=["vqa"]), run).code == 0
    records = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    for picture in pictures[:3]:
        assert any(picture.stem in r["reason"] for r in records), picture
    assert {(r["task"], r["split"]) for r in records} == {("vqa", "train")} and len({r["uid"] for r in records}) == len(
        records
    )
    before = (run / "skipped.jsonl").read_text()
    assert train(recipe(*few, some, tasks=["vqa"]), run).code == 0
    assert (run / "skipped.jsonl").read_text() == before  # the second start meets the same faults

    lazy = tmp_path / "lazy"
    overrides = [*few, some, "data.fill=lazy", f"data.cache={tmp_path / 'cold'}", "mixture.law=equal"]
    assert train(recipe(*overrides, tasks=["vqa"]), lazy).code == 0
    found = [json.loads(line)["uid"] for line in (lazy / "skipped.jsonl").read_text().splitlines()]
    last = json.loads((lazy / "log.jsonl").read_text().splitlines()[-1])
    assert set(found) <= {r["uid"] for r in records} and last["samples"]["vqa"] <= 12 * 16
    assert not last["skipped"] and all(value is not None for value in last["losses"].values())
