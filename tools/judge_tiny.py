"""What a tiny backbone knows: share of masked statements filled wholly right, by kind, on pictures and videos it never saw.

    python tools/judge_tiny.py [WEIGHTS] [--pictures 150] [--videos 100] [--json]

WEIGHTS is a folder that tools/pretrain_tiny.py wrote (default: the bundled one). The statements are those of pretraining,
one at a time, about scenes whose numbers pretraining does not reach; "yes/no" rows are statements judged true or false,
where guessing gives about a half. Some masked relations have two right words, of which one counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator

import torch
from pretraining.stream import SPLIT_SEED, masked_ids, pad

from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import ClipBartConfig
from mtvl.backbones.clip_config import bundled_folder
from mtvl.backbones.tokenizers import BartText, load_bart_tokenizer
from mtvl.data.miniworld.episode import episode_at
from mtvl.data.miniworld.language import KINDS_OF_PAIRS, KINDS_OF_PICTURES
from mtvl.data.miniworld.render import render
from mtvl.data.miniworld.scene import scene_at
from mtvl.data.miniworld.video_language import cloze_episode
from mtvl.report import table
from mtvl.types import Batch

UNSEEN = 500_000  # number of the first scene; pretraining takes some ten thousand from 0 on
Judged = tuple[str, list[tuple[str, str]], torch.Tensor, str]  # kind, statements with answers, features, feature kind


def pictures(model: ClipBart, number: int, rng: random.Random) -> Iterator[Judged]:
    """Statements about one picture and about two neighbours."""
    scenes = [scene_at(SPLIT_SEED, "pretrain", UNSEEN + i) for i in range(number)]
    grids = model.tower("grid").encode([render(s) for s in scenes]).float()
    for i, scene in enumerate(scenes):
        for make in KINDS_OF_PICTURES:
            yield f"picture, {_name(make)}", _prompted("fill:", make(scene, rng)), grids[i][None], "grid"
        if i % 2 and i:
            for make in KINDS_OF_PAIRS:
                found = make(scenes[i - 1], scene, rng)
                yield f"two pictures, {_name(make)}", _prompted("pair:", found), grids[i - 1 : i + 1], "grid"


def videos(model: ClipBart, number: int, rng: random.Random) -> Iterator[Judged]:
    """Statements about one video of eight frames."""
    for i in range(number):
        episode = episode_at(SPLIT_SEED, "pretrain", UNSEEN + i, 8, 3)
        frames = model.tower("frame").encode([render(episode.scene(t)) for t in range(episode.ticks)])
        found = _prompted("watch:", cloze_episode(episode, rng))
        yield "video", found, frames.float().flatten(0, 1)[None], "frame"


def _name(make: object) -> str:
    return getattr(make, "__name__", "").strip("_").replace("_", " ")


def _prompted(prompt: str, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"{prompt} {text}", answer) for text, answer in found]


@torch.no_grad()
def hits(model: ClipBart, tokenizer: BartText, judged: Judged) -> list[bool]:
    """Whether each answer is wholly right, word by word given the right words before it."""
    _, found, features, kind = judged
    source = pad([tokenizer.wrap(masked_ids(tokenizer, text)) for text, _ in found], tokenizer.pad_id)
    target = pad([tokenizer.wrap(masked_ids(tokenizer, answer)) for _, answer in found], -100)
    batch = Batch(
        kind, (), source, source != tokenizer.pad_id, features.expand(len(found), *features.shape), target,
        torch.ones(len(found)), feature_kind=kind,
    )  # fmt: skip
    best = model.decode(model.encode(batch), target).argmax(-1)
    return ((best == target) | (target < 0)).all(-1).tolist()


def judge(weights: str, numbers: tuple[int, int], seed: int) -> dict[str, tuple[float, int]]:
    """Share of right answers and their number by kind."""
    model = ClipBart.build(ClipBartConfig(weights=weights, visual=("grid", "frame"))).eval()
    tokenizer, rng = load_bart_tokenizer(str(bundled_folder(weights))), random.Random(seed)
    found: dict[str, list[bool]] = defaultdict(list)
    for sort, number in zip((pictures, videos), numbers, strict=True):
        for judged in sort(model, number, rng):
            if judged[1]:
                for (_, answer), hit in zip(judged[1], hits(model, tokenizer, judged), strict=True):
                    found[judged[0] + (", yes/no" if answer in ("yes", "no") else "")].append(hit)
    return {kind: (sum(all_) / len(all_), len(all_)) for kind, all_ in sorted(found.items())}


def main() -> int:
    """Print the table; exit 2 on unusable input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="tiny")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if bundled_folder(args.weights) is None:
        parser.error(
            f"expected a folder of tools/pretrain_tiny.py with its backbone.json, found none in {args.weights}"
        )
    found = judge(args.weights, (args.pictures, args.videos), args.seed)
    if args.json:
        print(json.dumps({kind: {"right": right, "statements": n} for kind, (right, n) in found.items()}, indent=1))
    else:
        rows = [[kind, f"{100 * right:.1f}", f"{n:,}"] for kind, (right, n) in found.items()]
        print(table(rows, ["statements about", "right %", "number"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
