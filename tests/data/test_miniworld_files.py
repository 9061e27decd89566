"""The written miniworld: whole or absent, the same for any number of workers, official in form, right and balanced."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtvl.data.miniworld import ensure_miniworld, write
from mtvl.data.miniworld.clips import FAMILIES, clip_path, vid_name
from mtvl.data.miniworld.records import image_id
from mtvl.data.miniworld.scene import Scene, Thing, scene_at
from mtvl.data.miniworld.stats import text_only
from mtvl.data.miniworld.video_stats import Choice, Moment, caption_figures, choice_figures
from mtvl.data.video import frame_times, read_frames
from mtvl.errors import ConfigError, DataError

REPOSITORY = Path(__file__).parents[2]
SPLITS = ("train", "val", "test")
VIDEO_TASKS = {"tvqa": "tv", "how2qa": "how2", "tvc": "tv", "yc2c": "yc2"}


def silent(message: str) -> None:
    del message


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_miniworld(tmp_path_factory.mktemp("miniworld") / "tiny", size="tiny", progress=silent)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotation files of a middling size, without pictures."""
    root = tmp_path_factory.mktemp("texts")
    size = write.Size(
        pictures={"train": 1000, "val": 8, "test": 400}, vqa={"train": 2000, "val": 8, "test": 800},
        gqa={"train": 2000, "val": 8, "test": 800}, nlvr2_sets={"train": 120, "val": 1, "test": 50},
        coco={"train": {"train": 40, "restval": 8}, "val": {"val": 8}, "test": {"test": 200}},
        videos=dict.fromkeys(FAMILIES, {"train": 500, "val": 2, "test": 250}), workers=1,
    )  # fmt: skip
    for folder in write._FOLDERS:
        (root / folder).mkdir()
    for split in ("train", "test"):
        for maker in (write._write_vqa, write._write_gqa, write._write_nlvr2):
            maker(root, 5, size, split, 0)
    write._write_coco(root, 5, size, "", 0)
    for family in FAMILIES:
        write._write_video_texts(family, root, 5, size, "", 0)
    return root


