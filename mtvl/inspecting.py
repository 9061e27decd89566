"""Looking at one sample: `mtvl inspect` prints its path through the system, `mtvl predict` answers for one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from mtvl import dist
from mtvl.config import RunConfig
from mtvl.data.collate import Collator
from mtvl.data.features.stored import is_stored
from mtvl.data.media import open_image
from mtvl.data.rows import IGNORE
from mtvl.data.shown import shown_pictures
from mtvl.errors import ConfigError, DataError
from mtvl.evaluator import Evaluator
from mtvl.export import load_export
from mtvl.model import Model, build_model
from mtvl.objectives.answers import soft_answer_losses
from mtvl.objectives.seq2seq import sample_losses, token_losses
from mtvl.tasks import load_task
from mtvl.types import Batch, Example, Segment, Visual
from mtvl.workspace import Workspace, answers_of, ensure_features, open_stores, with_answers


def inspect_sample(config: RunConfig, task: str, index: int, split: str, checkpoint: str = "") -> str:
    """Text that follows one sample from its row to its loss; also draws its pictures into runs/inspect/.

    With `checkpoint` the trained model is used, otherwise the frozen start. Raises DataError for an index outside.
    """
    if checkpoint:
        model, trained, _ = load_export(Path(checkpoint))
        # The data and the visual input that it was trained with, unless others are asked for.
        root, cache = config.data.root or trained.data.root, config.data.cache or trained.data.cache
        config = replace(trained, tasks=(task,), data=replace(trained.data, root=root, cache=cache))
    else:
        config = with_answers(config, _silent)
        model = build_model(config)
    workspace = Workspace(config, model.backbone, tower=model.trained_tower, say=_silent)
    examples = workspace.examples(task, split)
    if not 0 <= index < len(examples):
        raise DataError(f"'index' must lie in 0..{len(examples) - 1} for {task}/{split}, found {index}")
    example = examples[index]
    if not config.data.text_only:
        ensure_features(workspace.features, workspace.frames, [example], "eager", _silent)
    batch = workspace.collator.collate(task, [example], training=False)
    model.eval()
    model.set_task(task)
    with torch.no_grad():
        memory = model.backbone.encode(batch)
        losses = token_losses(model.backbone.decode(memory, batch.target_ids), batch.target_ids)
        loss, meaning = _sample_loss(model, memory, batch, losses)
    answer = Evaluator(model, workspace.writer).predict_batch(workspace.tasks[task], batch)[0]
    lines = _sample_lines(workspace, example, batch, split, index)
    # A hidden answer leaves one ignored position, which no tokenizer can decode.
    pieces = [
        "<none>" if t == IGNORE else workspace.writer.decode([t]) or "<special>" for t in batch.target_ids[0].tolist()
    ]
    lines += ["", f"encoder memory  {tuple(memory.hidden.shape)} (B, S+V, D)"]
    lines += ["token loss      " + "  ".join(f"{p}:{v:.3f}" for p, v in zip(pieces, losses[0].tolist(), strict=True))]
    lines += [f"loss            {loss:.4f} ({meaning})"]
    lines += [f"answer now      {answer.text!r}" + (f"  {dict(answer.scores)}" if answer.scores else "")]
    if dist.is_main():
        lines += _drawn(example, config, answer.text, f"{task}-{split}-{index}.png")
    return "\n".join(lines)


def _sample_loss(model: Model, memory: Any, batch: Batch, losses: torch.Tensor) -> tuple[float, str]:
    """What training would add up for the row of `batch`, whose losses by token are (1, T), and how it is made."""
    answers = answers_of(model.backbone)
    if answers is None or answers.are_exclusive(batch.task):
        weight = float(batch.target_weights[0])
        loss = sample_losses(losses, batch.target_ids, batch.target_weights)
        return float(loss[0]), f"mean over tokens x target weight {weight:.2f}"
    loss = soft_answer_losses(model.backbone.answer_logits(memory), batch.answer_scores)
    count = int((batch.answer_scores >= 0).sum())
    return float(loss[0]), f"binary cross entropy against all targets' weights, summed over {count} answers"


def _sample_lines(workspace: Workspace, example: Example, batch: Batch, split: str, index: int) -> list[str]:
    task, tokenizer = workspace.tasks[example.task], workspace.tokenizer
    lines = [f"task {task.name}, split {split}, index {index}, uid {example.uid}"]
    for number, path in enumerate(example.visual.images):
        size = "stored features" if is_stored(path) else "{} x {} px".format(*open_image(path).size)
        lines.append(f"picture {number}       {path} ({size})")
    if example.visual.video:
        span = "all of it" if example.visual.span is None else "seconds {:g} to {:g}".format(*example.visual.span)
        lines.append(f"video           {example.visual.video} ({span})")
    for segment in example.segments:
        count = len(tokenizer.encode(segment.text))
        lines.append(f"segment         {segment.name}: {segment.text!r} ({count} tokens, priority {segment.priority})")
    for target in sorted(example.targets, key=lambda t: -t.weight)[:5]:
        lines.append(f"target          {target.text!r} weight {target.weight:.2f}")
    labels = [t for t in batch.target_ids[0].tolist() if t != IGNORE]
    lines += [
        "",
        f"source_ids      {tuple(batch.source_ids.shape)} (B, S)  {batch.source_ids[0].tolist()}",
        f"decoded source  {tokenizer.decode(batch.source_ids[0].tolist())!r}",
        f"features        {tuple(batch.features.shape)} (B, N, P, F) {batch.feature_kind}  min {float(batch.features.min()):.3f} "
        f"max {float(batch.features.max()):.3f}" if batch.features.numel() else "features        none",
        f"target_ids      {tuple(batch.target_ids.shape)} (B, T)  {labels}",
        f"decoded labels  {workspace.writer.decode(labels)!r}",
        f"limits          source {task.limits.source_tokens} tokens, target {task.limits.target_tokens} (0: none); loss {task.loss}",
    ]  # fmt: skip
    return lines


def _silent(_text: str) -> None:
    pass


def _drawn(example: Example, config: RunConfig, answer: str, name: str) -> list[str]:
    """The line that says where the pictures were drawn; nothing where features are stored."""
    pictures = shown_pictures(example.visual, config.data.frame_seconds, config.data.video_decoder)
    return [f"drawn into      {_draw(pictures, example, answer, Path('runs') / 'inspect' / name)}"] if pictures else []


def _draw(pictures: list[Image.Image], example: Example, answer: str, path: Path) -> Path:
    """Pictures side by side with the text, the targets and the answer below."""
    side = 320 if len(pictures) <= 2 else 160
    pictures = [p.resize((side, max(1, round(p.height * side / p.width)))) for p in pictures]
    targets = ", ".join(t.text for t in sorted(example.targets, key=lambda t: -t.weight)[:3])
    text = [" ".join(s.text.strip() for s in example.segments), f"target: {targets}", f"answer: {answer}"]
    lines = [piece for part in text for piece in textwrap.wrap(part, max(48, 48 * side * len(pictures) // 320)) or [""]]
    top = max(p.height for p in pictures)
    sheet = Image.new("RGB", (max(320, side * len(pictures)), top + 18 * len(lines) + 12), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (side * number, 0))
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        draw.text((6, top + 6 + 18 * row), line, fill="black", font=ImageFont.load_default(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def predict_one(
    checkpoint: Path, task_name: str, images: Sequence[Path], text: str, overrides: Sequence[str] = ()
) -> str:  # fmt: skip
    """The model's answer for the given pictures and text, with the prompt, decoding and adapters of `task_name`.

    `overrides` are laid over the recipe in the export, e.g. `data.root=FOLDER` where one's own task has moved.
    """
    model, config, _ = load_export(checkpoint, overrides)
    task = load_task(task_name, root=config.data.folder, family=model.backbone.family, evaluate=config.evaluate,
                     overlay=config.task.get(task_name))  # fmt: skip
    for path in images:
        open_image(str(path))  # a clear error before any work
    if task.config.video is not None:
        raise ConfigError(
            f"task {task_name!r} is on videos; this command takes pictures (tasks on videos: mtvl inspect)"
        )
    if not images:
        raise ConfigError("no picture; give --image FILE (twice for a task over two pictures)")
    segments = (Segment("prompt", task.config.prompt), *([Segment("question", text)] if text else []))
    example = Example("0", task_name, segments, Visual(tuple(str(p.resolve()) for p in images)))
    return _answer(model, config, task, example)


def _answer(model: Model, config: RunConfig, task: object, example: Example) -> str:
    tokenizer, answers = model.backbone.tokenizer(), answers_of(model.backbone)
    features, frames, _ = open_stores(config, model.backbone)
    ensure_features(features, frames, [example], "eager", _silent)
    collator = Collator(
        tokenizer, features, {example.task: task.limits}, frames=frames, max_frames=model.backbone.max_frames,  # type: ignore[attr-defined]
        max_tokens=model.backbone.max_tokens, answers=answers, text_only=config.data.text_only,
    )  # fmt: skip
    batch = collator.collate(example.task, [example], training=False)
    model.eval()
    return Evaluator(model, tokenizer if answers is None else answers).predict_batch(task, batch)[0].text  # type: ignore[arg-type]
