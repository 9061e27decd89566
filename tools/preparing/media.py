"""Pictures and videos that one's own rows name: where they lie, whether they can be read, and what they are called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mtvl.data.formats.pictures import PICTURE_ENDINGS, STRIP_ENDINGS, VIDEO_ENDINGS, without_count
from mtvl.data.media import open_image
from mtvl.data.video import PICTURE_SUFFIXES, count_frames, iterate_frames, probe_seconds
from mtvl.errors import MtvlError
from preparing.problems import Problems

READABLE = (*PICTURE_SUFFIXES, ".gif", ".tif", ".tiff")  # what has no ending of `PICTURE_ENDINGS` is written as PNG


@dataclass(frozen=True)
class Media:
    """A picture file, or a video (a file, a strip or a folder of frames); `relative` is its path below the folder."""

    path: Path
    relative: str
    is_video: bool

    @property
    def noun(self) -> str:
        """The word for it in messages."""
        return "video" if self.is_video else "picture"

    @property
    def is_strip(self) -> bool:
        """True for a video that is one wide picture of its frames."""
        return self.is_video and self.path.suffix.lower() in STRIP_ENDINGS and self.path.is_file()

    @property
    def name(self) -> str:
        """What rows call it: with its ending, a strip without the number of frames, a folder with an ending of its own.

        A folder of frames called like a video file beside it would otherwise never be found.
        """
        if self.is_strip:
            return without_count(self.relative)
        if self.path.is_dir():
            return f"{self.relative}.frames"
        if self.is_video or self.path.suffix.lower() in PICTURE_ENDINGS:
            return self.relative
        return f"{self.relative}.png"

    def files(self) -> Iterator[tuple[str, Path]]:
        """(path below the folder of pictures or videos, file) of everything that belongs to it."""
        if self.is_strip:
            stem = self.name[: -len(self.path.suffix)]
            yield f"{stem}.{count_frames(str(self.path))}x1{self.path.suffix}", self.path
        elif self.path.is_dir():
            for frame in self._frames():
                yield f"{self.name}/{frame.name}", frame
        else:
            yield self.name, self.path

    def fault(self) -> str:
        """Why it cannot be read; "" when it can."""
        try:
            if not self.is_video:
                open_image(str(self.path))
            elif self.path.is_dir() or self.is_strip:
                for _ in iterate_frames(str(self.path)):  # a strip is cut, too: its number of frames may be wrong
                    pass
            else:
                probe_seconds(str(self.path))
        except MtvlError as error:
            return str(error)
        return ""

    def digest(self) -> str:
        """SHA-256 of the content, whatever the file is called."""
        digest = hashlib.sha256()
        for file in self._frames() if self.path.is_dir() else [self.path]:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):  # a video may be larger than the memory
                    digest.update(block)
        return digest.hexdigest()

    def _frames(self) -> list[Path]:
        names = sorted(p for p in self.path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        return [p for p in names if not p.name.startswith(".")]


def find_media(folder: Path, value: str, *, is_video: bool) -> Media:
    """The picture or video that a cell names, relative to `folder` or absolute inside it, with or without its ending.

    Raises ValueError with (kind of fault, detail) when it lies outside, is not there or may be one of several.
    """
    noun = "video" if is_video else "picture"
    if "://" in value:
        raise ValueError("address in place of a file", f"{value!r}; fetch it first")
    if "\0" in value or "\\" in value:
        raise ValueError("unsafe path", f"{value!r} (use / between folders)")
    base = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(base, value))
    if os.path.commonpath([base, path]) != base or path == base:
        raise ValueError("unsafe path", f"{value!r} leads out of {folder}; --media gives another folder")
    endings = VIDEO_ENDINGS if is_video else PICTURE_ENDINGS
    trials = [path, *(path + ending for ending in endings)]
    found = [t for t in trials if (os.path.exists(t) if is_video else os.path.isfile(t))]
    if not found:
        raise ValueError(f"missing {noun}", repr(value))
    if len(found) > 1 and found[0] != path:
        raise ValueError(f"{noun} not clear", f"{value!r} may be {' or '.join(os.path.basename(f) for f in found)}")
    suffix = os.path.splitext(found[0])[1].lower()
    if is_video and os.path.isfile(found[0]) and suffix not in (*VIDEO_ENDINGS, *STRIP_ENDINGS):
        raise ValueError("unknown kind of video", f"{value!r}; known: {' '.join((*VIDEO_ENDINGS, *STRIP_ENDINGS))}")
    relative = Path(os.path.relpath(found[0], base)).as_posix()
    return Media(Path(found[0]), relative, is_video)


def same_split(rows: Iterable[tuple[Media, str, str, str]], problems: Problems) -> None:
    """Add a fault for every row (media, digest, split, place) whose picture stands in another split as well."""
    seen: dict[str, tuple[str, str, str]] = {}
    for media, digest, split, place in rows:
        first = seen.setdefault(digest, (split, place, media.relative))
        if first[0] != split:
            same = "" if first[2] == media.relative else f" (the same content as {first[2]})"
            detail = f"{media.relative}{same} is {split} here and {first[0]} in {first[1]}"
            problems.add(f"{media.noun} in two splits", place, detail)
