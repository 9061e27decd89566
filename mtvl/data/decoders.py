"""Pictures at given instants of a video file, by PyAV, decord or torchcodec, and all three show the same frames.

One frame table, read from the packets without decoding, says which frame is on the screen at an instant; a decoder only
turns frame numbers into pixels. decord alone would not do: its index is wrong for AVI, edit lists, open groups of
pictures and MPEG-4 with B-frames, and its `get_batch` can spin for ever on files that end early.
"""

from __future__ import annotations

import functools
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image

from mtvl.data.media import MAX_PIXELS
from mtvl.data.shards import is_member, open_member
from mtvl.errors import ConfigError, DataError, near_names

DECODERS = ("torchcodec", "decord", "pyav")  # in the order in which "auto" takes them
VARIABLE = "MTVL_VIDEO_DECODER"
# FFmpeg goes by content: a playlist or a session description that is called clip.mp4 would open other files, or the net.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_OPTIONS = {"format_whitelist": CONTAINERS}
# Measured: ticks of AVI are guesses; streams for broadcasting have no index, and a seek lands behind its key frame.
_SEEKS_WRONGLY = ("avi", "mpegts", "mpeg")
_MISSING_SECONDS = 1.0  # a container that ends this much before its stated length was cut off
_TIE_SECONDS = 1e-6  # a frame that begins at the instant itself is shown
_AGREE_SECONDS = 2e-3  # decord keeps time as float32 and some containers in milliseconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameTable:
    """When every frame of a video is shown; frames in order of display.

    times       (L,) seconds from the first frame
    pts         (L,) the same in the container's ticks
    key_pts     ticks of the frames at which decoding can begin, ascending
    is_seekable False where the ticks cannot be trusted: such a file is decoded from its beginning
    seconds     from the first frame to the end of the last one
    """

    times: np.ndarray
    pts: np.ndarray
    key_pts: np.ndarray
    is_seekable: bool
    seconds: float

    def shown_at(self, instants: Sequence[float]) -> list[int]:
        """Numbers of the frames on the screen at `instants`: the last that has begun, within the video's ends."""
        found = np.searchsorted(self.times, np.asarray(instants) + _TIE_SECONDS, side="right") - 1
        return [int(i) for i in found.clip(min=0)]

    def key_numbers(self) -> list[int]:
        """Numbers of the frames at which decoding can begin."""
        return [int(i) for i in np.searchsorted(self.pts, self.key_pts)]


def read_table(path: str) -> FrameTable:
    """The frame table of a video file, from its packets; DataError when it is missing, damaged, cut off or no video."""
    return _read_table(path, _source(path))


def _source(path: str) -> str | bytes:
    """What is decoded: the file itself, or the bytes of a member of a shard."""
    if is_member(path):
        return open_member(path)
    _check_file(path)
    return path


def _openable(source: str | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _read_table(path: str, source: str | bytes) -> FrameTable:
    try:
        with av.open(_openable(source), options=_OPTIONS) as container:
            return _table_of(container, path)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from None


def damaged(path: str, reason: str) -> DataError:
    """The error for a file that cannot be decoded."""
    line = " ".join(reason.split()) or "no reason given"
    return DataError(f"expected a readable video, found damage ({line[:200]}); fetch the file again", file=path)


def _check_file(path: str) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"expected a video, found no such file ({error.strerror}); check `data.root`",
                        file=path) from None  # fmt: skip
    if size == 0:
        raise damaged(path, "the file is empty")


