"""`mtvl modalities`: what adapters are given, by modality, as points of a plane for some layers."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtvl.errors import ConfigError
from mtvl.export import find_export, load_export
from mtvl.figures.drawing import COLOURS, need_plots, write
from mtvl.loader import evaluation_batches
from mtvl.petl.plan import Injection, Plan
from mtvl.retrieving import score_pairs
from mtvl.sites import BlockStates
from mtvl.workspace import Workspace

PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE"}
ROWS = 16  # examples that are run at once
LEAST = 3  # points of a layer, below which there is no plane to speak of
Points = dict[int, dict[str, np.ndarray]]  # layer -> modality -> (n, D)


@dataclass(frozen=True)
class Projected:
    """A layer's points (n, 2) by modality, and the share of variance along both axes (None: not a linear map)."""

    layer: int
    points: dict[str, np.ndarray]
    shares: tuple[float, float] | None


def modalities_figure(
    run: Path, tasks: Sequence[str] = (), *, split: str = "test", count: int = 100, layers: Sequence[int] = (),
    projection: str = "pca", seed: int = 0, out: Path | None = None, overrides: Sequence[str] = (),
) -> tuple[list[Projected], tuple[Path, Path]]:  # fmt: skip
    """Draw the first tokens that adapters are given, in a plane for each layer; the files are OUT.png and OUT.svg.

    `count` examples of each task, evenly spread. `layers` (default: the first, middle and last that are adapted).
    Raises ConfigError for a method without adapters and an unknown layer.
    *Source:* UniAdapter, Figures 4 and 5.
    """
    need_plots()
    check_projection(projection)
    if count < LEAST:
        raise ConfigError(f"--examples {count}: expected at least {LEAST}")
    model, config, content = load_export(run, overrides)
    names = tuple(tasks) or tuple(content["tasks"])
    chosen = choose_layers(model.plan, layers)
    workspace = Workspace(replace(config, tasks=names), model.backbone, tower=model.trained_tower, say=lambda _: None)
    model.eval()
    with listening(model.backbone, model.plan, chosen) as heard:
        for name in names:
            rows = workspace.examples(name, split)
            some = [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else rows
            run_examples(model, workspace, name, some)
    points = {layer: {m: np.concatenate(v) for m, v in heard[layer].items()} for layer in chosen if layer in heard}
    found = [project(layer, by_modality, projection, seed) for layer, by_modality in points.items()]
    folder = run if (run / "export").is_dir() else find_export(run)
    stem = out.with_suffix("") if out else folder / "figures" / f"modalities_{projection}_{'_'.join(names)}"
    title = f"first tokens given to adapters of {model.plan.method!r} ({', '.join(names)}; {PROJECTIONS[projection]})"
    return found, write(stem, (3.4 * len(found), 3.9), partial(_draw, title=title, found=found))


def check_projection(projection: str) -> None:
    """ConfigError for an unknown projection, or one whose library is not installed."""
    if projection not in PROJECTIONS:
        raise ConfigError(f"unknown projection {projection!r}; known: {', '.join(PROJECTIONS)}")
    if projection == "tsne" and importlib.util.find_spec("sklearn") is None:
        raise ConfigError("t-SNE needs scikit-learn: pip install 'mtvl[plots]', or use --projection pca")


def choose_layers(plan: Plan, layers: Sequence[int]) -> list[int]:
    """`layers`, or the first, middle and last with adapters; ConfigError where there are none such."""
    known = sorted({injection.site.layer for injection in plan.injections if _reads(injection)})
    if not known:
        raise ConfigError(
            f"the method {plan.method!r} puts no adapters into layers that are given tokens, so there is nothing to draw"
        )
    if absent := [layer for layer in layers if layer not in known]:
        raise ConfigError(f"no adapters in layer {absent[0]}; layers with adapters: {', '.join(map(str, known))}")
    return list(layers) or sorted({known[0], known[len(known) // 2], known[-1]})


def _reads(injection: Injection) -> bool:
    """True for an adapter inside the layers that is given tokens: a prefix of keys and values, e.g., is not."""
    return injection.site.layer >= 0 and (injection.site.is_linear or injection.site.kind == "block")


def run_examples(model: Any, workspace: Workspace, task: str, rows: Sequence[Any]) -> None:
    """Run everything that the task runs of the model."""
    model.set_task(task)
    settings = workspace.tasks[task]
    for batch in evaluation_batches(workspace.collator, settings, rows, ROWS):
        with torch.no_grad():
            if settings.decoding.mode == "retrieve":
                score_pairs(model.backbone, batch)
            else:
                model.logits(batch)


@contextmanager
def listening(backbone: Any, plan: Plan, layers: Sequence[int]) -> Iterator[dict[int, dict[str, list[np.ndarray]]]]:
    """Inside the body, what one adapter of each stack and layer is given: layer -> modality -> (rows, D) pieces."""
    last: dict[tuple[str, int], Injection] = {}
    for injection in plan.injections:  # the last of a layer; a block's hook goes before maps inside it
        place = injection.site.stack, injection.site.layer
        if injection.site.layer in layers and not (place in last and last[place].site.kind == "block"):
            last[place] = injection
    heard: dict[int, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    handles = [
        backbone.get_submodule(injection.site.path).adapter.register_forward_pre_hook(partial(_hear, heard, injection))
        for injection in last.values()
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _hear(heard: dict[int, dict[str, list[np.ndarray]]], injection: Injection, adapter: Any, given: tuple) -> None:
    """Keep the first token of every row, under the modality of this pass."""
    site, first = injection.site, given[1 if getattr(adapter, "reads_output", False) else 0]
    decoder = "decoder " if site.stack == "decoder" else ""
    if isinstance(first, BlockStates):
        modality = "visual" if site.stack == "visual" else decoder + ("text" if first.query is None else "fusion")
        first = first.stream
    else:
        modality = decoder + str(getattr(adapter, "modality", "") or site.stack).replace("decoder", "text")
    if first.dim() == 3:
        heard[site.layer][modality].append(first[:, 0].detach().float().cpu().numpy())


def project(layer: int, points: dict[str, np.ndarray], projection: str, seed: int) -> Projected:
    """All points of a layer in one plane; modalities of other widths have planes of their own."""
    widths = {p.shape[1] for p in points.values()}
    found: dict[str, np.ndarray] = {}
    shares: list[tuple[float, float]] = []
    for width in sorted(widths):
        names = [m for m, p in points.items() if p.shape[1] == width]
        together = np.concatenate([points[m] for m in names])
        if len(together) < LEAST:
            raise ConfigError(
                f"layer {layer}: expected at least {LEAST} points, found {len(together)}; raise --examples"
            )
        plane, share = pca(together) if projection == "pca" else (tsne(together, seed), None)
        shares += [share] if share else []
        for name in names:
            found[name], plane = plane[: len(points[name])], plane[len(points[name]) :]
    return Projected(layer, found, shares[0] if len(shares) == 1 else None)


def pca(points: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """(n, D) -> their two main components (n, 2), and the shares of variance along them. Signs are fixed."""
    centred = points - points.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    variance = sizes**2 / max(float((sizes**2).sum()), 1e-30)
    return centred @ axes.T, (float(variance[0]), float(variance[1]))


def tsne(points: np.ndarray, seed: int) -> np.ndarray:
    """(n, D) -> (n, 2) by scikit-learn's t-SNE from the main components; equal points may be given."""
    from sklearn.manifold import TSNE  # slow import, and optional

    if not np.ptp(points, axis=0).any():  # scikit-learn divides by their spread, and crashes
        return np.zeros((len(points), 2))
    neighbours = min(30.0, max(1.0, (len(points) - 1) / 3))
    return np.asarray(TSNE(2, init="pca", random_state=seed, perplexity=neighbours).fit_transform(points))


def _draw(figure: Any, title: str, found: Sequence[Projected]) -> None:
    names = list(dict.fromkeys(name for layer in found for name in layer.points))
    for axes, layer in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        for name, points in layer.points.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            axes.scatter(points[:, 0], points[:, 1], s=9, color=colour, alpha=0.6, linewidths=0, label=name)
        axes.set_title(f"layer {layer.layer}", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        if layer.shares is not None:
            axes.set_xlabel(f"{layer.shares[0]:.0%} of variance")
            axes.set_ylabel(f"{layer.shares[1]:.0%} of variance")
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, markerscale=2
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
