"""What training, evaluation and inspection share: data root, tasks, tokenizer, features and collator of one recipe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl import dist
from mtvl.backbones import BACKBONES
from mtvl.config import AugmentConfig, RunConfig, parse_section, to_plain
from mtvl.data import shards
from mtvl.data.augment import Augmenter
from mtvl.data.collate import Collator
from mtvl.data.features import FeatureStore, FrameStore, PixelFrames, PixelSource
from mtvl.data.miniworld.write import ensure_miniworld
from mtvl.data.skips import REFUSE, Sieve, SkipLog
from mtvl.data.visuals import NO_PIXELS
from mtvl.errors import CheckpointError, ConfigError, DataError, MtvlError
from mtvl.tasks import load_task
from mtvl.tasks.answer_lists import answer_lists
from mtvl.types import Answers, Example, Task, Tokenizer


def cache_folder(config: RunConfig) -> Path:
    """`data.cache`, else $MTVL_CACHE, else ~/.cache/mtvl."""
    return Path(config.data.cache or os.environ.get("MTVL_CACHE") or Path.home() / ".cache" / "mtvl").expanduser()


def named_root(config: RunConfig) -> Path | None:
    """`data.root`; None when it is not set.

    A root that is set but missing or empty is a DataError: training on other data than asked for would go unnoticed.
    """
    root = config.data.folder
    if root is not None and (not root.is_dir() or not any(root.iterdir())):
        raise DataError(
            f"'data.root' is {root}, which is {'empty' if root.is_dir() else 'no folder'}; "
            "leave it unset to use the embedded miniworld, or see docs/data.md for the folder tree"
        )
    return root


def data_root(config: RunConfig, say: Callable[[str], None] = print) -> Path:
    """`named_root`, or the embedded miniworld (made on first use by rank 0) when it is not set. DataError where it cannot be made."""
    if (root := named_root(config)) is not None:
        return root
    folder = cache_folder(config) / "miniworld"
    say(f"'data.root' is not set: using the embedded miniworld in {folder}")
    failure = ""
    if dist.is_main():
        try:
            ensure_miniworld(folder, progress=say)
        except (OSError, MtvlError) as error:
            failure = str(error)
    if failure := dist.broadcast_object(failure):  # on every rank, or the others would wait
        raise DataError(f"the embedded miniworld could not be made: {failure}")
    return folder


def with_answers(config: RunConfig, say: Callable[[str], None] = print) -> RunConfig:
    """`config` with the answers of its tasks in `backbone.answers`, where its backbone chooses from a list and has none.

    They are read from the training splits, or from files where `backbone.answer_files` names some. Raises what
    `answer_lists` does.
    """
    cls = BACKBONES.load(str(config.backbone.get("name", "")))
    if "answers" not in {field.name for field in dataclasses.fields(cls.Config)}:
        return config
    options = parse_section(cls.Config, config.backbone, "backbone")
    if options.answers:
        if absent := [name for name in config.tasks if name not in options.answers]:
            raise ConfigError(
                f"'backbone.answers' has no list for {', '.join(absent)}; add one, or leave the key out to have all lists "
                "made from the training splits"
            )
        return config
    root = data_root(config, say)
    tasks: dict[str, Task] = {
        name: load_task(name, root=root, family=cls.family, evaluate=config.evaluate, overlay=config.task.get(name))
        for name in config.tasks
    }
    lists = answer_lists(tasks, options.answer_files, root, options.num_answers)
    for remark in lists.remarks:
        say(remark)
    exclusive = tuple(dict.fromkeys((*options.exclusive, *lists.exclusive)))
    found = {"answers": to_plain(lists.of_task), "exclusive": list(exclusive)}
    return dataclasses.replace(config, backbone={**config.backbone, **found})


class Workspace:
    """Tasks and the way from their rows to batches, for one recipe and one backbone."""

    def __init__(
        self, config: RunConfig, backbone: Any, *, tower: str = "", device: Any = "cpu",
        say: Callable[[str], None] = print, skips: SkipLog | None = None,
    ) -> None:  # fmt: skip
        """`tower`: fingerprint of the towers on whose features the model was trained ("" when it is not known).

        `device` is where towers compute what is not stored yet. With `skips`, what cannot be used is left out where
        `bad_input` of the task says so; without, it is an error.
        """
        self.config, self.say, self._skips = config, say, skips
        self.root = data_root(config, say)
        tasks = {
            name: load_task(
                name, root=self.root, family=backbone.family, evaluate=config.evaluate, overlay=config.task.get(name)
            )
            for name in config.tasks
        }
        self.tasks: dict[str, Task] = dict(tasks)
        self._bad_input = {name: task.config.bad_input for name, task in tasks.items()}
        self._usable = {name: task.usable_examples for name, task in tasks.items()}
        self._sieves: dict[tuple[str, str], Sieve] = {}
        self.tokenizer = backbone.tokenizer()
        self.answers = answers_of(backbone)
        # What the ids of targets and answers mean.
        self.writer: Tokenizer = self.tokenizer if self.answers is None else self.answers
        self.features, self.frames, self.tower_names = open_stores(config, backbone)
        self.tower_fingerprint = "+".join(self.tower_names.values())
        for store in (self.features, self.frames):
            if store is not None:
                store.to(device)
        if tower and tower != self.tower_fingerprint:
            raise CheckpointError(
                f"trained on features of tower {tower}, found tower {self.tower_fingerprint}; "
                "set 'backbone.tower_weights' and 'backbone.frame_tower_weights' to the weights it was trained with, "
                "'data.frame_seconds' to its distance of frames"
            )
        self.collator = Collator(
            self.tokenizer, self.features, {n: t.limits for n, t in self.tasks.items()},
            frames=self.frames, max_frames=backbone.max_frames, max_tokens=backbone.max_tokens,
            answers=self.answers, seed=config.seed, text_only=config.data.text_only,
            on_bad=None if skips is None else self._found_bad,
            all_answers=[n for n, t in self.tasks.items() if t.loss == "answers"], augment=augmenter(config, backbone),
        )  # fmt: skip
        self._examples: dict[tuple[str, str], list[Example]] = {}

    def examples(self, task: str, split: str) -> list[Example]:
        """Examples of a split (read once), cut to evenly spread rows where `max_examples` of data or evaluate is set."""
        key = (task, split)
        if key not in self._examples:
            sieve = self._sieve(task, split)
            rows = list(self.tasks[task].examples(split) if sieve is None else self._usable[task](split, sieve))
            self._check_shards(task, split)
            limits = (self.config.data.max_examples, 0 if split == "train" else self.config.evaluate.max_examples)
            limit = min(filter(None, limits), default=len(rows))
            if len(rows) > limit:
                rows = [rows[i * len(rows) // limit] for i in range(limit)]
            self._examples[key] = rows
        return self._examples[key]

    def _sieve(self, task: str, split: str) -> Sieve | None:
        """What takes the faults of a split; None where they are errors."""
        policy = self._bad_input[task]
        if self._skips is None or (policy.train if split == "train" else policy.evaluate) == REFUSE:
            return None
        return self._sieves.setdefault((task, split), Sieve(task, split, policy.most, self._skips))

    def _found_bad(self, example: Example, error: DataError) -> None:
        """A training example whose picture or video failed only when it was wanted."""
        sieve = self._sieve(example.task, "train")
        if sieve is None:
            raise error
        sieve.take_here(example.uid, error)

    def _leave_out(self, task: str, split: str, broken: Mapping[str, DataError]) -> None:
        """Drop the examples of a split whose pictures or video are `broken`; DataError where that is not wanted."""
        sieve, rows = self._sieve(task, split), self._examples[task, split]
        kept = []
        for example in rows:
            visual = example.visual
            path = next((p for p in (*visual.images, visual.video) if p in broken), None)
            if path is None:
                kept.append(example)
            elif sieve is None:
                raise broken[path]
            else:
                sieve.take(example.uid, broken[path])
        self._examples[task, split] = kept
        if sieve is not None:
            sieve.check(max(sieve.total, len(rows)))
            if dist.is_main() and (summary := sieve.summary()):
                self.say(summary)

    def _check_shards(self, task: str, split: str) -> None:
        """DataError when a split is read from shards of features that another tower made, or at another distance."""
        if not shards.has_shards(self.root, task, split):
            return
        for kind, made in shards.towers(self.root, task, split).items():
            own = self.tower_names.get(kind, made)
            if isinstance(self.features if kind == "grid" else self.frames, PixelSource):
                continue  # refused, with another reason, when it is asked to read them
            same = made.partition("@")[2] == own.partition("@")[2] if own.startswith("stored") else made == own
            if not same:
                raise DataError(
                    f"the shards of {task}/{split} hold {kind} features of {made}, this run reads those of {own}; write "
                    "the shards again (tools/shard.py), or give the run the tower that they were written with",
                    file=self.root,
                )

    def prepare(self, wanted: Sequence[tuple[str, str]]) -> None:
        """Read the (task, split) pairs and compute the features of their pictures that are not stored yet."""
        for name in {task for task, _ in wanted}:
            self.tasks[name].check_list()
        for task, split in wanted:
            count = len(self.examples(task, split))
            if dist.is_main():
                self.say(f"{task}/{split}: {count:,} examples")
        if self.config.data.text_only:
            return
        examples = [e for task, split in wanted for e in self.examples(task, split)]
        broken: dict[str, DataError] = {}
        ensure_features(
            self.features, self.frames, examples, self.config.data.fill, self.say, broken if self._sieves else None
        )
        for task, split in wanted:
            self._leave_out(task, split, broken)

    def close(self) -> None:
        """Write features that were computed on first use and still wait for a full shard."""
        for store in (self.features, self.frames):
            if store is not None:
                store.close()


def answers_of(backbone: Any) -> Answers | None:
    """The list that `backbone` chooses its answers from; None where it writes text."""
    return getattr(backbone, "answers", None)


def augmenter(config: RunConfig, backbone: Any) -> Augmenter | None:
    """What changes the training pictures of a run; None where nothing does. ConfigError for a backbone without pixels."""
    augment = config.data.augment
    if augment == AugmentConfig() or config.data.text_only:
        return None
    if backbone.visual_tower is None:
        raise ConfigError(NO_PIXELS)
    return Augmenter(
        backbone.visual_tower.config.image_size, config.seed, least_area=augment.least_area, flip=augment.flip,
        operations=augment.operations, magnitude=augment.magnitude,
    )  # fmt: skip


def open_stores(
    config: RunConfig, backbone: Any, *, storing: bool = False
) -> tuple[FeatureStore | PixelSource | None, FrameStore | PixelFrames | None, dict[str, str]]:
    """Stores of pictures and of videos, for the kinds of features that the backbone reads, and their towers by kind.

    What a tower reads that is trained is given as pixels; ConfigError then for a caller that is `storing` features.
    """
    folder, data, kinds = cache_folder(config) / "features", config.data, backbone.widths
    trained = None if storing else backbone.visual_tower
    as_pixels = () if trained is None else backbone.pixel_kinds
    towers = {kind: None if kind in as_pixels else backbone.tower(kind) for kind in kinds}
    if "frame" in kinds and "frame" not in as_pixels:
        tokens = backbone.max_frames * (towers["frame"].grid if towers["frame"] else backbone.stored_grid("frame"))[0]
        if tokens > backbone.config.num_slots:
            raise ConfigError(
                f"'backbone.frames' {backbone.max_frames} are {tokens} visual tokens, more than 'backbone.num_slots' "
                f"{backbone.config.num_slots}"
            )
    features: FeatureStore | PixelSource | None = None
    frames: FrameStore | PixelFrames | None = None
    if "grid" in kinds and "grid" in as_pixels:
        features = PixelSource(trained.preprocess, trained.config.image_size)
    elif "grid" in kinds:
        features = FeatureStore(towers["grid"], folder, grid=backbone.stored_grid("grid"))
    if "frame" in kinds and "frame" in as_pixels:
        frames = PixelFrames(
            trained.preprocess, trained.config.image_size, backbone.max_frames, every=data.frame_seconds,
            decoder=data.video_decoder,
        )  # fmt: skip
    elif "frame" in kinds:
        frames = FrameStore(
            towers["frame"], folder, grid=backbone.stored_grid("frame"), every=data.frame_seconds,
            decoder=data.video_decoder,
        )  # fmt: skip
    names = {kind: "stored" if tower is None else tower.fingerprint for kind, tower in towers.items()}
    names |= {kind: trained.fixed_fingerprint for kind in kinds if kind in as_pixels}
    if "frame" in names:
        names["frame"] += f"@{data.frame_seconds:g}s"
    return features, frames, names


def ensure_features(
    features: FeatureStore | PixelSource | None, frames: FrameStore | PixelFrames | None, examples: Sequence[Example],
    fill: str, say: Callable[[str], None], broken: dict[str, DataError] | None = None,
) -> None:  # fmt: skip
    """Get the features of all pictures and videos of `examples` ready; ConfigError where the model cannot read them.

    Given `broken`, those that cannot be decoded are added to it by path with their faults.
    """
    pictures = list(dict.fromkeys(p for e in examples for p in e.visual.images))
    videos = list(dict.fromkeys(e.visual.video for e in examples if e.visual.video))
    for paths, store, kind in ((pictures, features, "grid"), (videos, frames, "frame")):
        if not paths:
            continue
        if store is None:
            task = next(e.task for e in examples if (e.visual.video if kind == "frame" else e.visual.images))
            raise ConfigError(
                f"task '{task}' needs {kind!r} features, and this model has no projection for them: train on a task "
                f"of that kind too, or add {kind!r} to 'backbone.visual'"
            )
        store.ensure(paths, say, fill=fill, broken=broken)
