"""What BLIP makes of a batch: words or none, pictures in order, frames that are padded, prompts that begin an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mtvl.backbones.blip import BlipBackbone
from mtvl.backbones.blip.backbone import Memory, order_code
from mtvl.errors import ConfigError
from mtvl.model import make_backbone
from mtvl.types import Batch, Decoding

SIDE, FRAMES = 16, 3
EXACT = 1e-12  # float64 logits up to 8 in size


@pytest.fixture
def build(tiny_backbones: dict[str, Any]) -> Callable[..., BlipBackbone]:
    def make(kind: str = "joint", **options: Any) -> BlipBackbone:
        section = {**tiny_backbones["blip"].section, "kind": kind, "embed_dim": 12, "frames": FRAMES, **options}
        return make_backbone(section).double().eval()

    return make


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Two rows with words, in float64."""
    found = make_batch(rows=2, backbone="blip")
    return replace(found, features=found.features.double())


def without_words(batch: Batch, row: int) -> Batch:
    mask = batch.source_mask.clone()
    mask[row, 2:] = False
    return replace(batch, source_mask=mask)


def video(batch: Batch, counts: tuple[int, ...], seed: int = 0) -> Batch:
    """The batch with a video of so many frames in each row, padded to the longest."""
    pixels = torch.randn(2, 1, FRAMES * SIDE**2, 3, generator=torch.Generator().manual_seed(seed)).double()
    there = torch.arange(FRAMES)[None] < torch.tensor(counts)[:, None]
    mask = there.repeat_interleave(SIDE**2, 1)[:, None]
    return replace(batch, features=pixels * mask[..., None], feature_mask=mask, feature_kind="frame")


@torch.no_grad()
def logits(model: BlipBackbone, batch: Batch) -> torch.Tensor:
    return model.decode(model.encode(batch), batch.target_ids)


def one_row(batch: Batch, row: int) -> Batch:
    tensors = {k: v[row : row + 1] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, uids=batch.uids[row : row + 1], **tensors)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def test_a_row_without_words_is_decoded_from_its_picture(build: Callable[..., Any], batch: Batch) -> None:
    """Beside a row with words, and alone; then the decoder reads the image tokens themselves."""
    model = build()
    mixed = without_words(batch, 1)
    with torch.no_grad():
        memory = model.encode(mixed)
        tokens = model.see(model.pixels(mixed)[0])[:, 0]
        alone = model.encode(one_row(mixed, 1))
    words, cells = batch.source_ids.shape[1], tokens.shape[1]
    assert memory.hidden.shape[1] == words + cells
    assert memory.mask.sum(1).tolist() == [int(batch.source_mask[0].sum()), cells]
    assert torch.equal(alone.hidden, tokens[1:]) or difference(alone.hidden, tokens[1:]) < EXACT
    found = logits(model, mixed)
    for row in range(2):
        assert difference(found[row], logits(model, one_row(mixed, row))[0]) < EXACT
    blind = replace(mixed, features=mixed.features.flip(0))
    assert difference(found[1], logits(model, blind)[1]) > 1e-3


def test_missing_frames_are_not_seen(build: Callable[..., Any], batch: Batch) -> None:
    model, mixed = build(), without_words(batch, 1)
    padded = video(mixed, (3, 2))
    noise = replace(padded, features=padded.features + ~padded.feature_mask[..., None] * 5.0)
    assert difference(logits(model, padded), logits(model, noise)) < EXACT
    seen = replace(padded, features=padded.features + padded.feature_mask[..., None] * 0.5)
    assert difference(logits(model, padded), logits(model, seen)) > 1e-3


def test_frames_have_an_order_where_that_is_asked_for(build: Callable[..., Any], batch: Batch) -> None:
    whole = video(batch, (3, 3))
    turned = replace(whole, features=whole.features.view(2, FRAMES, SIDE**2, 3).flip(1).reshape(whole.features.shape))
    assert difference(logits(build(), whole), logits(build(), turned)) < EXACT
    model = build(frame_order=0.5)
    assert difference(logits(model, whole), logits(model, turned)) > 1e-3
    code = order_code(4, 7, torch.device("cpu"))
    assert code.shape == (4, 7) and not bool(code[0].any()) and len({tuple(row.tolist()) for row in code}) == 4


def test_short_videos_have_their_frames_several_times(build: Callable[..., Any], batch: Batch) -> None:
    """For contrast and matching, where none may be missing."""
    short = video(batch, (3, 2))
    pixels, _ = build().pixels(short)
    found = build().every_frame(short)
    assert torch.equal(found[0], pixels[0]) and torch.equal(found[1], pixels[1, [0, 0, 1]])


def test_a_prompt_begins_every_caption(build: Callable[..., Any], batch: Batch) -> None:
    """The kind whose decoder reads image tokens: as if the prompt were the target's first words, and not in the answer."""
    model = build("caption")
    prompted = replace(
        batch, source_ids=torch.tensor([[2, 7, 8, 3]] * 2), source_mask=torch.ones(2, 4, dtype=torch.bool)
    )
    bare = replace(prompted, source_ids=torch.tensor([[2, 3]] * 2), source_mask=torch.ones(2, 2, dtype=torch.bool))
    longer = torch.cat([torch.tensor([[7, 8]] * 2), batch.target_ids], 1)
    with torch.no_grad():
        memory = model.encode(prompted)
        assert memory.prefix == (7, 8)
        assert (
            difference(model.decode(memory, batch.target_ids), model.decode(model.encode(bare), longer)[:, 2:]) < EXACT
        )
        ids, _ = model.generate(memory, Decoding(num_beams=3, max_tokens=9))
        forced = model.decode(memory, ids[:, 1:])
    assert ids.shape[1] <= 7 and ids[:, 0].tolist() == [58, 58] and forced.shape[1] == ids.shape[1] - 1
    with pytest.raises(ConfigError, match="behind one prompt"):
        model.encode(batch)
    with pytest.raises(ConfigError, match="different prompts"):
        Memory.join([memory, model.encode(bare)])


def test_features_that_are_no_pixels_are_refused(build: Callable[..., Any], batch: Batch) -> None:
    for shape in ((2, 1, 49, 2048), (2, 1, 300, 3)):
        wrong = replace(batch, features=torch.zeros(shape), feature_mask=torch.ones(shape[:3], dtype=torch.bool))
        with pytest.raises(ConfigError, match="reads the pixels of pictures of 16 x 16"):
            build().encode(wrong)
    with pytest.raises(ConfigError, match="none can be computed ahead"):
        build().tower("grid")
    with pytest.raises(ConfigError, match="did you mean 'frame'"):
        _ = build(visual=["frames"]).widths
