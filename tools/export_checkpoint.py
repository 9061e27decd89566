"""Write a trained checkpoint in the layout of another library, or as the backbone of further runs.

    python tools/export_checkpoint.py RUN OUT --as peft   [--check] [key=value ...]
    python tools/export_checkpoint.py RUN OUT --as merged [--task NAME] [--check] [key=value ...]
    python tools/export_checkpoint.py RUN OUT --as backbone [--task NAME] [key=value ...]

RUN is a run folder or an export. `peft` (method `lora`): OUT holds adapter_config.json and adapter_model.safetensors, or
a folder with both for each task where tasks have adapters of their own; `PeftModel.from_pretrained(base, OUT)` loads it
onto the plain language model. `merged` (`lora`, `ia3`, `vcra`, and methods that add nothing): OUT is a plain transformers model
for `AutoModelForSeq2SeqLM.from_pretrained`, with the tokenizer where the backbone has one. Both have visual.safetensors
beside them: the visual embedding and the token rows of the visual slots, which no language model has.

`backbone` (what can be merged): OUT is the model's language model, visual embedding, towers and tokenizer; other runs start
from it with `backbone.weights=OUT`, e.g. after pre-training.

`--check` loads what was written with that library and compares logits with the checkpoint's own: of text alone, and of
the decoder over encoded text and pictures. `tools/import_checkpoint.py` reads PEFT folders.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from mtvl.config import RunConfig
from mtvl.errors import CheckpointError, ConfigError, MtvlError
from mtvl.export import load_export
from mtvl.interchange.bundle import write_bundle
from mtvl.interchange.peft import write_peft
from mtvl.interchange.plain import plain_text_model, write_merged
from mtvl.model import Model, make_backbone
from mtvl.types import Batch
from mtvl.workspace import answers_of

TOLERANCE = 1e-4  # logits up to some tens in float32; another order of the same sums is 1e-6 to 1e-5 of that


def sample(model: Model, pictures: int) -> Batch:
    """Random text, and a random grid of features where `pictures` is 1."""
    random = torch.Generator().manual_seed(0)
    rows = model.backbone.public_rows
    kind, width = next(iter(model.backbone.widths.items()))
    tokens = model.backbone.stored_grid(kind)[0] if kind == "grid" else 4
    return Batch(
        task=model.plan.tasks[0], uids=("a", "b"), source_ids=torch.randint(5, rows, (2, 9), generator=random),
        source_mask=torch.arange(9)[None] < torch.tensor([[9], [6]]),
        features=torch.randn(2, pictures, tokens, width, generator=random), feature_kind=kind,
        target_ids=torch.randint(5, rows, (2, 6), generator=random), target_weights=torch.ones(2),
    )  # fmt: skip


@torch.no_grad()
def largest_difference(model: Model, plain: Any) -> float:
    """Largest difference between logits of `model` (its task is set) and of a transformers model."""
    text, both = sample(model, 0), sample(model, 1)
    config = plain.config
    pad, worst = config.pad_token_id, 0.0
    for batch in (text, both):
        memory = model.backbone.encode(batch)
        own = model.backbone.decode(memory, batch.target_ids)
        given: dict[str, Any] = {"input_ids": batch.source_ids.masked_fill(~batch.source_mask, pad)}
        if batch is both:
            given = {"encoder_outputs": (memory.hidden,)}
        theirs = plain(**given, attention_mask=memory.mask.long(), labels=batch.target_ids).logits
        shared = min(own.shape[-1], theirs.shape[-1])  # a public base has no rows for visual slots
        worst = max(worst, float((own[..., :shared] - theirs[..., :shared]).abs().max()))
    return worst


def check_peft(folders: list[Path], model: Model, config: RunConfig) -> None:
    """Load each folder with peft onto the plain base and compare; CheckpointError when logits differ."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("--check needs the peft library, which is not installed here: pip install peft")
    from peft import PeftModel

    for folder, task in zip(folders, model.plan.tasks if model.plan.is_task_private else ("",), strict=True):
        base = plain_text_model(make_backbone(config.backbone))
        judge(largest_difference(_at(model, task), PeftModel.from_pretrained(base, str(folder)).eval()), folder)


def check_merged(folder: Path, model: Model, task: str) -> None:
    """Load the folder with transformers and compare; CheckpointError when logits differ."""
    from transformers import AutoModelForSeq2SeqLM

    judge(largest_difference(_at(model, task), AutoModelForSeq2SeqLM.from_pretrained(str(folder)).eval()), folder)


def _at(model: Model, task: str) -> Model:
    if task:
        model.set_task(task)
    return model.eval()


def judge(difference: float, folder: Path) -> None:
    """Print the difference; CheckpointError above the tolerance."""
    if difference > TOLERANCE:
        raise CheckpointError(f"{folder} gives other logits: largest difference {difference:.3g} (limit {TOLERANCE:g})")
    print(f"checked {folder}: largest difference of logits {difference:.3g} (limit {TOLERANCE:g})")


def export(run: Path, out: Path, layout: str, task: str, is_checked: bool, overrides: list[str]) -> None:
    """Write `out`. Raises MtvlError subclasses."""
    model, config, _ = load_export(run, overrides)
    model.eval()
    if layout != "backbone" and answers_of(model.backbone) is not None:
        raise ConfigError(
            f"--as {layout} writes language models; this one chooses from a list of answers: --as backbone writes it for "
            "further runs, and the run's export/ holds all that was trained"
        )
    if model.backbone.family == "blip":
        raise ConfigError(
            "other libraries read exports of CLIP-BART and CLIP-T5; one of BLIP is read by this library alone (mtvl evaluate)"
        )
    if out.is_file():
        raise ConfigError(f"{out} is a file; give a new folder")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; give a new folder")
    if is_checked and layout == "backbone":
        raise ConfigError("--check compares with another library; a backbone is read by this one alone")
    if layout == "peft":
        if task:
            raise ConfigError("--task belongs to merging: PEFT folders are written for all tasks")
        folders = write_peft(out, model, config)
        print("wrote " + ", ".join(str(f) for f in folders))
        if is_checked:
            check_peft(folders, model, config)
        return
    if model.plan.is_task_private and not task:
        raise ConfigError(f"each task has adapters of its own; give --task, one of {', '.join(model.plan.tasks)}")
    if layout == "backbone":
        write_bundle(out, model, config, task)
        print(f"wrote {out}; start from it with backbone.weights={out}")
        return
    write_merged(out, model, task)
    try:
        model.backbone.tokenizer().raw.save_pretrained(str(out))
    except (ConfigError, CheckpointError) as error:
        print(f"no tokenizer was written: {error}")
    print(f"wrote {out}")
    if is_checked:
        check_merged(out, model, task)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder or an export")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--as", dest="layout", choices=("peft", "merged", "backbone"), required=True)
    parser.add_argument("--task", default="", help="whose adapters are merged, where tasks have their own")
    parser.add_argument("--check", action="store_true", help="load it with the other library and compare logits")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. backbone.weights=FOLDER")
    options = parser.parse_intermixed_args(arguments)
    try:
        export(options.run, options.out, options.layout, options.task, options.check, options.overrides)
    except MtvlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
