"""Frames as visual tokens: projections by kind, padding that changes nothing, what a model without them says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import ClipBartConfig
from mtvl.config import parse_section
from mtvl.errors import ConfigError
from mtvl.types import Batch

FRAMES, WIDTH = 6, 64


def build(tiny_backbones, **options) -> ClipBart:
    config = parse_section(ClipBartConfig, tiny_backbones["clip_bart"].section)
    return ClipBart.build(dataclasses.replace(config, dropout=0.0, frame_tower="tiny", **options)).eval()


@pytest.fixture(scope="module")
def backbone(tiny_backbones) -> ClipBart:
    return build(tiny_backbones, visual=("grid", "frame"))


def video_batch(frames: int, padding: int, rows: int = 2) -> Batch:
    random = torch.Generator().manual_seed(1)
    source = torch.randint(5, 30, (rows, 4), generator=random)
    given = torch.randn(rows, 1, frames, WIDTH, generator=random)
    features = torch.cat([given, torch.full((rows, 1, padding, WIDTH), 7.0)], dim=2)
    mask = (torch.arange(frames + padding) < frames).expand(rows, 1, -1)
    target = torch.randint(5, 30, (rows, 3), generator=random)
    return Batch("t", ("a", "b"), source, source > 0, features, target, torch.ones(rows), feature_kind="frame",
                 feature_mask=mask)  # fmt: skip


@torch.no_grad()
def test_padded_frames_change_nothing(backbone) -> None:
    plain, padded = video_batch(FRAMES, 0), video_batch(FRAMES, 5)
    first, second = backbone.encode(plain), backbone.encode(padded)
    assert second.hidden.shape[1] == first.hidden.shape[1] + 5 and second.mask.sum() == first.mask.sum()
    torch.testing.assert_close(second.hidden[:, : first.hidden.shape[1]], first.hidden, atol=1e-5, rtol=0)
    expected, found = backbone.decode(first, plain.target_ids), backbone.decode(second, plain.target_ids)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    padded.feature_mask = torch.ones_like(padded.feature_mask)
    seen = backbone.decode(backbone.encode(padded), plain.target_ids)
    assert not torch.allclose(seen, expected, atol=1e-3)  # the mask is what makes the difference


@torch.no_grad()
def test_frames_have_a_projection_of_their_own_and_share_the_rest(backbone) -> None:
    names = {n for n, _ in backbone.visual.named_parameters()}
    assert {"features.grid.0.weight", "features.frame.0.weight", "position.0.weight", "image_order.weight"} <= names
    batch, table = video_batch(FRAMES, 0), backbone.bart.model.shared.weight
    tokens = backbone.visual(batch.features, table, "frame")
    alone = backbone.visual.features["frame"](batch.features[:, 0]) + backbone.visual.position(torch.zeros(1, 5))
    expected = alone + backbone.visual.image_order.weight[0] + table[-FRAMES:].flip(0)
    torch.testing.assert_close(tokens, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="visual tokens a picture or video"):
        backbone.visual(torch.zeros(1, 1, backbone.config.num_slots + 1, WIDTH), table, "frame")


def test_a_model_of_pictures_says_that_it_cannot_read_videos(tiny_backbones) -> None:
    model = build(tiny_backbones)
    assert list(model.widths) == ["grid"]
    with pytest.raises(ConfigError, match="no projection for 'frame' features, only for grid"):
        model.encode(video_batch(FRAMES, 0))
    with pytest.raises(ConfigError, match="unknown kind 'frames' in 'backbone.visual'"):
        build(tiny_backbones, visual=("frames",))


def test_stored_features_need_no_tower(tiny_backbones) -> None:
    model = build(tiny_backbones, visual=("grid",), tower="stored")
    assert model.tower("grid") is None and model.stored_grid("grid") == (49, 2048)
    video = dataclasses.replace(model.config, visual=("frame",), frame_tower="stored", frame_width=20)
    assert ClipBart.build(video).stored_grid("frame") == (1, 20)
