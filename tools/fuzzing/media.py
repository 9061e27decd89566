"""Pictures and videos, sound and broken, as bytes."""

from __future__ import annotations

import io
import random
import struct
import wave
import zlib
from functools import cache

import av
import numpy as np
from PIL import Image

SIZE = (12, 8)


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@cache
def picture(kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A sound picture."""
    pixels = np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.uint8).reshape(SIZE[1], SIZE[0], 3)
    return _saved(Image.fromarray(pixels).convert(mode), kind)


@cache
def animation(kind: str) -> bytes:
    """Three pictures in one file."""
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "green", "blue")]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim width x height pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@cache
def video(kind: str = "mp4", codec: str = "mpeg4", frames: int = 8, last_pts: int = 0) -> bytes:
    """A sound video at five frames a second; `last_pts` is when its last frame begins, in frames."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=5)
        track.width, track.height, track.pix_fmt = 32, 16, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 20 * number % 256, np.uint8), format="rgb24")
            frame.pts = last_pts if last_pts and number == frames - 1 else number
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


@cache
def sound() -> bytes:
    """A second of silence, no picture."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return stream.getvalue()


def cut(data: bytes, chance: random.Random) -> bytes:
    """The first part, without at least a third."""
    return data[: chance.randint(1, max(1, 2 * len(data) // 3))]


def flipped(data: bytes, chance: random.Random) -> bytes:
    """With one to twenty bytes changed."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 20)):
        changed[chance.randrange(len(changed))] ^= chance.randint(1, 255)
    return bytes(changed)


def noise(chance: random.Random) -> bytes:
    """Bytes that mean nothing."""
    return bytes(chance.randrange(256) for _ in range(chance.randint(1, 300)))
