"""The stores: which features are missing, who computes them and when, and reading them."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mtvl import dist
from mtvl.data import media
from mtvl.data.features import stored
from mtvl.data.features.computing import Meter, Progress, encode, grouped, loaded_ahead
from mtvl.data.features.keys import STORED, folder_name, item_keys
from mtvl.data.features.shards import Counts, ShardFolder
from mtvl.data.features.together import agreed
from mtvl.errors import DataError
from mtvl.types import ImageEncoder

ROUND_SECONDS = 20.0  # ranks meet so often: far below the time limit of a collective, however long the whole takes
PATIENCE_SECONDS = 60.0  # until files that another node wrote are visible here
FILLS = ("eager", "lazy")


class Usage(NamedTuple):
    """What a store holds on disk, and how many items `ensure` computed in this process (over all ranks, in seconds)."""

    items: int
    num_bytes: int
    folder: Path
    computed: int
    seconds: float


class _Survey(NamedTuple):
    """A rank's answer to "what is missing?": hash of the paths it was given, and a bit a path (rank 0)."""

    digest: str
    missing: bytes


class _Report(NamedTuple):
    """How far a rank is at the end of a round."""

    done: int
    failed: int
    is_finished: bool


@dataclass(frozen=True)
class _Options:
    """How an encoder is fed: pictures at once, decoding threads, items decoded ahead, bytes of a shard."""

    batch: int
    workers: int
    ahead: int
    shard_bytes: int


