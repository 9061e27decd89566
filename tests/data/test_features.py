"""The feature store: computed once, kept over crashes, damage noticed, pictures named in errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import launch_ok
from PIL import Image

from mtvl.data.features import FeatureStore
from mtvl.errors import DataError


class Encoder:
    """Mean colour of the picture in every cell of a 2 x 3 grid, plus the cell's number."""

    fingerprint, grid = "tiny-1", (2, 3)

    def __init__(self, fails_after: int = 10**9) -> None:
        self.seen = 0
        self.fails_after = fails_after

    def encode(self, images) -> torch.Tensor:
        if self.seen + len(images) > self.fails_after:
            raise RuntimeError("out of order")
        self.seen += len(images)
        means = torch.tensor([float(np.asarray(i).mean()) for i in images])
        return means[:, None, None] + torch.arange(6.0).view(1, 2, 3)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = []
    for i in range(10):
        path = tmp_path / f"p{i}.png"
        Image.new("RGB", (4, 4), (i * 10,) * 3).save(path)
        paths.append(str(path))
    return paths


def store(tmp_path: Path, encoder: Encoder, **options) -> FeatureStore:
    return FeatureStore(encoder, tmp_path / "features", batch=2, **{"shard_bytes": 4 * 12, **options})  # 4 rows a shard


def test_features_are_computed_once_and_read_in_order(tmp_path: Path, pictures: list[str]) -> None:
    encoder, lines = Encoder(), []
    first = store(tmp_path, encoder)
    assert first.ensure([*pictures, pictures[0]], lines.append) == 10
    assert "10/10 pictures" in lines[-1] and "ETA 0 s" in lines[-1]
    found = first.get([pictures[7], pictures[2], pictures[7]])
    assert found.shape == (3, 2, 3) and found.dtype == torch.float32
    assert torch.equal(found[:, 0, 0], torch.tensor([70.0, 20.0, 70.0]))
    again = Encoder(fails_after=0)
    second = store(tmp_path, again)
    assert second.ensure(pictures) == 0
    assert torch.equal(second.get(pictures), first.get(pictures))
    assert {p.name for p in (tmp_path / "features").iterdir()} == {"tiny-1"}
    assert not list((tmp_path / "features").rglob("*.tmp"))
    assert len(list((tmp_path / "features" / "tiny-1").glob("*.npy"))) == 3


def test_new_and_replaced_pictures_are_computed(tmp_path: Path, pictures: list[str]) -> None:
    encoder = Encoder()
    features = store(tmp_path, encoder)
    assert features.ensure(pictures[:4]) == 4
    assert features.ensure(pictures) == 6
    Image.new("RGB", (4, 4), (200,) * 3).save(pictures[1])
    os.utime(pictures[1], ns=(1, 1))
    assert features.ensure(pictures) == 1
    assert features.get([pictures[1]])[0, 0, 0] == 200
    other = Encoder()
    other.fingerprint = "tiny 2/with a slash"
    assert store(tmp_path, other).ensure(pictures) == 10


def test_a_crash_keeps_what_was_finished(tmp_path: Path, pictures: list[str]) -> None:
    with pytest.raises(DataError, match=r"encoder failed on .*p6.png, .*p7.png: RuntimeError: out of order"):
        store(tmp_path, Encoder(fails_after=6)).ensure(pictures)
    encoder = Encoder()
    assert store(tmp_path, encoder).ensure(pictures) == 4
    assert encoder.seen == 4


@pytest.mark.multiproc
def test_a_killed_process_keeps_its_finished_shards(tmp_path: Path, pictures: list[str]) -> None:
    code = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from test_features import Encoder, store
from pathlib import Path
class Dying(Encoder):
    def encode(self, images):
        if self.seen == 6:
            os.kill(os.getpid(), 9)
        return super().encode(images)
