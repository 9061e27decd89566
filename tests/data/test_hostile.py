"""Files made to do harm: each attack is really made here, and has to end in an error and in nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from mtvl.checkpoint import open_checkpoint, write_checkpoint
from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import load_run_config
from mtvl.data import shards
from mtvl.data.decoders import read_table
from mtvl.data.features import stored
from mtvl.data.media import open_image
from mtvl.data.shard_media import FileMedia
from mtvl.data.shard_plan import make_plan
from mtvl.data.shard_writer import write_split
from mtvl.data.video import MAX_FRAMES, count_frames
from mtvl.engine.state import load_state
from mtvl.errors import CheckpointError, ConfigError, DataError
from mtvl.export import load_export, write_export
from mtvl.model import build_model
from mtvl.recipe import read_yaml
from mtvl.types import Example, Segment, Target, Visual

ROOT = Path(__file__).parents[2]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A folder that comes into being when code of the attacker runs."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.is_dir()  # the attack works where somebody unpickles
    path.rmdir()
    return path


def test_a_checkpoint_is_not_unpickled(tmp_path: Path, canary: Path) -> None:
    """A manifest that fits proves nothing about who wrote it."""

    def writer(folder: Path) -> None:
        (folder / "engine.json").write_text(
            json.dumps({"format": 1, "optimizer": "SGD", "groups": [], "world_size": 1})
        )
        for name in ("engine.safetensors", "random_0.safetensors"):
            (folder / name).write_bytes(pickle.dumps(Bomb(canary)))

    folder, _ = open_checkpoint(write_checkpoint(tmp_path, 3, writer, {}))

    class SGD:
        state_names = ()

    class Masters:
        optimizer, parameters = SGD(), {}

    with pytest.raises(CheckpointError, match="engine.safetensors"):
        load_state(folder, Masters(), [])  # type: ignore[arg-type]
    assert not canary.exists()


def test_an_export_is_not_unpickled(tmp_path: Path, canary: Path) -> None:
    """Nor are headers believed that point beyond the file, or descriptions that lack a part."""
    config = load_run_config(DEFAULT_RECIPE, ["vqa"])
    write_export(tmp_path, build_model(config), config)
    weights, facts = tmp_path / "adapter.safetensors", tmp_path / "adapter.json"
    sound = weights.read_bytes()
    longer = re.sub(rb'"data_offsets":\[0,(\d)', rb'"data_offsets":[0,9', sound, count=1)
    assert longer != sound
    for data in (pickle.dumps(Bomb(canary)), longer, sound[:-9]):
        weights.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"adapter\.safetensors cannot be read"):
            load_export(tmp_path)
    for text in ("[1]", "{}", json.dumps({"config": 1, "tasks": [], "plan": "x"}), "[" * 100_000, "9" * 5000):
        facts.write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter\.json is damaged"):
            load_export(tmp_path)
    assert not canary.exists()


def test_nothing_in_the_package_unpickles() -> None:
    """Except what the ranks of one run send each other."""
    found = []
    for file in sorted((ROOT / "mtvl").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if re.search(
            r"pickle\.loads?\(|weights_only=False|allow_pickle=True|yaml\.(load|unsafe_load|full_load)\(", text
        ):
            found.append(file.name)
        loads = len(re.findall(r"torch\.load\(", text))
        assert loads == len(re.findall(r"torch\.load\([^)]*weights_only=True", text)), file
    assert found == []


def test_stored_features_are_not_unpickled(tmp_path: Path, canary: Path) -> None:
    trap = np.empty(1, dtype=object)
    trap[0] = Bomb(canary)
    np.savez(tmp_path / "v.npz", features=trap)
    np.save(tmp_path / "v.npy", trap, allow_pickle=True)
    for name in ("v.npz", "v.npy"):
        with pytest.raises(DataError, match="damage"):
            stored.read_video(str(tmp_path / name), (1, 3))
    assert not canary.exists()


def test_features_that_unfold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of a compressed file, or of a sparse one, can claim all memory."""
    monkeypatch.setattr(stored, "MAX_BYTES", 10_000)
    np.savez_compressed(tmp_path / "v.npz", features=np.zeros((5000, 3), np.float16))
    assert (tmp_path / "v.npz").stat().st_size < 1000
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("v/features", shape=(10**9, 3), dtype="f2", chunks=(1000, 3), compression="gzip")
    for name in ("v.npz", "v.h5"):
        with pytest.raises(DataError, match="expected at most 10000 bytes of features, found"):
            stored.read_video(str(tmp_path / name), (1, 3))


