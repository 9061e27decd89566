"""Video files of episodes: which episodes there are, what their files are called, and drawing them as MP4."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter

from mtvl.data.miniworld.episode import TICK_SECONDS, Episode, episode_at
from mtvl.data.miniworld.render import render
from mtvl.data.miniworld.scene import PICTURE_PIXELS, Scene
from mtvl.errors import DataError

FPS = 4
_ENCODER = "libx264"
# No B-frames and no look-ahead: frames lie in the file in the order in which they are shown, and bytes repeat.
_OPTIONS = {"preset": "ultrafast", "crf": "18"}
# Half the chroma costs nine times what the compression does, inside an object 9 levels of a channel against 1.4, but
# hardware decoders and browsers play nothing else. Averaging loses less of small objects than the default filter.
_PIXELS, _CHROMA = "yuv420p", "AREA"
_TICKS_A_KEYFRAME = 2

SEGMENTS_A_VIDEO = 5
_CLIPS_A_SEGMENT, _SEGMENTS_AN_EPISODE = 10, 2
_SEASON = {"train": 1, "val": 2, "test": 3}
_FIRST_NUMBER = {"train": 10_000, "val": 50_000, "test": 60_000}
_FIRST_COOKED = {"train": 1, "val": 5001, "test": 6001}


@dataclass(frozen=True)
class Family:
    """A source of videos: length and events of its episodes, and what is added to the seed of their stream."""

    ticks: int
    num_events: int
    seed_offset: int = 0


FAMILIES = {"tv": Family(8, 3), "how2": Family(8, 3, 1_000_000), "yc2": Family(4, 1)}


def family_episode(seed: int, family: str, split: str, index: int) -> Episode:
    """Episode number `index` of a family's split in the miniworld of `seed`."""
    source = FAMILIES[family]
    return episode_at(seed + source.seed_offset, split, index, source.ticks, source.num_events)


def vid_name(family: str, split: str, index: int) -> str:
    """The name of a video, unique in its family over all splits, in the manner of VALUE's names."""
    return _NAMES[family](split, index)


def _tv_name(split: str, index: int) -> str:
    part, clip = divmod(index, _CLIPS_A_SEGMENT)
    episode, segment = divmod(part, _SEGMENTS_AN_EPISODE)
    return f"mini_s{_SEASON[split]:02d}e{episode + 1:02d}_seg{segment + 1:02d}_clip_{clip:02d}"


def _how2_name(split: str, index: int) -> str:
    return str(_FIRST_NUMBER[split] + index)


def _yc2_name(split: str, index: int) -> str:
    video, segment = divmod(index, SEGMENTS_A_VIDEO)
    return f"ep{_FIRST_COOKED[split] + video:04d}_{segment}"


_NAMES = {"tv": _tv_name, "how2": _how2_name, "yc2": _yc2_name}


def clip_path(root: Path, family: str, name: str) -> Path:
    """The video file of `name` below the data root."""
    return root / "videos" / family / f"{name}.mp4"


def write_clip(episode: Episode, path: Path, *, fps: int = FPS) -> None:
    """Draw `episode` as an H.264 file of 128 x 128 pixels; the file appears whole, by a rename.

    Frame i is shown from i / fps on and is the picture at (i + 0.5) / fps seconds. The same episode gives the same
    bytes as long as the encoder stays the same. Raises DataError when PyAV has no H.264 encoder.
    """
    if _ENCODER not in av.codecs_available:
        raise DataError(
            f"expected PyAV with the encoder {_ENCODER}, found one without; `pip install av` has it", file=path
        )
    part = path.with_name(f".{path.name}.part")
    try:
        _encode(episode, part, fps)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _encode(episode: Episode, path: Path, fps: int) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # Any: add_stream is typed by codec names, and differently in each PyAV.
        stream: Any = container.add_stream(_ENCODER, rate=fps, options=dict(_OPTIONS))
        context = stream.codec_context
        context.width = context.height = PICTURE_PIXELS
        context.pix_fmt = _PIXELS
        context.gop_size = round(fps * TICK_SECONDS * _TICKS_A_KEYFRAME)
        context.thread_count = 1  # slices of several threads change the bytes
        for number, frame in enumerate(_frames(episode, fps)):
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _frames(episode: Episode, fps: int) -> Iterator[av.VideoFrame]:
    """All frames in order; equal neighbours are one object."""
    reformatter = VideoReformatter()  # keeps its tables from frame to frame
    shown: Scene | None = None
    frame: av.VideoFrame | None = None
    for number in range(round(episode.seconds * fps)):
        scene = episode.scene_at((number + 0.5) / fps)
        if frame is None or scene != shown:
            picture = av.VideoFrame.from_image(render(scene))
            frame = reformatter.reformat(picture, format=_PIXELS, interpolation=_CHROMA)
            shown = scene
        yield frame
