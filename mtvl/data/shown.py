"""What a person sees of an example: its pictures, or the frames of its video that the model reads."""

from __future__ import annotations

from PIL import Image

from mtvl.data.features.store import rows_of_span
from mtvl.data.features.stored import is_stored
from mtvl.data.media import open_image
from mtvl.data.video import read_frames
from mtvl.types import Visual


def shown_pictures(visual: Visual, every: float, decoder: str = "auto") -> list[Image.Image]:
    """Pictures in order, or the frames of the video's span at a distance of `every` seconds; [] where features are stored.

    Raises DataError for a file that is missing or damaged.
    """
    if is_stored(visual.video) or any(is_stored(p) for p in visual.images):
        return []
    if not visual.video:
        return [open_image(p) for p in visual.images]
    frames = read_frames(visual.video, every, decoder)
    return frames if visual.span is None else frames[rows_of_span(visual.span, every, len(frames))]
