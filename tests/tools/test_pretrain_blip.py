"""A BLIP from the packaged towers (toy stand-ins) to a backbone: stopped, resumed, measured, written, and started from."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mtvl.backbones.blip import BlipBackbone, BlipConfig
from mtvl.cli import RECIPES
from mtvl.compare.recipe import load_comparison
from mtvl.config import load_run_config, parse_section
from mtvl.engine import Engine
from mtvl.model import make_plan
from mtvl.train import STOPPED_BY_SIGNAL

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1])]

from pretrain_blip import main  # noqa: E402
from small_towers import SIZES, make_packages  # noqa: E402

COLOURS = ["red", "green", "blue", "white"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`start(out, *overrides)`: the recipe for small weights, on four walls, with toy sizes."""
    monkeypatch.syspath_prepend(str(make_packages(tmp_path / "site")))
    folder = tmp_path / "data" / "walls"
    (folder / "pictures").mkdir(parents=True)
    for colour in COLOURS:
        Image.new("RGB", (8, 8), colour).save(folder / "pictures" / f"{colour}.png")
    rows = [{"id": c, "picture": f"{c}.png", "captions": [f"a {c} wall", f"the {c}"]} for c in COLOURS]
    for split in ("train", "val", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"format": "own_table", "files": {s: {"rows": [f"walls/{s}.jsonl"]} for s in ("train", "val", "test")},
              "pictures": ["walls/pictures/{name}"]}  # fmt: skip
    task = {"kind": "retrieval", "primary": "r_mean", "decoding": {"mode": "retrieve"}, "loss": "pairs"}
    (tmp_path / "data" / "tasks").mkdir()
    (tmp_path / "data" / "tasks" / "walls.yaml").write_text(yaml.safe_dump({**task, "sources": [source]}))
    recipe = yaml.safe_load((RECIPES / "small_blip_pretrain.yaml").read_text())
    del recipe["task"]
    recipe |= {"tasks": ["walls"], "mixture": {"law": "equal"}, "pairs": {"queue_size": 8, "language": 1.0}}
    (tmp_path / "walls.yaml").write_text(yaml.safe_dump(recipe))
    small = [
        "train.steps=4",
        "train.global_batch=4",
        "train.micro_batch=4",
        "checkpoint.every_steps=2",
        "data.workers=0",
    ]
    common = [f"data.root={tmp_path / 'data'}", *small, *SIZES]
    common += ["engine.file=ds_configs/zero0.json", "train.precision=fp32"]

    def run(out: str, *overrides: str, recipe: Path = tmp_path / "walls.yaml") -> int:
        return main([str(tmp_path / out), "--recipe", str(recipe), *common, *overrides])

    return run


def test_stopped_and_resumed_it_is_the_same_backbone(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("straight") == 0
    said = capsys.readouterr()
    assert "8 held-out captions: val_loss_seen" in said.out and "no package has cross-attention" in said.err
    step = Engine.train_step

    def stop_at_two(engine: Engine, number: int, batches: list) -> object:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(engine, number, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "train_step", stop_at_two)
        assert start("stopped") == STOPPED_BY_SIGNAL and not (tmp_path / "stopped/backbone.json").exists()
    assert start("stopped") == 0
    for file in ("model.safetensors", "tokenizer.json", "backbone.json"):
        assert (tmp_path / "straight" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()
    first = json.loads((tmp_path / "straight" / "backbone.json").read_text())
    numbers = first["recipe"]["held_out"]["walls"]
    assert numbers["val_loss_seen"] > 0 and numbers["val_loss_unseen"] != numbers["val_loss_seen"]
    assert numbers["num_items"] == 4 and 0 <= numbers["ir1"] <= numbers["ir5"] == 100
    assert first["recipe"]["step"] == 4 and first["recipe"]["samples"] == {"walls": 16}
    assert first["recipe"]["versions"]["torch"]
    assert start("straight") == 2 and "holds a finished backbone already" in capsys.readouterr().err


def test_other_kinds_start_from_it(start: Callable[..., int], tmp_path: Path) -> None:
    """With everything that was trained, the vision tower as it was, and its tokenizer."""
    assert start("out", "optim.lr=0.01") == 0
    config = load_run_config(RECIPES / "real_small_blip.yaml", (), [*SIZES, f"backbone.weights={tmp_path / 'out'}"])
    model = BlipBackbone.build(parse_section(BlipConfig, config.backbone))
    assert not model.load_report.fresh and model.config.kind == "joint"
    towers = BlipBackbone.build(parse_section(BlipConfig, {**config.backbone, "weights": "dinov2_minilm"}))
    for (name, one), other in zip(model.state_dict().items(), towers.state_dict().values(), strict=True):
        if name.startswith("vision.") or name.endswith(".weight"):
            assert torch.equal(one, other.half().float()) == name.startswith("vision."), name
    tokenizer = model.tokenizer()
    assert tokenizer.wrap(tokenizer.encode("A red wall")) == towers.tokenizer().wrap([4, 5, 9])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["petl.name=lora"], "pre-training makes a plain backbone, petl.name is 'lora'"),
        (["petl.frozen=[visul]"], "unknown stack 'visul' in 'petl.frozen'; did you mean 'visual'"),
        (["backbone.kind=joint"], "expected a recipe of backbone.name blip and backbone.kind pretrain"),
        (["backbone.weights=dinov2_minilmm"], "expected BLIP's weights at dinov2_minilmm"),
        (["pairs.language=0"], "found pairs.language 0"),
        (["train.stepz=3"], "unknown key 'train.stepz'; did you mean 'steps'"),
        (["data.root=/nowhere"], "unknown task 'walls'"),
    ],
)
def test_slips_are_named(
    overrides: list[str], words: str, start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start("out", *overrides) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out" / "backbone.json").exists()


def test_a_file_in_the_place_of_the_folder_is_named(
    start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    assert start("out") == 2
    assert "cannot be made a folder" in capsys.readouterr().err


def test_another_recipe_is_refused(start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["out", "--recipe", str(RECIPES / "tiny.yaml")]) == 2
    assert "found clip_bart in" in capsys.readouterr().err
    assert main(["out", "--recipe", str(RECIPES / "smal_blip_pretrain.yaml")]) == 2
    assert "did you mean 'small_blip_pretrain.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "shares"),
    [
        ("blip_small_table.yaml", {"full": (100, 100), "uniadapter": (1, 5), "unitrans": (0.3, 2), "adapter": (1, 5), "lora": (1, 5), "probe": (0.3, 2)}),
        ("blip_table.yaml", {"full": (100, 100), "uniadapter": (1, 10), "unitrans": (0.5, 10), "adapter": (1, 10), "lora": (1, 10), "probe": (0.5, 10)}),
    ],
)  # fmt: skip
def test_every_method_of_the_tables_can_be_planned(file: str, shares: dict[str, tuple[float, float]]) -> None:
    """Two seeds of six methods on the same six tasks and steps; each trains about as much as its line says."""
    read = load_comparison(RECIPES / file)
    runs = read.runs()
    assert len(runs) == 12 and len({(r.config.tasks, r.config.train.steps) for r in runs}) == 1
    assert len(read.tasks) == 6 and read.config.budget.train_minutes > 0
    for run in runs[:6]:
        plan = make_plan(run.config)
        low, high = shares[run.line.name]
        assert low <= 100 * plan.num_trainable / plan.num_total <= high, (run.line.name, plan.num_trainable)
