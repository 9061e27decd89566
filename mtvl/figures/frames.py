"""`mtvl frames`: which frames of a video a text asks for, as weights below the frames themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mtvl.config import RunConfig
from mtvl.data.features.pixels import spaced_frames
from mtvl.errors import ConfigError, DataError
from mtvl.export import find_export, load_export
from mtvl.figures.drawing import COLOURS, need_plots, write
from mtvl.steps.retrieval import check_frame_rule, weights_of_frames
from mtvl.types import Example, Segment
from mtvl.workspace import Workspace


@dataclass(frozen=True)
class Weighted:
    """A text and the weights of the frames (N) that it gives, summing to 1."""

    text: str
    weights: tuple[float, ...]


def frames_figure(
    run: Path, task: str, item: str, *, split: str = "test", texts: Sequence[str] = (), rule: str = "", out: Path | None = None,
    overrides: Sequence[str] = (),
) -> tuple[list[Weighted], tuple[Path, Path]]:  # fmt: skip
    """Draw the weights that texts give to the frames of a video; the files are OUT.png and OUT.svg.

    `item`: the uid of an example, or its number in the split. `texts` stand in for the example's own. `rule` is one of
    `mtvl.objectives.frames` (default: the run's own; where it weighs no frames, cosine, or paper without heads of
    contrast). Raises ConfigError for a task without videos and a backbone without frames, DataError for an unknown item.
    *Source:* UniAdapter, Figure 6.
    """
    need_plots()
    model, config, _ = load_export(run, overrides)
    backbone = model.backbone
    if not hasattr(backbone, "every_frame"):
        raise ConfigError(
            f"backbone.name {config.backbone.get('name')!r} has no frames that a text could weigh; this picture is of blip"
        )
    rule = rule or (backbone.config.frame_weights if backbone.config.frame_weights != "off" else "")
    rule = rule or ("cosine" if backbone.has_pairs else "paper")
    check_frame_rule(backbone, rule)
    config = replace(config, tasks=(task,))
    workspace = Workspace(config, backbone, tower=model.trained_tower, say=lambda _: None)
    example = find(workspace.examples(task, split), item, f"{task}/{split}")
    if not example.visual.video:
        raise ConfigError(f"task {task!r} has pictures and no videos: there are no frames to weigh")
    model.eval()
    model.set_task(task)
    found = [weigh(model, workspace, asked, rule) for asked in [_asking(example, text) for text in texts] or [example]]
    shown = frames_of(example, config, len(found[0].weights))
    folder = run if (run / "export").is_dir() else find_export(run)
    stem = out.with_suffix("") if out else folder / "figures" / f"frames_{task}_{_plain(example.uid)}"
    title = f"{Path(example.visual.video).name}, weights of frames by the rule {rule!r}"
    size = (max(5.0, 1.25 * len(shown)), 1.7 + 1.25 * len(found))
    return found, write(stem, size, lambda figure: _draw(figure, title, shown, found))


def find(examples: Sequence[Example], item: str, where: str) -> Example:
    """The example with the uid `item`, or with that number; DataError where there is none."""
    by_uid = next((e for e in examples if e.uid == item), None)
    if by_uid is not None:
        return by_uid
    if item.isdigit() and int(item) < len(examples):
        return examples[int(item)]
    raise DataError(
        f"{where} has no example {item!r}; expected a uid such as {examples[0].uid!r}, or a number from 0 to {len(examples) - 1}"
    )


def _asking(example: Example, text: str) -> Example:
    """`example` with another text behind its prompt."""
    prompt = tuple(segment for segment in example.segments if segment.name == "prompt")
    return replace(example, segments=(*prompt, Segment("question", text)))


@torch.no_grad()
def weigh(model: Any, workspace: Workspace, example: Example, rule: str) -> Weighted:
    """What the text of `example` makes of the frames of its video."""
    backbone = model.backbone
    batch = workspace.collator.collate(example.task, [example], training=False)
    tokens = backbone.see(backbone.every_frame(batch))
    weights = weights_of_frames(backbone, backbone.read(batch.source_ids, batch.source_mask), tokens, rule)[0].float()
    text = " ".join(segment.text.strip() for segment in example.segments if segment.text.strip())
    return Weighted(text, tuple((weights / weights.sum()).tolist()))


def frames_of(example: Example, config: RunConfig, count: int) -> list[Image.Image]:
    """The `count` frames that the model reads; a shorter video's stand several times, as they do there."""
    visual = example.visual
    read = spaced_frames(visual.video, count, visual.span, config.data.frame_seconds, config.data.video_decoder)
    return [read[i * len(read) // count] for i in range(count)]


def _plain(uid: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in uid)


def _draw(figure: Any, title: str, shown: Sequence[Image.Image], found: Sequence[Weighted]) -> None:
    """A row of frames, and below it a row of bars for each text: by how much a frame weighs more, or less, than its equal
    share, since a softmax of cosines differs from it by little. The frame that weighs most stands out."""
    count = len(shown)
    grid = figure.add_gridspec(1 + len(found), count, height_ratios=[1.2, *[1.0] * len(found)])
    for place, picture in enumerate(shown):
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(picture)
        axes.set_axis_off()
    for row, weighted in enumerate(found, start=1):
        axes = figure.add_subplot(grid[row, :])
        over = [100 * (count * weight - 1) for weight in weighted.weights]
        best = max(range(count), key=over.__getitem__)
        colours = [COLOURS[1] if place == best else COLOURS[0] for place in range(count)]
        bars = axes.bar(range(count), over, color=colours, width=0.6)
        axes.bar_label(bars, [f"{weight:.4f}" for weight in weighted.weights], fontsize=7, padding=1)
        axes.axhline(0, color="#5B5B5B", linewidth=0.8)
        axes.margins(y=0.25)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_xticks([])
        axes.set_ylabel("% over equal share", fontsize=8)
        axes.set_title(_wrapped(weighted.text or "(no text)", count), fontsize=8)
    figure.suptitle(_wrapped(title, count), fontsize=9)


def _wrapped(text: str, count: int) -> str:
    """At most two lines as wide as `count` frames."""
    width = max(60, 18 * count)
    return "\n".join(textwrap.wrap(text, width, max_lines=2, placeholder=" ..."))