def test_yaml_makes_no_objects_and_does_not_unfold(tmp_path: Path, canary: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"tasks: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(file)
    assert not canary.exists()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    for text in ("\n".join(lines), "a: &a [*a]\n", "a: &a {b: *a}\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="at most 100000 values"):
            read_yaml(file)
    file.write_text("a: " + "[" * 5000)
    with pytest.raises(ConfigError, match="YAML"):
        read_yaml(file)


def test_pictures_are_never_handed_to_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL reads PostScript by running Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path / 'canary'}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    trap = tmp_path / "photo.jpg"
    trap.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with Image.open(trap) as picture, pytest.raises(Exception):  # noqa: B017  (what PIL raises when `gs` drew nothing)
        picture.load()
    assert (tmp_path / "canary").exists()  # the attack works
    (tmp_path / "canary").unlink()
    with pytest.raises(DataError, match=r"photo\.jpg: expected a readable picture"):
        open_image(str(trap))
    assert not (tmp_path / "canary").exists()


def clip(path: Path, *, last: int = 7, kind: str = "mp4") -> Path:
    """Eight frames; the last begins at `last` fifths of a second."""
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 30 * number, np.uint8), format="rgb24")
            frame.pts = last if number == 7 else number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_playlist_called_video_opens_no_other_file(tmp_path: Path) -> None:
    secret = clip(tmp_path / "secret.mp4")
    trap = tmp_path / "clip.mp4"
    trap.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    with av.open(str(trap)) as container:
        assert next(container.decode(video=0)).width == 32  # the attack works on a bare FFmpeg
    for text in (
        trap.read_text(),
        "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    ):
        trap.write_text(text)
        with pytest.raises(DataError, match=r"clip\.mp4: expected a readable video"):
            read_table(str(trap))


def test_a_video_cannot_claim_centuries(tmp_path: Path) -> None:
    path = clip(tmp_path / "v.mkv", last=2**33, kind="matroska")
    with pytest.raises(DataError, match=rf"at most {MAX_FRAMES} frames"):
        count_frames(str(path))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Shards of one example with one picture."""
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    rows = [Example("1", "vqa", (Segment("q", "x"),), Visual((str(tmp_path / "p.png"),)), (Target("y"),))]
    write_split(tmp_path / "out", "vqa", "train", rows, FileMedia(), make_plan(rows, FileMedia(), {}), settings={})
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["../../../secret.tar", "/etc/passwd", "a/b.tar", "pipe:touch ../escaped", "", ".."])
def test_an_index_names_files_of_its_own_folder(packed: Path, name: str) -> None:
    index = packed / "vqa" / "train" / "index.json"
    content = json.loads(index.read_text())
    content["shards"][0]["name"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match="expected names of files in this folder"):
        shards.read(packed, "vqa", "train")


def forge_example(root: Path, **changes: Any) -> None:
    """Change the one example of the shards, and its hash in the index, as somebody can who made both."""
    folder = root / "vqa" / "train"
    line = json.loads((folder / "examples.jsonl").read_text())
    text = json.dumps({**line, **changes}) + "\n"
    (folder / "examples.jsonl").write_text(text)
    index = json.loads((folder / "index.json").read_text())
    index["examples"] |= {"num_bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("place", [[0, 512, 9, "x/../../p.png"], [-1, 512, 9, "p.png"], [0, 0, 9, "p.png"], [7, 512, 9, "p.png"], 3])  # fmt: skip
def test_examples_in_shards_name_places_in_shards(packed: Path, place: object) -> None:
    (packed / "vqa" / "train" / "000000.tar#offset=512,size=9,name=x").mkdir()  # then the first one would be a path
    assert len(shards.read(packed, "vqa", "train")) == 1
    forge_example(packed, images=[place])
    with pytest.raises(DataError, match=r"examples\.jsonl, row 1: expected an example, found a fault"):
        shards.read(packed, "vqa", "train")


def test_a_place_in_a_shard_cannot_claim_all_memory(packed: Path) -> None:
    forge_example(packed, images=[[0, 512, 2**61, "000000.0.png"]])
    (example,) = shards.read(packed, "vqa", "train")
    with pytest.raises(DataError, match="found the end of the shard"):
        shards.open_member(example.visual.images[0])


@pytest.mark.parametrize("change", [{"num_bytes": "9"}, {"num_examples": None}, {"name": 3}])
def test_an_index_of_other_kinds_of_values_is_refused(packed: Path, change: dict[str, Any]) -> None:
    index = packed / "vqa" / "train" / "index.json"
    content = json.loads(index.read_text())
    content["shards"][0] |= change
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"index\.json: expected"):
        shards.read(packed, "vqa", "train")


def test_members_of_a_tar_are_never_unpacked(tmp_path: Path) -> None:
    """Members are read by place; their names are never paths."""
    inner = tmp_path / "in"
    inner.mkdir()
    with tarfile.open(inner / "0.tar", "w") as tar:
        Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
        for name in ("../../escaped.png", "/tmp/mtvl_escaped.png"):
            info = tar.gettarinfo(str(tmp_path / "p.png"), arcname=name)
            info.name = name
            with (tmp_path / "p.png").open("rb") as file:
                tar.addfile(info, file)
        link = tarfile.TarInfo("0.frames.link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        size = tar.offset
    before = sorted(p for p in tmp_path.rglob("*"))
    whole = shards.member_path(shards.Member(str(inner / "0.tar"), 0, size, "0.frames.tar"))
    found = shards.frame_members(whole)
    assert len(found) == 3
    for path in found.values():
        try:
            open_image(path)
        except DataError as error:
            assert "in a shard" in str(error) or "picture" in str(error) or "member" in str(error)  # noqa: PT017
    assert sorted(p for p in tmp_path.rglob("*")) == before and not Path("/tmp/mtvl_escaped.png").exists()
    code = "".join(p.read_text(encoding="utf-8") for folder in ("mtvl", "tools") for p in (ROOT / folder).rglob("*.py"))
    assert not re.search(r"\.extract(all)?\(|unpack_archive\(", code)
