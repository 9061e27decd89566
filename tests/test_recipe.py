"""Recipes on top of recipes: what is merged, what is dropped, and what each mistake is answered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mtvl.config import RunConfig, load_run_config, parse_section, to_plain
from mtvl.errors import ConfigError
from mtvl.recipe import narrowed, read_recipe

BASE = """
seed: 3
tasks: [vqa, gqa]
task: {vqa: {prompt: "v: ", limits: {source_tokens: 20}}, gqa: {prompt: "g: "}}
backbone: {name: clip_bart, preset: tiny}
petl: {name: adapter, reduction: 4, share: all}
optim: {name: adamw, lr: 1.0e-3, betas: [0.9, 0.99]}
"""

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    make("base.yaml", BASE)
    return make


def test_sections_are_merged_and_values_replaced(write: Write) -> None:
    top = write("sub/top.yaml", "base: ../base.yaml\npetl: {share: none}\noptim: {lr: 3e-4, betas: [0.8, 0.9]}\n")
    config = load_run_config(top)
    assert config.petl == {"name": "adapter", "reduction": 4, "share": "none"}
    assert (config.seed, config.tasks, config.optim.name) == (3, ("vqa", "gqa"), "adamw")
    assert (config.optim.lr, config.optim.betas) == (3e-4, (0.8, 0.9))
    assert load_run_config(top, overrides=["optim.lr=1"]).optim.lr == 1.0


def test_three_layers(write: Write) -> None:
    write("middle.yaml", "base: base.yaml\nseed: 4\npetl: {reduction: 8}\n")
    values = read_recipe(write("top.yaml", "base: middle.yaml\npetl: {share: up}\n"))
    assert values["seed"] == 4 and values["petl"] == {"name": "adapter", "reduction": 8, "share": "up"}
    assert "base" not in values


def test_another_name_drops_the_options_of_the_old_one(write: Write) -> None:
    assert read_recipe(write("a.yaml", "base: base.yaml\npetl: {name: lora, rank: 8}\n"))["petl"] == {
        "name": "lora", "rank": 8,
    }  # fmt: skip
    assert read_recipe(write("b.yaml", "base: base.yaml\nbackbone: {name: clip_t5}\n"))["backbone"] == {
        "name": "clip_t5"
    }
    same = read_recipe(write("c.yaml", "base: base.yaml\npetl: {name: adapter, share: up}\n"))["petl"]
    assert same == {"name": "adapter", "reduction": 4, "share": "up"}


def test_a_section_that_the_base_leaves_out_has_its_default_name(write: Write) -> None:
    write("bare.yaml", "tasks: [vqa]\npetl: {reduction: 2}\n")
    assert read_recipe(write("a.yaml", "base: bare.yaml\npetl: {name: adapter}\n"))["petl"] == {
        "name": "adapter", "reduction": 2,
    }  # fmt: skip
    assert read_recipe(write("b.yaml", "base: bare.yaml\npetl: {name: full}\n"))["petl"] == {"name": "full"}


def test_settings_of_tasks_that_are_gone_are_dropped(write: Write) -> None:
    fewer = load_run_config(write("top.yaml", "base: base.yaml\ntasks: [vqa]\ntask: {vqa: {prompt: ''}}\n"))
    assert fewer.task == {"vqa": {"prompt": "", "limits": {"source_tokens": 20}}}
    base = write("base.yaml", BASE)
    assert set(load_run_config(base, ["gqa", "coco"]).task) == {"gqa"}
    assert set(load_run_config(base).task) == {"vqa", "gqa"}
    with pytest.raises(ConfigError, match="'task.vqa' is not one of the tasks"):
        load_run_config(base, ["gqa"], ["task.vqa.prompt=x"])  # asked for here and now
    slip = {"tasks": ["vqa"], "task": {"vqq": {}}}
    assert narrowed(slip, ["vqa"]) == slip, "a name that was never a task stays, and is an error later"


def test_a_saved_config_needs_no_base(write: Write, tmp_path: Path) -> None:
    top = write("top.yaml", "base: base.yaml\npetl: {name: full}\n")
    config = load_run_config(top)
    saved = yaml.safe_load(yaml.safe_dump(to_plain(config)))
    (tmp_path / "base.yaml").unlink()
    assert parse_section(RunConfig, saved) == config and "base" not in saved


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: bse.yaml\n", "top.yaml: its base 'bse.yaml' is looked for in .*no such file; did you mean 'base.yaml'"),
        ("base: nowhere/base.yaml\n", "its base 'nowhere/base.yaml' is looked for in .*nowhere, no such file"),
        ("base: .\n", "no such file"),
        ("base:\n", "top.yaml: 'base' expects the path of a recipe, found None"),
        ("base: [base.yaml]\n", "'base' expects the path of a recipe, found \\['base.yaml'\\]"),
        ("base: top.yaml\n", "a recipe cannot be its own base: .*top.yaml -> .*top.yaml"),
        ("base: base.yaml\ntrian: {}\n", "unknown key 'trian'; did you mean 'train'"),
        ("base: base.yaml\nseed: {x: 1}\n", "'seed' expects int"),
        ("bases: base.yaml\n", "unknown key 'bases'"),
    ],
)
def test_mistakes(write: Write, text: str, message: str) -> None:
    top = write("top.yaml", text)
    with pytest.raises(ConfigError, match=message):
        load_run_config(top)


def test_a_circle_of_several(write: Write) -> None:
    write("a.yaml", "base: sub/b.yaml\n")
    b = write("sub/b.yaml", "base: ../a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml -> .*a\.yaml -> .*b\.yaml"):
        read_recipe(b)


def test_a_broken_base_is_named(write: Write) -> None:
    write("broken.yaml", "a: [1")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        read_recipe(write("top.yaml", "base: broken.yaml\n"))
