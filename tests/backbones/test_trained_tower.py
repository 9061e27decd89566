"""A visual tower that is trained with the model: the same function, its own settings, and what it cannot go with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mtvl.backbones.towers import GridTower
from mtvl.config import OptimConfig, RunConfig, TowerOptimConfig, parse_section, validate
from mtvl.data.features import PixelSource
from mtvl.errors import ConfigError, DataError
from mtvl.export import load_export, write_export
from mtvl.model import build_model, make_backbone, make_plan
from mtvl.optim import build_optimizer, parameter_groups
from mtvl.types import kind_owner

SIDE, TOWER = 112, "backbone.visual_tower."
SAME = 1e-5  # float32 logits; the same operations on the same rows


@pytest.fixture
def with_pixels(make_batch):
    """`with_pixels(batch)`: a batch that holds random pixels."""

    def make(task="vqa", **options):
        batch = make_batch(task, **options)
        random = torch.Generator().manual_seed(3)
        batch.features = torch.randn(*batch.features.shape[:2], SIDE * SIDE, 3, generator=random)
        return batch

    return make


@pytest.mark.parametrize("petl", ["adapter", "full", "bitfit", "lora"])
def test_all_four_combinations_count_what_they_train(petl, tiny_config) -> None:
    frozen, trained = (make_plan(tiny_config({"name": petl}, train_tower=t)) for t in (False, True))
    tower = sum(p.numel() for p in GridTower("tiny").parameters())
    assert trained.num_trainable == frozen.num_trainable + tower > tower
    assert trained.num_total == frozen.num_total + tower
    assert {s.path for s in trained.biases} == {s.path for s in frozen.biases}
    assert any(line.startswith("train  tower    tower") for line in trained.table().splitlines())


@pytest.mark.parametrize("petl", [{"name": "adapter", "bottleneck": 4}, {"name": "full"}], ids=str)
def test_it_starts_as_the_frozen_tower_and_moves(petl, tiny_config, make_batch, with_pixels) -> None:
    config = tiny_config(petl, train_tower=True, dropout=0.0)
    model, frozen = build_model(config), build_model(tiny_config(petl, dropout=0.0))
    model.train().set_task("vqa")
    frozen.train().set_task("vqa")
    pixels, features = with_pixels(pictures=2), make_batch("vqa", pictures=2)
    square = pixels.features.view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        features.features = frozen.backbone.tower("grid")(square).view(3, 2, 49, 256)
        assert float((model.logits(pixels) - frozen.logits(features)).abs().max()) < SAME
    with pytest.raises(ConfigError, match=r"reads pixels \(12544, 3\) of a picture, found features \(49, 256\)"):
        model.logits(features)

    before = {n: v.clone() for n, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.trainable().values(), lr=0.1)
    model(pixels).backward()
    optimizer.step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    tower = {n for n in before if n.startswith(TOWER)}
    assert {n for n in tower if "running" in n or "num_batches" in n} & moved == set()  # statistics stand still
    # A batch norm behind a block starts with weight zero: what is before it has no gradient yet.
    assert len(moved & tower) > 10 and moved & tower <= set(model.tower_parameters())
    assert model.tower_parameters() == {n for n in model.trainable() if n.startswith(TOWER)}


def test_an_export_holds_the_tower(tiny_config, with_pixels, tmp_path) -> None:
    config = tiny_config({"name": "adapter", "bottleneck": 4}, train_tower=True)
    model = build_model(config).eval()
    with torch.no_grad():
        for name in model.tower_parameters():
            model.get_parameter(name).add_(0.01)
    write_export(tmp_path, model, config)
    again, _, content = load_export(tmp_path)
    assert content["trainable"] == model.plan.num_trainable
    for each in (model, again.eval()):
        each.set_task("vqa")
    batch = with_pixels()
    assert torch.equal(model.logits(batch), again.logits(batch))
    assert model.backbone.visual_tower.fixed_fingerprint == again.backbone.visual_tower.fixed_fingerprint


def test_the_tower_has_a_rate_and_a_decay_of_its_own(tiny_config) -> None:
    model = build_model(
        tiny_config({"name": "projection"}, train_tower=True, visual=["grid", "frame"], frame_tower="tiny")
    )
    owners, tower = model.tasks_of_parameters(), model.tower_parameters()
    assert {owners[n] for n in tower} == {kind_owner("grid")}  # idle in steps of videos
    config = OptimConfig(name="sgd", lr=0.1, weight_decay=0.5, tower=TowerOptimConfig(lr=0.01, weight_decay=0.0))
    groups = parameter_groups(model.trainable(), owners, config, tower=tower)
    names = [g.name for g in groups if g.is_tower]
    assert names == ["grid features/tower/no_decay/lr x 0.1", "grid features/tower/decay/lr x 0.1"]
    optimizer = build_optimizer(model.trainable(), groups, config)
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    for parameter in model.trainable().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.begin([g.name for g in groups], 0.05)  # half of the peak: the schedule is everybody's
    optimizer.step()
    for name, parameter in model.trainable().items():
        decay = 0.5 if parameter.ndim > 1 and name not in tower else 0.0
        expected = before[name] - (0.005 if name in tower else 0.05) * (1 + decay * before[name])
        assert torch.allclose(parameter, expected, atol=1e-6), name
    plain = OptimConfig(name="sgd", lr=0.1, weight_decay=0.5)
    inherited = parameter_groups(model.trainable(), owners, plain, tower=tower)
    assert {g.scale for g in inherited} == {1.0}
    optimizer = build_optimizer(model.trainable(), inherited, plain)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.5}


def test_pictures_are_read_as_pixels(tmp_path: Path) -> None:
    tower = GridTower("tiny")
    source = PixelSource(tower.preprocess, SIDE)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    picture.save(tmp_path / "a.png")
    pixels = source.get([str(tmp_path / "a.png")] * 2)
    assert pixels.shape == (2, *source.grid) and torch.equal(pixels[0], pixels[1])
    assert torch.equal(tower.grids(pixels[:1, None])[0, 0], tower.encode([picture])[0])
    source.ensure([str(tmp_path / "a.png")])
    with pytest.raises(DataError, match="absent"):
        source.ensure([str(tmp_path / "absent.png")])
    (tmp_path / "a.npz").touch()
    with pytest.raises(DataError, match="the tower is trained .* a file of features"):
        source.ensure([str(tmp_path / "a.npz")])


def test_what_a_trained_tower_cannot_go_with(tiny_config) -> None:
    with pytest.raises(ConfigError, match="change with every step, so none"):
        make_backbone(tiny_config(train_tower=True).backbone).tower("grid")
    for meta in (False, True):
        with pytest.raises(ConfigError, match="'backbone.tower' is 'stored'"):
            make_backbone(tiny_config(train_tower=True, tower="stored").backbone, meta=meta)
    with pytest.raises(ConfigError, match="no task of this run has pictures"):
        make_backbone(tiny_config(train_tower=True, visual=["frame"], frame_tower="tiny").backbone)
    recipe = {"tasks": ["vqa"], "optim": {"tower": {"lr": 1e-5}}}
    with pytest.raises(ConfigError, match="set backbone.train_tower=true"):
        validate(parse_section(RunConfig, recipe))
    validate(parse_section(RunConfig, {**recipe, "backbone": {"name": "clip_bart", "train_tower": True}}))
