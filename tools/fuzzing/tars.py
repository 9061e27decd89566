"""A set as tar shards, and what can be wrong with them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from fuzzing.media import flipped, noise
from mtvl.data.shard_media import FileMedia
from mtvl.data.shard_plan import Options, make_plan
from mtvl.data.shard_writer import write_split
from mtvl.data.shards import EXAMPLES, INDEX, example_settings
from mtvl.tasks import load_task


def pack(root: Path, out: Path, task: str, fault: str, chance: random.Random) -> None:
    """Write the shards of the training examples of `task` on `root` to `out`, with `fault`."""
    loaded = load_task(task, root=root, family="fuzz")
    examples, settings, media = loaded.examples("train"), example_settings(loaded.config), FileMedia()
    plan = make_plan(examples, media, settings, Options(20_000, False))
    write_split(out, task, "train", examples, media, plan, settings=settings)
    if (root / "tasks").is_dir():
        shutil.copytree(root / "tasks", out / "tasks")
    folder = out / task / "train"
    tar, index = chance.choice(sorted(folder.glob("*.tar"))), folder / INDEX
    if fault == "cut":
        tar.write_bytes(tar.read_bytes()[: chance.randrange(tar.stat().st_size)])
    elif fault == "flipped":
        tar.write_bytes(flipped(tar.read_bytes(), chance))
    elif fault == "missing":
        tar.unlink()
    elif fault == "noise":
        tar.write_bytes(noise(chance))
    elif fault == "index is noise":
        index.write_bytes(noise(chance))
    elif fault == "index is missing":
        index.unlink()
    elif fault == "index leaves the folder":
        content = json.loads(index.read_text())
        secret = out / "secret.tar"
        shutil.copy(tar, secret)
        chance.choice(content["shards"])["name"] = chance.choice(["../../secret.tar", str(secret)])
        index.write_text(json.dumps(content))
    elif fault == "examples are cut":
        file = folder / EXAMPLES
        file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])
