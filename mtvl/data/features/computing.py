"""Pictures through a frozen tower: decoded ahead by threads, encoded in batches, checked before they are kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from mtvl.errors import DataError
from mtvl.types import ImageEncoder

Progress = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 2.0


def loaded_ahead(
    paths: Sequence[str], load: Callable[[str], list[Any]], workers: int, ahead: int,
    broken: dict[str, DataError] | None = None,
) -> Generator[tuple[str, list[Any]], None, None]:  # fmt: skip
    """(path, its pictures) in order; `workers` threads decode up to `ahead` items more than were taken.

    Given `broken`, an item that cannot be decoded is left out and added to it.
    """
    rest = iter(paths)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[str, Future[list[Any]]]] = deque(
            (path, pool.submit(load, path)) for path in islice(rest, ahead)
        )
        try:
            while waiting:
                path, future = waiting.popleft()
                try:
                    images = future.result()
                except DataError as error:
                    if broken is None:
                        raise
                    broken[path] = error
                    images = []
                waiting.extend((next_path, pool.submit(load, next_path)) for next_path in islice(rest, 1))
                if images:
                    yield path, images
        finally:
            for _, future in waiting:
                future.cancel()


def grouped(items: Iterable[tuple[str, list[Any]]], batch: int) -> Iterator[list[tuple[str, list[Any]]]]:
    """Neighbouring items that hold `batch` pictures or a little more together."""
    group: list[tuple[str, list[Any]]] = []
    for item in items:
        group.append(item)
        if sum(len(images) for _, images in group) >= batch:
            yield group
            group = []
    if group:
        yield group


def encode(
    encoder: ImageEncoder, grid: tuple[int, int], group: Sequence[tuple[str, list[Any]]], batch: int
) -> list[np.ndarray]:
    """Rows (n, P, F) float16 of every item of `group`, encoded `batch` pictures at once.

    Raises DataError that names the items when the encoder fails, returns another shape than `grid`, or values that
    float16 cannot hold.
    """
    owners = [path for path, images in group for _ in images]
    images = [image for _, images in group for image in images]
    halves = []
    for start in range(0, len(images), batch):
        paths = owners[start : start + batch]
        halves.append(_encode_batch(encoder, grid, paths, images[start : start + batch]))
    ends = np.cumsum([len(images) for _, images in group])[:-1]
    return np.split(np.concatenate(halves), ends)


def _encode_batch(encoder: ImageEncoder, grid: tuple[int, int], paths: list[str], images: list[Any]) -> np.ndarray:
    unique = list(dict.fromkeys(paths))
    names = ", ".join(unique[:3]) + (f" and {len(unique) - 3} more" if len(unique) > 3 else "")
    try:
        features = encoder.encode(images)
    except Exception as error:  # anything an encoder may raise says nothing about which pictures it was given
        raise DataError(f"the image encoder failed on {names}: {type(error).__name__}: {error}") from error
    expected = (len(paths), *grid)
    if tuple(features.shape) != expected:
        raise DataError(f"the image encoder returned shape {tuple(features.shape)} for {names}, expected {expected}")
    half = features.detach().cpu().to(torch.float16)
    finite = half.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = paths[int((~finite).nonzero()[0, 0])]
        raise DataError(f"the features of {bad} are not finite in float16 (largest magnitude it holds: 65504); "
                        "check the picture and the encoder's weights")  # fmt: skip
    return half.numpy()


class Meter:
    """Says how far a job of `total` items is: a line now and then, and one at the end."""

    def __init__(self, total: int, progress: Progress | None, noun: str, title: str = "features") -> None:
        self._total, self._progress, self._noun, self._title = total, progress, noun, title
        self._start = self._said = time.monotonic()
        self._last = -1

    def say(self, done: int) -> None:
        """Tell that `done` items are finished."""
        now = time.monotonic()
        is_due = now - self._said > _SECONDS_BETWEEN_LINES or done == self._total
        if self._progress is None or done == self._last or not is_due:
            return
        self._said, self._last = now, done
        rate = done / max(now - self._start, 1e-9)
        left = round((self._total - done) / rate) if rate else 0
        self._progress(f"{self._title}: {done}/{self._total} {self._noun}, {rate:.1f}/s, ETA {left} s")
