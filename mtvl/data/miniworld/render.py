"""Drawing of scenes with PIL. Every sprite is drawn once, enlarged and reduced, so that small textures stay visible."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mtvl.data.miniworld.scene import CELL_PIXELS, NUM_RAMPS, PICTURE_PIXELS, Scene

RGB = {
    "red": (222, 38, 38), "yellow": (246, 205, 20), "green": (38, 160, 62), "cyan": (64, 205, 222),
    "blue": (36, 78, 214), "purple": (158, 52, 190), "brown": (132, 80, 36), "black": (28, 28, 30),
}  # fmt: skip
_DARK = ("red", "green", "blue", "purple", "brown", "black")  # colours that carry light marks
_LIGHT_MARK, _DARK_MARK = (250, 250, 250), (70, 60, 30)
_SIDE = {"small": 17, "large": 28}
_ENLARGE = 4
_RIM = {"small": 3, "large": 5}  # enlarged pixels
_DOT_PERIOD = {"small": 4.6, "large": 5.6}


def render(scene: Scene) -> Image.Image:
    """Draw `scene` as a 128 x 128 RGB picture."""
    picture = _background(scene.light, scene.shade, scene.ramp).copy()
    for thing in scene.objects:
        sprite = _sprite(thing.colour, thing.shape, thing.size, thing.texture)
        left = thing.col * CELL_PIXELS + (CELL_PIXELS - sprite.width) // 2 + thing.dx
        top = thing.row * CELL_PIXELS + (CELL_PIXELS - sprite.height) // 2 + thing.dy
        picture.paste(sprite, (left, top), sprite)
    return picture


@functools.lru_cache(maxsize=4)  # the frames of a video share one
def _background(light: tuple[int, int, int], shade: tuple[int, int, int], ramp: int) -> Image.Image:
    low, high = np.array(light, dtype=np.float32), np.array(shade, dtype=np.float32)
    steps = np.arange(256, dtype=np.float32)[:, None] / 255.0
    table = np.rint(low + (high - low) * steps).astype(np.uint8)
    return Image.fromarray(table[_ramp(ramp)])


@functools.cache
def _ramp(direction: int) -> np.ndarray:
    """(128, 128) uint8 from 0 to 255 along one of NUM_RAMPS directions."""
    angle = 2 * math.pi * direction / NUM_RAMPS
    y, x = np.mgrid[0:PICTURE_PIXELS, 0:PICTURE_PIXELS]
    height = x * math.cos(angle) + y * math.sin(angle)
    height = (height - height.min()) / (height.max() - height.min())
    return np.rint(height * 255).astype(np.uint8)


@functools.cache
def _sprite(colour: str, shape: str, size: str, texture: str) -> Image.Image:
    """One object on a transparent ground."""
    large = _SIDE[size] * _ENLARGE
    mask = Image.new("L", (large, large), 0)
    ImageDraw.Draw(mask).polygon([(x * (large - 1), y * (large - 1)) for x, y in _outline(shape)], fill=255)
    body = Image.new("RGB", (large, large), RGB[colour])
    if texture != "plain":
        marks = Image.new("L", (large, large), 0)
        if texture == "striped":
            _stripes(ImageDraw.Draw(marks), large)
        else:
            _dots(ImageDraw.Draw(marks), large, _DOT_PERIOD[size] * _ENLARGE)
        # A rim in the object's own colour: without it a small striped star falls to pieces.
        inside = ImageChops.darker(marks, mask.filter(ImageFilter.MinFilter(2 * _RIM[size] + 1)))
        body.paste(_LIGHT_MARK if colour in _DARK else _DARK_MARK, (0, 0), inside)
    sprite = body.convert("RGBA")
    sprite.putalpha(mask)
    # Reducing in premultiplied form keeps the hidden corners of the body from bleeding into the edge.
    return sprite.convert("RGBa").reduce(_ENLARGE).convert("RGBA")


def _stripes(draw: ImageDraw.ImageDraw, large: int) -> None:
    period, width = 5 * _ENLARGE, round(2.2 * _ENLARGE)
    middle = (large - width) // 2
    for start in range(middle % period - period, large, period):
        draw.rectangle([0, start, large, start + width - 1], fill=255)


def _dots(draw: ImageDraw.ImageDraw, large: int, period: float) -> None:
    radius = 0.27 * period
    reach = int(large / period / 2) + 1
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            x, y = large / 2 + i * period, large / 2 + j * period
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)


@functools.cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape in the unit square."""
    if shape == "square":
        return ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94))
    if shape == "triangle":
        return ((0.5, 0.02), (1.0, 0.95), (0.0, 0.95))
    if shape == "cross":
        a, b = 0.32, 0.68
        return ((a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a))
    if shape == "star":
        radii = (0.52, 0.22)
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        return tuple(
            (0.5 + radii[i % 2] * math.cos(t), 0.53 + radii[i % 2] * math.sin(t)) for i, t in enumerate(angles)
        )
    turns = [2 * math.pi * i / 64 for i in range(64)]
    if shape == "circle":
        return tuple((0.5 + 0.49 * math.cos(t), 0.5 + 0.49 * math.sin(t)) for t in turns)
    if shape == "heart":
        xs = [16 * math.sin(t) ** 3 for t in turns]
        ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
        return tuple((0.5 + x / 33, 0.46 - y / 30) for x, y in zip(xs, ys, strict=True))
    raise ValueError(f"no outline for shape {shape!r}")
