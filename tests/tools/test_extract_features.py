"""The tool fills the store that training reads: counts, going on after damage, ranks, errors before any work."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from distributed import describe, launch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import extract_features  # noqa: E402

from mtvl.config import load_run_config  # noqa: E402
from mtvl.model import make_backbone  # noqa: E402
from mtvl.workspace import Workspace  # noqa: E402

ROWS = "data.max_examples=12"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = extract_features.main(list(arguments))
    found = capsys.readouterr()
    return code, found.out, found.err


def computed(text: str) -> int:
    found = re.search(r"pictures: ([\d,]+) computed now", text)
    assert found, text
    return int(found[1].replace(",", ""))


def test_training_finds_what_the_tool_computed(world: Path, tmp_path: Path, capsys) -> None:
    settings = [f"data.root={world}", f"data.cache={tmp_path}", ROWS]
    code, out, _ = run(capsys, "--tasks", "vqa,nlvr2", "--splits", "train,val", *settings)
    assert code == 0
    assert re.search(r"features: (\d+)/\1 pictures, .*ETA 0 s", out)
    count = computed(out)
    assert re.search(rf"{count} computed now in .*/s; {count} stored, [\d.]+ MB in {tmp_path}/features/tiny-", out)
    config = load_run_config(extract_features.DEFAULT_RECIPE, ["vqa", "nlvr2"], settings)
    workspace = Workspace(config, make_backbone(config.backbone), say=lambda _text: None)
    workspace.prepare([("vqa", "train"), ("nlvr2", "val")])
    assert workspace.features.usage().computed == 0
    wanted = {
        p for t in config.tasks for s in ("train", "val") for e in workspace.examples(t, s) for p in e.visual.images
    }
    assert count == len(wanted)

    shard = next((tmp_path / "features").glob("*/*.npy"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    assert computed(run(capsys, "--tasks", "vqa,nlvr2", "--splits", "train,val", *settings)[1]) == 0
    with pytest.warns(UserWarning, match="content has changed"):
        code, out, _ = run(capsys, "--tasks", "vqa,nlvr2", "--splits", "train,val", "--verify", *settings)
    assert code == 0 and computed(out) == count and "verified: 1/1 shards" in out


def test_a_damaged_picture_is_named_and_the_rest_is_kept(world: Path, tmp_path: Path, capsys) -> None:
    root = tmp_path / "world"
    shutil.copytree(world, root)
    arguments = [
        "--tasks",
        "vqa",
        "--splits",
        "train",
        f"data.root={root}",
        f"data.cache={tmp_path}",
        "data.max_examples=90",
    ]
    config = load_run_config(extract_features.DEFAULT_RECIPE, ["vqa"], arguments[-3:])
    workspace = Workspace(config, make_backbone(config.backbone), say=lambda _text: None)
    pictures = list(dict.fromkeys(p for e in workspace.examples("vqa", "train") for p in e.visual.images))
    good = Path(pictures[40]).read_bytes()
    Path(pictures[40]).write_bytes(good[: len(good) // 2])
    code, out, err = run(capsys, *arguments)
    assert code == 2 and pictures[40] in err and "damage" in err and "Traceback" not in err
    assert re.search(r"pictures: 0 computed now; 32 stored", out)
    Path(pictures[40]).write_bytes(good)
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and computed(out) == len(pictures) - 32


def test_errors_come_before_any_work(world: Path, tmp_path: Path, capsys) -> None:
    cache = f"data.cache={tmp_path}"
    cases = {
        ("--tasks", "vqa,nlvr3", f"data.root={world}", cache): "unknown task 'nlvr3'; did you mean 'nlvr2'",
        ("--tasks", "vqa", f"data.root={tmp_path / 'none'}", cache): "'data.root' is .*none, which is no folder",
        ("--tasks", "vqa", "--splits", "train,vall", f"data.root={world}", cache): "vall",
        ("--tasks", "vqa", "--splits", "val,val", f"data.root={world}", cache): "different names",
        ("--tasks", "vqa", "data.text_only=true", f"data.root={world}", cache): "reads no features",
        ("--tasks", "vqa", "data.rot=x", cache): "unknown key 'data.rot'",
    }
    for arguments, message in cases.items():
        code, _, err = run(capsys, *arguments)
        assert code == 2 and re.search(message, err), (arguments, err)
    assert not (tmp_path / "features").exists()


@pytest.mark.multiproc
def test_two_ranks_share_the_work(world: Path, tmp_path: Path) -> None:
    tool = Path(extract_features.__file__)
    settings = [f"data.root={world}", f"data.cache={tmp_path}", ROWS]
    ends = launch(tool, 2, ["--tasks", "vqa", "--splits", "val", *settings], timeout_seconds=240)
    assert [end.code for end in ends] == [0, 0], describe(ends)
    count = computed(ends[0].output)
    assert f"{count} stored" in ends[0].output
    assert "pictures" not in ends[1].output
    assert len(list((tmp_path / "features").glob("*/*.npy"))) == 2  # each rank wrote its own
