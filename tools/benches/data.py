"""Supply of data: samples a second by video decoder and by kind of file, and the trainer's waiting share."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benches.result import Result, compare, interleaved
from mtvl.cli import DEFAULT_RECIPE
from mtvl.config import RunConfig, load_run_config
from mtvl.data.decoders import DECODERS, unusable
from mtvl.data.features.stored import read_video
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.data.schedule import Schedule
from mtvl.data.video import read_frames
from mtvl.loader import Loader
from mtvl.train import Run

TASKS = ("vqa", "gqa", "nlvr2", "coco")  # of the waiting share
WORKERS = (0, 1, 2)
WORLD = "tiny"  # size of the miniworld
STEPS = 4  # measured steps of a round
SAMPLES = 3  # videos of a round
SECONDS, RATE, WIDTH, HEIGHT = 12, 25, 320, 240
FEATURE_WIDTH = 512
BASELINE = "decord"


def measure(rounds: int) -> list[Result]:
    """Both measurements."""
    with tempfile.TemporaryDirectory(prefix="mtvl-bench-") as folder:
        return [*measure_supply(Path(folder), rounds), *measure_waiting(Path(folder), rounds)]


def measure_supply(folder: Path, rounds: int) -> list[Result]:
    """Samples (videos of SECONDS / FRAME_SECONDS frames) a second: by decoder, and by kind of file."""
    clip = write_clip(folder / "clip.mp4")
    sides: dict[str, Callable[[], object]] = {}
    for decoder in DECODERS:
        if reason := unusable(decoder):
            print(f"left out: {decoder}: {reason}", file=sys.stderr)
        else:
            sides[decoder] = partial(read_frames, str(clip), decoder=decoder)
    frames = read_frames(str(clip))
    sides["frame folder"] = partial(read_frames, str(write_folder(folder / "frames", frames)))
    sides["frame strip"] = partial(read_frames, str(write_strip(folder / f"strip.{len(frames)}x1.jpg", frames)))
    sides["stored features"] = partial(
        read_video, str(write_features(folder / "stored.npz", len(frames))), (1, FEATURE_WIDTH)
    )
    values = interleaved("supply", {name: partial(rate_of, read) for name, read in sides.items()}, rounds)
    note = f"{len(frames)} frames of {SECONDS} s, {WIDTH} x {HEIGHT}, 1 thread"
    return compare(values, "samples/s", baseline=BASELINE if BASELINE in values else "", notes={BASELINE: note})


def rate_of(read: Callable[[], object]) -> float:
    """Samples a second of SAMPLES calls."""
    begin = time.perf_counter()
    for _ in range(SAMPLES):
        read()
    return SAMPLES / (time.perf_counter() - begin)


def write_clip(path: Path) -> Path:
    """An H.264 clip of a texture that drifts under noise: work for a decoder, as a filmed scene is."""
    import av

    noise = np.random.default_rng(0).integers(0, 48, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(SECONDS * RATE):
            waves = (np.sin((rows + 2 * i) / 19) + np.cos((columns - 3 * i) / 23)) * 50 + 104
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 5 * i, 1) + waves.astype(np.uint8)[..., None], "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_folder(folder: Path, frames: list[Image.Image]) -> Path:
    """The frames as a folder of JPEG files."""
    folder.mkdir()
    for i, frame in enumerate(frames):
        frame.save(folder / f"{i}.jpg", quality=90)
    return folder


def write_strip(path: Path, frames: list[Image.Image]) -> Path:
    """The frames as one JPEG file."""
    Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1)).save(path, quality=90)
    return path


def write_features(path: Path, rows: int) -> Path:
    """A file of stored features as the benchmarks hand them out: `features` (rows, FEATURE_WIDTH)."""
    np.savez(path, features=np.random.default_rng(0).normal(size=(rows, FEATURE_WIDTH)).astype(np.float32))
    return path


def measure_waiting(folder: Path, rounds: int) -> list[Result]:
    """Share of a training step's time in which the trainer waits for the loader, features being stored already."""
    config = waiting_config(folder, rounds)
    run = Run(config, folder / "run")
    try:
        trainer = Trainer(run.engine, loaders_of(run, config))
        names = {f"waiting, data.workers={n}": n for n in WORKERS}
        values = interleaved("waiting", {name: partial(trainer.share, n) for name, n in names.items()}, rounds)
    finally:
        run.workspace.close()
    notes = {name: f"{1e3 * min(trainer.step_seconds[n]):.1f} ms the quickest step" for name, n in names.items()}
    return compare(values, "% of a step", baseline=next(iter(names)), notes=notes)


def waiting_config(folder: Path, rounds: int) -> RunConfig:
    """The default recipe on a small miniworld below `folder`, long enough for all rounds."""
    root = ensure_miniworld(folder / "miniworld", size=WORLD)
    steps = (rounds + 1) * len(WORKERS) * (STEPS + 1)
    changes = [f"data.root={root}", f"data.cache={folder / 'cache'}", f"train.steps={steps}"]
    return load_run_config(DEFAULT_RECIPE, TASKS, changes)


def loaders_of(run: Run, config: RunConfig) -> dict[int, Loader]:
    """A loader of the run's examples for each number of `data.workers`."""
    examples = {task: run.workspace.examples(task, "train") for task in config.tasks}
    sizes = {task: len(rows) for task, rows in examples.items()}
    schedule = Schedule(sizes, config.mixture, config.train.global_batch, config.seed)
    tasks, collator = run.workspace.tasks, run.workspace.collator
    settings = {n: replace(config, data=replace(config.data, workers=n)) for n in WORKERS}
    return {n: Loader(examples, tasks, schedule, collator, settings[n], 0, 1) for n in WORKERS}


class Trainer:
    """The training loop without reports: one engine, and a loader for each number of `data.workers`."""

    def __init__(self, engine: Any, loaders: Mapping[int, Any]) -> None:
        self.engine, self.loaders = engine, loaders
        self.next_step = 0
        self.step_seconds: dict[int, list[float]] = {workers: [] for workers in loaders}

    def share(self, workers: int) -> float:
        """Percent of STEPS steps spent waiting; the step before them, in which the threads start, is not counted."""
        first, last = self.next_step, self.next_step + STEPS + 1
        self.next_step = last
        waited = total = 0.0
        stream = self.loaders[workers].iterate(first, last)
        for number in itertools.count():
            begin = time.perf_counter()
            item = next(stream, None)
            ready = time.perf_counter()
            if item is None:
                break
            self.engine.train_step(*item)
            end = time.perf_counter()
            if number:
                waited, total = waited + ready - begin, total + end - begin
                self.step_seconds[workers].append(end - begin)
        return 100 * waited / total