store(Path({str(tmp_path)!r}), Dying()).ensure({pictures!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[2])
    assert done.returncode == -9, done.stderr.decode()
    assert store(tmp_path, Encoder()).ensure(pictures) == 6  # one shard of four rows was finished


@pytest.mark.parametrize("damage", ["truncated shard", "broken index", "lost shard", "index of other rows"])
def test_damage_is_noticed_and_mended(tmp_path: Path, pictures: list[str], damage: str) -> None:
    store(tmp_path, Encoder()).ensure(pictures)
    shard = sorted((tmp_path / "features" / "tiny-1").glob("*.npy"))[0]
    index = shard.with_suffix(".json")
    record = json.loads(index.read_text())
    rows = len(record["keys"])
    if damage == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif damage == "broken index":
        index.write_text(index.read_text()[:-9])
    elif damage == "lost shard":
        shard.unlink()
    else:
        index.write_text(json.dumps({**record, "keys": record["keys"][1:]}))
    mended = store(tmp_path, Encoder())
    with pytest.warns(UserWarning, match=f"{shard.name}.*computed again"):
        assert mended.ensure(pictures) == rows
    assert torch.equal(mended.get(pictures)[:, 0, 0], torch.arange(10.0) * 10)
    assert store(tmp_path, Encoder(fails_after=0)).ensure(pictures) == 0


def test_bad_pictures_and_bad_encoders_are_named(tmp_path: Path, pictures: list[str]) -> None:
    with pytest.raises(DataError, match=r"1 of 2 pictures are missing, the first is .*nothing.png"):
        store(tmp_path, Encoder()).ensure([pictures[0], str(tmp_path / "nothing.png")])
    Path(pictures[3]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p3.png"):
        store(tmp_path, Encoder()).ensure(pictures)

    class Overflowing(Encoder):
        def encode(self, images) -> torch.Tensor:
            return super().encode(images) * 7000

    with pytest.raises(DataError, match=r"p2.png are not finite in float16"):
        store(tmp_path, Overflowing()).ensure([pictures[0], pictures[2]])

    class Misshapen(Encoder):
        def encode(self, images) -> torch.Tensor:
            return torch.zeros(len(images), 5)

    with pytest.raises(DataError, match=r"shape \(1, 5\).*expected \(1, 2, 3\)"):
        store(tmp_path, Misshapen()).ensure([pictures[9]])
    with pytest.raises(DataError, match="FeatureStore.ensure"):
        store(tmp_path, Encoder()).get([pictures[0]])


RANK_SCRIPT = """
import sys
from pathlib import Path

import torch.distributed as torch_dist

sys.path.insert(0, HERE)
from mtvl.errors import DataError
from test_features import Encoder, store

torch_dist.init_process_group("gloo")
for fails_after in (6, 100):
    encoder = Encoder(fails_after)
    features = store(Path(FOLDER), encoder)
    try:
        computed = features.ensure(PICTURES)
        print("RESULT", computed, encoder.seen, features.get(PICTURES)[:, 0, 0].tolist())
    except DataError as error:
        print("RESULT", str(error).split(" on ")[0])
torch_dist.destroy_process_group()
"""


@pytest.mark.multiproc
def test_rank_0_computes_for_all_and_its_failure_reaches_all(tmp_path: Path, pictures: list[str]) -> None:
    script = tmp_path / "ranks.py"
    values = {"HERE": str(Path(__file__).parent), "FOLDER": str(tmp_path), "PICTURES": pictures}
    script.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()) + RANK_SCRIPT)
    ends = launch_ok(script, 2, timeout_seconds=60)
    features = [float(10 * i) for i in range(10)]
    assert [[line for line in end.output.splitlines() if line.startswith("RESULT")] for end in ends] == [
        ["RESULT the image encoder failed", f"RESULT 4 4 {features}"],
        [
            "RESULT rank 0 could not compute the features; its own message says why",
            f"RESULT 4 0 {features}",
        ],
    ]
