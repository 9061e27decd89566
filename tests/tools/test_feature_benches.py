"""The two measurements around stored features, on tiny models: names, ratios, and that both sides read the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from benches import epoch, features  # noqa: E402

from mtvl.backbones.towers import GridTower  # noqa: E402
from mtvl.data.features import FeatureStore  # noqa: E402


def test_supply_compares_the_store_with_its_own_tower(tmp_path: Path) -> None:
    pictures = features.write_pictures(tmp_path, 6)
    tower = GridTower("tiny")
    online, stored = features.measure_supply(tmp_path / "features", pictures, tower, 2, batch=4)
    assert (online.name, stored.name, stored.baseline) == ("tower online", "store", "tower online")
    assert online.median > 0 and stored.ratio == stored.median / online.median and stored.rounds == 2
    store = FeatureStore(tower, tmp_path / "features")
    assert store.ensure(pictures) == 0
    expected = epoch.Online(tower).get(pictures)
    assert torch.allclose(store.get(pictures), expected, rtol=1e-3, atol=1e-3)  # float16


@pytest.mark.slow
def test_an_epoch_is_timed_from_both_sources() -> None:
    online, stored = epoch.measure_epoch(1, [], batch=4, examples=8)
    assert (online.name, stored.name) == ("tower online", "features stored")
    assert online.median > 0 and stored.ratio > 0
    assert "tiny" in stored.note and "batch 4" in stored.note
