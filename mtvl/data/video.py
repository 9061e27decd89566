"""Videos as pictures at a fixed rate: from a file, a folder of frame pictures, or a frame strip; on disk or in a shard.

A frame strip is one wide picture of equally wide frames from left to right. Its picture alone does not tell how many
(480 x 120 is three frames of 4:3 and four square ones), so the number is never guessed: it stands in the file's name
(`clip.8x1.jpg`: eight columns, one row) or in `strips.json` beside it ({"clip": 8}, the key being the name without
suffix; {"clip": {"num_frames": 8}} is read as well), or is handed in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from mtvl.data.decoders import open_video, read_table
from mtvl.data.media import open_image
from mtvl.data.shards import frame_members, is_frames, is_member
from mtvl.errors import DataError

FRAME_SECONDS = 1.5
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
STRIPS_FILE = "strips.json"
MAX_FRAMES = 20_000  # eight hours at 1.5 s; a few bytes of a container can claim centuries


def frame_times(seconds: float, every: float = FRAME_SECONDS) -> list[float]:
    """The instants at which a video of `seconds` is sampled: the middle of every interval of `every` seconds.

    There are max(1, round(seconds / every)) of them, none beyond the end. *Source:* the rate of VALUE's frame features.
    """
    if not every > 0:
        raise ValueError(f"the distance of frames must be above 0 seconds, found {every}")
    number = max(1, round(seconds / every))
    return [min((i + 0.5) * every, seconds) for i in range(number)]


def read_frames(
    path: str, every: float = FRAME_SECONDS, decoder: str = "auto", *, frames: int | None = None
) -> list[Image.Image]:
    """All pictures of `iterate_frames` at once; a long video of high resolution takes much memory."""
    return list(iterate_frames(path, every, decoder, frames=frames))


def iterate_frames(
    path: str, every: float = FRAME_SECONDS, decoder: str = "auto", *, frames: int | None = None
) -> Iterator[Image.Image]:
    """The sampled pictures of a video (RGB, upright) in order of time, one in memory at a time.

    path        a video file (sampled at `frame_times`; the picture on the screen at that instant), a folder of frame
                pictures or a frame strip (whose pictures were taken at this rate already, and are taken as they are)
    decoder     as in `mtvl.data.decoders.video_decoder`
    frames      number of frames of a strip, when neither its name nor `strips.json` says it

    Raises DataError with file and reason for what is missing, empty, damaged, cut off, or holds no picture; ConfigError
    for a decoder that is unknown or does not work here.
    """
    kind = _kind(path)
    if kind == "folder":
        for picture in _folder_pictures(path):
            yield open_image(picture)
    elif kind == "strip":
        yield from _cut(open_image(path), _strip_count(path, frames), path)
    else:
        reader = open_video(path, decoder)
        yield from reader.frames_at(_times(path, reader.seconds, every))


def count_frames(path: str, every: float = FRAME_SECONDS, *, frames: int | None = None) -> int:
    """How many pictures `read_frames` gives, without decoding any; DataError as there."""
    kind = _kind(path)
    if kind == "folder":
        return len(_folder_pictures(path))
    if kind == "strip":
        return _strip_count(path, frames)
    return len(_times(path, read_table(path).seconds, every))


def _times(path: str, seconds: float, every: float) -> list[float]:
    """`frame_times`; DataError for more than `MAX_FRAMES`."""
    if seconds / every > MAX_FRAMES:
        raise DataError(
            f"expected a video of at most {MAX_FRAMES} frames at one every {every:g} s, found one that claims "
            f"{seconds:.0f} s; cut it, or raise 'data.frame_seconds'",
            file=path,
        )
    return frame_times(seconds, every)


def probe_seconds(path: str, every: float = FRAME_SECONDS, *, frames: int | None = None) -> float:
    """Length of a video, without decoding it: of a folder or strip `every` seconds a picture; DataError as above."""
    if _kind(path) == "file":
        return read_table(path).seconds
    return count_frames(path, every, frames=frames) * every


def _kind(path: str) -> str:
    """ "file", "folder" or "strip"; DataError for anything else."""
    if os.path.isdir(path) or is_frames(path):
        return "folder"
    suffix = Path(path).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "file"
    if suffix in PICTURE_SUFFIXES:
        return "strip"
    found = "no such file" if not (os.path.exists(path) or is_member(path)) else f"a file of kind {suffix or 'unknown'}"
    known = " ".join((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))
    raise DataError(f"expected a folder of frames or a file of {known}, found {found}; check `data.root`", file=path)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorting key under which frame9 stands before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name.lower())]


def _folder_pictures(folder: str) -> list[str]:
    if is_frames(folder):
        paths = frame_members(folder)
    else:
        paths = {name: os.path.join(folder, name) for name in os.listdir(folder)}
    names = [n for n in paths if not n.startswith(".") and os.path.splitext(n)[1].lower() in PICTURE_SUFFIXES]
    if not names:
        raise DataError(f"expected a folder of frame pictures ({' '.join(PICTURE_SUFFIXES)}), found none in it",
                        file=folder)  # fmt: skip
    return [paths[name] for name in sorted(names, key=lambda n: (natural_key(n), n))]


def _strip_count(path: str, frames: int | None) -> int:
    """Number of frames of a strip: handed in, in its name, or in `strips.json`; never guessed from its shape."""
    stem = Path(path).stem
    count: Any = frames
    if count is None and (tag := re.search(r"\.(\d+)x1$", stem)):
        count = int(tag[1])
    if count is None and not is_member(path):
        if not os.path.exists(path):
            raise DataError("expected a frame strip, found no such file; check `data.root`", file=path)
        file = Path(path).parent / STRIPS_FILE
        count = _strips(str(file), file.stat().st_mtime_ns).get(stem) if file.is_file() else None
        count = count.get("num_frames") if isinstance(count, dict) else count
    if count is None:
        raise DataError(f"expected the number of frames of this strip in its name ({stem}.8x1.jpg for eight) or in "
                        f"{STRIPS_FILE} beside it, found neither; add one of them", file=path)  # fmt: skip
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise DataError(f"expected a number of frames above 0, found {count!r}; mend {STRIPS_FILE}", file=path)
    return count


@lru_cache(maxsize=64)
def _strips(file: str, _changed: int) -> dict[str, Any]:
    try:
        counts = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected JSON with the number of frames of each strip, found damage ({error})",
                        file=file) from None  # fmt: skip
    if not isinstance(counts, dict):
        raise DataError(f"expected {{name: number of frames}}, found {type(counts).__name__}", file=file)
    return counts


def _cut(strip: Image.Image, count: int, path: str) -> Iterator[Image.Image]:
    if strip.width % count:
        raise DataError(f"expected {count} frames of equal width, found {strip.width} pixels; check the number of "
                        f"frames in the name or in {STRIPS_FILE}", file=path)  # fmt: skip
    width = strip.width // count
    for i in range(count):
        yield strip.crop((i * width, 0, (i + 1) * width, strip.height))