class Store(ABC):
    """What both stores share. `grid` is (P, F) of one picture or frame; `folder` holds the shards.

    Without an `encoder` only paths of stored features (.h5, .npz, .npy) can be read, and `grid` must be given.
    """

    noun = ""

    def __init__(
        self,
        encoder: ImageEncoder | None,
        folder: str | Path,
        options: _Options,
        grid: tuple[int, int] | None,
        rate: str = "",
    ) -> None:
        if encoder is None and grid is None:
            raise ValueError("a store without an encoder needs to know the grid (P, F) of the features it reads")
        found = grid if encoder is None else encoder.grid
        assert found is not None
        self.grid = (int(found[0]), int(found[1]))
        identity = (encoder.fingerprint if encoder else "no-encoder") + rate
        self.folder = Path(folder) / folder_name(identity)
        self._encoder, self._options = encoder, options
        self._encoder_lock = threading.Lock()  # encoders need not be safe to share, and threads would fight for cores
        self._shards = ShardFolder(self.folder, identity, self.grid, options.shard_bytes)
        self._keys: dict[str, str] = {}  # path, as given to `ensure` -> key
        self._computed, self._seconds = 0, 0.0

    @abstractmethod
    def _load(self, path: str) -> list[Any]:
        """The PIL pictures of an item, in order."""

    def ensure(
        self, paths: Sequence[str], progress: Progress | None = None, *, fill: str = "eager",
        broken: dict[str, DataError] | None = None,
    ) -> int:  # fmt: skip
        """Get ready to read `paths`; returns how many items were computed, over all ranks.

        "eager" computes what is missing now, shared among the ranks; "lazy" leaves it to the first read (by whichever
        rank and thread), so that the first epoch fills the store: call `close` at the end. Paths of stored features
        only have to exist. Collective: every rank calls it with the same paths. `progress` receives a line of text now
        and then (rank 0). Raises DataError on all ranks when an item is missing, cannot be decoded, or makes the
        encoder fail; what was finished before stays. Given `broken`, items that cannot be decoded are added to it with
        their faults, the same on all ranks, and the others are computed.
        """
        if fill not in FILLS:
            raise ValueError(f"fill is {fill!r}, expected one of {FILLS}")
        unique = list(dict.fromkeys(paths))
        surveys = agreed(lambda: self._survey(unique))
        if len({s.digest for s in surveys}) > 1:
            raise DataError(f"the ranks were given different {self.noun}; all nodes must see the same data root")
        bits = np.unpackbits(np.frombuffer(surveys[0].missing, dtype=np.uint8), count=len(unique))
        missing = [path for path, bit in zip(unique, bits, strict=True) if bit]
        if fill == "lazy":
            agreed(self._shards.scan)
            return 0
        if missing:
            begin = time.perf_counter()
            share = missing[dist.rank() :: dist.world_size()]
            own: dict[str, DataError] | None = None if broken is None else {}
            self._in_rounds(self._computing(share, broken=own), Meter(len(missing), progress, self.noun))
            if broken is not None:
                for found in agreed(lambda: own):
                    broken.update(found or {})
            self._computed += len(missing)
            self._seconds += time.perf_counter() - begin
        sound = unique if broken is None else [path for path in unique if path not in broken]
        agreed(lambda: self._catch_up(sound))
        return len(missing)

    def verify(self, progress: Progress | None = None) -> int:
        """Compare every shard of the folder with its hash; returns how many were damaged and are set aside.

        Collective; shared among the ranks. What is set aside is computed again by the next `ensure`.
        """
        agreed(self._shards.scan)
        meter = Meter(self._shards.num_shards(), progress, "shards", "verified")
        return self._in_rounds(self._shards.verify(dist.rank(), dist.world_size()), meter)

    def usage(self) -> Usage:
        """Items and bytes in the folder as it is now."""
        self._shards.scan()
        return Usage(*self._shards.usage(), self.folder, self._computed, self._seconds)

    def to(self, device: torch.device | str) -> None:
        """Compute on `device` from now on, where the encoder is a torch module."""
        if isinstance(self._encoder, torch.nn.Module):
            self._encoder.to(device)

    def close(self) -> None:
        """Write features that were computed on first use and still wait for a full shard. May be called again."""
        self._shards.flush()

    def _rows(self, path: str) -> torch.Tensor:
        """Rows (n, P, F) float16 of a computed item; computes it when it is not there (any more)."""
        key = self._key(path)
        while (rows := self._shards.find(key)) is None:
            for _ in self._computing([path], flush=False):
                pass
        return rows

    def _key(self, path: str) -> str:
        try:
            return self._keys[path]
        except KeyError:
            raise DataError(f"no features for {path}: expected it among the {self.noun} given to "
                            f"{type(self).__name__}.ensure; call ensure with those of every split in use") from None  # fmt: skip

    def _survey(self, unique: list[str]) -> _Survey:
        keys = item_keys(unique, self.noun)
        self._keys.update(keys)
        computed = [path for path, key in keys.items() if key != STORED]
        if computed and self._encoder is None:
            raise DataError(f"{len(computed)} {self.noun} are no stored features ({', '.join(stored.SUFFIXES)}) and there "
                            f"is no visual tower to compute them, the first is {computed[0]}")  # fmt: skip
        missing = b""
        if dist.is_main():  # first and alone, so that damage is found and told once
            self._shards.scan()
            self._shards.remove_leftovers()
            lost = [key != STORED and key not in self._shards for key in keys.values()]
            missing = np.packbits(np.array(lost, dtype=bool)).tobytes()
        return _Survey(blake2b("\n".join(unique).encode(), digest_size=8).hexdigest(), missing)

    def _catch_up(self, unique: list[str]) -> None:
        """Learn what the other ranks wrote."""
        patience = time.monotonic() + (PATIENCE_SECONDS if dist.world_size() > 1 else 0)
        while True:
            self._shards.scan()
            lost = [p for p in unique if (key := self._keys[p]) != STORED and key not in self._shards]
            if not lost:
                return
            if time.monotonic() > patience:
                raise DataError(f"{len(lost)} {self.noun} have no features in {self.folder} after they were computed, "
                                f"the first is {lost[0]}; all nodes must see the same feature folder")  # fmt: skip
            time.sleep(0.5)

    def _computing(
        self, paths: Sequence[str], flush: bool = True, broken: dict[str, DataError] | None = None
    ) -> Generator[Counts, None, None]:
        """Compute and add items, one after the other. What is done stays, also after an error: it is mended and
        gone on from there. With `broken`, what cannot be decoded goes there."""
        assert self._encoder is not None
        options = self._options
        loaded = loaded_ahead(paths, self._load, options.workers, options.ahead, broken)
        try:
            with contextlib.closing(loaded):
                for group in grouped(loaded, options.batch):
                    with self._encoder_lock:
                        # Another thread may have been faster, where features are computed on first use.
                        todo = [item for item in group if self._keys[item[0]] not in self._shards]
                        rows = encode(self._encoder, self.grid, todo, options.batch) if todo else []
                        for (path, _), item_rows in zip(todo, rows, strict=True):
                            self._shards.add(self._keys[path], item_rows)
                    yield len(group), 0
        finally:
            if flush:
                self._shards.flush()

    def _in_rounds(self, work: Generator[Counts, None, None], meter: Meter) -> int:
        """Run `work` to its end on every rank; ranks meet every `ROUND_SECONDS`. Returns what failed, over all ranks."""
        done = failed = others = 0

        def advance() -> _Report:
            nonlocal done, failed
            until = time.monotonic() + ROUND_SECONDS
            for items, bad in work:
                done, failed = done + items, failed + bad
                if dist.is_main():
                    meter.say(done + others)  # of the others, what was known at the last meeting
                if time.monotonic() > until:
                    return _Report(done, failed, False)
            return _Report(done, failed, True)

        with contextlib.closing(work):
            while True:
                reports = agreed(advance)
                others = sum(r.done for r in reports) - done
                if dist.is_main():
                    meter.say(done + others)
                if all(r.is_finished for r in reports):
                    return sum(r.failed for r in reports)


