"""Small data roots for full-size recipes: stored features as VL-Adapter's users have them, or pictures and videos.

Both hold the annotations of the tiny miniworld. The features are random numbers of the published shapes, so no tower has to
be there to make them; a model that reads pixels gets the miniworld's pictures and videos under the names of its benchmarks.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from mtvl.data.features.stored import NAME, is_stored
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.tasks import load_task
from mtvl.tasks.sources import SourceConfig

VOCABULARY = "bert"  # folder of a vocabulary with BERT's numbers, below a root of pictures
PICTURE, VIDEO = (49, 2048), (64, 512)  # RN101's 7 x 7 cells; as many frames of ViT-B/32 as the recipes take


def make_stored_world(root: Path, miniworld: Path, tasks: Iterable[str], say: Callable[[str], None]) -> Path:
    """Make the data root `root`, with features for the training splits of `tasks`, and return it.

    `miniworld` is the folder of a tiny miniworld, made when it is not there.
    """
    pictures = ensure_miniworld(miniworld, size="tiny", progress=say)
    for file in [*pictures.rglob("*.json"), *pictures.rglob("*.jsonl")]:
        copy = root / file.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    for name in tasks:
        task = load_task(name, root=pictures)
        if task.config.kind == "label":
            _write_labels(root, task.config.sources[0], task.decoding.choices)
            continue
        source = task.source.config
        pattern = Path(next(p for p in source.pictures + source.videos if is_stored(p)))
        seen = {path for e in task.examples("train") for path in (*e.visual.images, e.visual.video) if path}
        for path in sorted(seen):
            _write(root / pattern.parent / f"{Path(path).stem}{pattern.suffix}")
    return root


def _write_labels(root: Path, source: SourceConfig, labels: Sequence[str], rows: int = 12) -> None:
    """A training file in the manner of SNLI-VE, which miniworld does not have, with the features of its pictures."""
    pattern = next(p for p in source.pictures if is_stored(p))
    file = root / source.files["train"]["rows"][0]
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "pairID": f"{i}",
            "Flickr30K_ID": f"{i}",
            "sentence2": "There is a star.",
            "gold_label": labels[i % len(labels)],
        }
        for i in range(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for line in lines:
        _write(root / pattern.format(name=line["Flickr30K_ID"]))


def _write(file: Path) -> None:
    """Random features, half of them zero as behind a ReLU, the same for the same name."""
    if file.is_file():  # tasks share pictures
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = PICTURE if file.suffix == ".h5" else VIDEO
    values = np.random.default_rng(zlib.crc32(file.stem.encode())).normal(size=shape).clip(min=0).astype(np.float16)
    if file.suffix == ".h5":
        with h5py.File(file, "w") as opened:
            opened.create_group(file.stem)[NAME] = values
    else:
        np.savez(file, **{NAME: values})


def make_pixel_world(root: Path, miniworld: Path, say: Callable[[str], None]) -> Path:
    """Make the data root `root` with pictures and videos for BLIP's benchmarks, and return it; `miniworld` as above."""
    made = ensure_miniworld(miniworld, size="tiny", progress=say).absolute()
    for entry in made.iterdir():
        if entry.name != "videos":
            _link(root / entry.name, entry)
    for entry in (made / "videos").iterdir():
        _link(root / "videos" / entry.name, entry)
    pictures = sorted((made / "images" / "train2014").iterdir())
    videos = sorted((made / "videos" / "tv").iterdir())
    for i, file in enumerate(pictures):
        _link(root / "flickr30k" / "images" / f"{i}{file.suffix}", file)
    for benchmark in ("msrvtt", "didemo"):
        for i, file in enumerate(videos):
            _link(root / "videos" / benchmark / f"video{i}{file.suffix}", file)
    shown = [
        {"image": f"images/{i}{file.suffix}", "caption": f"picture {i} of a set"} for i, file in enumerate(pictures)
    ]
    filmed = [{"video": f"video{i}{file.suffix}", "caption": f"video {i} of a set"} for i, file in enumerate(videos)]
    asked = [
        {"id": i, "video_id": i, "question": "what is it?", "answer": "a set", "category_id": 0}
        for i in range(len(videos))
    ]
    for split in ("train", "val", "test"):
        _write_json(root / "flickr30k" / f"flickr30k_{split}.json", shown)
        _write_json(root / "msrvtt_qa" / f"{split}_qa.json", asked)
        for benchmark in ("msrvtt", "didemo"):
            _write_json(root / benchmark / f"retrieval_{split}.json", filmed)
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*"abcdefghijklmnopqrstuvwxyz0123456789?.,", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
    words += [f"[more{i}]" for i in range(30522 - len(words))]
    (root / VOCABULARY).mkdir(exist_ok=True)
    (root / VOCABULARY / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return root


def _link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(target)


def _write_json(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows), encoding="utf-8")
