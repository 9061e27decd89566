"""Features that others stored: .h5, .npz and .npy read in place, and errors that say what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mtvl.data.features import FeatureStore, FrameStore
from mtvl.errors import DataError

GRID = (4, 6)


def features(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def pictures(tmp_path: Path) -> FeatureStore:
    return FeatureStore(None, tmp_path / "cache", grid=GRID)


def write_h5(path: Path, groups: dict[str, np.ndarray], name: str = "features") -> str:
    with h5py.File(path, "w") as file:
        for group, array in groups.items():
            file.create_group(group).create_dataset(name, data=array)
    return str(path)


def test_pictures_in_all_forms(tmp_path: Path) -> None:
    arrays = [features(i, *GRID) for i in range(5)]
    one = write_h5(tmp_path / "COCO_val2014_000000000042.h5", {"COCO_val2014_000000000042": arrays[0]})
    split = write_h5(tmp_path / "val.h5", {"a": arrays[1], "b": arrays[2]})
    np.savez(tmp_path / "p.npz", features=arrays[3])
    np.save(tmp_path / "p.npy", arrays[4].astype(np.float32))
    paths = [one, f"{split}#a", f"{split}#b", str(tmp_path / "p.npz"), str(tmp_path / "p.npy")]
    store = pictures(tmp_path)
    assert store.ensure(paths) == 0 and store.grid == GRID
    found = store.get([*paths, paths[0]])
    assert found.dtype == torch.float32 and found.shape == (6, *GRID)
    assert np.array_equal(found.numpy(), np.stack([*arrays, arrays[0]]).astype(np.float32))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(DataError, match="FeatureStore.ensure"):
        store.get([f"{split}#c"])


def test_an_encoder_gives_the_expected_grid(tmp_path: Path) -> None:
    class Encoder:
        fingerprint, grid = "e", (9, 6)

        def encode(self, images) -> torch.Tensor:
            raise AssertionError("stored features need no encoder")

    np.savez(tmp_path / "p.npz", features=features(0, *GRID))
    store = FeatureStore(Encoder(), tmp_path / "cache")
    assert store.ensure([str(tmp_path / "p.npz")]) == 0
    with pytest.raises(DataError, match=r"p.npz: expected features of shape \(9, 6\) for one picture, found \(4, 6\)"):
        store.get([str(tmp_path / "p.npz")])


@pytest.mark.parametrize("shape", [(5, 6), (5, 1, 6)])
def test_rows_of_a_video_stand_for_the_sampling_rate(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = features(0, *shape)
    np.savez(tmp_path / "clip.npz", features=array)
    store = FrameStore(None, tmp_path / "cache", grid=(1, 6))
    path = str(tmp_path / "clip.npz")
    assert store.ensure([path]) == 0
    assert np.array_equal(store.read(path).numpy(), array.reshape(5, 1, 6).astype(np.float32))
    assert np.array_equal(store.read(path, (3.2, 5.0)).numpy(), array.reshape(5, 1, 6)[2:4].astype(np.float32))


def test_videos_that_do_not_fit_are_told(tmp_path: Path) -> None:
    store = FrameStore(None, tmp_path / "cache", grid=(1, 8))
    for name, array in {"wide": features(0, 5, 6), "empty": features(0, 0, 8), "flat": features(0, 8)}.items():
        path = str(tmp_path / f"{name}.npz")
        np.savez(path, features=array)
        store.ensure([path])
        found = str(array.shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(DataError, match=rf"{name}.npz: .*\(frames, 1, 8\) or \(frames, 8\).*, found {found}"):
            store.read(path)


def test_the_published_form_of_video_features(tmp_path: Path, golden: Path) -> None:
    files = sorted((golden / "formats" / "features").rglob("*.npz"))
    assert files, "no video features in the golden data"
    store = FrameStore(None, tmp_path / "cache", grid=(1, 512))
    store.ensure([str(f) for f in files])
    for file in files:
        with np.load(file) as loaded:
            expected = loaded["features"].astype(np.float32)
        assert np.array_equal(store.read(str(file)).numpy()[:, 0], expected)


def test_damage_is_named(tmp_path: Path) -> None:
    cases = {
        write_h5(
            tmp_path / "x.h5", {"y": features(0, *GRID)}
        ): r"expected group 'x' with a dataset 'features', found y",
        write_h5(tmp_path / "z.h5", {"z": features(0, *GRID)}, "boxes"): "found boxes in group 'z'",
        write_h5(tmp_path / "f.h5", {"f": np.ones(GRID, dtype=np.int64)}): "floating-point features, found int64",
        write_h5(tmp_path / "n.h5", {"n": np.full(GRID, np.nan)}): "not finite",
    }
    np.savez(tmp_path / "key.npz", feats=features(0, *GRID))
    np.savez(tmp_path / "cut.npz", features=features(0, *GRID))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:60])
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.h5").write_text("no features")
    cases |= {
        str(tmp_path / "key.npz"): "expected an array 'features', found feats",
        str(tmp_path / "cut.npz"): "expected readable features, found damage",
        str(tmp_path / "pickled.npy"): "expected readable features, found damage",
        str(tmp_path / "text.h5"): "expected readable features, found damage",
    }
    store = pictures(tmp_path)
    store.ensure(list(cases))
    for path, message in cases.items():
        with pytest.raises(DataError, match=f"{Path(path).name}.*{message}"):
            store.get([path])
    with pytest.raises(DataError, match="1 of 1 pictures are missing"):
        store.ensure([str(tmp_path / "nothing.h5#a")])


def test_without_a_tower_only_stored_features_will_do(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"any")
    with pytest.raises(DataError, match=r"1 pictures are no stored features .*no visual tower.*p.png"):
        pictures(tmp_path).ensure([str(tmp_path / "p.png")])
    with pytest.raises(ValueError, match="grid"):
        FeatureStore(None, tmp_path)


def test_a_missing_h5py_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_h5(tmp_path / "x.h5", {"x": features(0, *GRID)})
    store = pictures(tmp_path)
    store.ensure([path])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"mtvl\[features\]"):
        store.get([path])


def test_features_inside_a_webdataset_shard(tmp_path: Path) -> None:
    import io
    import tarfile

    from mtvl.data.shards import Member, member_path

    array, stream = features(0, *GRID), io.BytesIO()
    np.savez(stream, features=array)
    tar = tmp_path / "000000.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as file:
        entry = tarfile.TarInfo("k.0.npz")
        entry.size = len(stream.getvalue())
        file.addfile(entry, io.BytesIO(stream.getvalue()))
    path = member_path(Member(str(tar), 512, entry.size, "k.0.npz"))
    store = pictures(tmp_path)
    assert store.ensure([path]) == 0
    assert np.array_equal(store.get([path])[0].numpy(), array.astype(np.float32))
