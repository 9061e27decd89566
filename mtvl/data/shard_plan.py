"""Which example goes into which tar shard, and the texts that stand there: decided before a byte is written.

The plan follows from the examples, the sizes of their files and the options alone, so `shard_writer` can write shards
at the same time, go on after a crash, and give equal bytes twice.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mtvl.data.shards import BLOCK, FORMAT
from mtvl.errors import DataError
from mtvl.types import Example, Visual

END_BYTES = 10240  # a tar ends in zeros up to a multiple of this


class Media(Protocol):
    """What is stored for a picture or a video: `FileMedia` or `FeatureMedia` of `mtvl.data.shard_media`."""

    @property
    def towers(self) -> Mapping[str, str]:
        """Kind of feature -> fingerprint of its tower; empty when files are stored as they are."""

    def extension(self, path: str, is_video: bool) -> str:
        """Ending of the member without a dot, `frames.tar` when `load` gives several."""

    def num_bytes(self, path: str, is_video: bool) -> int:
        """About the space in a tar; DataError when there is no such file."""

    def stamp(self, path: str) -> str:
        """Changes with the content."""

    def load(self, path: str, is_video: bool) -> dict[str, bytes]:
        """Ending -> content; one entry, or one `frames.NAME` a frame."""


@dataclass(frozen=True)
class Options:
    """`shard_bytes`: a shard is closed before it grows larger. `once`: a picture or video is stored once a shard,
    beside the first example that uses it, and examples are grouped by picture; otherwise every example has its own."""

    shard_bytes: int = 256 * 10**6
    once: bool = False


@dataclass(frozen=True)
class Row:
    """One example in a shard: its number, the member names that its JSON gives, and (slot, path) of what to store."""

    index: int
    images: tuple[str, ...]
    video: str
    stored: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The webdataset key: digits alone, since uids may hold dots and slashes, which mean something there."""
        return f"{self.index:09d}"


@dataclass(frozen=True)
class Plan:
    """Rows of every shard, about how many bytes they will take, and how often pictures and videos are used.

    `media_bytes` is every picture and video once, `used_bytes` every use of one.
    """

    shards: tuple[tuple[Row, ...], ...]
    num_bytes: int
    num_media: int
    num_uses: int
    media_bytes: int
    used_bytes: int
    fingerprint: str


def padded(size: int) -> int:
    """Bytes of a member of `size` bytes in a tar: its header and its content up to a full block."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def make_plan(
    examples: Sequence[Example], media: Media, settings: Mapping[str, Any], options: Options | None = None
) -> Plan:
    """Decide the content of every shard; DataError with counts when pictures or videos are missing."""
    options = options or Options()
    sizes, uses = _sizes(examples, media)
    shards: list[tuple[Row, ...]] = []
    rows: list[Row] = []
    held: dict[str, str] = {}  # path -> member of the shard that is filled now; unused unless `once`
    total = filled = 0
    for index in _order(examples, options.once):
        row = _row(index, examples[index].visual, media, held if options.once else None)
        size = _row_bytes(row, examples[index], sizes)
        if rows and filled + size > options.shard_bytes - END_BYTES:
            shards.append(tuple(rows))
            rows, held, filled = [], {}, 0
            row = _row(index, examples[index].visual, media, held if options.once else None)
            size = _row_bytes(row, examples[index], sizes)
        rows.append(row)
        if options.once:
            held.update(zip(_paths(examples[index].visual), (*row.images, row.video), strict=False))
        total, filled = total + size, filled + size
    shards.append(tuple(rows))
    digest = hashlib.sha256(json.dumps([FORMAT, dict(settings), asdict(options), dict(media.towers)]).encode())
    for example in examples:
        digest.update(member_text(example, (), ""))
        for path in _paths(example.visual):
            digest.update(f"{path}|{media.stamp(path)}".encode())
    return Plan(
        tuple(shards), total + len(shards) * END_BYTES, len(uses), sum(uses.values()), sum(sizes.values()),
        sum(sizes[path] * number for path, number in uses.items()), digest.hexdigest(),
    )  # fmt: skip


def _paths(visual: Visual) -> tuple[str, ...]:
    return (*visual.images, visual.video) if visual.video else visual.images


def _sizes(examples: Sequence[Example], media: Media) -> tuple[dict[str, int], Counter[str]]:
    uses: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    faults: list[DataError] = []
    for example in examples:
        for path in _paths(example.visual):
            uses[path] += 1
            if uses[path] == 1:
                try:
                    sizes[path] = media.num_bytes(path, path == example.visual.video)
                except DataError as error:
                    faults.append(error)
    if faults:
        raise DataError(f"expected {len(uses)} pictures and videos, found {len(sizes)}, missing {len(faults)}, "
                        f"the first: {faults[0]}")  # fmt: skip
    return sizes, uses


def _order(examples: Sequence[Example], once: bool) -> Sequence[int]:
    """Order in the shards. With `once`, examples of one picture stand together, or they would not meet in a shard."""
    if not once:
        return range(len(examples))
    first: dict[str, int] = {}
    groups = [first.setdefault(paths[0], i) if (paths := _paths(e.visual)) else i for i, e in enumerate(examples)]
    return sorted(range(len(examples)), key=groups.__getitem__)


def _row(index: int, visual: Visual, media: Media, held: Mapping[str, str] | None) -> Row:
    """`held`: path -> member that the shard has already; None to store every picture again."""
    key = f"{index:09d}"
    stored: list[tuple[str, str]] = []
    own: dict[str, str] = {}

    def name(slot: str, path: str, is_video: bool) -> str:
        if held is not None and (known := held.get(path) or own.get(path)):
            return known
        stored.append((slot, path))
        own[path] = f"{key}.{slot}{media.extension(path, is_video)}"
        return own[path]

    images = tuple(name(f"{i}.", path, False) for i, path in enumerate(visual.images))
    video = name("", visual.video, True) if visual.video else ""
    return Row(index, images, video, tuple(stored))


def _row_bytes(row: Row, example: Example, sizes: Mapping[str, int]) -> int:
    return padded(len(member_text(example, row.images, row.video))) + sum(sizes[path] for _, path in row.stored)


# ---------------------------------------------------------------------------------------------------- texts as JSON


def text_fields(example: Example) -> dict[str, Any]:
    return {
        "uid": example.uid,
        "segments": [asdict(segment) for segment in example.segments],
        "targets": [asdict(target) for target in example.targets],
        "references": dict(example.references),
        "choices": list(example.choices),
        "span": list(example.visual.span) if example.visual.span else None,
    }


def member_text(example: Example, images: Sequence[str], video: str) -> bytes:
    """Content of `KEY.json`, for readers that have nothing but the tar."""
    return to_json({"task": example.task, **text_fields(example), "images": list(images), "video": video}, example)


def to_json(value: Mapping[str, Any], example: Example) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"task {example.task}: expected texts and finite numbers in {example.uid}, found {error}; "
                        "mend the annotation file") from None  # fmt: skip


def tuples_of(value: Any, path: list[str | int], example: Example) -> Iterator[list[str | int]]:
    """Where tuples stand in the references: JSON makes lists of them, and an example is to come back as it was."""
    if isinstance(value, tuple):
        yield path
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise DataError(f"task {example.task}: expected names as keys in {example.uid}, found {odd[0]!r}")
        for key, item in value.items():
            yield from tuples_of(item, [*path, key], example)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from tuples_of(item, [*path, i], example)
