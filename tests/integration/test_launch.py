"""The files in launch/ as users type them, the list of flags, and the README's commands."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtvl.cli import VERBS, evaluate_parser, train_parser
from mtvl.config import load_run_config
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.model import make_plan

ROOT = Path(__file__).resolve().parents[2]
TRAIN_FLAGS = {"--tasks", "--recipe", "--run", "--resume", "--local_rank", "overrides"}
EVALUATE_FLAGS = {"--checkpoint", "--tasks", "--split", "--out", "--local_rank", "overrides"}


def flags(parser: argparse.ArgumentParser) -> set[str]:
    return {(a.option_strings or [a.dest])[-1] for a in parser._actions} - {"--help"}


def test_flags_do_not_grow() -> None:
    """Settings belong into recipes; a flag is for what a recipe cannot know."""
    assert flags(train_parser()) == TRAIN_FLAGS
    assert flags(evaluate_parser()) == EVALUATE_FLAGS
    assert set(VERBS) == {"train", "evaluate", "predict", "inspect", "plan"}


@pytest.mark.parametrize("recipe", sorted((ROOT / "launch" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_complete(recipe: Path) -> None:
    config = load_run_config(recipe)
    assert (ROOT / config.engine.file).is_file()
    if Path(config.backbone.get("weights", "")).name == config.backbone.get("weights", ""):  # no hub name
        assert make_plan(config).num_trainable > 0


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tasks", "vqaa"], "did you mean 'vqa'"),
        (["--tasks", "vqa", "optm.lr=1"], "unknown key 'optm'"),
        (["--tasks", "vqa", "optim.lr=fast"], "'optim.lr' expects float"),
        (["--recipe", "nothing.yaml"], "no file nothing.yaml"),
        (["--tasks", "../vqa"], "expected the name of a file"),
        (["--tasks", "vqa", "engine.file=ds_configs/zero9.json"], "zero9.json"),
    ],
)
def test_mistakes_end_with_one_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    root = ensure_miniworld(tmp_path / "world", size="tiny", progress=lambda _: None)
    done = run([sys.executable, str(ROOT / "launch" / "train.py"), *arguments, f"data.root={root}"], tmp_path)
    assert done.returncode == 2 and expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.multiproc
def test_deepspeed_launches_two_ranks_and_evaluates(tmp_path: Path) -> None:
    """The launcher itself, two ranks, --local_rank, one evaluation without duplicates; no segment is left behind."""
    root = ensure_miniworld(tmp_path / "world", size="tiny", progress=lambda _: None)
    common = ["deepspeed", "--num_accelerators", "2"]
    small = [f"data.root={root}", "train.steps=3", "train.global_batch=8", "train.micro_batch=2"]
    done = run([*common, str(ROOT / "launch" / "train.py"), "--tasks", "vqa,nlvr2", "--run", "run", *small], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "DONE").read_text())["step"] == 3
    both = run([*common, str(ROOT / "launch" / "evaluate.py"), "--checkpoint", "run", "--out", "two.json"], tmp_path)
    assert both.returncode == 0, both.stdout + both.stderr
    one = run(
        [sys.executable, str(ROOT / "launch" / "evaluate.py"), "--checkpoint", "run", "--out", "one.json"], tmp_path
    )
    assert one.returncode == 0, one.stdout + one.stderr
    assert json.loads((tmp_path / "one.json").read_text()) == json.loads((tmp_path / "two.json").read_text())


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    paths = set(
        re.findall(r"\b(?:launch|tools|docs|ds_configs|tasks|tests|mtvl)/[\w./]+\.(?:py|yaml|md|json|sh)\b", text)
    )
    assert paths and all((ROOT / p).is_file() for p in paths), sorted(p for p in paths if not (ROOT / p).is_file())