def _table_of(container: Any, path: str) -> FrameTable:
    stream = video_stream(container, path)
    if stream.codec_context is None:
        raise damaged(path, "its video is of a kind that FFmpeg does not know")
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > MAX_PIXELS:
        raise DataError(f"expected at most {MAX_PIXELS} pixels a frame, found {pixels}; make the video smaller",
                        file=path)  # fmt: skip
    rows, count, end_of_file = [], 0, 0.0
    for packet in container.demux():
        tick = packet.dts if packet.pts is None else packet.pts
        if not packet.size or tick is None:
            continue  # the flush packet of a stream, or one without any time
        length = packet.duration or 0
        end_of_file = max(end_of_file, float((tick + length) * packet.time_base))
        if packet.stream.index == stream.index:
            count += 1
            rows.append((tick, length, packet.is_keyframe, packet.pts is not None, packet.is_discard))
    _check_complete(container, stream, count, end_of_file, path)
    shown = sorted(row for row in rows if not row[4])  # what an edit list skips is decoded, never shown
    if not shown:
        raise DataError("expected a video, found a file without a single frame; fetch the file again", file=path)
    pts = np.array([row[0] for row in shown], dtype=np.int64)
    length = shown[-1][1] or (int(np.median(np.diff(pts))) if len(pts) > 1 else 0)
    trusted = (
        all(row[3] for row in rows) and bool((np.diff(pts) > 0).all()) and container.format.name not in _SEEKS_WRONGLY
    )
    tick_seconds = float(stream.time_base)
    return FrameTable(
        times=(pts - pts[0]) * tick_seconds,
        pts=pts,
        key_pts=np.array(sorted(row[0] for row in rows if row[2]), dtype=np.int64),
        is_seekable=trusted,
        seconds=float(pts[-1] + length - pts[0]) * tick_seconds,
    )


def video_stream(container: Any, path: str) -> Any:
    """The stream of moving pictures; DataError when there is sound alone (the cover picture of a song is no video)."""
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or "nothing"
        raise DataError(f"expected a video, found a file of {kinds} alone; fetch the file again", file=path)
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def _check_complete(container: Any, stream: Any, count: int, end: float, path: str) -> None:
    """DataError where the container names more frames or more seconds than the file still holds."""
    named = stream.frames
    lost = count < named if "mp4" in container.format.name else count < 0.9 * named  # elsewhere a mere estimate
    start = (container.start_time or 0) / av.time_base
    stated = start + container.duration / av.time_base if container.duration else end
    if lost:
        raise damaged(path, f"cut off: {count} of {named} frames are there")
    if count and stated - end > _MISSING_SECONDS:
        raise damaged(path, f"cut off: ends at {end:.1f} s of {stated:.1f} s")


class Reader:
    """A video file or a member of a shard, opened by the process that reads it; subclasses make pixels of its frames."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._source = _source(path)
        self.table = _read_table(path, self._source)

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.table.seconds

    def frames_at(self, instants: Sequence[float]) -> Iterator[Image.Image]:
        """The RGB pictures, upright, on the screen at `instants` (seconds, ascending); DataError where one is damaged."""
        numbers = self.table.shown_at(instants)
        if numbers != sorted(numbers):
            raise ValueError("instants must ascend")
        pictures = self._pixels(sorted(set(numbers)))
        before, picture = -1, None
        for number in numbers:
            if number != before:
                before, picture = number, Image.fromarray(next(pictures))
            assert picture is not None
            yield picture.copy()

    def _pixels(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 of each frame number; the numbers ascend."""
        raise NotImplementedError


