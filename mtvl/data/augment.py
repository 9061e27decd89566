"""Random changes of training pictures: crops, mirror images, and a few operations on colours and shape.

*Source:* BLIP's training transform: a random resized crop (bicubic), a mirror image, and two of ten operations at strength 5
of 10, each in half of the cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from random import Random

from PIL import Image, ImageEnhance, ImageOps

from mtvl.data.schedule import stable_bits
from mtvl.types import Example

Change = Callable[[Image.Image], Image.Image]
Operation = Callable[[Image.Image, float], Image.Image]

SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)
ATTEMPTS = 10  # at a crop that lies inside the picture
ASPECTS = (3 / 4, 4 / 3)
CHANCE = 0.5  # of a drawn operation to be carried out
GREY = (128, 128, 128)  # what comes in from outside
MOST = 10  # magnitude at which an operation is strongest
MOST_DEGREES, MOST_SHEAR, MOST_PIXELS = 30.0, 0.3, 10.0
LEAST_FACTOR, FACTOR_RANGE = 0.1, 1.8  # of brightness and sharpness


def _identity(picture: Image.Image, _strength: float) -> Image.Image:
    return picture


def _autocontrast(picture: Image.Image, _strength: float) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalise(picture: Image.Image, _strength: float) -> Image.Image:
    return ImageOps.equalize(picture)


def _brightness(picture: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(abs(strength) * FACTOR_RANGE + LEAST_FACTOR)


def _sharpness(picture: Image.Image, strength: float) -> Image.Image:
    return ImageEnhance.Sharpness(picture).enhance(abs(strength) * FACTOR_RANGE + LEAST_FACTOR)


def _affine(picture: Image.Image, *rows: float) -> Image.Image:
    """`rows`: a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f, from the result back to the picture."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR, fillcolor=GREY
    )  # fmt: skip


def _shear_x(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, strength * MOST_SHEAR, 0, 0, 1, 0)


def _shear_y(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, strength * MOST_SHEAR, 1, 0)


def _translate_x(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0, strength * MOST_PIXELS, 0, 1, 0)


def _translate_y(picture: Image.Image, strength: float) -> Image.Image:
    return _affine(picture, 1, 0, 0, 0, 1, strength * MOST_PIXELS)


def _rotate(picture: Image.Image, strength: float) -> Image.Image:
    return picture.rotate(strength * MOST_DEGREES, Image.Resampling.BILINEAR, fillcolor=GREY)


# Each takes a strength in -1..1; those without a direction its size alone. The order is a part of what a seed means.
OPERATIONS: Mapping[str, Operation] = {
    "identity": _identity, "autocontrast": _autocontrast, "brightness": _brightness, "sharpness": _sharpness,
    "equalise": _equalise, "shear_x": _shear_x, "shear_y": _shear_y, "translate_x": _translate_x,
    "translate_y": _translate_y, "rotate": _rotate,
}  # fmt: skip


class Augmenter:
    """Changes of the training pictures of examples, each a pure function of (seed, task, uid, number, epoch).

    `side`: pixels along an edge of what comes out. `least_area`: smallest share of a picture that a crop keeps (1: no
    crop). `flip`: chance of a mirror image; none is made of pictures whose texts or answers speak of left or right.
    `operations` are drawn from `OPERATIONS`, at `magnitude` of 10.

    *Source:* BLIP, with PIL in place of OpenCV, and other than there no mirror images where sides are spoken of.
    """

    def __init__(
        self, side: int, seed: int, *, least_area: float = 1.0, flip: float = 0.0, operations: int = 0, magnitude: int = 5
    ) -> None:  # fmt: skip
        self.side, self.seed, self.least_area, self.flip = side, seed, least_area, flip
        self.operations, self.magnitude = operations, magnitude

    def change(self, example: Example, number: int, epoch: int) -> Change:
        """What is done with picture `number` of a row, or with every frame of its video, in `epoch`: (side, side) comes out."""
        bits = stable_bits(self.seed, "augment", example.task, example.uid, number, epoch)
        texts = (*(s.text for s in example.segments), *(t.text for t in example.targets))
        return partial(self._changed, bits=bits, may_flip=not any(SIDES.search(text) for text in texts))

    def _changed(self, picture: Image.Image, bits: int, may_flip: bool) -> Image.Image:
        """The frames of a video are of one size, so equal `bits` crop all of them alike."""
        draw = Random(bits)
        picture = picture.convert("RGB")
        box = _crop(picture.size, self.least_area, draw) if self.least_area < 1 else (0, 0, *picture.size)
        picture = picture.resize((self.side, self.side), Image.Resampling.BICUBIC, box)
        is_flipped = draw.random() < self.flip
        if is_flipped and may_flip:
            picture = ImageOps.mirror(picture)
        for name in [draw.choice(tuple(OPERATIONS)) for _ in range(self.operations)]:
            strength = self.magnitude / MOST * draw.choice((-1, 1))
            if draw.random() < CHANCE:
                picture = OPERATIONS[name](picture, strength)
        return picture


def _crop(size: tuple[int, int], least_area: float, draw: Random) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a random part of a picture (width, height).

    *Source:* torchvision's RandomResizedCrop: area and the logarithm of the aspect are uniform; after ten misses the middle.
    """
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * draw.uniform(least_area, 1.0)
        aspect = math.exp(draw.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    aspect = min(max(width / height, ASPECTS[0]), ASPECTS[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
