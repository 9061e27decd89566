#!/usr/bin/env python3
"""Pre-train a BLIP on captions (contrast + matching + language) and make it the backbone of further runs.

    tools/pretrain_blip.py OUT [--recipe launch/recipes/small_blip_pretrain.yaml] [key=value ...]

1. The recipe is trained by the trainer itself in OUT/run. Stop it when you like: the same command goes on, to the same bits.
   On several processes, train the recipe with `deepspeed launch/train.py --run OUT/run` first; this command then goes on to 2.
2. Held-out captions (the split val): nats a token with the picture and without one, recalls among all items of the split.
3. OUT becomes what `backbone.weights=OUT` takes: weights in half precision under BLIP's original names, tokenizer, and
   backbone.json with sizes, recipe, versions and the figures of 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import mtvl
from mtvl.backbones.blip.keys import ALIASES, to_original
from mtvl.config import RunConfig, load_run_config, to_plain
from mtvl.errors import ConfigError, MtvlError
from mtvl.evaluator import Evaluator
from mtvl.export import load_export
from mtvl.loader import evaluation_batches
from mtvl.model import Model
from mtvl.objectives.language import IGNORED, language_labels, next_token_losses
from mtvl.tasks import load_task
from mtvl.train import train
from mtvl.types import Batch, Example
from mtvl.workspace import Workspace

RECIPE = Path(__file__).resolve().parents[1] / "launch" / "recipes" / "small_blip_pretrain.yaml"
MOST_CAPTIONS = 300  # of a task's split val, evenly spread
RECALLS = ("r_mean", "tr1", "tr5", "tr10", "ir1", "ir5", "ir10", "num_items")
PACKAGES = ("torch", "transformers", "deepspeed")


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("out", type=Path, metavar="OUT", help="folder to write; a finished backbone there is an error")
    flags.add_argument("--recipe", type=Path, default=RECIPE)
    flags.add_argument("overrides", nargs="*", metavar="key=value", help="as for training, e.g. data.root=ROOT")
    return flags


def checked(out: Path, recipe: Path, overrides: Sequence[str]) -> RunConfig:
    """The recipe, once it is one that can be made a backbone; ConfigError otherwise."""
    if (out / "backbone.json").exists():
        raise ConfigError(f"{out} holds a finished backbone already; give another folder or remove it")
    config = load_run_config(recipe, (), overrides)
    section = config.backbone
    kind = section.get("kind", "joint")
    if section.get("name") != "blip" or kind != "pretrain":
        found = f"blip of kind {kind}" if section.get("name") == "blip" else section.get("name")
        raise ConfigError(
            f"expected a recipe of backbone.name blip and backbone.kind pretrain, whose decoder reads pictures, found {found} "
            f"in {recipe}"
        )
    if config.petl["name"] != "full":
        raise ConfigError(
            f"pre-training makes a plain backbone, petl.name is {config.petl['name']!r}; set petl.name=full (petl.frozen keeps "
            "a tower as it is)"
        )
    others = [
        n for n in config.tasks if load_task(n, root=config.data.folder, overlay=config.task.get(n)).loss != "pairs"
    ]
    if others or not config.pairs.language:
        found = f"the task {others[0]}" if others else "pairs.language 0"
        raise ConfigError(
            f"pre-training is contrast, matching and language on pictures with texts: it wants tasks of the kind retrieval "
            f"and pairs.language above 0, found {found}"
        )
    return config


def held_out(workspace: Workspace, task: str) -> list[Example]:
    """Captions of the split val."""
    rows = workspace.examples(task, "val")
    return [rows[i * len(rows) // MOST_CAPTIONS] for i in range(MOST_CAPTIONS)] if len(rows) > MOST_CAPTIONS else rows


@torch.no_grad()
def caption_nats(model: Model, batches: Iterable[Batch]) -> dict[str, float]:
    """Nats a token of captions: with their pictures, and with grey ones (zeros) in their place. No label smoothing."""
    sums, tokens = dict.fromkeys(("seen", "unseen"), 0.0), 0
    backbone = model.backbone
    for batch in batches:
        ids, mask = batch.source_ids, batch.source_mask
        labels = language_labels(ids, mask)
        pixels = backbone.every_frame(batch)
        for name, shown in (("seen", pixels), ("unseen", torch.zeros_like(pixels))):
            logits = backbone.decode_states(ids, mask, backbone.see(shown).flatten(1, 2))
            sums[name] += float(next_token_losses(logits, labels, 0.0).sum())
        tokens += int((labels[:, 1:] != IGNORED).sum())
    return {f"val_loss_{name}": round(total / max(1, tokens), 6) for name, total in sums.items()}


def measure(model: Model, config: RunConfig) -> dict[str, dict[str, float]]:
    """Task -> losses and recalls on its held-out captions."""
    workspace = Workspace(config, model.backbone, tower=model.trained_tower)
    workspace.prepare([(task, "val") for task in config.tasks])
    evaluator = Evaluator(model.eval(), workspace.writer, "cpu")
    found: dict[str, dict[str, float]] = {}
    for name, task in workspace.tasks.items():
        rows = held_out(workspace, name)
        batches = evaluation_batches(workspace.collator, task, rows, config.evaluate.batch)
        numbers = caption_nats(model, batches)
        scores = evaluator.score(task, rows, evaluator.retrieve(task, rows, workspace.collator, config.evaluate.batch))
        found[name] = {**numbers, **{key: round(float(scores.metrics[key]), 2) for key in RECALLS}}
        print(f"{name}, {len(rows)} held-out captions: " + ", ".join(f"{k} {v:g}" for k, v in found[name].items()))
    return found


def write(out: Path, model: Model, record: dict[str, Any]) -> None:
    """Weights, tokenizer and, last, since it marks a finished one, backbone.json."""
    backbone = model.backbone
    original = to_original(backbone.state_dict(), backbone.vision_shape.patch)
    # Tensors that are tied stand under each of their names, so that a decoder of its own can start from them too.
    state = {name: tensor.half().clone() for name, tensor in original.items() if name not in ALIASES}
    save_file(state, str(out / "model.safetensors"))
    backbone.tokenizer().raw.backend_tokenizer.save(str(out / "tokenizer.json"))
    sizes = {key: dataclasses.asdict(getattr(backbone, f"{key}_shape")) for key in ("vision", "text")}
    content = {"family": "blip", **sizes, "embed_dim": backbone.config.embed_dim, "recipe": record}
    (out / "backbone.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def record_of(run: Path, config: RunConfig, content: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """What was run, with what, and what came of it. No times: the same recipe gives the same bytes, which comparisons hash."""
    settings = to_plain(config)
    samples: dict[str, int] = defaultdict(int)
    for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        if "loss" in step:
            samples.update(step["samples"])
    kept = ("seed", "tasks", "task", "backbone", "petl", "mixture", "train", "optim", "pairs")
    versions = {"mtvl": mtvl.__version__, **{name: version(name) for name in PACKAGES}}
    return {
        **{key: settings[key] for key in kept}, "base": content["base"], "versions": versions,
        "threads": torch.get_num_threads(), "step": content["step"], "samples": dict(samples),
        "held_out": held,
    }  # fmt: skip


def pretrain(out: Path, recipe: Path, overrides: Sequence[str]) -> int:
    """Train, measure, write; the exit code of a training that was stopped. Raises MtvlError for what a user can mend."""
    config = checked(out, recipe, overrides)
    run = out / "run"
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{run} cannot be made a folder ({error}); give another OUT") from None
    if (code := train(config, run).code) != 0:
        return code
    model, found, content = load_export(run)
    record = record_of(run, found, content, measure(model, found))
    write(out, model, record)
    print(f"wrote {out}; start from it with backbone.weights={out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = parser().parse_intermixed_args(argv)
    try:
        return pretrain(args.out, args.recipe, args.overrides)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
