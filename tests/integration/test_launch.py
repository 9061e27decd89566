"""The files in launch/ as users type them, the list of flags, and the README's commands."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import launchers_port
from safetensors import safe_open

from mtvl.checkpoint import find_resumable, resolve_resume, write_checkpoint
from mtvl.cli import VERBS, evaluate_parser, main, train_parser
from mtvl.config import load_run_config, read_yaml
from mtvl.errors import CheckpointError, LostRankError
from mtvl.model import make_plan

ROOT = Path(__file__).resolve().parents[2]
TRAIN_FLAGS = {"--tasks", "--recipe", "--run", "--resume", "--local_rank", "overrides"}
TASKS = ["vqa", "gqa", "nlvr2", "coco"]
EVALUATE_FLAGS = {"--checkpoint", "--tasks", "--split", "--out", "--local_rank", "overrides"}


def flags(parser: argparse.ArgumentParser) -> set[str]:
    return {(a.option_strings or [a.dest])[-1] for a in parser._actions} - {"--help"}


def test_flags_do_not_grow() -> None:
    """Settings belong into recipes; a flag is for what a recipe cannot know."""
    assert flags(train_parser()) == TRAIN_FLAGS
    assert flags(evaluate_parser()) == EVALUATE_FLAGS
    assert set(VERBS) == {
        "train",
        "evaluate",
        "predict",
        "inspect",
        "plan",
        "methods",
        "estimate",
        "nodes",
        "compare",
        "gallery",
        "frames",
        "modalities",
    }


RECIPES = [p for p in sorted((ROOT / "launch" / "recipes").glob("*.yaml")) if "methods" not in read_yaml(p)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_complete(recipe: Path) -> None:
    config = load_run_config(recipe)
    assert (ROOT / config.engine.file).is_file()
    if Path(config.backbone.get("weights", "")).name == config.backbone.get("weights", ""):  # no hub name
        assert make_plan(config).num_trainable > 0


def environment(home: Path) -> dict[str, str]:
    return {"PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(home), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], cwd: Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    with launchers_port() if arguments[0] in ("deepspeed", "torchrun") else contextlib.nullcontext():
        return subprocess.run(
            arguments, cwd=cwd, env=environment(home or cwd), capture_output=True, text=True, timeout=300, check=False
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
def test_mistakes_end_with_one_line(arguments: list[str], expected: str, world: Path, tmp_path: Path) -> None:
    done = run([sys.executable, str(ROOT / "launch" / "train.py"), *arguments, f"data.root={world}"], tmp_path)
    assert done.returncode == 2 and expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_ends_any_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, code, words in (
        (errno.ENOSPC, 2, "mtvl: error: out.svg: No space left"),
        (errno.EBADF, 1, "Traceback"),
    ):

        def fails(_arguments: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number), "out.svg")

        monkeypatch.setitem(VERBS, "frames", fails)
        assert main(["frames", "run"]) == code
        assert words in capsys.readouterr().err


def test_a_lost_rank_ends_an_evaluation_with_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loses(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:29500")

    monkeypatch.setattr("mtvl.engine.start", lambda **_: None)
    monkeypatch.setattr("mtvl.evaluate.evaluate", loses)
    monkeypatch.setattr("mtvl.dist.world_size", lambda: 2)
    assert main(["evaluate", "--checkpoint", "run"]) == LostRankError.exit_code
    assert "another rank has ended or cannot be reached" in capsys.readouterr().err


@pytest.mark.multiproc
def test_resume_of_a_missing_folder_ends_with_one_line(world: Path, tmp_path: Path) -> None:
    """Through the launcher, whose exit code is the script's; never a silent start from scratch."""
    wanted = tmp_path / "missing"
    command = [
        "deepspeed",
        "launch/train.py",
        "--tasks",
        "vqa",
        "--run",
        str(tmp_path / "run"),
        "--resume",
        str(wanted),
    ]
    done = run([*command, f"data.root={world}", "data.text_only=true", "train.steps=1"], ROOT, tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("mtvl: error: ")]
    assert len(lines) == 1 and str(wanted) in lines[0], done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize("content", ["missing", "empty", "file", "only_half_written", "step_3"])