class PyAVReader(Reader):
    """FFmpeg as bundled with PyAV: goes to the key frame before a wanted frame and decodes up to it."""

    def _pixels(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        try:
            with av.open(_openable(self._source), options=_OPTIONS) as container:
                stream = video_stream(container, self.path)
                stream.thread_type = "SLICE"  # FRAME and AUTO threads can deadlock in worker processes
                stream.codec_context.thread_count = 1
                walk = self._by_tick if self.table.is_seekable else self._by_count
                for frame in walk(container, stream, numbers):
                    pixels = frame.to_ndarray(format="rgb24")
                    yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
        except av.error.FFmpegError as error:
            raise damaged(self.path, str(error)) from None

    def _by_tick(self, container: Any, stream: Any, numbers: Sequence[int]) -> Iterator[Any]:
        keys, frames, reached = self.table.key_pts, None, -1
        for number in numbers:
            wanted = int(self.table.pts[number])
            place = int(np.searchsorted(keys, wanted, side="right")) - 1
            if frames is None or (place >= 0 and keys[place] > reached):
                if place > 0:
                    container.seek(int(keys[place]), stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                reached = frame.pts
                if reached >= wanted:
                    break
            if reached != wanted or frame.is_corrupt:
                raise damaged(self.path, f"frame {number} of {len(self.table.pts)} cannot be decoded")
            yield frame

    def _by_count(self, container: Any, stream: Any, numbers: Sequence[int]) -> Iterator[Any]:
        wanted = set(numbers)
        found = 0
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found += 1
                if frame.is_corrupt:
                    raise damaged(self.path, f"frame {number} of {len(self.table.pts)} cannot be decoded")
                yield frame
            if found == len(wanted):
                return
        raise damaged(self.path, f"only {number + 1} of {len(self.table.pts)} frames can be decoded")


class DecordReader(Reader):
    """decord, frame by frame: by its own index where that agrees with the frame table, else from the beginning."""

    def _pixels(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        import decord  # slow import; and never before a fork

        decord.logging.set_level(decord.logging.QUIET)  # it writes to stderr what it raises as well
        try:
            reader = decord.VideoReader(_openable(self._source), num_threads=1)
            is_indexed = self._agrees(reader)
            position = 0
            for number in numbers:
                if is_indexed:
                    yield reader[number].asnumpy()
                    continue
                while position < number:
                    reader.next()
                    position += 1
                position += 1
                yield reader.next().asnumpy()
        except (decord.DECORDError, RuntimeError, StopIteration) as error:
            raise damaged(self.path, f"decord: {error}") from None

    def _agrees(self, reader: Any) -> bool:
        """Whether decord counts and dates the frames as the table does; where it does not, it seeks wrongly."""
        table = self.table
        if not table.is_seekable or len(reader) != len(table.pts):
            return False
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        close = bool(np.allclose(starts - starts[0], table.times, rtol=1e-6, atol=_AGREE_SECONDS))
        return close and list(reader.get_key_indices()) == table.key_numbers()


class TorchCodecReader(PyAVReader):
    """torchcodec with the system's FFmpeg, one thread; PyAV where the ticks cannot be trusted, for torchcodec seeks."""

    def _pixels(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not self.table.is_seekable:  # measured: wrong frames of AVI with B-frames
            _log.info("%s is read by pyav: torchcodec cannot date its frames", self.path)
            yield from super()._pixels(numbers)
            return
        from torchcodec.decoders import VideoDecoder  # optional; loads FFmpeg

        try:
            decoder = VideoDecoder(self._source, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            if len(decoder) != len(self.table.pts):
                raise damaged(self.path, f"torchcodec counts {len(decoder)} frames, the container {len(self.table.pts)}"
                              f"; {VARIABLE}=pyav may read it")  # fmt: skip
            for number in numbers:
                yield decoder.get_frame_at(number).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise damaged(self.path, f"torchcodec: {error}") from None


def open_video(path: str, decoder: str = "auto") -> Reader:
    """A reader of the video file `path`; see `video_decoder` for `decoder`. DataError as `read_table`."""
    return _READERS[video_decoder(decoder)](path)


_READERS = {"torchcodec": TorchCodecReader, "decord": DecordReader, "pyav": PyAVReader}


def video_decoder(name: str = "auto") -> str:
    """The decoder that `name` means here.

    "auto" is what the environment variable MTVL_VIDEO_DECODER names, else the first of DECODERS that works on this
    machine. ConfigError for an unknown name, or for a named decoder that does not work here.
    """
    name = os.environ.get(VARIABLE, "") or "auto" if name in ("", "auto") else name
    if name == "auto":
        return _first_usable()
    if name not in DECODERS:
        raise ConfigError(f"unknown video decoder {name!r}; {near_names(name, (*DECODERS, 'auto'))}")
    if reason := unusable(name):
        raise ConfigError(
            f"the video decoder {name!r} does not work here: {reason}; leave 'data.video_decoder' at auto"
        )
    return name


@functools.cache
def _first_usable() -> str:
    for name in DECODERS:
        reason = unusable(name)
        if not reason:
            return name
        _log.info("videos are not decoded by %s: %s", name, reason)
    raise ConfigError(f"no video decoder works here; install one of {', '.join(DECODERS)}")


@functools.cache
def unusable(name: str) -> str:
    """Why the decoder `name` does not work on this machine; "" when it does."""
    try:
        if name == "torchcodec":
            from torchcodec.decoders import VideoDecoder

            # Its import succeeds without FFmpeg; a decoder says whether the libraries load before it looks at the data.
            VideoDecoder(b"no video")
        elif name == "decord":
            import decord  # noqa: F401
    except (ImportError, OSError) as error:
        return f"cannot be imported ({error})"
    except (RuntimeError, ValueError) as error:
        if "Could not load libtorchcodec" in str(error):
            return "its FFmpeg libraries cannot be loaded (install FFmpeg)"
    return ""  # any other complaint is about the data
