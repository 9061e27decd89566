"""Pictures from disk as RGB, whatever their mode, or a DataError that names the file."""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from mtvl.data.shards import as_file
from mtvl.errors import DataError

MAX_PIXELS = 89_000_000  # ten times a large photograph; above it a small file can fill the memory
# Read by what they are, whatever they are called. PIL knows more, and hands some (EPS) to programs of the machine.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
# RuntimeError is what the decoder of AVIF raises.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, RuntimeError, struct.error, zlib.error)


def open_image(path: str) -> Image.Image:
    """Open a picture file, or a picture inside a shard, as RGB, upright.

    EXIF rotation is applied, transparent parts are laid over white, 16-bit grey is scaled to 8 bits, CMYK and palettes
    are converted, and of an animation the first frame is taken. Raises DataError for a file that is missing, empty,
    truncated, no picture of one of `FORMATS`, or larger than `MAX_PIXELS`.
    """
    try:
        with Image.open(as_file(path), formats=_known_formats()) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels")
            picture.seek(0)
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture), path)
    except FileNotFoundError:
        raise DataError("expected a picture, found no such file; check `data.root`", file=path) from None
    except IsADirectoryError:
        raise DataError("expected a picture, found a folder", file=path) from None
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error)) from None
    except _DAMAGE as error:
        raise DataError(
            f"expected a readable picture, found damage ({error}); fetch the file again", file=path
        ) from None


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this PIL was built with; it refuses to be asked for others."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _too_large(path: str, found: str) -> DataError:
    return DataError(f"expected at most {MAX_PIXELS} pixels, found {found}; make the picture smaller", file=path)


def _to_rgb(picture: Image.Image, path: str) -> Image.Image:
    if picture.mode == "RGB":
        return picture.copy()
    if picture.mode.startswith("I"):
        # PIL's own conversion clips at 255, which turns a 16-bit picture white.
        values = np.asarray(picture).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise DataError("expected at most 16 bits a channel, found more; convert the picture to 8 bits", file=path)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise DataError("expected whole-number pixels, found floats; convert the picture to 8 bits", file=path)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
