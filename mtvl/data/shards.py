"""A split as tar shards in webdataset's form, read at random through an index of our own.

Layout: `ROOT/TASK/SPLIT/{000000..}.tar` are plain tars whose members `KEY.json`, `KEY.0.png`, `KEY.mp4` any webdataset
pipeline can read. `examples.jsonl` beside them has one line an example, in the order of the task's own files, with its
text and the place (shard, offset, size) of its pictures or video; `index.json` describes the shards and is written
last. Nothing here streams: an example is found by its number, so a run's position stays the optimizer step, and the
number and the sizes of shards say nothing about what a rank gets.

A picture or video inside a shard is named by a path such as `/data/vqa/train/000003.tar#offset=512,size=9,name=K.0.png`
(`open_member`). `shard_writer` makes the shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mtvl.data.formats.records import read_json
from mtvl.errors import DataError
from mtvl.types import Example, Segment, Target, Visual

FORMAT = 1
INDEX, EXAMPLES = "index.json", "examples.jsonl"
FRAMES = "frames.tar"  # ending of the name of a range of members: the frames of a video that was a folder
BLOCK = 512  # bytes; tar pads everything to it
AGAIN = "write the split again with tools/shard.py"

# Fields of a task file that change how an answer is asked for or scored, but not the examples themselves.
_NOT_IN_EXAMPLES = (
    "primary", "sources", "limits", "decoding", "loss", "label_smoothing", "ascii_only", "bad_input", "families",
    "additions",
)  # fmt: skip
_BEFORE: dict[str, Any] = {"also": (), "answer_weights": "accuracy", "wording": "as_written"}
_MEMBER = re.compile(r"(?P<tar>.+\.tar)#offset=(?P<offset>\d+),size=(?P<size>\d+),name=(?P<name>[^/#,]+)", re.DOTALL)
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_READ_BYTES = 2**20


# ------------------------------------------------------------------------------------------------- members by path


class Member(NamedTuple):
    """A piece of a tar: `size` bytes of content from `offset`.

    A name that ends in `frames.tar` stands for a range of members, headers included: the frames of one video.
    """

    tar: str
    offset: int
    size: int
    name: str


def member_path(member: Member) -> str:
    """The path string that stands for `member` in an Example."""
    return f"{member.tar}#offset={member.offset},size={member.size},name={member.name}"


def is_member(path: str) -> bool:
    """True when `path` names a piece of a shard and not a file."""
    return "#offset=" in path and _MEMBER.fullmatch(path) is not None


def parse_member(path: str) -> Member:
    """The parts of a member path; DataError when `path` is none."""
    found = _MEMBER.fullmatch(path)
    if found is None:
        raise DataError("expected a place in a shard like FILE.tar#offset=512,size=99,name=KEY.0.png", file=path)
    return Member(found["tar"], int(found["offset"]), int(found["size"]), found["name"])


def is_frames(path: str) -> bool:
    """True when `path` stands for all frames of a video that was a folder (`frame_members` names them)."""
    return is_member(path) and parse_member(path).name.endswith(FRAMES)


def open_member(path: str) -> bytes:
    """The bytes of a picture, video or feature file inside a shard.

    Raises DataError when the shard is missing, ends before the member does, or holds another member at that place.
    """
    member = parse_member(path)
    with _opened(member) as file:
        if os.fstat(file.fileno()).st_size < member.offset + member.size:  # before memory is claimed for it
            raise _cut_short(member)
        file.seek(member.offset - BLOCK)  # the header too, to see that this is the member that is meant
        data = file.read(BLOCK + member.size)
    if data[:100].rstrip(b"\0") != member.name.encode():
        raise DataError(f"expected {member.name} at byte {member.offset}, found another member; {AGAIN}",
                        file=member.tar)  # fmt: skip
    return data[BLOCK:]


def as_file(path: str) -> Any:
    """What to hand to a reader that takes a path or an open file: `path` itself, or the member as a file in memory."""
    return io.BytesIO(open_member(path)) if is_member(path) else path


def frame_members(path: str) -> dict[str, str]:
    """File name -> member path of the frames behind a path for which `is_frames` holds; DataError as `open_member`."""
    member = parse_member(path)
    prefix, found = member.name.removesuffix("tar"), {}
    with _opened(member) as file:
        if os.fstat(file.fileno()).st_size < member.offset + member.size:
            raise _cut_short(member)
        file.seek(member.offset)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (entry := tar.next()) is not None and entry.offset < member.offset + member.size:
                    name = entry.name.removeprefix(prefix)
                    found[name] = member_path(Member(member.tar, entry.offset_data, entry.size, entry.name))
        except tarfile.TarError as error:
            raise DataError(f"expected the frames {prefix}* at byte {member.offset}, found other bytes ({error}); "
                            f"{AGAIN}", file=member.tar) from None  # fmt: skip
    return found


def _opened(member: Member) -> BinaryIO:
    try:
        return open(member.tar, "rb")
    except FileNotFoundError:
        raise DataError(f"expected this shard for {member.name}, found none; copy it again", file=member.tar) from None


def _cut_short(member: Member) -> DataError:
    return DataError(f"expected {member.name} up to byte {member.offset + member.size}, found the end of the shard at "
                     f"{os.path.getsize(member.tar)}; it is cut short: copy it again", file=member.tar)  # fmt: skip


def member_key(path: str) -> str:
    """A key for caches: the same as long as the shard is the same file; DataError when the shard is missing."""
    member = parse_member(path)
    try:
        stat = os.stat(member.tar)
    except OSError:
        raise DataError(f"expected this shard for {member.name}, found none; copy it again", file=member.tar) from None
    return f"{os.path.abspath(member.tar)}|{stat.st_size}|{stat.st_mtime_ns}|{member.offset}|{member.name}"


# ------------------------------------------------------------------------------------------------------- the index


@dataclass(frozen=True)
class File:
    """A file of the index: its name, size, SHA-256, and how many examples it holds."""

    name: str
    num_bytes: int
    sha256: str
    num_examples: int


@dataclass(frozen=True)
class Index:
    """What `index.json` says. `towers` is empty for shards of pictures, else kind of feature -> tower fingerprint."""

    folder: Path
    task: str
    split: str
    settings: Mapping[str, Any]
    towers: Mapping[str, str]
    shards: tuple[File, ...]
    examples: File

    def as_json(self) -> dict[str, Any]:
        """The content of `index.json`."""
        return {
            "format": FORMAT, "task": self.task, "split": self.split, "num_examples": self.examples.num_examples,
            "settings": dict(self.settings), "towers": dict(self.towers),
            "examples": dataclasses.asdict(self.examples), "shards": [dataclasses.asdict(s) for s in self.shards],
        }  # fmt: skip


def example_settings(config: Any) -> dict[str, Any]:
    """Those fields of a task's configuration (a dataclass) that shape its examples, as plain JSON values.

    Shards keep them, so that shards and a task file that was changed afterwards are not mixed without a word.
    """
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_IN_EXAMPLES}
    if fields.get("masking", "") is None:  # shards from before there was such a section stay what they are
        del fields["masking"]
    fields = {k: v for k, v in fields.items() if k not in _BEFORE or _BEFORE[k] != v}  # nor were these
    if fields.get("also"):
        fields["additions"] = {k: dataclasses.asdict(v) for k, v in config.additions.items() if k in config.also}
    if config.decoding.choices:  # their names, and whether the answers are learned by name or by their words
        fields |= {"decoding.choices": config.decoding.choices, "ranked": config.decoding.mode == "rank"}
    return dict(json.loads(json.dumps(fields)))


def folder_of(root: Path, task: str, split: str) -> Path:
    """The folder of a split below the data root; DataError when `split` is no plain name."""
    for what, name in (("task", task), ("split", split)):
        if not _SAFE.fullmatch(name):
            raise DataError(f"expected a plain name of a {what}, found {name!r}", file=root)
    return Path(root).absolute() / task / split


def has_shards(root: Path, task: str, split: str) -> bool:
    """True when `split` lies below `root` as shards; DataError for shards without their index."""
    if not _SAFE.fullmatch(split):
        return False
    folder = folder_of(root, task, split)
    if (folder / INDEX).is_file():
        return True
    tars = sum(1 for _ in folder.glob("*.tar")) if folder.is_dir() else 0
    if tars:
        raise DataError(f"expected {INDEX} beside {tars} shards, found none; the copy is not complete", file=folder)
    return False


def read_index(root: Path, task: str, split: str) -> Index:
    """Read `index.json` and check that every file is there with its size.

    Raises DataError with counts when shards are missing, and with both sizes when one was cut short or changed.
    """
    folder = folder_of(root, task, split)
    index = _parse_index(folder)
    if (index.task, index.split) != (task, split):
        raise DataError(
            f"expected shards of {task}/{split}, found {index.task}/{index.split}; a folder was renamed: move it back",
            file=folder / INDEX,
        )
    if problems := list(_size_problems(index)):
        raise DataError("; ".join(problems), file=folder)
    return index


def towers(root: Path, task: str, split: str) -> dict[str, str]:
    """Kind of feature ("grid", "frame") -> fingerprint of the tower whose features the shards hold; {} for files."""
    return dict(_parse_index(folder_of(root, task, split)).towers)


def _parse_index(folder: Path) -> Index:
    file = folder / INDEX
    values = read_json(file)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise DataError(f"expected an index of format {FORMAT}, found {found!r}; {AGAIN}", file=file)
    try:
        index = Index(
            folder, values["task"], values["split"], values["settings"], values["towers"],
            tuple(File(**shard) for shard in values["shards"]), File(**values["examples"]),
        )  # fmt: skip
        files = (*index.shards, index.examples)
        total, sections = values["num_examples"], (index.settings, index.towers)
        numbers = [n for f in files for n in (f.num_bytes, f.num_examples)]
        if not all(isinstance(n, int) for n in numbers) or not all(isinstance(s, dict) for s in sections):
            raise TypeError("a value of another kind")
    except (KeyError, TypeError) as error:
        raise DataError(f"expected the index of tools/shard.py, found a fault ({error}); {AGAIN}", file=file) from None
    for listed in files:
        if not isinstance(listed.name, str) or not _SAFE.fullmatch(listed.name):
            raise DataError(f"expected names of files in this folder, found {listed.name!r}; {AGAIN}", file=file)
    counted = sum(shard.num_examples for shard in index.shards)
    if not counted == index.examples.num_examples == total:
        raise DataError(f"expected {total} examples, found {counted} in the shards and {index.examples.num_examples} in "
                        f"{EXAMPLES} by their own account; {AGAIN}", file=file)  # fmt: skip
    return index


def _size_problems(index: Index) -> Iterator[str]:
    files = [*index.shards, index.examples]
    sizes = {f.name: (index.folder / f.name).stat().st_size for f in files if (index.folder / f.name).is_file()}
    missing = [f for f in files if f.name not in sizes]
    if missing:
        lost = sum(f.num_examples for f in missing)
        yield (
            f"expected {len(files)} files, found {len(sizes)}, missing {len(missing)} with {lost} examples: "
            f"{', '.join(f.name for f in missing[:3])}; copy them again, a split is never made smaller"
        )
    for f in files:
        if sizes.get(f.name, f.num_bytes) != f.num_bytes:
            state = "cut short" if sizes[f.name] < f.num_bytes else "changed"
            yield f"expected {f.num_bytes} bytes in {f.name}, found {sizes[f.name]}: {state}, copy it again"


def verify(root: Path, progress: Callable[[str], None] = print) -> Iterator[str]:
    """Read every shard below `root` and yield what is wrong: sizes, SHA-256, leftovers of a broken-off run."""
    folders = sorted(file.parent for file in Path(root).glob(f"*/*/{INDEX}"))
    if not folders:
        yield f"{root}: expected shards (TASK/SPLIT/{INDEX}), found none"
    for leftover in sorted(Path(root).glob("*/.*.partial")):
        yield f"{leftover}: a run of tools/shard.py that did not end; start it again, or delete the folder"
    for folder in folders:
        try:
            index = read_index(Path(root), folder.parent.name, folder.name)
        except DataError as error:
            yield str(error)
            continue
        files = [*index.shards, index.examples]
        said = time.monotonic()
        for done, file in enumerate(files, start=1):
            found = sha256_of(folder / file.name)
            if found != file.sha256:
                yield f"{folder / file.name}: expected SHA-256 {file.sha256}, found {found}; copy it again"
            if done == len(files) or time.monotonic() - said > 2:
                progress(f"{index.task}/{index.split}: read {done} of {len(files)} files")
                said = time.monotonic()
        known = {file.name for file in files}
        yield from (f"{tar}: not in {INDEX}; delete it" for tar in folder.glob("*.tar") if tar.name not in known)


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- the examples


def read(root: Path, task: str, split: str, settings: Mapping[str, Any] | None = None) -> tuple[Example, ...]:
    """The examples of a split, equal to those of the folders that it was made from but for the paths.

    `settings` are those of the task as it is configured now (`example_settings`). Raises DataError when they differ
    from the ones that the shards were written with, and for a missing, shortened or damaged file.
    """
    index = read_index(root, task, split)
    if settings is not None and settings != index.settings:
        raise _other_settings(index, settings)
    file = index.folder / EXAMPLES
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != index.examples.sha256:
        raise DataError(f"expected the content that {INDEX} describes, found another; copy it again", file=file)
    place, examples = _Places(index), []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            examples.append(_example(json.loads(line), task, place))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise DataError(f"expected an example, found a fault ({error!r}); {AGAIN}", file=file, row=number) from None
    if len(examples) != index.examples.num_examples:
        raise DataError(f"expected {index.examples.num_examples} lines, found {len(examples)}; {AGAIN}", file=file)
    return tuple(examples)


def _other_settings(index: Index, settings: Mapping[str, Any]) -> DataError:
    names = sorted(k for k in {*settings, *index.settings} if settings.get(k) != index.settings.get(k))
    differences = ", ".join(f"'{k}' {index.settings.get(k)!r} in the shards and {settings.get(k)!r} in the task file"
                            for k in names)  # fmt: skip
    return DataError(f"expected shards made with today's settings of task {index.task}, found {differences}; {AGAIN}, or "
                     "put the task file back", file=index.folder / INDEX)  # fmt: skip


class _Places:
    """[shard, offset, size, name] -> path; pictures that many examples share are one string."""

    def __init__(self, index: Index) -> None:
        self._tars = [str(index.folder / shard.name) for shard in index.shards]
        self._path = lru_cache(maxsize=None)(self._make)

    def __call__(self, place: Iterable[Any] | None) -> str:
        return "" if place is None else self._path(*place)

    def _make(self, shard: int, offset: int, size: int, name: str) -> str:
        path = member_path(Member(self._tars[shard], offset, size, name))
        if shard < 0 or offset < BLOCK or not is_member(path):  # a name could lead elsewhere
            raise ValueError(f"no place in a shard: {[shard, offset, size, name]}")
        return path


def _example(line: Mapping[str, Any], task: str, place: _Places) -> Example:
    text = line["text"]
    for path in sorted(line["tuples"], key=len, reverse=True):
        _make_tuple(text["references"], path)
    return Example(
        uid=text["uid"],
        task=task,
        segments=tuple(Segment(**segment) for segment in text["segments"]),
        visual=Visual(
            images=tuple(place(image) for image in line["images"]),
            video=place(line["video"]),
            span=tuple(text["span"]) if text["span"] else None,
        ),
        targets=tuple(Target(**target) for target in text["targets"]),
        references=text["references"],
        choices=tuple(text["choices"]),
    )


def _make_tuple(value: Any, path: list[str | int]) -> None:
    """JSON has no tuples: turn the list at `path` below `value` back into one; deeper ones come first."""
    for step in path[:-1]:
        value = value[step]
    value[path[-1]] = tuple(value[path[-1]])
