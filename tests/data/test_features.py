"""The feature store: computed once, kept over crashes, damage noticed, pictures named in errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import launch_ok, rank_environment
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


PROCESSES = """
import os, random, signal, sys, time, warnings
from pathlib import Path

sys.path[:0] = [HERE]
from test_features import Encoder, store

warnings.simplefilter("error")  # nothing that a dead process leaves counts as damage


class Slow(Encoder):
    def encode(self, images):
        time.sleep(0.002)
        return super().encode(images)


def child(encoder, **options):
    pid = os.fork()
    if pid == 0:
        store(Path(FOLDER), encoder, **options).ensure(PICTURES)
        os._exit(0)
    return pid


def expect(pids, status):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == status, "child ended otherwise"


chance, moments = random.Random(0), []
for attempt in range(12):  # two at once, killed at any moment
    pids = [child(Slow(), shard_bytes=12), child(Slow(), shard_bytes=24)]
    time.sleep(chance.uniform(0.0, 0.05))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    moments.append(store(Path(FOLDER), Encoder()).usage().items)
print("after each kill:", moments)
assert moments == sorted(moments)  # what was finished stays
expect([child(Slow()), child(Slow())], 0)
features = store(Path(FOLDER), Encoder(fails_after=0))
assert features.ensure(PICTURES) == 0 and features.verify() == 0
assert features.get(PICTURES)[:, 0, 0].tolist() == [10.0 * i for i in range(10)]
"""


@pytest.mark.multiproc
def test_two_processes_at_once_and_kill_at_any_moment(tmp_path: Path, pictures: list[str]) -> None:
    values = {"HERE": str(Path(__file__).parent), "FOLDER": str(tmp_path), "PICTURES": pictures}
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + PROCESSES
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=rank_environment(0, 1, 0), timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_a_changed_byte_is_found_by_verify(tmp_path: Path, pictures: list[str]) -> None:
    other = store(tmp_path, Encoder())
    other.ensure(pictures)
    shard = sorted((tmp_path / "features" / "tiny-1").glob("*.npy"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 4
    shard.write_bytes(content)
    mended, lines = store(tmp_path, Encoder()), []
    with pytest.warns(UserWarning, match="content has changed since it was written; it is set aside"):
        assert mended.verify(lines.append) == 1
    assert "verified: 3/3 shards" in lines[-1]
    assert shard.with_name(shard.name + ".damaged").exists() and not shard.exists()
    assert other.ensure(pictures) in (2, 4)  # also where it was in use
    assert mended.ensure(pictures) == 0
    assert mended.verify() == 0
    assert torch.equal(mended.get(pictures)[:, 0, 0], torch.arange(10.0) * 10)


def test_a_shard_that_is_damaged_while_in_use_is_computed_again(tmp_path: Path, pictures: list[str]) -> None:
    features = store(tmp_path, Encoder())
    features.ensure(pictures)
    for shard in (tmp_path / "features" / "tiny-1").glob("*.npy"):
        shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.warns(UserWarning, match="expected .* bytes and shape .*computed again"):
        assert torch.equal(features.get(pictures)[:, 0, 0], torch.arange(10.0) * 10)
    features.close()
    assert store(tmp_path, Encoder(fails_after=0)).ensure(pictures) == 0


def test_features_can_be_computed_on_first_use(tmp_path: Path, pictures: list[str]) -> None:
    class Counting(Encoder):
        inside = 0

        def encode(self, images) -> torch.Tensor:
            assert self.inside == 0, "two threads in one encoder"
            self.inside += 1
            time.sleep(0.002)
            self.inside -= 1
            return super().encode(images)

    encoder = Counting()
    features = store(tmp_path, encoder)
    assert features.ensure(pictures, fill="lazy") == 0
    assert encoder.seen == 0
    wanted = [[(i * 3 + k) % 10 for k in range(5)] for i in range(40)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda rows: features.get([pictures[i] for i in rows])[:, 0, 0].tolist(), wanted))
    assert found == [[10.0 * i for i in rows] for rows in wanted]
    assert encoder.seen == 10
    assert store(tmp_path, Encoder()).usage().items == 8  # a crash now loses the shard in progress
    features.close()
    features.close()
    assert store(tmp_path, Encoder()).usage().items == 10
    with pytest.raises(ValueError, match="eager"):
        features.ensure(pictures, fill="later")
    Path(pictures[0]).write_bytes(b"no picture")
    assert features.ensure(pictures, fill="lazy") == 0
    with pytest.raises(DataError, match="p0.png"):
        features.get(pictures)


def test_shards_of_the_first_version_are_read(tmp_path: Path, pictures: list[str]) -> None:
    store(tmp_path, Encoder()).ensure(pictures)
    for index in (tmp_path / "features" / "tiny-1").glob("*.json"):
        record = json.loads(index.read_text())
        index.write_text(json.dumps({k: v for k, v in record.items() if k not in ("rows", "sha256")}))
    features = store(tmp_path, Encoder(fails_after=0))
    assert features.ensure(pictures) == 0 and features.verify() == 0


def test_a_full_or_locked_disk_is_told(tmp_path: Path, pictures: list[str]) -> None:
    (tmp_path / "features").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write features .*'data.cache'"):
        store(tmp_path, Encoder()).ensure(pictures)


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
from mtvl import dist
from mtvl.data.features import store as module
from mtvl.errors import DataError
from test_features import Encoder, store

module.ROUND_SECONDS = 0.0  # the ranks meet after every picture
torch_dist.init_process_group("gloo")
for failing_rank in (1, 2):
    encoder = Encoder(fails_after=4 if dist.rank() == failing_rank else 100)
    features = store(Path(FOLDER), encoder)
    lines = []
    try:
        computed = features.ensure(PICTURES, lines.append)
        print("RESULT", computed, encoder.seen, features.get(PICTURES)[:, 0, 0].tolist(), len(lines))
    except DataError as error:
        print("RESULT", str(error).split(" on /")[0], encoder.seen)
print("RESULT", features.verify())
try:
    features.ensure(PICTURES if dist.is_main() else PICTURES + [str(Path(FOLDER) / "nothing.png")])
except DataError as error:
    print("RESULT", str(error)[:60].rsplit(" pict")[0])
try:
    features.ensure(PICTURES[dist.rank():])
except DataError as error:
    print("RESULT", str(error).split(";")[0])
torch_dist.destroy_process_group()
"""


@pytest.mark.multiproc
def test_all_ranks_compute_and_a_failure_of_one_reaches_all(tmp_path: Path, pictures: list[str]) -> None:
    script = tmp_path / "ranks.py"
    values = {"HERE": str(Path(__file__).parent), "FOLDER": str(tmp_path), "PICTURES": pictures}
    script.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()) + RANK_SCRIPT)
    ends = launch_ok(script, 2, timeout_seconds=240)
    features = [float(10 * i) for i in range(10)]
    assert [[line for line in end.output.splitlines() if line.startswith("RESULT")] for end in ends] == [
        [
            "RESULT the features could not be computed on rank 1: the image encoder failed 5",
            f"RESULT 1 1 {features} 1",  # only the picture that rank 1 failed on was missing
            "RESULT 0",
            "RESULT the features could not be computed on rank 1: 1 of 11",
            "RESULT the ranks were given different pictures",
        ],
        [
            "RESULT the image encoder failed 4",
            f"RESULT 1 0 {features} 0",
            "RESULT 0",
            "RESULT 1 of 11",
            "RESULT the ranks were given different pictures",
        ],
    ]
