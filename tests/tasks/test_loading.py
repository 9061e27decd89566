"""Task files: names, keys, families, and which layout on disk is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtvl.config import EvaluateConfig
from mtvl.errors import ConfigError, DataError
from mtvl.registry import Registry
from mtvl.tasks import TASKS, load_task, task_names
from mtvl.tasks.base import BaseTask

FILE: dict[str, Any] = {
    "kind": "statement",
    "primary": "accuracy",
    "prompt": "p: ",
    "decoding": {"mode": "choose", "choices": ["true", "false"]},
    "sources": [
        {"format": "nlvr2_official", "files": {s: {"rows": [f"a/{s}.json"]} for s in ("train", "val", "test")},
         "pictures": ["p/{name}"], "hints": {"test": "ask the authors"}},
        {"format": "nlvr2_vl_adapter", "files": {s: {"rows": [f"b/{s}.json"]} for s in ("train", "val", "test")},
         "pictures": ["p/{name}"]},
    ],
    "families": {"t5": {"prompt": "t5 p: ", "limits": {"source_tokens": 9}}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    return tmp_path / "tasks"


def load(folder: Path, change: dict[str, Any] | None = None, **options: Any) -> BaseTask:
    values = {**json.loads(json.dumps(FILE)), **(change or {})}
    (folder / "toy.yaml").write_text(yaml.safe_dump(values))
    return load_task("toy", root=folder.parent / "data", tasks_dir=folder, **options)


def row(layout: str, split: str) -> str:
    uid = f"{split}-1-0-0"
    official = {"identifier": uid, "sentence": "Two.", "label": "True"}
    theirs = {"identifier": uid, "sent": "Two.", "label": 1, "img0": f"{split}-1-0-img0", "img1": f"{split}-1-0-img1"}
    return json.dumps(official if layout == "a" else [theirs])


def put(folder: Path, *names: str) -> None:
    """Write annotation files such as "a/val" with one row each, and the pictures of all of them."""
    root = folder.parent / "data"
    for name in names:
        layout, split = name.split("/")
        (root / layout).mkdir(parents=True, exist_ok=True)
        (root / f"{name}.json").write_text(row(layout, split))
        for i in (0, 1):
            (root / "p").mkdir(exist_ok=True)
            (root / "p" / f"{split}-1-0-img{i}.png").write_bytes(b"x")


@pytest.mark.parametrize(
    "name", ["vqa", "gqa", "nlvr2", "coco", "tvqa", "how2qa", "tvc", "yc2c", "msrvtt_qa", "yc2_steps", "snli_ve"]
)
@pytest.mark.parametrize("family", ["", "bart", "t5", "another"])
def test_the_repositorys_task_files_load(name: str, family: str, tmp_path: Path) -> None:
    task = load_task(name, root=tmp_path, family=family)
    assert task.name == name
    assert task.config.prompt == {"nlvr2": "nlvr: ", "coco": "caption: "}.get(name, f"{name}: ")
    assert isinstance(task, TASKS.load(task.config.kind))
    for config in task.config.sources:
        assert {"train", "val"} <= config.files.keys()
        assert bool(config.videos) == (task.config.video is not None)


def test_the_reference_settings(tmp_path: Path) -> None:
    tasks = {name: load_task(name, root=tmp_path, family="bart") for name in task_names()}
    limits = {name: (t.limits.source_tokens, t.limits.target_tokens) for name, t in tasks.items()}
    assert limits.items() >= {"vqa": (20, 10), "gqa": (20, 0), "nlvr2": (0, 0), "coco": (40, 40)}.items()
    decoding = tasks["coco"].decoding
    assert (decoding.num_beams, decoding.max_tokens, decoding.no_repeat_ngram) == (5, 20, 3)
    assert load_task("coco", root=tmp_path, family="t5").decoding.no_repeat_ngram == 0
    assert tasks["nlvr2"].decoding.choices == ("true", "false")
    assert {name for name, t in tasks.items() if t.loss == "token_mean"} == {"coco"}
    for name in ("tvqa", "how2qa", "tvc", "yc2c"):
        decoding = tasks[name].decoding
        assert limits[name] == (600, 20)
        assert (decoding.num_beams, decoding.max_tokens, decoding.no_repeat_ngram) == (5, 20, 3)
    assert tasks["tvqa"].decoding.choices == ("a0", "a1", "a2", "a3", "a4")
    assert tasks["how2qa"].decoding.choices == ("a0", "a1", "a2", "a3")


def test_an_unknown_name_lists_near_names(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'vqaa'; did you mean 'vqa'"):
        load_task("vqaa", root=folder)
    with pytest.raises(ConfigError, match=r"expected the folder of task files"):
        load_task("vqa", root=folder, tasks_dir=folder / "none")


@pytest.mark.parametrize("name", ["../tasks/vqa", "/etc/passwd", ".hidden", "..", "", "a..b", "a/b", "vqa.yaml/"])
def test_a_name_that_is_a_path_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected the name of a file"):
        load_task(name, root=folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"promt": "x"}, r"unknown key 'toy\.promt'; did you mean 'prompt'"),
        ({"decoding": {"num_beam": 3}}, r"unknown key 'toy\.decoding\.num_beam'"),
        ({"limits": {"source_tokens": "many"}}, r"'toy\.limits\.source_tokens' expects int, found 'many'"),
        ({"kind": "statment"}, r"'toy\.kind': unknown kind of task 'statment'; did you mean 'statement'"),
        ({"loss": "sum"}, r"unknown 'toy\.loss' 'sum'"),
        ({"decoding": {"mode": "choose", "choices": ["true"]}}, r"'toy\.decoding\.choices' expects at least two"),
        ({"decoding": {"num_beams": 0}}, r"'toy\.decoding\.num_beams' expects at least 1"),
        ({"sources": []}, r"'toy\.sources' expects at least one"),
        ({"video": {"span": "slect"}}, r"unknown 'toy\.video\.span' 'slect'; did you mean 'select'"),
        ({"video": {"subtitles": "some"}}, r"unknown 'toy\.video\.subtitles' 'some'"),
        ({"video": {}}, r"'toy\.sources\[0\]' expects patterns under 'videos' and none under 'pictures'"),
        ({"families": {"t5": {"promt": "x"}}}, r"unknown key 'toy\.promt'"),
        ({"families": {"t5": "x"}}, r"'toy\.families' expects"),
    ],
)
def test_slips_in_a_task_file_are_named(change: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(folder, change)


def test_slips_in_a_source_are_named(folder: Path) -> None:
    put(folder, "a/train")
    for change, words in (
        ({"format": "nlvr2"}, "unknown data format 'nlvr2'; did you mean 'nlvr2_"),
        (
            {"files": {"train": {"row": ["a.json"]}}},
            r"unknown key 'toy\.sources \(nlvr2_official\)\.files\.train\.row'",
        ),
        ({"files": {"train": {}}}, r"missing key '.*files\.train\.rows'"),
        ({"files": {"train": {"rows": ["../a.json"]}}}, "expects a path below the data root"),
    ):
        source = {**FILE["sources"][0], **change}
        with pytest.raises(ConfigError, match=words):
            load(folder, {"sources": [source]}).examples("train")


def test_a_family_is_laid_over_the_file(folder: Path) -> None:
    plain, t5 = load(folder), load(folder, family="t5")
    assert (plain.config.prompt, plain.limits.source_tokens) == ("p: ", 0)
    assert (t5.config.prompt, t5.limits.source_tokens) == ("t5 p: ", 9)
    assert t5.decoding == plain.decoding


def test_beams_of_the_run_replace_those_of_the_file(tmp_path: Path) -> None:
    evaluate = EvaluateConfig(num_beams=2)
    assert load_task("coco", root=tmp_path, evaluate=evaluate).decoding.num_beams == 2
    assert load_task("nlvr2", root=tmp_path, evaluate=evaluate).decoding.num_beams == 1  # nothing is generated


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["a/train", "a/val", "a/test"], "nlvr2_official"),
        (["b/train", "b/val", "b/test"], "nlvr2_vl_adapter"),
        (["a/train", "b/train"], "nlvr2_official"),
        (["a/train", "b/train", "b/test"], "nlvr2_vl_adapter"),
    ],
)
def test_the_most_complete_layout_serves_all_splits(there: list[str], taken: str, folder: Path) -> None:
    put(folder, *there)
    assert load(folder).source.config.format == taken


def test_layouts_are_not_mixed(folder: Path) -> None:
    put(folder, "a/train", "a/val", "b/test")
    with pytest.raises(
        DataError, match=r"'test' expected 1 files, found 0, missing a/test\.json; ask the authors.*mixed"
    ):
        load(folder).examples("test")
    with pytest.raises(DataError, match="no split 'tets' in the layout nlvr2_official; did you mean 'test'"):
        load(folder).examples("tets")


def test_an_empty_root_lists_all_that_was_looked_for(folder: Path) -> None:
    with pytest.raises(DataError, match="expected the folder of data, found none"):
        load(folder).examples("train")
    (folder.parent / "data").mkdir()
    with pytest.raises(DataError) as caught:
        load(folder).examples("train")
    for name in ("a/train", "a/val", "a/test", "b/train", "b/val", "b/test"):
        assert f"{name}.json" in str(caught.value)


def test_picture_paths_are_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "a/train")
    load(folder)
    monkeypatch.chdir(folder.parent)
    (example,) = load_task("toy", root=Path("data"), tasks_dir=folder).examples("train")
    assert [Path(p).is_absolute() for p in example.visual.images] == [True, True]


def test_every_kind_can_be_loaded() -> None:
    assert isinstance(TASKS, Registry)
    assert all(issubclass(TASKS.load(kind), BaseTask) for kind in TASKS)