@pytest.fixture
def few_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny size that is made sooner, in this process."""
    videos = dict.fromkeys(FAMILIES, {"train": 3, "val": 2, "test": 2})
    monkeypatch.setitem(write.SIZES, "tiny", replace(write.SIZES["tiny"], videos=videos))


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def vqa(root: Path, split: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    questions = load(root / "vqa" / f"v2_OpenEnded_mscoco_{split}2014_questions.json")["questions"]
    notes = load(root / "vqa" / f"v2_mscoco_{split}2014_annotations.json")["annotations"]
    return list(zip(questions, notes, strict=True))


def video_rows(root: Path, task: str, split: str) -> list[dict[str, Any]]:
    return lines(root / task / f"{write.VIDEO_FILES[task][split]}.jsonl")


def scene_of(image: int, seed: int = 0) -> Scene:
    split = max((s for s in SPLITS if image_id(s, 0) <= image), key=lambda s: image_id(s, 0))
    return scene_at(seed, split, image - image_id(split, 0))


# --- making -----------------------------------------------------------------------------------------------------------


def test_a_second_call_returns_at_once(tiny: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny.rglob("*")}
    said: list[str] = []
    assert ensure_miniworld(tiny, size="tiny", progress=said.append) == tiny
    assert said == [] and before == {p: p.stat().st_mtime_ns for p in tiny.rglob("*")}


def test_the_number_of_workers_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    other = ensure_miniworld(tmp_path / "two", size="tiny", progress=silent, workers=2)
    assert load(other / "manifest.json") == load(tiny / "manifest.json")
    names = sorted(str(p.relative_to(tiny)) for p in tiny.rglob("*.*") if p.suffix in (".png", ".mp4"))
    assert names == sorted(str(p.relative_to(other)) for p in other.rglob("*.*") if p.suffix in (".png", ".mp4"))
    assert all((tiny / n).read_bytes() == (other / n).read_bytes() for n in names)


def test_another_seed_replaces_the_old_files(tmp_path: Path, few_videos: None) -> None:
    root = ensure_miniworld(tmp_path / "w", size="tiny", progress=silent)
    first = load(root / "manifest.json")
    ensure_miniworld(root, seed=1, size="tiny", progress=silent)
    second = load(root / "manifest.json")
    assert second["seed"] == 1 and second["counts"].keys() == first["counts"].keys()
    assert all(second["sha256"][name] != value for name, value in first["sha256"].items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".w.lock", "w"]


def test_a_crash_leaves_no_half_made_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_videos: None) -> None:
    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setitem(write._MAKERS, "coco", fail)
        with pytest.raises(OSError, match="no space"):
            ensure_miniworld(tmp_path / "w", size="tiny", progress=silent)
    assert not (tmp_path / "w").exists()
    ensure_miniworld(tmp_path / "w", size="tiny", progress=silent)
    assert (tmp_path / "w" / "manifest.json").is_file() and not (tmp_path / ".w.making").exists()


@pytest.mark.multiproc
def test_two_processes_at_once_make_it_once(tiny: Path, tmp_path: Path) -> None:
    root = tmp_path / "shared_root"
    code = f"from pathlib import Path; from mtvl.data.miniworld import ensure_miniworld as e; e(Path({str(root)!r}), size='tiny')"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("making the miniworld" in text for text in said) == 1
    assert load(root / "manifest.json") == load(tiny / "manifest.json")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        ensure_miniworld(tmp_path / "w", size="tiny", progress=silent)
    assert (tmp_path / "w" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="unknown miniworld size 'huge'"):
        ensure_miniworld(tmp_path / "x", size="huge", progress=silent)


def test_the_command_makes_counts_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "miniworld.py"), str(tmp_path / "w"), "--size", "tiny"]
    result = subprocess.run(
        [*command, "--stats", "--sheet", str(tmp_path / "sheet.png")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert all(f"\n{task} " in result.stdout for task in ("vqa", "gqa", "nlvr2", "coco", *VIDEO_TASKS))
    for name in ("sheet.png", "sheet-videos.png"):
        with Image.open(tmp_path / name) as sheet:
            assert len(sheet.convert("RGB").getcolors(1 << 20) or ()) > 100


def test_files_change_with_the_version_only(tiny: Path) -> None:
    """A cached miniworld is kept as long as VERSION stays; put both new values here when a file comes out different."""
    manifest = load(tiny / "manifest.json")
    digest = hashlib.sha256(json.dumps(manifest["sha256"], sort_keys=True).encode()).hexdigest()
    assert (manifest["version"], digest[:16]) == (3, "f7359065c93cc851")


# --- form -------------------------------------------------------------------------------------------------------------


def test_the_manifest_counts_what_is_there(tiny: Path) -> None:
    counts = load(tiny / "manifest.json")["counts"]
    assert counts["pictures"] == len(list((tiny / "images").rglob("*.png"))) == 128
    assert counts["videos"] == len(list((tiny / "videos").rglob("*.mp4"))) == 72
    assert [counts[f"{t}/{write.VIDEO_FILES[t]['test']}.jsonl"] for t in VIDEO_TASKS] == [32, 32, 24, 8]
    assert [counts[f"subtitles/{family}_subtitles.jsonl"] for family in FAMILIES] == [24, 24, 24]
    assert counts["nlvr2/test1.json"] == 40 and counts["coco/dataset_coco.json"] == 120
    assert counts["vqa/v2_mscoco_test2014_annotations.json"] == counts["gqa/testdev_balanced_questions.json"] == 40


def test_every_named_picture_exists_and_shows_the_same_scene(tiny: Path) -> None:
    for split in SPLITS:
        for question, _ in vqa(tiny, split):
            name = f"COCO_{split}2014_{question['image_id']:012d}.png"
            picture = tiny / "images" / f"{split}2014" / name
            assert picture.read_bytes() == (tiny / "gqa" / "images" / f"n{question['image_id']}.png").read_bytes()
    for name in ("train_balanced", "val_all", "testdev_all"):
        for row in load(tiny / "gqa" / f"{name}_questions.json").values():
            assert (tiny / "gqa" / "images" / f"{row['imageId']}.png").is_file()
    for split in ("train", "dev", "test1"):
        for row in lines(tiny / "nlvr2" / f"{split}.json"):
            stem = row["identifier"].rpartition("-")[0]
            for side in (0, 1):
                assert (tiny / "nlvr2" / "images" / split / f"{stem}-img{side}.png").is_file()
    for image in load(tiny / "coco" / "dataset_coco.json")["images"]:
        assert (tiny / "images" / image["filepath"] / image["filename"]).is_file()


def test_rows_have_the_fields_of_the_official_files(tiny: Path) -> None:
    golden = os.environ.get("MTVL_GOLDEN")
    if not golden:
        pytest.skip("MTVL_GOLDEN is not set: the official excerpts cannot be compared")
    formats = Path(golden) / "formats"

    def first(value: Any) -> Any:
        return next(iter(value.values())) if isinstance(value, dict) else value[0]

    pairs = [
        (first(load(formats / "gqa/val_balanced_questions.json")), first(load(tiny / "gqa/val_balanced_questions.json"))),
        (first(load(formats / "gqa/val_choices.json")), first(load(tiny / "gqa/val_choices.json"))),
        (lines(formats / "nlvr2/dev.json")[0], lines(tiny / "nlvr2/dev.json")[0]),
    ]  # fmt: skip
    for kind, key in (
        ("OpenEnded_mscoco_train2014_questions", "questions"),
        ("mscoco_train2014_annotations", "annotations"),
    ):
        theirs, ours = load(formats / f"vqa/v1_{kind}.json"), load(tiny / f"vqa/v2_{kind}.json")
        pairs += [(theirs, ours), (theirs[key][0], ours[key][0]), (theirs["info"], ours["info"])]
    theirs, ours = load(formats / "coco/dataset_coco.json"), load(tiny / "coco/dataset_coco.json")
    pairs += [(theirs["images"][0], ours["images"][0])]
    pairs += [(theirs["images"][0]["sentences"][0], ours["images"][0]["sentences"][0])]
    for task, file in (
        ("tvqa", "tvqa_train"), ("how2qa", "how2qa_val_release"), ("tvc", "tvc_val_release"), ("yc2c", "yc2c_val_release"),
    ):  # fmt: skip
        theirs, ours = (lines(root / task / f"{file}.jsonl")[0] for root in (formats, tiny))
        pairs += [(theirs, ours)]
        if "descs" in ours:
            pairs += [(theirs["descs"][0], ours["descs"][0])]
            assert task == "tvc" or len(ours["descs"]) == 1
    for family in FAMILIES:
        theirs, ours = (lines(root / "subtitles" / f"{family}_subtitles.jsonl") for root in (formats, tiny))
        pairs += [(theirs[0], ours[0]), (theirs[0]["sub"][0], ours[0]["sub"][0])]
    for their, our in pairs:
        assert set(our) - {"held_out"} == set(their)
        assert {k: type(our[k]) for k in their} == {k: type(v) for k, v in their.items()}


def test_every_named_video_shows_its_moments(tiny: Path) -> None:
    for task, family in VIDEO_TASKS.items():
        seconds = FAMILIES[family].ticks * 1.5
        names = [row["vid_name"] for split in SPLITS for row in video_rows(tiny, task, split)]
        assert sorted(set(names)) == sorted(p.stem for p in (tiny / "videos" / family).iterdir())
        assert list(dict.fromkeys(names)) == [row["vid_name"] for row in subtitles(tiny, family)]
        for row in video_rows(tiny, task, "test"):
            span = row.get("ts", [0.0, seconds])
            start, end = map(float, span.split("-")) if isinstance(span, str) else span
            assert 0 <= start < end <= seconds == row.get("duration", seconds)
    for family, source in FAMILIES.items():
        frames = read_frames(str(clip_path(tiny, family, vid_name(family, "test", 1))))
        assert len(frames) == len(frame_times(source.ticks * 1.5)) == source.ticks
        assert {frame.size for frame in frames} == {(128, 128)}


def subtitles(root: Path, family: str) -> list[dict[str, Any]]:
    return lines(root / "subtitles" / f"{family}_subtitles.jsonl")


def test_ids_are_unique_over_splits(tiny: Path) -> None:
    for task in VIDEO_TASKS:
        rows = [row for split in SPLITS for row in video_rows(tiny, task, split)]
        ids = [row.get("qid", row.get("clip_id")) for row in rows]
        assert len(set(ids)) == len(ids) and all(isinstance(i, int) for i in ids)
        captions = [desc["desc_id"] for row in rows for desc in row.get("descs", ())]
        assert len(set(captions)) == len(captions)


def test_the_default_size_has_a_thousand_test_items_a_task(tiny: Path) -> None:
    size, small = write.SIZES["default"], write.SIZES["tiny"]
    for task, family in VIDEO_TASKS.items():
        items = len(video_rows(tiny, task, "test")) * size.videos[family]["test"] / small.videos[family]["test"]
        assert items >= 1000, task
    assert min(size.vqa["test"], size.gqa["test"], size.coco["test"]["test"], 8 * size.nlvr2_sets["test"]) >= 1000


def test_the_jobs_are_shared_out_and_none_is_left(tiny: Path) -> None:
    for size in write.SIZES.values():
        jobs = [job for job, _ in write._jobs(size)]
        shared = [job for worker in range(3) for job in write._share(size, worker, 3)]
        assert sorted(shared) == sorted(jobs) and len(set(jobs)) == len(jobs)
        assert {what for what, _, _ in jobs} == set(write._MAKERS)


def test_ten_annotators_disagree_but_agree_on_the_most_frequent_answer(texts: Path) -> None:
    unanimous = total = 0
    for _, note in vqa(texts, "train"):
        given = Counter(a["answer"] for a in note["answers"])
        assert [a["answer_id"] for a in note["answers"]] == list(range(1, 11))
        assert {a["answer_confidence"] for a in note["answers"]} <= {"yes", "maybe", "no"}
        (best, times), *rest = given.most_common()
        assert best == note["multiple_choice_answer"] and times >= 6 and all(n < times for _, n in rest)
        unanimous += len(given) == 1
        total += 1
    assert 0.4 < unanimous / total < 0.7


def test_ids_are_unique_and_captions_are_five(tiny: Path) -> None:
    ids = [q["question_id"] for split in SPLITS for q, _ in vqa(tiny, split)]
    assert len(ids) == len(set(ids))
    images = load(tiny / "coco" / "dataset_coco.json")["images"]
    assert Counter(i["split"] for i in images) == {"train": 32, "restval": 8, "val": 40, "test": 40}
    sentences = [s for i in images for s in i["sentences"]]
    assert len({s["sentid"] for s in sentences}) == len(sentences) == 5 * len(images)
    assert all([s["sentid"] for s in i["sentences"]] == i["sentids"] for i in images)


# --- truth ------------------------------------------------------------------------------------------------------------


def has(thing: Thing, word: str) -> bool:
    return word in (thing.colour, thing.shape, thing.size, thing.texture)


def place(a: Thing, relation: str, b: Thing) -> bool:
    word = relation.replace("to the ", "").split()[0]
    return {"left": a.col < b.col, "right": a.col > b.col, "above": a.row < b.row, "below": a.row > b.row}[word]


def side(thing: Thing, axis: str) -> str:
    return ("left", "right")[thing.col >= 2] if axis == "hposition" else ("top", "bottom")[thing.row >= 2]


FIELDS = {"color": "colour", "name": "shape", "shape": "shape", "size": "size", "pattern": "texture"}


def run_program(steps: list[dict[str, Any]], scene: Scene) -> str:
    """Execute a GQA program by its words alone; the numbers of objects in it are not read."""
    results: list[Any] = []

    def one(found: list[Thing]) -> Thing:
        assert len(found) == 1, "a question must name one object"
        return found[0]

    def value(thing: Thing, name: str) -> str:
        return side(thing, name) if name.endswith("position") else str(getattr(thing, FIELDS[name]))

    for step in steps:
        inputs = [results[i] for i in step["dependencies"]]
        argument = re.sub(r" \([\d-]+\)$", "", step["argument"])
        operation, _, detail = step["operation"].partition(" ")
        if operation == "select":
            results.append([t for t in scene.objects if argument == "object" or t.shape == argument])
        elif operation == "filter":
            results.append([t for t in inputs[0] if getattr(t, FIELDS[detail]) == argument])
        elif operation == "relate":
            results.append([t for t in scene.objects if place(t, argument.split(",")[1], one(inputs[0]))])
        elif operation == "query":
            results.append(value(one(inputs[0]), argument))
        elif operation == "exist":
            results.append(bool(inputs[0]))
        elif operation == "verify" and detail != "rel":
            results.append(value(one(inputs[0]), detail) == argument)
        elif operation == "choose" and detail != "rel":
            results.append(value(one(inputs[0]), detail))
            assert results[-1] in argument.split("|")
        elif operation in ("verify", "choose"):
            number = int(re.findall(r"\((\d+)\)", step["argument"])[0])
            relations = argument.split(",")[1].split("|")
            held = [r for r in relations if place(scene.objects[number], r, one(inputs[0]))]
            results.append(bool(held) if operation == "verify" else held[0].replace("to the ", "").split()[0])
        elif operation == "same":
            results.append(len({value(one(found), detail) for found in inputs}) == 1)
        else:
            results.append(all(inputs) if operation == "and" else any(inputs))
    last = results[-1]
    return ("yes" if last else "no") if isinstance(last, bool) else last


def test_gqa_programs_give_the_answers(texts: Path) -> None:
    rows = load(texts / "gqa" / "testdev_all_questions.json")
    operations = set()
    for row in rows.values():
        scene = scene_of(int(row["imageId"][1:]), seed=5)
        assert run_program(row["semantic"], scene) == row["answer"], row
        operations |= {step["operation"] for step in row["semantic"]}
    assert {"select", "relate", "query", "exist", "verify rel", "choose rel", "same color", "and", "or"} <= operations


def test_gqa_entailed_ids_exist_on_the_same_picture_and_balanced_rows_are_the_balanced_file(texts: Path) -> None:
    rows = load(texts / "gqa" / "testdev_all_questions.json")
    balanced = load(texts / "gqa" / "testdev_balanced_questions.json")
    choices = load(texts / "gqa" / "testdev_choices.json")
    assert balanced == {key: row for key, row in rows.items() if row["isBalanced"]} and len(balanced) == 800
    for key, row in rows.items():
        for other in row["entailed"] + row["equivalent"]:
            assert rows[other]["imageId"] == row["imageId"]
        for other in row["equivalent"]:
            assert rows[other]["answer"] == row["answer"] and key in rows[other]["equivalent"]
        assert key in row["equivalent"] and key not in row["entailed"]
        assert row["answer"] in choices[key]["plausible"] and set(choices[key]["plausible"]) <= set(
            choices[key]["valid"]
        )
    assert sum(bool(row["entailed"]) for row in balanced.values()) > 0.6 * len(balanced)
    answers = Counter(rows[i]["answer"] for row in balanced.values() for i in row["entailed"])
    assert answers["no"] > 100 and answers["yes"] > 100


def test_vqa_answers_are_true_by_a_second_reading(texts: Path) -> None:
    checked: Counter[str] = Counter()
    for question, note in vqa(texts, "test"):
        scene, text, answer = (
            scene_of(question["image_id"], seed=5),
            question["question"],
            note["multiple_choice_answer"],
        )
        if match := re.match(r"is there an? (.*?)(?: in the picture)?\?", text):
            words = [w for w in match[1].split() if w != "object"]
            assert answer == ("yes" if any(all(has(t, w) for w in words) for t in scene.objects) else "no"), text
            checked["exists"] += 1
        elif match := re.match(r"how many (.*?) (?:are|can)", text):
            words = [w for w in match[1].split() if w != "objects"]
            words = ["cross" if w == "crosses" else w.removesuffix("s") for w in words]
            assert int(answer) == sum(all(has(t, w) for w in words) for t in scene.objects), text
            checked["counts"] += 1
        elif match := re.match(r"what color is the (.*)\?", text):
            named, _, anchor = match[1].partition(" the ")
            words = [w for w in named.split() if w != "object"]
            if not anchor:
                (thing,) = [t for t in scene.objects if all(has(t, w) for w in words)]
                assert thing.colour == answer, text
                checked["colour"] += 1
        elif match := re.match(r"is the (.*) (to the left of|to the right of|above|below) the (.*)\?", text):
            a, b = (
                [t for t in scene.objects if all(has(t, w) for w in name.split() if w != "object")]
                for name in (match[1], match[3])
            )
            assert answer == ("yes" if place(a[0], match[2], b[0]) else "no") and len(a) == len(b) == 1, text
            checked["relation"] += 1
    assert min(checked[k] for k in ("exists", "counts", "colour", "relation")) > 40, checked


def test_nlvr2_statements_are_true_by_a_second_reading(texts: Path) -> None:
    checked: Counter[str] = Counter()

    def number(scene: Scene, words: str) -> int:
        names = ["cross" if w == "crosses" else w for w in words.split()]
        names = [w.removesuffix("s") if w not in ("cross",) else w for w in names]
        return sum(all(has(t, w) for w in names if w != "object") for t in scene.objects)

    for row in lines(texts / "nlvr2" / "test1.json"):
        _, block, pair, _ = row["identifier"].split("-")
        first = int(block) * 8 + 2 * int(pair)
        left, right = scene_at(5, "test", first), scene_at(5, "test", first + 1)
        text, label = row["sentence"], row["label"] == "True"
        if match := re.fullmatch(r"each image contains an? (.*)\.|there is an? (.*) in both images\.", text):
            words = match[1] or match[2]
            assert label == (number(left, words) > 0 and number(right, words) > 0), text
            checked["both"] += 1
        elif match := re.fullmatch(
            r"there are (more|fewer) (.*) in the (left|right) image than in the .* image\.", text
        ):
            difference = number(left, match[2]) - number(right, match[2])
            difference *= (1 if match[1] == "more" else -1) * (1 if match[3] == "left" else -1)
            assert label == (difference > 0), text
            checked["more"] += 1
    assert min(checked["both"], checked["more"]) > 20, checked


# --- balance ----------------------------------------------------------------------------------------------------------


def test_text_alone_does_not_win(texts: Path) -> None:
    """Measured on the full size: VQA 37, GQA 35, NLVR2 50; the smaller sample leaves some points of slack."""
    figures = text_only(texts)
    for task in ("vqa", "gqa"):
        assert max(figures[task]["exact"], figures[task]["pattern"]) <= 45, figures
    assert 48 <= figures["nlvr2"]["exact"] <= 52 and 48 <= figures["nlvr2"]["pattern"] <= 52
    assert figures["coco"]["overlap across pictures"] < 0.4 * figures["coco"]["overlap within a picture"]
    for task in ("tvqa", "how2qa"):
        assert max(figures[task][name] for name in ("constant", "prior", "learner")) <= figures[task]["chance"] + 6, (
            figures
        )
    tvc = figures["tvc"]
    assert max(tvc["constant"], tvc["by subtitles"]) < 0.5 * tvc["overlap within a moment"]
    assert max(figures["yc2c"]["constant"], figures["yc2c"]["by subtitles"]) < 40


def test_the_learner_finds_hints_that_are_there() -> None:
    """Else its low figures would mean nothing: it finds an odd one out, an answer that is said, and a frequent one."""
    colours = ("red", "green", "blue", "cyan", "black", "brown")

    def choices(number: int, hint: str) -> list[Choice]:
        found = []
        for i in range(number):
            options = tuple(f"the {colours[(i * 5 + j) % 6]} star" for j in range(4))
            right, said = i * 7 // 3 % 4, frozenset({"hello"})
            if hint == "odd":
                options = (*options[:right], "it does not move", *options[right + 1 :])
            elif hint == "said":
                said = frozenset(options[right].split()[1:2])
            elif hint == "prior":
                options = tuple(
                    f"the {c} star" for c in (*[c for c in colours if c != "red"][: 3 - right], "red", *"xyz")
                )[:4]
                right = options.index("the red star")
            found.append(Choice("what", frozenset({"what"}), options, right, said))
        return found

    for hint in ("odd", "said", "prior"):
        figures = choice_figures(choices(200, hint), choices(90, hint))
        assert figures["learner"] > 90 and figures["chance"] == 25, (hint, figures)
    assert choice_figures(choices(200, "prior"), choices(90, "prior"))["prior"] == 100
    assert choice_figures(choices(200, "none"), choices(90, "none"))["learner"] < 60


def test_captions_that_the_subtitles_tell_are_found() -> None:
    def moments(is_told: bool, first: int = 0, number: int = 40) -> list[Moment]:
        words = ("star", "heart", "cross", "circle")
        return [
            Moment((frozenset({words[i % 4], "moves"}),), frozenset({words[i % 4] if is_told else "hello", f"w{i}"}))
            for i in range(first, first + number)
        ]

    told, silent_ = (
        caption_figures(moments(True), moments(True)),
        caption_figures(moments(False), moments(False, 41, 9)),
    )
    assert told["by subtitles"] == 100 and told["constant"] == pytest.approx(100 * (0.25 + 0.75 / 3))
    assert silent_["by subtitles"] < 60 and "overlap within a moment" not in told


def test_answers_are_balanced_per_form_and_per_word(texts: Path) -> None:
    for split, name in (("train", "train"), ("test", "testdev")):
        asked = [(q["question"], n["multiple_choice_answer"]) for q, n in vqa(texts, split)]
        rows = load(texts / "gqa" / f"{name}_balanced_questions.json").values()
        asked += [(row["question"], row["answer"]) for row in rows]
        by_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for text, answer in asked:
            if answer in ("yes", "no"):
                form = " ".join(text.split()[:2])
                by_word[form][answer] += 1
                for word in set(re.findall(r"[a-z]+", text)):
                    by_word[f"{form} ... {word}"][answer] += 1
        assert len(by_word) > 60
        for word, votes in by_word.items():
            total = votes["yes"] + votes["no"]
            assert abs(votes["yes"] - votes["no"]) <= max(6, 0.12 * total), (split, word, votes)


def test_nlvr2_sentences_are_true_for_half_of_their_pairs(texts: Path) -> None:
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in lines(texts / "nlvr2" / "train.json") + lines(texts / "nlvr2" / "test1.json"):
        split, block, _, sentence = row["identifier"].split("-")
        groups[f"{split}-{block}", sentence].append(row["label"])
    assert all(sorted(labels) == ["False", "False", "True", "True"] for labels in groups.values())


def test_held_out_marks_occur_in_test_only_and_are_right(texts: Path) -> None:
    assert not any(note["held_out"] for _, note in vqa(texts, "train"))
    assert not any(row["held_out"] for row in load(texts / "gqa" / "train_balanced_questions.json").values())
    assert not any(row["held_out"] for row in lines(texts / "nlvr2" / "train.json"))
    for task in VIDEO_TASKS:
        assert not any(row["held_out"] for row in video_rows(texts, task, "train"))
        marks = [row["held_out"] for row in video_rows(texts, task, "test")]
        assert 0.1 < sum(marks) / len(marks) < 0.6, task
    marked = [(q, n) for q, n in vqa(texts, "test") if n["held_out"]]
    assert 0.1 < len(marked) / len(vqa(texts, "test")) < 0.6
    for image in load(texts / "coco" / "dataset_coco.json")["images"]:
        scene = scene_of(image["cocoid"], seed=5)
        assert image["held_out"] == any(t.is_held_out for t in scene.objects)
    named = 0
    for question, note in vqa(texts, "test"):
        if "purple circle" in question["question"] or "green star" in question["question"]:
            assert note["held_out"]
            named += 1
    assert named
