"""tools/shard.py: from a data root to shards and back, and what it says when it cannot."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from mtvl.data import shards
from mtvl.tasks import load_task

pytest.importorskip("webdataset")
TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


shard = tool("shard")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO with 6 pictures of 2 captions for training, 2 for val and test each."""
    root = tmp_path_factory.mktemp("root")
    images = []
    for i in range(10):
        split = "train" if i < 6 else ("val", "test")[i % 2]
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{i:012d}.jpg"
        (root / "images" / folder).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / folder / name)
        sentences = [{"raw": f"a picture {i}", "sentid": 10 * i}, {"raw": "noise", "sentid": 10 * i + 1}]
        images.append({"cocoid": i, "filepath": folder, "filename": name, "split": split, "sentences": sentences})
    (root / "coco").mkdir()
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


def run(*arguments: object) -> int:
    return int(shard.main([str(a) for a in arguments]))


def test_splits_become_shards_and_come_back(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = load_task("coco", root=root)
    assert run("coco", "train,val", tmp_path, "--shard-bytes", "20kB", f"data.root={root}") == 0
    out = capsys.readouterr().out
    assert "coco/train: 12 examples, 6 pictures and videos used 12 times; " in out
    assert "(--once: " in out
    assert "coco/train: 12/12 examples" in out
    assert "ETA 0 s" in out
    for split, count in (("train", 12), ("val", 2)):
        back = shards.read(tmp_path, "coco", split, shards.example_settings(task.config))
        assert len(back) == count
        for one, other in zip(back, task.examples(split), strict=True):
            assert (one.uid, one.task, one.segments, one.targets, one.references) == (
                other.uid, other.task, other.segments, other.targets, other.references
            )  # fmt: skip
            assert shards.open_member(one.visual.images[0]) == Path(other.visual.images[0]).read_bytes()
    assert not shards.has_shards(tmp_path, "coco", "test")
    assert len(shards.read_index(tmp_path, "coco", "train").shards) > 1
    assert run("--verify", tmp_path) == 0
    assert "0 problems" in capsys.readouterr().out
    tar = tmp_path / "coco" / "train" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert run("--verify", tmp_path) == 1
    assert "000001.tar, found" in capsys.readouterr().out


def test_features_by_the_recipe_s_tower(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTVL_CACHE", str(tmp_path / "cache"))
    assert run("coco", "val", tmp_path / "dst", f"data.root={root}", "--features", "--once") == 0
    towers = shards.towers(tmp_path / "dst", "coco", "val")
    assert list(towers) == ["grid"]
    paths = [e.visual.images[0] for e in shards.read(tmp_path / "dst", "coco", "val")]
    arrays = [np.load(shards.as_file(path))["features"] for path in paths]
    assert all(a.dtype == np.float16 and a.ndim == 2 for a in arrays)
    assert not np.array_equal(arrays[0], arrays[1])


def test_nothing_is_written_when_anything_is_wrong(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = f"data.root={root}"
    assert run("coco", "val", tmp_path / "there", here) == 0
    for arguments, words in (
        (("coco,cocoo", "val", tmp_path / "dst", here), "unknown task 'cocoo'; did you mean 'coco'"),
        (("coco", "vall", tmp_path / "dst", here), "did you mean 'val'"),
        (("coco", "../val", tmp_path / "dst", here), "expected a plain name of a split"),
        (("coco", "test,val", tmp_path / "there", here), "coco/val: expected no such folder yet, found one"),
        (("coco", "val", tmp_path / "dst", f"data.root={tmp_path}/no"), "which is no folder"),
        (("coco", "val", tmp_path / "dst", "data.rot=x"), "did you mean 'root'"),
    ):
        assert run(*arguments) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "dst").exists()
    assert not (tmp_path / "there" / "coco" / "test").exists()
    for arguments in (("coco", "val"), ("coco", "val", tmp_path / "dst", "--verify", tmp_path)):
        with pytest.raises(SystemExit):
            run(*arguments)


def test_sizes_of_shards() -> None:
    assert [shard.parse_bytes(t) for t in ("256MB", "1GiB", "1.5 kb", "70000")] == [256 * 10**6, 2**30, 1500, 70000]
    for wrong in ("", "MB", "12XB", "-1MB", "0"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a size such as 256MB"):
            shard.parse_bytes(wrong)


def test_shards_of_an_own_task_bring_its_file_along(root: Path, tmp_path: Path) -> None:
    """The shards' folder alone is then a data root on which the task is found."""
    own = tmp_path / "own"
    names = [p.name for p in sorted((root / "images/train2014").iterdir())][:2]
    (own / "mine").mkdir(parents=True)
    (own / "mine/pictures").symlink_to(root / "images/train2014")
    rows = [json.dumps({"id": name, "picture": name, "captions": ["a", "b"]}) + "\n" for name in names]
    (own / "mine/train.jsonl").write_text("".join(rows))
    source = '{format: own_table, files: {train: {rows: [mine/train.jsonl]}}, pictures: ["mine/pictures/{name}"]}'
    (own / "tasks").mkdir()
    (own / "tasks/mine.yaml").write_text(f"kind: caption\nprimary: cider\nsources: [{source}]\n")
    assert run("mine", "train", tmp_path / "dst", f"data.root={own}") == 0
    shutil.rmtree(own)
    assert [e.targets[0].text for e in load_task("mine", root=tmp_path / "dst").examples("train")] == ["a", "b"] * 2
