"""The files in launch/ as users type them, the list of flags, and the README's commands."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtvl.checkpoint import find_resumable
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


def environment(home: Path) -> dict[str, str]:
    return {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=cwd, env=environment(cwd), capture_output=True, text=True, timeout=300, check=False
    )


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


@pytest.mark.multiproc
def test_sigterm_to_one_rank_saves_on_all(tmp_path: Path) -> None:
    """One of two ranks is signalled; both stop at the same step with a whole checkpoint, which the same run resumes."""
    root = ensure_miniworld(tmp_path / "world", size="tiny", progress=lambda _: None)
    script, folder = str(ROOT / "launch" / "train.py"), tmp_path / "run"
    command = ["deepspeed", "--num_accelerators", "2", script, "--tasks", "vqa", "--run", str(folder), f"data.root={root}",
               "train.steps=100000", "train.global_batch=4", "train.micro_batch=2"]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 240
            while not (folder / "log.jsonl").is_file() or len((folder / "log.jsonl").read_text().splitlines()) < 3:
                assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
            os.kill(workers(folder)[1], signal.SIGTERM)
            process.wait(timeout=120)
        finally:
            process.kill()
    assert process.returncode != 0 and not (folder / "DONE").exists()
    found = find_resumable(folder)
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert found is not None and found[1] == last


def workers(folder: Path) -> list[int]:
    """Process ids of the ranks that train in `folder`, by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_text().split("\0")
            rank = next((w.removeprefix("--local_rank=") for w in words if w.startswith("--local_rank=")), None)
            if rank is not None and str(folder) in words:
                found[int(rank)] = int(entry.parent.name)
    return [found[rank] for rank in sorted(found)]


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    paths = set(
        re.findall(r"\b(?:launch|tools|docs|ds_configs|tasks|tests|mtvl)/[\w./]+\.(?:py|yaml|md|json|sh)\b", text)
    )
    assert paths and all((ROOT / p).is_file() for p in paths), sorted(p for p in paths if not (ROOT / p).is_file())
