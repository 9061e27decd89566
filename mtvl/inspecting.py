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
from mtvl.data.augment import Augmenter
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
from mtvl.retrieving import need_heads, score_pairs
from mtvl.tasks import load_task
from mtvl.types import Batch, Example, Segment, Visual
from mtvl.workspace import Workspace, answers_of, augmenter, ensure_features, open_stores, with_answers

EPOCHS = 4  # of which changed pictures are drawn


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
    lines = _sample_lines(workspace, example, batch, split, index)
    if workspace.tasks[task].decoding.mode == "retrieve":
        found, answer = _pair_lines(model, batch), ""
    else:
        found, answer = _answer_lines(model, workspace, example, batch)
    lines += ["", *found]
    if dist.is_main():
        change = augmenter(config, model.backbone) if split == "train" else None
        lines += _drawn(example, config, answer, f"{task}-{split}-{index}.png", change)
    return "\n".join(lines)


def _pair_lines(model: Model, batch: Batch) -> list[str]:
    """What is made of a text with its own picture or video; ConfigError where there are no heads for it."""
    need_heads(model.backbone, batch.task)
    cosine, logits = score_pairs(model.backbone, batch)
    share = float(torch.softmax(logits[0], 0)[1])
    return [
        f"cosine          {float(cosine[0]):.4f} of the text and its own picture or video",
        f"match           logit {float(logits[0, 1]):.4f}, chance {share:.1%} that they belong together",
        "rank            among all of a split: evaluate the task",
    ]


def _answer_lines(model: Model, workspace: Workspace, example: Example, batch: Batch) -> tuple[list[str], str]:
    """Losses and the answer of one sample."""
    task = workspace.tasks[example.task]
    with torch.no_grad():
        memory = model.backbone.encode(batch)
        losses = token_losses(model.backbone.decode(memory, batch.target_ids), batch.target_ids)
        loss, meaning = _sample_loss(model, memory, batch, losses)
        if task.loss == "answers" and example.targets and not batch.answer_scores.shape[1]:
            taught = workspace.collator.collate(example.task, [example], epoch_keys=[0], training=True)
            loss = float(model(replace(taught, loss="answers", label_smoothing=task.label_smoothing)))
            meaning = f"{len(example.targets)} answers by their weights, each summed over its tokens"
    answer = Evaluator(model, workspace.writer).predict_batch(task, batch)[0]
    # A hidden answer leaves one ignored position, which no tokenizer can decode.
    pieces = [
        "<none>" if t == IGNORE else workspace.writer.decode([t]) or "<special>" for t in batch.target_ids[0].tolist()
    ]
    lines = [f"encoder memory  {tuple(memory.hidden.shape)} (B, S+V, D)"]
    lines += ["token loss      " + "  ".join(f"{p}:{v:.3f}" for p, v in zip(pieces, losses[0].tolist(), strict=True))]
    lines += [f"loss            {loss:.4f} ({meaning})"]
    lines += [f"answer now      {answer.text!r}" + (f"  {dict(answer.scores)}" if answer.scores else "")]
    return lines, answer.text


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


def _drawn(
    example: Example, config: RunConfig, answer: str, name: str, augment: Augmenter | None
) -> list[str]:  # fmt: skip
    """The line that says where the pictures were drawn; nothing where features are stored. With `augment` the first one
    follows as it is in the first epochs."""
    pictures = shown_pictures(example.visual, config.data.frame_seconds, config.data.video_decoder)
    if pictures and augment is not None:
        pictures += [augment.change(example, 0, epoch)(pictures[0]) for epoch in range(EPOCHS)]
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
    CheckpointError, ConfigError and DataError name the export, the task's setting, and the picture that is wrong.
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
    if task.decoding.mode == "retrieve":
        if not text:
            raise ConfigError(f"task {task_name!r} matches pictures with a text; give --text")
        return _matches(model, config, task, [str(path.resolve()) for path in images], text)
    segments = (Segment("prompt", task.config.prompt), *([Segment("question", text)] if text else []))
    example = Example("0", task_name, segments, Visual(tuple(str(p.resolve()) for p in images)))
    return _answer(model, config, task, example)


def _matches(model: Model, config: RunConfig, task: Any, images: Sequence[str], text: str) -> str:
    """The pictures, the one that matches the text best first, with what speaks for each: a line a picture."""
    need_heads(model.backbone, task.name)
    segments = (Segment("prompt", task.config.prompt), Segment("question", text))
    rows = [Example(str(i), task.name, segments, Visual((path,))) for i, path in enumerate(images)]
    model.eval()
    model.set_task(task.name)
    cosines, logits = score_pairs(model.backbone, _batch_of(model, config, task, rows))
    scores = logits[:, 1] + task.decoding.beta * cosines
    chances = torch.softmax(logits, 1)[:, 1]
    return "\n".join(
        f"{images[i]}  score {float(scores[i]):.4f}  (cosine {float(cosines[i]):.4f}, chance of a match {float(chances[i]):.1%})"
        for i in scores.argsort(descending=True).tolist()
    )


def _answer(model: Model, config: RunConfig, task: Any, example: Example) -> str:
    tokenizer, answers = model.backbone.tokenizer(), answers_of(model.backbone)
    batch = _batch_of(model, config, task, [example])
    model.eval()
    return Evaluator(model, tokenizer if answers is None else answers).predict_batch(task, batch)[0].text


def _batch_of(model: Model, config: RunConfig, task: Any, rows: Sequence[Example]) -> Batch:
    """A batch of rows that stand in no file."""
    features, frames, _ = open_stores(config, model.backbone)
    ensure_features(features, frames, rows, "eager", _silent)
    collator = Collator(
        model.backbone.tokenizer(), features, {task.name: task.limits}, frames=frames, max_frames=model.backbone.max_frames,
        max_tokens=model.backbone.max_tokens, answers=answers_of(model.backbone), text_only=config.data.text_only,
    )  # fmt: skip
    return collator.collate(task.name, [task.worded(row) for row in rows], training=False)
