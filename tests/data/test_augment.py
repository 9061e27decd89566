"""Changes of training pictures: the same for the same draw, other ones otherwise, and never where they would lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtvl.data.augment import OPERATIONS, Augmenter
from mtvl.data.collate import Collator
from mtvl.data.features import PixelSource
from mtvl.errors import ConfigError
from mtvl.types import Example, Limits, Segment, Target, Visual

SIDE = 32


def picture(width: int = 60, height: int = 40) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    red = columns * 255 // width
    return Image.fromarray(np.stack([red, rows * 255 // height, (rows * columns) % 255], 2).astype(np.uint8))


def example(uid: str = "1", text: str = "what is it?", answer: str = "a cup") -> Example:
    return Example(uid, "vqa", (Segment("question", text),), Visual(("a.png",)), (Target(answer),))


def changed(augmenter: Augmenter, row: Example, epoch: int = 0, number: int = 0) -> np.ndarray:
    return np.asarray(augmenter.change(row, number, epoch)(picture())).astype(int)


def test_a_change_is_a_function_of_seed_epoch_uid_and_number() -> None:
    strong = {"least_area": 0.5, "flip": 0.5, "operations": 2, "magnitude": 5}
    one = Augmenter(SIDE, 3, **strong)
    assert np.array_equal(changed(one, example()), changed(Augmenter(SIDE, 3, **strong), example()))
    others = [
        changed(one, example("2")), changed(one, example(), 1), changed(one, example(), 0, 1),
        changed(Augmenter(SIDE, 4, **strong), example()),
    ]  # fmt: skip
    assert not any(np.array_equal(changed(one, example()), other) for other in others)


def test_without_settings_a_picture_is_squashed_as_in_evaluation() -> None:
    plain = picture().resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    assert np.array_equal(changed(Augmenter(SIDE, 0), example()), np.asarray(plain))


def test_frames_of_one_size_are_changed_alike() -> None:
    change = Augmenter(SIDE, 0, least_area=0.3, flip=0.5, operations=2).change(example(), 0, 5)
    assert np.array_equal(np.asarray(change(picture())), np.asarray(change(picture())))


def test_crops_keep_their_share_and_cover_the_picture() -> None:
    """Red grows to the right: what is seen of it says which columns were kept."""
    seen = []
    for epoch in range(200):
        red = changed(Augmenter(SIDE, 0, least_area=0.5), example(), epoch)[..., 0]
        seen.append((red.min(), red.max()))
    widths = [high - low for low, high in seen]
    assert min(widths) > 0.45 * 255 and max(widths) <= 255 and np.std(widths) > 10
    assert min(low for low, _ in seen) < 8 and max(low for low, _ in seen) > 60
    long = np.asarray(Augmenter(SIDE, 0, least_area=1 - 1e-9).change(example(), 0, 0)(picture(400, 20)))
    assert long.shape == (SIDE, SIDE, 3)  # no crop of an allowed aspect has so much of it: the middle


@pytest.mark.parametrize(
    ("row", "may"),
    [
        (example(), True),
        (example(text="what is on the LEFT of it?"), False),
        (example(answer="rightmost"), False),
        (example(text="is it bright?"), True),
    ],
)
def test_sides_that_are_spoken_of_are_not_exchanged(row: Example, may: bool) -> None:
    red = changed(Augmenter(SIDE, 0, flip=1.0), row)[..., 0]
    assert (red[:, 0].mean() > red[:, -1].mean()) == may


def test_half_of_the_pictures_are_mirrored() -> None:
    flipped = sum(
        red[:, 0].mean() > red[:, -1].mean()
        for red in (changed(Augmenter(SIDE, 0, flip=0.5), example(str(uid)))[..., 0] for uid in range(200))
    )
    assert 75 < flipped < 125


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_do_what_they_say(name: str) -> None:
    before = picture().resize((SIDE, SIDE))
    after = OPERATIONS[name](before, 0.5)
    assert after.size == before.size and after.mode == "RGB"
    flat = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))
    grey = np.asarray(OPERATIONS[name](flat, 0.5))
    expected = {"brightness": {90}, "autocontrast": {90}, "equalise": {90}, "sharpness": {90}, "identity": {90}}
    # Shapes that are moved let grey in at the border; a factor of 0.5 * 1.8 + 0.1 is 1.
    assert set(np.unique(grey)) - expected.get(name, {90}) <= (set() if name in expected else set(range(90, 129)))
    assert name in ("identity", "brightness", "sharpness") or not np.array_equal(np.asarray(before), np.asarray(after))
    stronger = np.asarray(OPERATIONS["brightness"](flat, 1.0))
    assert set(np.unique(stronger)) == {171}  # 1.9 x 90


class Words:
    pad_id = eos_id = 0
    num_special = 0

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class Stored:
    grid = (4, 8)

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(paths), 4, 8)


def test_training_batches_alone_are_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    picture().save(file)

    def pixels(images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(i.resize((SIDE, SIDE)), np.float32)) for i in images]).permute(0, 3, 1, 2)  # fmt: skip

    augmenter = Augmenter(SIDE, 0, least_area=0.4)
    collator = Collator(Words(), PixelSource(pixels, SIDE), {"vqa": Limits()}, augment=augmenter)
    row = Example("1", "vqa", (Segment("question", "what is it"),), Visual((str(file),)), (Target("a cup"),))
    first = collator.collate("vqa", [row, row], epoch_keys=[0, 1], training=True).features
    again = collator.collate("vqa", [row, row], epoch_keys=[1, 0], training=True).features
    assert torch.equal(first, again.flip(0)) and not torch.equal(first[0], first[1])
    plain = collator.collate("vqa", [row, row], training=False).features
    assert torch.equal(plain[0], plain[1]) and not torch.equal(plain[0], first[0])
    with pytest.raises(ConfigError, match="a frozen tower computed once"):
        Collator(Words(), Stored(), {"vqa": Limits()}, augment=augmenter)
