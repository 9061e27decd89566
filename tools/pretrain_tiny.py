"""Pretrain the tiny CLIP-BART that ships with the package (mtvl/backbones/weights/tiny), from nothing but miniworld.

    python tools/pretrain_tiny.py OUT [--tower-steps 700] [--steps 12000] [--seed 0]
    python tools/pretrain_tiny.py OUT2 --start OUT [--steps 7000]
    python tools/pretrain_tiny.py OUT3 --start OUT2 [--steps 5000]

1. Towers: a small CLIP residual tower learns to name the attributes of the object on each lattice cell; a linear head
   on top of it, those of the object in each quarter of a video frame.
2. Tokenizer: byte-pair encoding over miniworld text and a list of common English words.
3. Language model: everything but the towers learns to fill masked words of statements about pictures and videos, to
   choose among options, to describe pictures densely, and to restore damaged sentences without any picture.
4. With `--start` the towers, the tokenizer and the weights of an earlier run are taken, and a mix with more of what is
   still hard then: relations between objects, numbers, two pictures, videos. A run that starts from such a run has many
   judgements, "yes" or "no", about one reading of a picture.

Pictures and videos come from the split "pretrain": disjoint seeds, and none of the compositions that are held out for
tests. The wording of the benchmarks is read as text alone, about scenes of that split: never with a picture, no question
with its answer. Bounded by steps (the default) a run is a function of the seed, the number of threads and the library
versions; bounded by `--tower-minutes` and `--minutes` the learning rate follows the clock. What was run is recorded in
backbone.json. A tower.safetensors (and its tower.json) that is already in OUT is kept,
and a run that was interrupted goes on from OUT/state.pt.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from pretraining.clock import Clock
from pretraining.stream import LAST_ROUND, Stream, episodes_of, scenes_of
from pretraining.text import begin, pretrain_text
from pretraining.towers import encode_all, pretrain_frame_head, pretrain_tower
from safetensors.torch import save_file

from mtvl.backbones.clip_bart import ClipBart
from mtvl.backbones.clip_bart_config import PRESETS, ClipBartConfig
from mtvl.backbones.frame_tower import FrameTower
from mtvl.backbones.tokenizers import ALPHABET, BartText, load_bart_tokenizer, train_bart_tokenizer
from mtvl.backbones.towers import GridTower
from mtvl.data.miniworld.episode import Episode
from mtvl.data.miniworld.language import cloze, describe
from mtvl.data.miniworld.prose import sentences
from mtvl.data.miniworld.scene import Scene
from mtvl.data.miniworld.video_language import cloze_episode, pick_episode, video_sentences
from mtvl.data.miniworld.video_story import story

VOCABULARY = 2000
FRAMES = 8  # most frames of a video
PEAK, FURTHER_PEAK = 1e-3, 7e-4  # of the learning rate
NOT_STORED = ("bart.lm_head.weight", "bart.final_logits_bias")  # tied, and zero


def corpus(scenes: list[Scene], episodes: list[Episode], seed: int) -> list[str]:
    """Texts for the tokenizer: statements with their answers, descriptions, sentences, common words, characters."""
    rng = random.Random(seed)
    texts = []
    for scene in scenes:
        texts.append(describe(scene, rng))
        texts += [t.replace("<mask>", a) for t, a in cloze(scene, rng)] + sentences(scene, rng)
    for episode in episodes:
        texts += [t.replace("<mask>", a) for t, a in [*cloze_episode(episode, rng), *pick_episode(episode, rng)]]
        texts += [*video_sentences(episode, rng), story(episode, rng)]
    words = (Path(__file__).parent / "assets" / "common_words.txt").read_text().split()
    words += ["true", "false", *ALPHABET]  # a character that ends a word is another symbol than one inside it
    prompts = "vqa: gqa: nlvr: caption: tvqa: how2qa: tvc: yc2c: fill: pair: describe: watch: tell: pick: text: [subs] [q] [ts]"
    return texts + words * 20 + [f"{prompts} [choices] a0: a1: a2: a3: a4:"] * 200


def towers(out: Path, args: argparse.Namespace, record: dict[str, Any]) -> tuple[GridTower, FrameTower]:
    """Both towers as users will have them: written to `out`, rounded to float16, read again."""
    file = out / "tower.safetensors"
    if file.is_file():
        print(f"tower taken from {file}")
    else:
        clock = Clock("tower", args.tower_minutes, args.tower_steps)
        tower, hits = pretrain_tower(clock, args.seed)
        save_file(half(tower.trunk.state_dict()), str(file))
        (out / "tower.json").write_text(json.dumps({"tower_steps": clock.step, "tower_accuracy": hits}))
    record |= json.loads((out / "tower.json").read_text())
    grid, file = GridTower("tiny", str(file)), out / "frame_tower.safetensors"
    if not file.is_file():
        scenes = [e.scene(t) for e in episodes_of(args.seed, 1000) for t in range(e.ticks)]
        save_file(half(pretrain_frame_head(grid, scenes, args.seed).state_dict()), str(file))
    return grid, FrameTower("tiny", str(file))


def rounds(recipe: dict[str, Any]) -> int:
    """How many finished runs this one goes on from, one after the other."""
    return 1 + rounds(recipe["start"]) if "start" in recipe else 0


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floats as float16, the rest as it is."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def make_stream(
    out: Path, tokenizer: BartText, grid: GridTower, frame: FrameTower, args: argparse.Namespace, round_: int
) -> Stream:
    """Pictures and videos with their features."""
    scenes, episodes = scenes_of(args.seed, args.pictures), episodes_of(args.seed, args.videos)
    ticks = [e.scene(t) for e in episodes for t in range(e.ticks)]
    grids, frames = (
        encode_all(grid.encode, scenes, out / "grids.pt"), encode_all(frame.encode, ticks, out / "frames.pt")
    )  # fmt: skip
    # Other draws than those of the run that it goes on from.
    return Stream(tokenizer, scenes, grids, episodes, frames, args.seed + 1000 * round_, args.rows, round_=round_)


def main() -> int:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-minutes", type=float, default=6)
    parser.add_argument("--tower-steps", type=int, default=700)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--start", type=Path, metavar="DIR", help="an earlier run to go on from, with a harder mix")
    args = parser.parse_args()
    if args.start and not (args.start / "backbone.json").is_file():
        parser.error(f"--start expects the folder of a finished run with its backbone.json, found none in {args.start}")
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {k: getattr(args, k) for k in ("seed", "pictures", "videos", "rows")}
    record |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.start:
        record["start"] = json.loads((args.start / "backbone.json").read_text())["recipe"]
        for name in ("tower.safetensors", "frame_tower.safetensors", "tokenizer.json"):
            shutil.copyfile(args.start / name, out / name)
        (out / "tower.json").write_text("{}")
    grid, frame = towers(out, args, record)
    if not (out / "tokenizer.json").is_file():
        texts = corpus(scenes_of(args.seed, 3000), episodes_of(args.seed, 1500), args.seed)
        train_bart_tokenizer(texts, out / "tokenizer.json", VOCABULARY)
    tokenizer = load_bart_tokenizer(str(out))
    print(f"tokenizer: {len(tokenizer)} ids")
    # At 128 wide BART's 0.02 leaves attention flat for a long time; 0.08 is near 1 / sqrt(128).
    text = {**PRESETS["tiny"], "vocab_size": len(tokenizer), "init_std": 0.08}
    torch.manual_seed(args.seed)
    model = ClipBart.build(
        ClipBartConfig(preset="tiny", text=text, tower="tiny", frame_tower="tiny", visual=("grid", "frame"), dropout=0.0,
                       init_seed=args.seed, weights=str(args.start) if args.start else "")
    )  # fmt: skip
    if not args.start:
        begin(model)
    print(f"language model: {sum(p.numel() for p in model.parameters()):,} parameters")
    stream = make_stream(out, tokenizer, grid, frame, args, min(rounds(record), LAST_ROUND))
    clock = Clock("text", args.minutes, args.steps)
    found = pretrain_text(clock, model, stream, out / "state.pt", FURTHER_PEAK if args.start else PEAK)
    record |= {"text": found, "steps": clock.step}
    state = {
        k: v for k, v in model.state_dict().items() if k not in NOT_STORED and not k.endswith("embed_tokens.weight")
    }
    save_file(half(state), str(out / "model.safetensors"))
    settings = {"text": text, "tower": "tiny", "frame_tower": "tiny", "frames": FRAMES, "recipe": record}
    (out / "backbone.json").write_text(json.dumps(settings, indent=1) + "\n")
    for name in ("tower.json", "grids.pt", "frames.pt", "state.pt"):
        (out / name).unlink(missing_ok=True)
    total = sum(f.stat().st_size for f in out.iterdir())
    print(f"wrote {out}: {total / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
