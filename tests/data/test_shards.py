"""Shards: what comes out equals what went in, in the same order, and everything that can be wrong with them is said."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtvl.config import DataConfig, MixtureConfig, RunConfig, TrainConfig
from mtvl.data import shards
from mtvl.data.collate import Collator
from mtvl.data.media import open_image
from mtvl.data.schedule import Schedule
from mtvl.data.shard_media import FeatureMedia, FileMedia
from mtvl.data.shard_plan import Options, make_plan, padded
from mtvl.data.shard_writer import write_split
from mtvl.errors import DataError
from mtvl.loader import Loader
from mtvl.types import Decoding, Example, Limits, Segment, Target, Visual

webdataset = pytest.importorskip("webdataset")

SETTINGS = {"kind": "vqa", "prompt": "vqa: "}
SMALL = 50_000  # bytes of a shard; about four rows


def picture(path: Path, colour: int, size: int = 24) -> str:
    noise = np.random.default_rng(colour).integers(0, 255, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    return str(path)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """20 questions on 7 pictures in no order; every third has a second picture."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [picture(folder / f"p.{i}.{'png' if i % 2 else 'JPG'}", i, 16 + 6 * i) for i in range(7)]
    return [
        Example(
            uid=f"dev-{i}.a/b",
            task="vqa",
            segments=(Segment("prompt", "vqa: "), Segment("question", f"wo ist {'ä' * (i % 5)} {i}?", 90)),
            visual=Visual((paths[(i * 3) % 7], paths[(i * 5 + 1) % 7])),
            targets=(Target("ja", 1.0), Target("nein", 0.1 * (i % 9) + 1e-17)),
            references={"answers": ({"a": 1}, {"a": (1, (2, [3, ()]))}), "listed": [1, 2], "none": None, "t": i / 3},
        )
        for i in range(20)
    ]


def write(
    root: Path, examples: Sequence[Example], media: Any = None, *, size: int = SMALL, once: bool = False, **options: Any
) -> shards.Index:
    media = media or FileMedia()
    plan = make_plan(examples, media, SETTINGS, Options(size, once))
    return write_split(root, "vqa", "train", examples, media, plan, settings=SETTINGS, **options)


def bare(examples: Sequence[Example]) -> list[Example]:
    return [replace(e, visual=Visual(span=e.visual.span)) for e in examples]


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------- equal to folders


@pytest.mark.parametrize("once", [False, True])
def test_examples_come_back_as_they_were(examples: list[Example], tmp_path: Path, once: bool) -> None:
    index = write(tmp_path, examples, once=once)
    back = shards.read(tmp_path, "vqa", "train", SETTINGS)
    assert bare(back) == bare(examples)
    assert type(back[3].references["answers"][1]["a"][1]) is tuple
    assert type(back[3].references["answers"][1]["a"][1][1]) is list
    for one, other in zip(back, examples, strict=True):
        assert len(one.visual.images) == len(other.visual.images)
        for inside, file in zip(one.visual.images, other.visual.images, strict=True):
            assert shards.is_member(inside)
            assert not shards.is_member(file)
            assert shards.open_member(inside) == Path(file).read_bytes()
            assert open_image(inside).tobytes() == open_image(file).tobytes()
    assert len(index.shards) > (1 if once else 3)
    assert all(shard.num_bytes <= SMALL for shard in index.shards)
    # However many copies a picture has, there is one path for it, so that its features are computed once.
    assert len({p for e in back for p in e.visual.images}) == 7