def test_resume_of_what_is_no_run_is_refused(content: str, tmp_path: Path) -> None:
    """A named folder is used or refused; the checkpoint of the run folder itself does not step in."""
    wanted = tmp_path / content
    if content == "file":
        wanted.write_text("no run")
    elif content == "only_half_written":
        (wanted / "checkpoints" / "step_5.tmp").mkdir(parents=True)
    elif content != "missing":
        wanted.mkdir()
    own = tmp_path / "run"
    write_checkpoint(own, 7, lambda folder: (folder / "state").touch(), {})
    assert find_resumable(own) is not None
    with pytest.raises(CheckpointError, match=re.escape(str(wanted))):
        resolve_resume(str(wanted), own)


LAUNCHERS = {
    "deepspeed": ["deepspeed"],
    # Without "--" torchrun takes the script's --run for a short form of its own --run-path, and stops.
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--"],
    "python": ["python"],
}


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one run a launcher: the command line of the README, typed in the project's folder, made short."""
    home = tmp_path_factory.mktemp("launchers")
    for name, words in LAUNCHERS.items():
        typed = [*words, "launch/train.py", "--tasks", ",".join(TASKS)]
        done = run([*typed, "--run", str(home / name), "train.steps=2", f"data.root={world}"], ROOT, home)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    return home


@pytest.mark.multiproc
def test_every_launcher_trains_the_same_run(runs: Path) -> None:
    """One process under deepspeed and python, two under torchrun; the examples and the losses are the same."""
    records = {}
    for name in LAUNCHERS:
        assert json.loads((runs / name / "DONE").read_text())["step"] == 2
        records[name] = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
    first = records["deepspeed"]
    assert len(first) == 2
    for found in records.values():
        assert [r["samples"] for r in found] == [r["samples"] for r in first]
        assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in first], abs=1e-5)  # measured: 2.4e-7


@pytest.mark.multiproc
def test_the_run_is_evaluated_as_typed(runs: Path) -> None:
    """One table for the one checkpoint: every task, every test example; on two ranks the same, without duplicates."""
    typed = ["launch/evaluate.py", "--checkpoint", str(runs / "deepspeed"), "--tasks", ",".join(TASKS)]
    small = ["evaluate.captions_tokenizer=python", "evaluate.bootstrap=100"]
    done = run(["deepspeed", *typed, *small], ROOT, runs)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((runs / "deepspeed" / "eval.json").read_text())
    assert list(results) == TASKS
    for name, result in results.items():
        lines = (runs / "deepspeed" / "predictions" / f"{name}.jsonl").read_text().splitlines()
        assert result["num_examples"] == len(lines) >= 40 and result["trained_on"]
        assert re.search(rf"^\W*{name}\b", done.stdout, re.MULTILINE), done.stdout
    assert "average of primary metrics" in done.stdout
    two = runs / "two.json"
    done = run(["deepspeed", "--num_accelerators", "2", *typed, "--out", str(two), *small], ROOT, runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(two.read_text()) == results


@pytest.mark.multiproc
def test_a_checkpoint_is_small_and_holds_no_frozen_tensor(runs: Path) -> None:
    folder = runs / "deepspeed" / "checkpoints" / "step_2"
    plan = make_plan(load_run_config(runs / "deepspeed" / "config.yaml"))
    allowed = 1.2 * 14 * plan.num_trainable + 1_000_000
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) <= allowed
    assert 4 * (plan.num_total - plan.num_trainable) > allowed  # with the frozen tensors in it, it would be larger
    with safe_open(str(folder / "engine.safetensors"), framework="pt") as state:
        saved = {k: list(state.get_slice(k).get_shape()) for k in state.keys()}  # noqa: SIM118 (not a mapping)
    with safe_open(str(runs / "deepspeed" / "export" / "adapter.safetensors"), framework="pt") as export:
        trained = {k for k in export.keys() if not k.startswith("rows/")}  # noqa: SIM118
    assert set(saved) == {f"{kind}/{name}" for kind in ("weight", "exp_avg", "exp_avg_sq") for name in trained}
    numbers = [math.prod(shape) for key, shape in saved.items() if key.startswith("weight/")]
    assert sum(numbers) == plan.num_trainable


@pytest.mark.multiproc
def test_sigterm_to_one_rank_saves_on_all(world: Path, tmp_path: Path) -> None:
    """One of two ranks is signalled; both stop at the same step with a whole checkpoint, which the same run resumes."""
    script, folder = str(ROOT / "launch" / "train.py"), tmp_path / "run"
    command = ["deepspeed", "--num_accelerators", "2", script, "--tasks", "vqa", "--run", str(folder), f"data.root={world}",
               "train.steps=100000", "train.global_batch=4", "train.micro_batch=2"]  # fmt: skip
    with (tmp_path / "log").open("w") as log, launchers_port():
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
