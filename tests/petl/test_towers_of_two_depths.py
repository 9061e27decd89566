"""UniAdapter where the vision tower is deeper than the text's, full fine-tuning beside a frozen tower, and the wider probe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtvl.backbones.blip import Blip, BlipConfig
from mtvl.errors import ConfigError, PlanError
from mtvl.model import Model, make_method

UNI = {"name": "uniadapter", "bottleneck": 4}


def build(layers: int = 5, width: int = 32, kind: str = "pretrain") -> Blip:
    return Blip.build(BlipConfig(kind=kind, preset="tiny", image_size=16, embed_dim=12, init_std=0.1,
                                 vision={"layers": layers, "width": width}))  # fmt: skip


def adapt(backbone: Blip, section: dict[str, Any]) -> Model:
    method = make_method(section)
    return Model(backbone, method.plan(backbone.sites(), ("a",)), method)


def states(model: Blip) -> list[torch.Tensor]:
    """Image tokens, and texts with them."""
    random = torch.Generator().manual_seed(0)
    tokens = model.see(torch.randn(2, 3, 16, 16, generator=random))
    ids = torch.randint(4, 118, (2, 5), generator=random)
    return [tokens, model.fuse(ids, torch.ones_like(ids, dtype=torch.bool), tokens)]


def test_banks_are_spread_over_a_deeper_tower() -> None:
    """Five blocks on two layers: as many parameters as with two blocks, and every block goes through its layer's bank."""
    plain, model = build().eval(), adapt(build(), {**UNI, "depths": "spread"}).eval()
    assert [c.name for c in model.plan.common] == ["layer0_v0_v1_v2", "layer1_v3_v4"]
    assert model.plan.num_added == adapt(build(layers=2), UNI).plan.num_added < adapt(build(), UNI).plan.num_added
    assert all(torch.equal(a, b) for a, b in zip(states(model.backbone), states(plain), strict=True))
    with torch.no_grad():
        model.backbone.get_parameter("common.adapter.layer0_v0_v1_v2.up_visual.shared.weight").fill_(0.1)
    changed = model.backbone
    assert [bool((a != b).any()) for a, b in zip(states(changed), states(plain), strict=True)] == [True, True]
    hooks = [changed.vision.blocks[i].adapter for i in range(5)]
    assert hooks[0]._banks[0] is hooks[2]._banks[0] is not hooks[3]._banks[0] is hooks[4]._banks[0]
    assert changed.text.layers[1].adapter._banks[0] is changed.decoder.layers[1].adapter._banks[0] is hooks[4]._banks[0]
    assert dict(model.plan.options)["depths"] == "spread" and "depths" not in dict(adapt(build(), UNI).plan.options)


def test_a_tower_of_another_width_cannot_share() -> None:
    backbone = build(width=48)
    with pytest.raises(PlanError, match="vision tower is 48 wide.*set petl.depths=own"):
        adapt(backbone, {**UNI, "depths": "spread"})
    with pytest.raises(ConfigError, match="did you mean 'spread'"):
        make_method({**UNI, "depths": "spred"})


def test_a_frozen_tower_beside_full_fine_tuning() -> None:
    model = adapt(build(), {"name": "full", "frozen": ["visual"]})
    trained = {n.removeprefix("backbone.") for n in model.trainable()}
    assert trained == {n for n, _ in model.backbone.named_parameters() if not n.startswith("vision.")}
    assert model.plan.num_trainable == sum(p.numel() for p in model.trainable().values())
    with pytest.raises(ConfigError, match="unknown stack 'vision' in 'petl.frozen'; did you mean 'visual'"):
        adapt(build(), {"name": "full", "frozen": ["vision"]})


def test_a_probe_of_what_writes_too() -> None:
    plain, wide = (adapt(build(), {"name": "probe", **options}) for options in ({}, {"language_head": True}))
    added = {n.removeprefix("backbone.") for n in set(wide.trainable()) - set(plain.trainable())}
    assert added == {
        "decoder.head.dense.weight",
        "decoder.head.dense.bias",
        "decoder.head.bias",
    }  # its norm is one of the norms
    assert wide.plan.fingerprint() != plain.plan.fingerprint()
