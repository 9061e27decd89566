"""The tutorial on one's own data: its commands, typed as they stand, end in scores of the own task."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import launchers_port

from mtvl.tasks import load_task

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial_own_data.md"

sys.path.insert(0, str(ROOT / "tools"))

from prepare import make_parser  # noqa: E402


def blocks(language: str) -> list[str]:
    """The fenced blocks of the tutorial in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def type_in(text: str, project: Path) -> str:
    """Run a block in bash, line by line until one fails; returns what it printed."""
    environment = {
        "PATH": f"{Path(sys.prefix) / 'bin'}:/usr/bin:/bin", "HOME": str(project), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with launchers_port() if "deepspeed" in text else contextlib.nullcontext():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=project, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty folder that looks like the checkout, so that nothing is written into the checkout itself."""
    for name in ("launch", "tools", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.multiproc
@pytest.mark.slow
def test_the_tutorial_as_typed(project: Path) -> None:
    take, prepare, train, predict = blocks("bash")
    type_in(take, project)
    assert len(list((project / "data/my_pictures").glob("*.txt"))) == 20
    said = type_in(prepare, project)
    assert "my_pictures: pictures train 16, val 2, test 2" in said and "0 problems" in said
    task = load_task("my_pictures", root=project / "data/own")
    assert len({e.visual.images for split in ("train", "val", "test") for e in task.examples(split)}) == 20
    said = type_in(train, project)
    assert re.search(r"^\W*my_pictures\b", said, re.MULTILINE), said
    run = project / "runs/my_pictures"
    assert json.loads((run / "DONE").read_text())["step"] == 20
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 20 and all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    (name,), (result,) = zip(*json.loads((run / "eval.json").read_text()).items(), strict=True)
    assert (name, result["primary"], result["num_examples"], result["trained_on"]) == ("my_pictures", "cider", 2, True)
    assert {"constant", "interval"} <= result.keys()
    assert type_in(predict, project).strip()


def test_the_other_commands_of_the_tutorial_parse() -> None:
    """Those that are shown for the reader's own files."""
    commands = [line for block in blocks("console") for line in block.splitlines() if "tools/prepare.py" in line]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["python", "tools/prepare.py"]
        assert make_parser().parse_args(words[2:]).set == "table"


def test_the_tutorial_names_only_what_exists() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    paths = set(re.findall(r"\b(?:launch|tools)/\w+\.py\b", text))
    links = re.findall(r"\]\(([\w./]+)\)", text)
    assert len(paths) >= 6 and all((ROOT / path).is_file() for path in paths)
    assert links and all((TUTORIAL.parent / link).is_file() for link in links)
