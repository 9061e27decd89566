"""Making the miniworld on disk: pictures, videos and official files, once, whole or not at all.

Two workers share the jobs; every job draws from its own generator, so the files do not depend on who does what. The
second worker is a fresh interpreter: a fork would copy the threads of a training process, and "spawn" would run the
caller's main module again.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtvl.data.miniworld import records, video_records
from mtvl.data.miniworld.clips import FAMILIES, clip_path, family_episode, vid_name, write_clip
from mtvl.data.miniworld.render import render
from mtvl.data.miniworld.scene import Scene, scene_at
from mtvl.errors import ConfigError, DataError, near_names

VERSION = 3  # raise it whenever a file would come out different
MANIFEST = "manifest.json"
SPLITS = ("train", "val", "test")
GQA_SPLITS = {"train": "train", "val": "val", "test": "testdev"}
NLVR2_SPLITS = {"train": "train", "val": "dev", "test": "test1"}
VIDEO_FILES = {
    "tvqa": {"train": "tvqa_train", "val": "tvqa_val", "test": "tvqa_test_release"},
    "how2qa": {
        split: f"how2qa_{name}_release" for split, name in zip(SPLITS, ("train", "val", "test_public"), strict=True)
    },
    "tvc": {split: f"tvc_{split}_release" for split in SPLITS},
    "yc2c": {split: f"yc2c_{split}_release" for split in SPLITS},
}  # names without suffix, in a folder that is called as the task
_FOLDERS = ("vqa", "gqa", "nlvr2", "coco", "subtitles", *VIDEO_FILES)


@dataclass(frozen=True)
class Size:
    """Numbers per split (train, val, test): pictures, questions, NLVR2 sets of 8 rows, videos of each family.

    `coco` are pictures per Karpathy split.
    """

    pictures: Mapping[str, int]
    vqa: Mapping[str, int]
    gqa: Mapping[str, int]  # balanced questions
    nlvr2_sets: Mapping[str, int]
    coco: Mapping[str, Mapping[str, int]]
    videos: Mapping[str, Mapping[str, int]]
    workers: int


def _by_split(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


SIZES = {
    "default": Size(
        pictures=_by_split(7000, 504, 1200), vqa=_by_split(14000, 504, 1200), gqa=_by_split(14000, 504, 1200),
        nlvr2_sets=_by_split(875, 63, 150),
        coco={"train": {"train": 2000, "restval": 500}, "val": {"val": 500}, "test": {"test": 1000}},
        videos={"tv": _by_split(700, 60, 350), "how2": _by_split(600, 60, 350), "yc2": _by_split(1000, 100, 1000)},
        workers=2,
    ),
    "tiny": Size(
        pictures=_by_split(48, 40, 40), vqa=_by_split(48, 40, 40), gqa=_by_split(48, 40, 40),
        nlvr2_sets=_by_split(6, 5, 5),
        coco={"train": {"train": 32, "restval": 8}, "val": {"val": 40}, "test": {"test": 40}},
        videos=dict.fromkeys(FAMILIES, _by_split(10, 6, 8)), workers=1,
    ),
}  # fmt: skip


def ensure_miniworld(
    root: Path,
    *,
    seed: int = 0,
    size: str = "default",
    progress: Callable[[str], None] = print,
    workers: int | None = None,
) -> Path:
    """Make the miniworld in the folder `root` unless it is there already, and return `root`.

    Safe against crashes (the folder appears whole, by a rename) and against processes that call at once (one makes it,
    the others wait). A miniworld of another version, seed or size in `root` is replaced. `workers` only changes the
    time it takes. Raises ConfigError for an unknown size, DataError when `root` holds something else.
    """
    if size not in SIZES:
        raise ConfigError(f"unknown miniworld size {size!r}; {near_names(size, SIZES)}")
    root = Path(os.path.abspath(root))
    wanted = {"version": VERSION, "seed": seed, "size": size}
    if _is_made(root, wanted):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _lock(root.parent / f".{root.name}.lock"):
        if _is_made(root, wanted):
            return root
        if root.exists() and any(root.iterdir()) and not (root / MANIFEST).is_file():
            raise DataError("expected a miniworld or no folder, found other files; choose another folder", file=root)
        work = root.parent / f".{root.name}.making"
        shutil.rmtree(work, ignore_errors=True)  # what a crash left: the lock says that nobody works on it
        started = time.perf_counter()
        progress(f"making the miniworld ({size}, seed {seed}) in {root}")
        _make(work, seed, size, SIZES[size].workers if workers is None else workers)
        counts = _write_manifest(work, wanted)
        _swap(work, root)
        progress(f"miniworld made in {time.perf_counter() - started:.1f} s: {counts}")
    return root


def _is_made(root: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except json.JSONDecodeError as error:
        raise DataError(f"not a miniworld manifest ({error}); remove the folder to have it made again",
                        file=root / MANIFEST) from None  # fmt: skip
    return all(manifest.get(key) == value for key, value in wanted.items())


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system frees when the process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _swap(work: Path, root: Path) -> None:
    """Put `work` in the place of `root`, which may hold an older miniworld or an empty folder."""
    old = root.parent / f".{root.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        os.replace(root, old)
    os.replace(work, root)
    shutil.rmtree(old, ignore_errors=True)


# --- jobs -------------------------------------------------------------------------------------------------------------

_PICTURES_A_JOB, _CLIPS_A_JOB = 250, 50
_CLIP_COST = {"tv": 16.0, "how2": 16.0, "yc2": 10.0}
Job = tuple[str, str, int]  # what, split, first picture


def _jobs(size: Size) -> list[tuple[Job, float]]:
    """All jobs with their costs (about milliseconds), dear ones first."""
    jobs: list[tuple[Job, float]] = []
    for split in SPLITS:
        jobs += [((what, split, 0), 1.0 * getattr(size, what)[split]) for what in ("vqa", "gqa")]
        jobs.append((("nlvr2", split, 0), 0.8 * size.nlvr2_sets[split]))
        for first in range(0, size.pictures[split], _PICTURES_A_JOB):
            jobs.append((("pictures", split, first), 2.2 * _PICTURES_A_JOB))
        for family, cost in _CLIP_COST.items():
            for first in range(0, size.videos[family][split], _CLIPS_A_JOB):
                number = min(_CLIPS_A_JOB, size.videos[family][split] - first)
                jobs.append(((f"{family} clips", split, first), cost * number))
    jobs.append((("coco", "", 0), 0.3 * sum(sum(parts.values()) for parts in size.coco.values())))
    jobs += [((f"{family} texts", "", 0), 1.5 * sum(size.videos[family].values())) for family in FAMILIES]
    return sorted(jobs, key=lambda item: (-item[1], item[0]))


def _share(size: Size, worker: int, workers: int) -> list[Job]:
    """The jobs of one worker: each job goes to the worker with the least to do."""
    load = [0.0] * workers
    mine = []
    for job, cost in _jobs(size):
        chosen = load.index(min(load))
        load[chosen] += cost
        if chosen == worker:
            mine.append(job)
    return mine


_WORKER = (
    "import sys; from pathlib import Path; from mtvl.data.miniworld.write import run_worker; "
    "run_worker(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))"
)


def _make(work: Path, seed: int, size: str, workers: int) -> None:
    for split in SPLITS:
        (work / "images" / f"{split}2014").mkdir(parents=True)
    deeper = (
        "gqa/images",
        *(f"nlvr2/images/{name}" for name in NLVR2_SPLITS.values()),
        *(f"videos/{f}" for f in FAMILIES),
    )
    for folder in (*_FOLDERS, *deeper):
        (work / folder).mkdir(parents=True, exist_ok=True)
    package_root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package_root, os.environ.get("PYTHONPATH", "")])}
    helpers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(work), str(seed), size, str(worker), str(workers)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for worker in range(1, workers)
    ]  # fmt: skip
    try:
        run_worker(work, seed, size, 0, workers)
        for helper in helpers:
            errors = helper.communicate()[1]
            if helper.returncode != 0:
                raise DataError(f"a worker ended with status {helper.returncode}: {errors.strip()[-2000:]}", file=work)
    finally:
        for helper in helpers:
            if helper.poll() is None:
                helper.kill()
                helper.wait()
    _link_pictures(work, SIZES[size])


def run_worker(work: Path, seed: int, size: str, worker: int, workers: int) -> None:
    """Do the jobs of worker number `worker` of `workers` in the prepared folder `work`."""
    for what, split, first in _share(SIZES[size], worker, workers):
        _MAKERS[what](work, seed, SIZES[size], split, first)


def _scenes(seed: int, split: str, size: Size) -> list[Scene]:
    return [scene_at(seed, split, index) for index in range(size.pictures[split])]


def _rng(seed: int, *names: str) -> random.Random:
    return random.Random("/".join(("miniworld", str(seed), *names)))


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _dump_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_pictures(work: Path, seed: int, size: Size, split: str, first: int) -> None:
    folder = work / "images" / f"{split}2014"
    for index in range(first, min(first + _PICTURES_A_JOB, size.pictures[split])):
        picture = render(scene_at(seed, split, index))
        picture.save(folder / records.image_name(split, index), compress_level=1)


def _write_vqa(work: Path, seed: int, size: Size, split: str, first: int) -> None:
    del first
    questions, annotations = records.vqa_rows(
        _scenes(seed, split, size), split, size.vqa[split], _rng(seed, "vqa", split)
    )
    _dump(work / "vqa" / f"v2_OpenEnded_mscoco_{split}2014_questions.json", questions)
    _dump(work / "vqa" / f"v2_mscoco_{split}2014_annotations.json", annotations)


def _write_gqa(work: Path, seed: int, size: Size, split: str, first: int) -> None:
    del first
    name, is_train = GQA_SPLITS[split], split == "train"
    rows = records.gqa_rows(
        _scenes(seed, split, size), split, size.gqa[split], _rng(seed, "gqa", split), with_entailed=not is_train
    )
    balanced = {key: row for key, row in rows.items() if row["isBalanced"]}
    _dump(work / "gqa" / f"{name}_balanced_questions.json", balanced)
    if not is_train:
        _dump(work / "gqa" / f"{name}_all_questions.json", rows)
        _dump(work / "gqa" / f"{name}_choices.json", records.gqa_choices(rows))


def _write_nlvr2(work: Path, seed: int, size: Size, split: str, first: int) -> None:
    del first
    name = NLVR2_SPLITS[split]
    rows = records.nlvr2_rows(
        _scenes(seed, split, size), name, size.nlvr2_sets[split], _rng(seed, "nlvr2", split), split == "test"
    )
    _dump_lines(work / "nlvr2" / f"{name}.json", rows)


def _write_coco(work: Path, seed: int, size: Size, split: str, first: int) -> None:
    del split, first
    images: list[records.Row] = []
    for name, parts in size.coco.items():
        images += records.coco_images(
            _scenes(seed, name, size), name, parts, len(images), _rng(seed, "coco", name)
        )  # fmt: skip
    _dump(work / "coco" / "dataset_coco.json", {"images": images, "dataset": "coco"})


def _write_clips(family: str, work: Path, seed: int, size: Size, split: str, first: int) -> None:
    for index in range(first, min(first + _CLIPS_A_JOB, size.videos[family][split])):
        write_clip(family_episode(seed, family, split, index), clip_path(work, family, vid_name(family, split, index)))


def _write_video_texts(family: str, work: Path, seed: int, size: Size, split: str, first: int) -> None:
    """Annotation files of all splits, and the one file of subtitles that they share."""
    del split, first
    subtitles: list[records.Row] = []
    for name in SPLITS:
        episodes = {
            vid_name(family, name, i): family_episode(seed, family, name, i) for i in range(size.videos[family][name])
        }
        rows = _VIDEO_ROWS[family](episodes, name, _rng(seed, family, name))
        subtitles += rows.subtitles
        for task, found in rows.files.items():
            _dump_lines(work / task / f"{VIDEO_FILES[task][name]}.jsonl", found)
    _dump_lines(work / "subtitles" / f"{family}_subtitles.jsonl", subtitles)


_VIDEO_ROWS = {"tv": video_records.tv_rows, "how2": video_records.how2_rows, "yc2": video_records.yc2_rows}
_MAKERS: dict[str, Callable[[Path, int, Size, str, int], None]] = {
    "pictures": _write_pictures, "vqa": _write_vqa, "gqa": _write_gqa, "nlvr2": _write_nlvr2, "coco": _write_coco,
    **{f"{family} clips": functools.partial(_write_clips, family) for family in FAMILIES},
    **{f"{family} texts": functools.partial(_write_video_texts, family) for family in FAMILIES},
}  # fmt: skip


def nlvr2_picture(number: int, pair: int, side: int) -> int:
    """Index of the picture that is image `side` (0 left, 1 right) of `pair` in set `number`."""
    return number * records.PICTURES_A_SET + 2 * pair + side


def _link_pictures(work: Path, size: Size) -> None:
    """Give the pictures their names in GQA and NLVR2."""
    for split in SPLITS:
        folder = work / "images" / f"{split}2014"
        for index in range(size.pictures[split]):
            source = folder / records.image_name(split, index)
            _link(source, work / "gqa" / "images" / f"n{records.image_id(split, index)}.png")
        name = NLVR2_SPLITS[split]
        for number in range(size.nlvr2_sets[split]):
            for place in range(records.PICTURES_A_SET):
                pair, side = divmod(place, 2)
                source = folder / records.image_name(split, nlvr2_picture(number, pair, side))
                _link(source, work / "nlvr2" / "images" / name / f"{name}-{number}-{pair}-img{side}.png")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_manifest(work: Path, wanted: Mapping[str, Any]) -> dict[str, int]:
    files = sorted(p for folder in _FOLDERS for p in (work / folder).glob("*.json*"))
    hashes = {str(p.relative_to(work)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    counts = {str(p.relative_to(work)): _count(p) for p in files}
    counts["pictures"] = sum(1 for _ in (work / "images").glob("*/*.png"))
    counts["videos"] = sum(1 for _ in (work / "videos").glob("*/*.mp4"))
    _dump(work / MANIFEST, {**wanted, "counts": counts, "sha256": hashes})
    return counts


def _count(path: Path) -> int:
    """Number of rows of an annotation file."""
    text = path.read_text(encoding="utf-8")
    if "\n" in text or not text:  # JSON lines; a single document has no line break
        return text.count("\n")
    value = json.loads(text)
    rows = next((value[key] for key in ("questions", "annotations", "images") if key in value), value)
    return len(rows)