def test_plain_webdataset_reads_every_sample_whole(examples: list[Example], tmp_path: Path) -> None:
    index = write(tmp_path, examples)
    urls = [str(index.folder / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [s["__key__"] for s in samples] == [f"{i:09d}" for i in range(20)]
    for sample, example in zip(samples, examples, strict=True):
        text = json.loads(sample["json"])
        assert (text["uid"], text["task"]) == (example.uid, "vqa")
        assert text["segments"][1]["text"] == example.segments[1].text
        endings = [name.split(".", 1)[1] for name in text["images"]]
        assert {e for e in sample if not e.startswith("__")} == {"json", *endings}
        assert [sample[e] for e in endings] == [Path(p).read_bytes() for p in example.visual.images]


def test_once_stores_a_picture_once_a_shard(examples: list[Example], tmp_path: Path) -> None:
    often, seldom = write(tmp_path / "a", examples, size=10**6), write(tmp_path / "b", examples, size=10**6, once=True)
    assert seldom.shards[0].num_bytes < 0.6 * often.shards[0].num_bytes
    samples = list(webdataset.WebDataset([str(seldom.folder / "000000.tar")], shardshuffle=False, empty_check=False))
    names = [f"{s['__key__']}.{e}" for s in samples for e in s if not e.startswith("__") and e != "json"]
    assert len(names) == 7
    for sample in samples:  # a reader of the tar alone finds what the text names, here or earlier
        assert set(json.loads(sample["json"])["images"]) <= set(names)
    # Rows of a picture stand together, or a shard would seldom see a picture twice.
    first = [json.loads(s["json"])["images"][0] for s in samples]
    assert sum(a != b for a, b in zip(first, first[1:], strict=False)) == 6
    small = write(tmp_path / "c", examples, size=SMALL, once=True)
    for shard in small.shards:
        tar = small.folder / shard.name
        inside = [n for n in subprocess.check_output(["tar", "tf", tar], text=True).split() if "json" not in n]
        hashes = {n: subprocess.check_output(["tar", "xOf", tar, n]) for n in inside}
        assert len(set(hashes.values())) == len(inside)


def test_equal_runs_give_equal_bytes(examples: list[Example], tmp_path: Path) -> None:
    write(tmp_path / "a", examples)
    os.utime(examples[0].visual.images[0], (1, 1))
    write(tmp_path / "b", examples, workers=3)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not any(".partial" in name or ".lock" in name or ".tmp" in name for name in content(tmp_path))


class Letters:
    pad_id, eos_id, num_special = 1, 2, 2

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        return [0, *ids, 2]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > 2)


class Colours:
    """Features out of the pixels, so that batches are equal only if the pictures are."""

    grid = (1, 3)

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        means = [np.asarray(open_image(path), dtype=np.float32).mean((0, 1)) for path in paths]
        return torch.from_numpy(np.stack(means))[:, None]


def make_loader(examples: Mapping[str, Sequence[Example]], rank: int, world: int, workers: int = 0) -> Loader:
    config = RunConfig(
        tasks=tuple(examples),
        data=DataConfig(workers=workers),
        mixture=MixtureConfig(law="equal", slots=1, block=6),
        train=TrainConfig(global_batch=7, micro_batch=3),
    )
    tasks = {n: SimpleNamespace(name=n, loss="token_mean", label_smoothing=0.0, limits=Limits()) for n in examples}
    schedule = Schedule({n: len(e) for n, e in examples.items()}, config.mixture, 7, 5)
    collator = Collator(Letters(), Colours(), {n: Limits() for n in examples}, seed=5)
    return Loader(examples, tasks, schedule, collator, config, rank, world)


def test_batches_equal_those_from_folders_on_any_number_of_ranks(examples: list[Example], tmp_path: Path) -> None:
    """Few, unequal and empty shards: batches are cut from the schedule, so shards do not show in them."""
    other = [replace(e, task="coco", uid=f"c{i}") for i, e in enumerate(examples[:5])]
    index = write(tmp_path, examples, size=90_000)
    assert 1 < len(index.shards) < 5
    assert len({s.num_examples for s in index.shards}) > 1
    add_empty_shard(index)
    plan = make_plan(other, FileMedia(), SETTINGS, Options())
    write_split(tmp_path, "coco", "train", other, FileMedia(), plan, settings=SETTINGS)  # fewer shards than ranks: 1
    folders = {"vqa": examples, "coco": other}
    packed = {name: shards.read(tmp_path, name, "train") for name in folders}
    for world in (1, 2, 5):
        for rank in range(world):
            one, two = make_loader(folders, rank, world), make_loader(packed, rank, world)
            for step in (0, 1, 2, 8, 15, 16, 40):  # 40 steps are 7 epochs of vqa and 28 of coco
                assert_same(one.step(step), two.step(step))


def test_uneven_tasks_in_few_shards_starve_no_rank(examples: list[Example], tmp_path: Path) -> None:
    """3, 10 and 1001 examples in one shard each, six ranks of two workers: all make every step, side by side."""
    world, steps, patience_seconds = 6, 20, 5.0
    sizes = {"vqa": 1001, "coco": 10, "nlvr2": 3}
    given = {
        name: [replace(examples[i % 20], task=name, uid=f"{name}{i}") for i in range(size)]
        for name, size in sizes.items()
    }
    for name, rows in given.items():
        plan = make_plan(rows, FileMedia(), SETTINGS, Options(once=True))
        assert len(write_split(tmp_path, name, "train", rows, FileMedia(), plan, settings=SETTINGS).shards) == 1
    packed = {name: shards.read(tmp_path, name, "train") for name in given}
    in_step, made = threading.Barrier(world), Counter[int]()  # broken when a rank is waited for too long

    def train(rank: int) -> None:
        loader = make_loader(packed, rank, world, workers=2)
        for step, batches in loader.iterate(0, steps):
            assert len(batches) == loader.micro_steps and step == made[rank]
            made[rank] += 1
            in_step.wait(patience_seconds)

    with ThreadPoolExecutor(world) as pool:
        for future in [pool.submit(train, rank) for rank in range(world)]:
            future.result()
    assert made == dict.fromkeys(range(world), steps)


def add_empty_shard(index: shards.Index) -> None:
    """A shard of no example at the place 1, as another writer might leave one."""
    empty = index.folder / "000099.tar"
    empty.write_bytes(bytes(10240))
    record = shards.File(empty.name, 10240, shards.sha256_of(empty), 0)
    values = replace(index, shards=(*index.shards, record)).as_json()
    (index.folder / shards.INDEX).write_text(json.dumps(values))


def assert_same(left: Sequence[Any], right: Sequence[Any]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        # Ids come from paths, which differ; which rows have one picture does not.
        assert torch.equal(*(batch.item_ids[:, None] == batch.item_ids for batch in (a, b)))
        for key, value in vars(replace(a, item_ids=b.item_ids)).items():
            assert torch.equal(value, vars(b)[key]) if isinstance(value, torch.Tensor) else value == vars(b)[key], key


# ----------------------------------------------------------------------------------------------- videos and features


def videos(tmp_path: Path) -> list[Example]:
    clip = tmp_path / "in" / "clip.mp4"
    clip.parent.mkdir()
    clip.write_bytes(os.urandom(3000))
    frames = tmp_path / "in" / "frames"
    for i in (2, 10, 1):
        picture(frames / f"Img_{i}.png", i)
    (frames / "notes.txt").write_text("no frame")
    strip = picture(tmp_path / "in" / "strip.png", 3)
    (tmp_path / "in" / "strips.json").write_text(json.dumps({"strip": 4}))
    stored = tmp_path / "in" / "stored.npz"
    np.savez(stored, features=np.ones((3, 5), np.float16))
    return [
        Example(str(i), "tvqa", (), Visual(video=path, span=span), (Target("a"),))
        for i, (path, span) in enumerate(
            [(str(clip), (1.5, 3.25)), (str(frames), None), (strip, None), (str(stored), None), (str(clip), None)]
        )
    ]


@pytest.mark.parametrize("again", [False, True])
def test_videos_of_every_form(tmp_path: Path, again: bool) -> None:
    source = given = videos(tmp_path)
    if again:  # shards of shards
        write(tmp_path / "first", given)
        source = list(shards.read(tmp_path / "first", "vqa", "train"))
    index = write(tmp_path / "out", [replace(e, task="vqa") for e in source])
    back = shards.read(tmp_path / "out", "vqa", "train")
    assert [e.visual.span for e in back] == [e.visual.span for e in given]
    clip, folder, strip, stored, same = [e.visual.video for e in back]
    assert same == clip
    for path, file in ((clip, given[0]), (strip, given[2]), (stored, given[3])):
        assert shards.open_member(path) == Path(file.visual.video).read_bytes()
    assert [p.rpartition("name=")[2] for p in (clip, strip, stored)] == [
        "000000000.mp4", "000000002.4x1.png", "000000003.npz",
    ]  # fmt: skip
    assert shards.is_frames(folder)
    assert not shards.is_frames(clip)
    frames = shards.frame_members(folder)
    assert set(frames) == {"Img_1.png", "Img_2.png", "Img_10.png"}
    for name, path in frames.items():
        assert shards.open_member(path) == (Path(given[1].visual.video) / name).read_bytes()
    samples = list(webdataset.WebDataset(str(index.folder / "000000.tar"), shardshuffle=False, empty_check=False))
    assert samples[0]["mp4"] == Path(given[0].visual.video).read_bytes()
    assert len([key for key in samples[1] if key.startswith("frames.")]) == 3


def test_features_in_place_of_pictures(examples: list[Example], tmp_path: Path) -> None:
    class Frames:
        grid = (1, 4)

        def read(self, path: str, span: object = None) -> torch.Tensor:
            return torch.arange(12.0).view(3, 1, 4)

    media = FeatureMedia(Colours(), Frames(), {"grid": "rn-1"})
    index = write(tmp_path, examples, media, size=10**6)
    assert index.towers == shards.towers(tmp_path, "vqa", "train") == {"grid": "rn-1"}
    back = shards.read(tmp_path, "vqa", "train")
    for one, other in zip(back, examples, strict=True):
        for inside, file in zip(one.visual.images, other.visual.images, strict=True):
            assert inside.endswith(".npz")
            array = np.load(shards.as_file(inside))["features"]
            assert array.dtype == np.float16
            assert array.shape == (1, 3)
            assert np.array_equal(array, Colours().get([file])[0].numpy().astype(np.float16))
    write(tmp_path / "again", examples, media, size=10**6)
    assert content(tmp_path / "again" / "vqa") == content(tmp_path / "vqa")
    clip = replace(examples[0], visual=Visual(video=examples[0].visual.images[0]))
    write(tmp_path / "video", [clip], media)
    stored = np.load(shards.as_file(shards.read(tmp_path / "video", "vqa", "train")[0].visual.video))["features"]
    assert np.array_equal(stored, np.arange(12).reshape(3, 4))  # one token a frame: the references' own form


def test_features_that_float16_cannot_hold(examples: list[Example], tmp_path: Path) -> None:
    class Large(Colours):
        def get(self, paths: Sequence[str]) -> torch.Tensor:
            return super().get(paths) * 1e4

    with pytest.raises(DataError, match=r"float16 \(65504\)"):
        write(tmp_path, examples, FeatureMedia(Large()))
    assert not (tmp_path / "vqa" / "train").exists()


# ------------------------------------------------------------------------------------------------ broken-off writing


@dataclass
class Failing(FileMedia):
    """Fails at the n-th picture."""

    left: int
    loaded: int = 0

    def load(self, path: str, is_video: bool) -> dict[str, bytes]:
        self.left -= 1
        self.loaded += 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().load(path, is_video)


@pytest.mark.parametrize("after", [0, 5, 22, 39])
def test_a_full_disk_shows_nothing_and_the_next_run_goes_on(
    examples: list[Example], tmp_path: Path, after: int
) -> None:
    write(tmp_path / "whole", examples)
    with pytest.raises(DataError, match=r"the disk is full .* MB free.*finished shards are kept"):
        write(tmp_path / "dst", examples, Failing(after))
    assert not shards.has_shards(tmp_path / "dst", "vqa", "train")
    assert not (tmp_path / "dst" / "vqa" / "train").exists()
    assert not list((tmp_path / "dst").rglob("*.tmp"))
    second, lines = Failing(10**6), []
    write(tmp_path / "dst", examples, second, progress=lines.append)
    assert content(tmp_path / "dst") == content(tmp_path / "whole")
    if after > 20:
        assert second.loaded < 30
        assert "shards are finished already" in lines[0]
    assert "20/20 examples" in lines[-1]
    assert "ETA 0 s" in lines[-1]


def test_what_another_run_left_is_not_mixed_in(examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="disk is full"):
        write(tmp_path / "dst", examples, Failing(30))
    lines: list[str] = []
    changed = [replace(examples[0], targets=(Target("other"),)), *examples[1:]]
    write(tmp_path / "dst", changed, progress=lines.append, size=70_000)
    assert "written afresh" in lines[0]
    write(tmp_path / "new", changed, size=70_000)
    assert content(tmp_path / "dst") == content(tmp_path / "new")


def test_a_killed_run_can_be_started_again(examples: list[Example], tmp_path: Path) -> None:
    """The writer kills itself in the third shard, as a machine that goes down would."""

    class Dying(Failing):
        def load(self, path: str, is_video: bool) -> dict[str, bytes]:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().load(path, is_video)

    writer = multiprocessing.get_context("fork").Process(target=write, args=(tmp_path / "dst", examples, Dying(17)))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert not (tmp_path / "dst" / "vqa" / "train").exists()
    problems = list(shards.verify(tmp_path / "dst"))
    assert any("did not end" in p for p in problems)
    media = Failing(10**6)
    write(tmp_path / "dst", examples, media)
    assert 20 < media.loaded < 40
    write(tmp_path / "whole", examples)
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


def test_no_room_is_said_before_writing(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000 - 1_950_000))
    media = Failing(10**6)
    with pytest.raises(DataError, match=r"expected about 0 MB of free disk, found 0; choose another DST"):
        write(tmp_path, examples, media)
    assert media.loaded == 0


def test_one_writer_at_a_time_and_no_overwriting(examples: list[Example], tmp_path: Path) -> None:
    (tmp_path / "vqa").mkdir()
    with (tmp_path / "vqa" / ".train.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing"):
            write(tmp_path, examples)
    write(tmp_path, examples)
    before = content(tmp_path)
    with pytest.raises(DataError, match=r"vqa/train: expected no such folder yet, found one; delete it"):
        write(tmp_path, examples)
    assert content(tmp_path) == before


def test_missing_pictures_are_counted_before_writing(examples: list[Example], tmp_path: Path) -> None:
    gone = replace(examples[0], visual=Visual((str(tmp_path / "no.png"), examples[0].visual.images[0])))
    with pytest.raises(DataError, match=r"expected 8 pictures and videos, found 7, missing 1, .*no\.png.*No such file"):
        write(tmp_path / "dst", [*examples, gone])
    assert not (tmp_path / "dst").exists()
    packed = replace(examples[0], visual=Visual(("/x/split.h5#COCO_1",)))
    with pytest.raises(DataError, match=r"found an \.h5 file.*use --features"):
        write(tmp_path / "dst", [packed])


@pytest.mark.parametrize(
    ("references", "words"),
    [({"a": float("nan")}, "finite numbers in u"), ({"a": {1, 2}}, "found Object of type set"),
     ({"a": {1: 2}}, "expected names as keys in u, found 1")],
)  # fmt: skip
def test_references_that_json_would_change(tmp_path: Path, references: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        write(tmp_path, [Example("u", "vqa", (), Visual(), (Target("a"),), references)])
    assert not (tmp_path / "vqa" / "train").exists()


# ---------------------------------------------------------------------------------------------------- damaged shards


@pytest.fixture
def packed(examples: list[Example], tmp_path: Path) -> Iterator[Path]:
    write(tmp_path, examples)
    yield tmp_path


def test_a_missing_shard_is_named_with_counts(packed: Path) -> None:
    index = shards.read_index(packed, "vqa", "train")
    (index.folder / "000001.tar").unlink()
    lost, files = index.shards[1].num_examples, len(index.shards) + 1
    words = f"expected {files} files, found {files - 1}, missing 1 with {lost} examples: 000001.tar"
    with pytest.raises(DataError, match=words):
        shards.read(packed, "vqa", "train")
    assert words in next(shards.verify(packed))


def test_a_truncated_shard_is_found_on_opening(packed: Path) -> None:
    image = shards.read(packed, "vqa", "train")[-1].visual.images[0]
    tar = Path(shards.parse_member(image).tar)
    size = tar.stat().st_size
    os.truncate(tar, shards.parse_member(image).offset + 10)
    with pytest.raises(DataError, match=rf"expected {size} bytes in {tar.name}, found \d+: cut short, copy it again"):
        shards.read(packed, "vqa", "train")
    with pytest.raises(DataError, match=r"found the end of the shard at \d+; it is cut short"):
        shards.open_member(image)
    with pytest.raises(DataError, match="cut short"):
        open_image(image)


def test_a_changed_byte_is_found_by_verify(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shards.verify(packed)) == []
    assert "vqa/train: read" in capsys.readouterr().out
    tar = packed / "vqa" / "train" / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    shards.read(packed, "vqa", "train")  # the size is right
    problems = list(shards.verify(packed, lambda line: None))
    assert len(problems) == 1
    assert "000000.tar: expected SHA-256" in problems[0]
    (packed / "vqa" / "train" / "000077.tar").write_bytes(b"")
    assert any("000077.tar: not in index.json" in p for p in shards.verify(packed, lambda line: None))
    assert "expected shards" in next(shards.verify(packed / "vqa", lambda line: None))


def test_a_shard_of_another_run_is_noticed_when_it_is_read(examples: list[Example], packed: Path) -> None:
    image = shards.read(packed, "vqa", "train")[0].visual.images[1]
    assert shards.member_key(image) == shards.member_key(image)
    tar = packed / "vqa" / "train" / "000000.tar"
    key = shards.member_key(image)
    tar.write_bytes(tar.read_bytes().replace(b"000000000.", b"000000009."))
    os.utime(tar, (5, 5))
    assert shards.member_key(image) != key
    with pytest.raises(DataError, match=r"expected 000000000\.1\.\w+ at byte \d+, found another member"):
        shards.open_member(image)
    tar.unlink()
    for use in (shards.open_member, shards.member_key):
        with pytest.raises(DataError, match=r"expected this shard .* found none; copy it again"):
            use(image)


def test_changed_text_is_noticed(packed: Path) -> None:
    file = packed / "vqa" / "train" / shards.EXAMPLES
    file.write_text(file.read_text().replace("nein", "doch"))
    with pytest.raises(DataError, match=r"examples\.jsonl: expected the content that index\.json describes"):
        shards.read(packed, "vqa", "train")


def test_shards_of_other_settings_or_names_are_refused(packed: Path) -> None:
    words = r"found 'prompt' 'vqa: ' in the shards and 'q: ' in the task file; write the split again"
    with pytest.raises(DataError, match=words):
        shards.read(packed, "vqa", "train", {**SETTINGS, "prompt": "q: "})
    (packed / "gqa").mkdir()
    os.rename(packed / "vqa" / "train", packed / "gqa" / "train")
    with pytest.raises(DataError, match="expected shards of gqa/train, found vqa/train"):
        shards.read(packed, "gqa", "train")
    assert not shards.has_shards(packed, "vqa", "train")
    assert not shards.has_shards(packed, "vqa", "../train")
    with pytest.raises(DataError, match="expected a plain name of a split"):
        shards.folder_of(packed, "vqa", "../train")


def test_an_index_that_is_missing_or_foreign(packed: Path) -> None:
    file = packed / "vqa" / "train" / shards.INDEX
    values = json.loads(file.read_text())
    for wrong, words in (
        ({**values, "format": 99}, "expected an index of format 1, found 99"),
        ([], "expected an index of format 1, found None"),
        ({k: v for k, v in values.items() if k != "towers"}, "found a fault"),
        ({**values, "num_examples": 21}, "expected 21 examples, found 20 in the shards and 20"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=words):
            shards.read_index(packed, "vqa", "train")
    file.unlink()
    with pytest.raises(DataError, match=r"expected index\.json beside \d+ shards, found none"):
        shards.has_shards(packed, "vqa", "train")


def test_paths_that_are_no_members() -> None:
    for path in ("/a/b.png", "/a/b.tar", "/a/b.tar#x", "/a/b#offset=1,size=2,name=x"):
        assert not shards.is_member(path)
        assert shards.as_file(path) == path
        with pytest.raises(DataError, match="expected a place in a shard"):
            shards.parse_member(path)
    odd = shards.Member("/a #offset=1/b.tar", 512, 3, "000.0.png")
    assert shards.parse_member(shards.member_path(odd)) == odd


def test_settings_leave_out_what_does_not_shape_examples() -> None:
    @dataclass
    class Config:
        kind: str
        loss: str
        limits: Limits
        prompt: str = ""
        words: tuple[str, ...] = ("a",)
        decoding: Decoding = Decoding()

    plain = {"kind": "vqa", "prompt": "", "words": ["a"]}
    assert shards.example_settings(Config("vqa", "x", Limits())) == plain
    ranked = Config("choice", "x", Limits(), decoding=Decoding(mode="rank", choices=("a0", "a1")))
    assert shards.example_settings(ranked) == {
        **plain, "kind": "choice", "decoding.choices": ["a0", "a1"], "ranked": True
    }  # fmt: skip


def test_the_plan_counts_what_once_would_save(examples: list[Example]) -> None:
    plan = make_plan(examples, FileMedia(), SETTINGS, Options(SMALL))
    assert (plan.num_media, plan.num_uses) == (7, 40)
    once = make_plan(examples, FileMedia(), SETTINGS, Options(10**6, once=True))
    saved = plan.used_bytes - plan.media_bytes
    assert once.num_bytes == pytest.approx(plan.num_bytes - saved, abs=(len(plan.shards)) * 10240)
    assert padded(0) == 512
    assert padded(513) == 512 + 1024