class FeatureStore(Store):
    """Features of pictures, cached under `folder` (shared by all ranks and runs); `get` is safe in several threads.

    `batch` pictures go to the encoder at once while `workers` threads decode the next ones; a shard holds about
    `shard_bytes`. A path may also name stored features, which are read in place.
    """

    noun = "pictures"

    def __init__(
        self,
        encoder: ImageEncoder | None,
        folder: str | Path,
        *,
        grid: tuple[int, int] | None = None,
        batch: int = 32,
        workers: int = 2,
        shard_bytes: int = 2**27,
    ) -> None:
        super().__init__(encoder, folder, _Options(batch, workers, batch, shard_bytes), grid)

    def get(self, paths: Sequence[str]) -> torch.Tensor:
        """Features (len(paths), P, F) float32 of pictures that `ensure` has seen in this process, else DataError."""
        missing = [p for p in dict.fromkeys(paths) if (key := self._key(p)) != STORED and key not in self._shards]
        if missing:  # together, so that the encoder gets full batches
            for _ in self._computing(missing, flush=False):
                pass
        features = torch.empty((len(paths), *self.grid))
        for i, path in enumerate(paths):
            is_stored = self._keys[path] == STORED
            features[i] = stored.read_picture(path, self.grid) if is_stored else self._rows(path)[0]
        return features

    def _load(self, path: str) -> list[Any]:
        return [media.open_image(path)]


class FrameStore(Store):
    """Features of videos, a row for every `every` seconds, cached under `folder`; safe to use in several threads.

    A video is a file, a folder of frames or a frame strip, decoded by `read` (default: `mtvl.data.video.read_frames`
    with `decoder`), or stored features (.npz, .h5, .npy), whose rows stand for `every` seconds each.
    """

    noun = "videos"

    def __init__(
        self,
        encoder: ImageEncoder | None,
        folder: str | Path,
        *,
        every: float = 1.5,
        decoder: str = "auto",
        read: Callable[[str], Sequence[Any]] | None = None,
        grid: tuple[int, int] | None = None,
        batch: int = 32,
        workers: int = 2,
        shard_bytes: int = 2**27,
    ) -> None:
        if not every > 0:
            raise ValueError(f"every is {every}, expected seconds above 0")
        # Few videos ahead: a long one takes hundreds of megabytes when it is decoded.
        super().__init__(encoder, folder, _Options(batch, workers, workers, shard_bytes), grid, f"-{every:g}s")
        self.every = every
        self._read_frames = read or partial(_read_frames, every=every, decoder=decoder)

    def read(self, path: str, span: tuple[float, float] | None = None) -> torch.Tensor:
        """(T, P, F) float32: rows of the frames that overlap `span` (seconds; None: all), at least the nearest one.

        Raises DataError for a video that `ensure` has not seen in this process.
        """
        is_stored = self._key(path) == STORED
        rows = stored.read_video(path, self.grid) if is_stored else self._rows(path)
        if span is not None:
            try:
                rows = rows[rows_of_span(span, self.every, len(rows))]
            except ValueError as error:
                raise DataError(str(error), file=path) from None
        return rows.float()

    def _load(self, path: str) -> list[Any]:
        frames = list(self._read_frames(path))
        if not frames:
            raise DataError("expected a video with at least one frame, found none", file=path)
        return frames


def rows_of_span(span: tuple[float, float], every: float, count: int) -> slice:
    """The rows i of `count` whose intervals [i * every, (i + 1) * every) overlap `span`; the nearest if none does."""
    start, end = span
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ValueError(f"expected a time span (start, end) in seconds with start <= end, found {span}")
    # Rounded, or 0.3 / 0.1 = 2.9999999999999996 would take in a row that ends where the span begins.
    first = min(max(math.floor(round(start / every, 6)), 0), count - 1)
    return slice(first, max(first + 1, min(math.ceil(round(end / every, 6)), count)))


def _read_frames(path: str, every: float, decoder: str) -> Sequence[Any]:
    from mtvl.data.video import read_frames  # slow import: only where videos are decoded

    return read_frames(path, every=every, decoder=decoder)
