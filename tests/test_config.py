"""Recipes and overrides: what is accepted, and what each mistake is answered with."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtvl.config import (
    CheckpointConfig,
    DataConfig,
    MixtureConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    apply_overrides,
    load_run_config,
    parse_section,
    read_yaml,
    to_plain,
    validate,
)
from mtvl.errors import ConfigError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(
        "seed: 3\ntasks: [vqa, gqa]\ntrain: {steps: 20, micro_batch: 4}\noptim: {name: adamw, lr: 3e-4}\n"
        "petl: {name: adapter, reduction: 4}\n"
    )
    return file


def refused(values: dict[str, Any], cls: type = RunConfig) -> str:
    with pytest.raises(ConfigError) as error:
        parse_section(cls, values)
    return str(error.value)


# ---- parsing ----------------------------------------------------------------------------------------------------


def test_a_recipe_is_read_and_defaults_fill_the_rest(recipe: Path) -> None:
    config = load_run_config(recipe)
    assert (config.seed, config.tasks, config.train.steps, config.optim.lr) == (3, ("vqa", "gqa"), 20, 3e-4)
    assert config.optim.betas == OptimConfig().betas
    assert load_run_config(recipe, ["coco"]).tasks == ("coco",)


def test_unknown_keys_are_answered_with_the_near_name() -> None:
    assert "unknown key 'train.step'; did you mean 'steps'" in refused({"train": {"step": 1}})
    assert "unknown key 'trian'; did you mean 'train'" in refused({"trian": {}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "one"}, "'seed' expects int, found 'one' (str)"),
        ({"seed": 1.5}, "'seed' expects int, found 1.5 (float)"),
        ({"seed": True}, "'seed' expects int, found True (bool)"),
        ({"paper_compat": 1}, "'paper_compat' expects bool, found 1 (int)"),
        ({"optim": {"lr": "fast"}}, "'optim.lr' expects float, found 'fast' (str)"),
        ({"optim": {"lr": True}}, "'optim.lr' expects float, found True (bool)"),
        ({"optim": {"lr": None}}, "'optim.lr' expects float, found None (NoneType)"),
        ({"optim": {"betas": [0.9]}}, "'optim.betas' expects 2 values, found 1"),
        ({"optim": {"betas": [0.9, 0.99, 0.999]}}, "'optim.betas' expects 2 values, found 3"),
        ({"optim": {"betas": [0.9, "x"]}}, "'optim.betas[1]' expects float, found 'x' (str)"),
        ({"tasks": "vqa"}, "'tasks' expects tuple[str, ...], found 'vqa' (str)"),
        ({"tasks": ["vqa", 3]}, "'tasks[1]' expects str, found 3 (int)"),
        ({"train": 5}, "'train' expects a section of keys, found 5"),
        ({"petl": "adapter"}, "'petl' expects dict[str, typing.Any], found 'adapter' (str)"),
        ({"mixture": {"weights": {"vqa": "much"}}}, "'mixture.weights.vqa' expects float, found 'much' (str)"),
    ],
)
def test_wrong_types_are_refused_with_path_and_value(values: dict[str, Any], message: str) -> None:
    assert refused(values) == message


def test_integers_and_texts_are_read_as_floats() -> None:
    assert parse_section(OptimConfig, {"lr": 1}).lr == 1.0
    assert yaml.safe_load("1e-3") == "1e-3", "YAML 1.1 reads this as text: the reason for the rule"
    assert parse_section(OptimConfig, {"lr": "1e-3", "betas": [0, 1]}) == OptimConfig(lr=1e-3, betas=(0.0, 1.0))


def test_missing_keys_and_optional_values() -> None:
    @dataclass(frozen=True)
    class Section:
        files: str
        limit: int | None = None
        rest: dict[str, float] = field(default_factory=dict)

    Section.__annotations__ = {"files": str, "limit": int | None, "rest": dict[str, float]}
    assert refused({}, Section) == "missing key 'files' (str)"
    assert parse_section(Section, {"files": "a", "limit": None}).limit is None
    assert parse_section(Section, {"files": "a", "limit": 3, "rest": {"x": 1}}).rest == {"x": 1.0}


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 1  # type: ignore[misc]


def test_plain_values_make_the_same_config_again(recipe: Path) -> None:
    config = load_run_config(recipe, overrides=["mixture.weights={vqa: 2}", "optim.betas=[0.8, 0.9]"])
    plain = to_plain(config)
    assert parse_section(RunConfig, json.loads(json.dumps(plain))) == config
    assert parse_section(RunConfig, yaml.safe_load(yaml.safe_dump(plain))) == config


# ---- overrides --------------------------------------------------------------------------------------------------


def test_overrides_are_parsed_by_the_fields_type(recipe: Path) -> None:
    overrides = ["optim.lr=1e-3", "train.recompute=true", "data.root=/tmp/1", "tasks=[coco]", "engine.file=a=b.json"]
    config = load_run_config(recipe, overrides=overrides)
    assert (config.optim.lr, config.train.recompute, config.data.root) == (1e-3, True, "/tmp/1")
    assert config.tasks == ("coco",) and config.engine.file == "a=b.json"
    assert config.train.steps == 20, "other keys of a section stay"
    assert load_run_config(recipe, overrides=["data.root="]).data.root == ""


def test_the_last_override_wins_and_the_recipe_is_not_changed() -> None:
    values = {"train": {"steps": 1}}
    assert apply_overrides(values, ["train.steps=2", "train.steps=3"]) == {"train": {"steps": 3}}
    assert values == {"train": {"steps": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "override 'train.steps' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("seed.x=3", "override 'seed.x=3': 'seed' is a value, not a section"),
        ("tasks=[vqa", "the value of override 'tasks=[vqa' is not valid YAML"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides({"seed": 1}, [override])
    assert str(error.value) == message


def test_unknown_override_key(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'optim.lrr'; did you mean 'lr'"):
        load_run_config(recipe, overrides=["optim.lrr=1"])


def test_another_method_drops_the_options_of_the_old_one(recipe: Path) -> None:
    assert load_run_config(recipe, overrides=["petl.name=full"]).petl == {"name": "full"}
    assert load_run_config(recipe, overrides=["petl.name=adapter"]).petl == {"name": "adapter", "reduction": 4}


@pytest.mark.parametrize("turn", [1, -1])
def test_options_beside_the_new_name_stay_in_any_order(recipe: Path, turn: int) -> None:
    overrides = ["petl.name=lora", "petl.rank=8"][::turn]
    assert load_run_config(recipe, overrides=overrides).petl == {"name": "lora", "rank": 8}


def test_another_optimizer_keeps_the_learning_rate(recipe: Path) -> None:
    optim = load_run_config(recipe, overrides=["optim.name=sgd"]).optim
    assert (optim.name, optim.lr) == ("sgd", 3e-4)


def test_an_option_without_its_section_keeps_the_default_name(tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("tasks: [vqa]\n")
    config = load_run_config(file, overrides=["petl.share=none", "backbone.preset=tiny"])
    assert config.petl == {"name": "adapter", "share": "none"}
    assert config.backbone == {"name": "clip_bart", "preset": "tiny"}
    assert load_run_config(file) == RunConfig(tasks=("vqa",))


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_answered_with_its_neighbours(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'small.yaml'"):
        read_yaml(recipe.with_name("smal.yaml"))
    with pytest.raises(ConfigError, match="no file .*there is no .yaml file in .*nowhere"):
        read_yaml(recipe.parent / "nowhere" / "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "is not valid YAML"), ("- 1", "found list"), ("", "found NoneType")]
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(file)
    assert str(file) in str(error.value)


def test_tags_are_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "evil.yaml"
    file.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(file)


# ---- the whole --------------------------------------------------------------------------------------------------

GOOD = RunConfig(tasks=("vqa", "gqa"))


def test_the_defaults_are_valid() -> None:
    validate(GOOD)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(), "no tasks; give --tasks"),
        (replace(GOOD, tasks=("vqa", "vqa")), "a task is named twice in vqa,vqa"),
        (
            replace(GOOD, mixture=MixtureConfig(law="temprature")),
            "unknown 'mixture.law' 'temprature'; did you mean 'temp",
        ),
        (replace(GOOD, optim=OptimConfig(name="adamm")), "unknown 'optim.name' 'adamm'; did you mean 'adamw'"),
        (replace(GOOD, optim=OptimConfig(schedule="cosin")), "unknown 'optim.schedule' 'cosin'"),
        (replace(GOOD, optim=OptimConfig(clip_norm=-1.0)), "'optim.clip_norm' must be 0 or above, found -1.0"),
        (
            replace(GOOD, checkpoint=CheckpointConfig(every_steps=0)),
            "'checkpoint.every_steps' must be above 0, found 0",
        ),
        (
            replace(GOOD, checkpoint=CheckpointConfig(allow=("optim", "optm"))),
            "'checkpoint.allow': no item of a run is called 'optm'; did you mean 'optim'",
        ),
        (replace(GOOD, data=DataConfig(workers=-1)), "'data.workers' must be 0 or above, found -1"),
        (replace(GOOD, train=TrainConfig(precision="fp8")), "unknown 'train.precision' 'fp8'"),
        (replace(GOOD, mixture=MixtureConfig(weights={"vqq": 1.0})), "'mixture.weights.vqq' is not one of the tasks"),
        (
            replace(GOOD, mixture=MixtureConfig(weights={"vqa": 0.0})),
            "'mixture.weights.vqa' must be above 0, found 0.0",
        ),
        (replace(GOOD, mixture=MixtureConfig(loss_weights={"coco": 1.0})), "'mixture.loss_weights.coco' is not one of"),
        (replace(GOOD, train=TrainConfig(steps=0)), "'train.steps' must be above 0, found 0"),
        (replace(GOOD, train=TrainConfig(micro_batch=-1)), "'train.micro_batch' must be above 0, found -1"),
        (replace(GOOD, optim=OptimConfig(lr=float("nan"))), "'optim.lr' must be above 0, found nan"),
        (
            replace(GOOD, optim=OptimConfig(betas=(0.9, 9.99))),
            "'optim.betas' must lie in 0..1, below 1, found (0.9, 9.99)",
        ),
        (replace(GOOD, optim=OptimConfig(eps=-1e-8)), "'optim.eps' must be 0 or above, found -1e-08"),
        (replace(GOOD, optim=OptimConfig(warmup_ratio=1.5)), "'optim.warmup_ratio' must lie in 0..1, found 1.5"),
    ],
)
def test_contradictions_are_named(config: RunConfig, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert message in str(error.value)
