"""Reads a case as a training run reads its data, once where faults are refused and once where rows are left out."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fuzzing.cases import Case
from fuzzing.tars import pack
from mtvl.config import DataConfig, RunConfig
from mtvl.data.skips import SkipLog
from mtvl.errors import MtvlError
from mtvl.workspace import Workspace


@dataclass
class Outcome:
    """What became of a case: valid examples that were lost, faults in words, and what the errors said."""

    lost: list[str]
    faults: list[str]
    errors: list[str]
    skipped: int = 0


class Words:
    """A tokenizer: an id for a word."""

    pad_id, eos_id, num_special = 0, 1, 1

    def encode(self, text: str) -> list[int]:
        """Ids of the words."""
        return [2 + sum(map(ord, word)) % 500 for word in text.split()]

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """With the end."""
        return [*ids, self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Numbers: nobody reads them."""
        return " ".join(map(str, ids))


class MeanColour:
    """A tower: one cell with the mean colour."""

    fingerprint, grid = "mean-colour", (1, 3)

    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """(len(images), 1, 3) float32."""
        rows = [np.asarray(image, dtype=np.float32).reshape(-1, 3).mean(0) / 255 for image in images]
        return torch.from_numpy(np.stack(rows))[:, None]


class Backbone:
    """As much of a backbone as the way from files to batches asks for."""

    family, visual_tower, max_frames, max_tokens = "fuzz", None, 8, 0
    widths = {"grid": 3, "frame": 3}
    config = SimpleNamespace(num_slots=64)

    def tokenizer(self) -> Words:
        """Words."""
        return Words()

    def tower(self, kind: str) -> MeanColour:
        """The same for pictures and frames."""
        return MeanColour()

    def stored_grid(self, kind: str) -> tuple[int, int]:
        """(P, F)."""
        return (1, 3)


def run_case(case: Case, folder: Path) -> Outcome:
    """Read `case`, written below `folder`, under both policies."""
    root = folder / "data"
    case.write(root)
    if case.tar:
        pack(root, folder / "packed", case.layout.task, case.tar, random.Random(case.tar_seed))
        root = folder / "packed"
    outcome = Outcome([], [], [])
    everything = set(range(len(case.layout.uids)))
    sound = case.uids(everything - case.bad - case.open_)
    may_be = case.uids(everything - case.bad)
    has_fault = bool(case.bad) or case.lost or any("twice" in fault for fault in case.faults)
    for policy in ("refuse", "skip"):
        try:
            read, counted = _read(case.layout.task, root, folder / policy, policy)
        except MtvlError as error:
            outcome.errors.append(str(error))
            if not _is_clear(str(error), root):
                outcome.faults.append(f"{policy}: an unclear error: {error}")
            if not case.lost and (policy == "skip" or not (has_fault or case.open_)):
                outcome.faults.append(f"{policy}: ended without need: {error}")
            continue
        except Exception as error:  # whatever it is, a user would see a traceback
            outcome.faults.append(f"{policy}: {type(error).__name__}: {error}")
            continue
        if policy == "refuse" and has_fault and not case.lost:
            outcome.faults.append("refuse: went on over a fault")
        if not case.lost:
            outcome.lost += sorted(sound - read)
        if unwanted := read - may_be:
            outcome.faults.append(f"{policy}: trained on {', '.join(sorted(unwanted)[:3])}")
        if policy == "skip" and case.bad and not counted:
            outcome.faults.append("skip: nothing was written down")
        outcome.skipped += counted
    shutil.rmtree(folder)
    return outcome


def _read(task: str, root: Path, out: Path, policy: str) -> tuple[set[str], int]:
    """Uids that reach a batch, and how many records the log of what was left out has."""
    config = RunConfig(
        tasks=(task,), task={task: {"bad_input": {"train": policy, "most": 0.99}}},
        data=DataConfig(root=str(root), cache=str(out / "cache"), video_decoder="pyav" if policy == "refuse" else "auto"),
    )  # fmt: skip
    log = SkipLog(out)
    space = Workspace(config, Backbone(), say=lambda _: None, skips=log)
    space.prepare([(task, "train")])
    examples = space.examples(task, "train")
    batch = space.collator.collate(task, examples, epoch_keys=[0] * len(examples), training=True)
    space.close()
    return {uid for uid in batch.uids if uid}, len(log.file.read_text().splitlines()) if log.file.is_file() else 0


def _is_clear(text: str, root: Path) -> bool:
    """An error names a file or a task, and says what was expected or found."""
    return (str(root) in text or "task" in text) and any(word in text for word in ("expected", "cannot", "missing"))
