"""Accuracy over trained parameters, as SVG and PNG. matplotlib is an optional extra; everything else works without it.

*Source:* VL-Adapter, Figure 4: the share of trained parameters on a logarithmic axis against the average score.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtvl.compare.place import Box, place_labels

SIZE = 7.0, 5.2  # inches of one panel
COLOURS = {  # a method looks alike in every figure
    "full": "#0072B2", "adapter": "#D55E00", "hyperformer": "#009E73", "compacter": "#CC79A7", "lora": "#E69F00",
    "prompt": "#56B4E9", "uniadapter": "#7A5195", "unitrans": "#5B5B5B",
}  # fmt: skip
# Methods without a colour of their own take these in order.
OTHER_COLOURS = "#8C6D31", "#A60628", "#467821", "#17BECF", "#D4A6C8", "#BCBD22"
MARKERS = {"all": "o", "up": "s", "down": "D", "none": "^"}  # one a way of sharing
SHARES = {"all": "one for all tasks", "up": "half-shared", "down": "half-shared", "none": "one for each task"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def has_plots() -> bool:
    """True when matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_figure(summary: Mapping[str, Any], out: Path) -> None:
    """Write `out`/figure.svg and figure.png: our points with their deviations and, where known, the paper's beside them."""
    from matplotlib import rc_context  # slow import, and optional
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = summary["rows"]
    panels = [("this comparison", [_point(r, r["trained_percent"], r["average"]) for r in rows])]
    published = [r for r in rows if r["paper"]["trained_percent"] is not None and r["paper"]["average"] is not None]
    if len(published) > 1:
        points = [
            _point(r, r["paper"]["trained_percent"], {"mean": r["paper"]["average"], "std": None}) for r in published
        ]
        panels.append(("as published" + f" ({summary['paper']})" * bool(summary["paper"]), points))
    # Without a date and with fixed ids, equal figures are equal files.
    style = {"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "mtvl", "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(SIZE[0] * len(panels), SIZE[1]), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        others = [name for name in dict.fromkeys(r["petl"] for r in rows) if name not in COLOURS]
        colours = COLOURS | dict(zip(others, itertools.cycle(OTHER_COLOURS), strict=False))
        for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _axes(axes, title if len(panels) > 1 else "", points)
            _points(axes, points, colours)
        _legend(figure, rows)
        if summary["title"]:
            figure.suptitle(summary["title"], fontsize=11)
        figure.draw_without_rendering()  # the layout has to stand before labels are placed on it
        figure.set_layout_engine("none")
        for axes, (_, points) in zip(figure.axes, panels, strict=True):
            _labels(figure, axes, points)
        for name, metadata in (("figure.svg", {"Date": None}), ("figure.png", {"Software": None})):
            draft = out / f".tmp_{name}"
            figure.savefig(draft, format=name.rpartition(".")[2], metadata=metadata)
            os.replace(draft, out / name)


def _point(row: Mapping[str, Any], percent: float, average: Mapping[str, Any]) -> dict[str, Any]:
    return {"label": row["label"], "petl": row["petl"], "share": row["share"] or "all", "x": percent,
            "y": average["mean"], "std": average["std"] or 0.0}  # fmt: skip


def _axes(axes: Any, title: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Scales with room for labels: half a step on the sides, a tenth of the range above and below."""
    xs = [p["x"] for p in points]
    low, high = min(p["y"] - p["std"] for p in points), max(p["y"] + p["std"] for p in points)
    margin = 0.12 * (high - low) or 1.0
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / 1.6, max(max(xs) * 1.6, min(xs) * 3))
    axes.set_ylim(low - margin, high + margin)
    axes.set_xticks([t for t in TICKS if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.set_xlabel("trained parameters (%, logarithmic)")
    axes.set_ylabel("average of the primary metrics (CIDEr × 100)")
    axes.set_title(title, fontsize=10)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)


def _points(axes: Any, points: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    for point in points:
        axes.errorbar(
            point["x"], point["y"], yerr=point["std"] or None, color=colours[point["petl"]], ecolor="#444444",
            marker=MARKERS.get(point["share"], "o"), markersize=7, markeredgecolor="white", markeredgewidth=0.7,
            elinewidth=1, capsize=3, linestyle="none", zorder=3,
        )  # fmt: skip


def _legend(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """What the markers mean, when there is more than one."""
    from matplotlib.lines import Line2D

    shares = [s for s in MARKERS if any((r["share"] or "all") == s for r in rows)]
    if len({SHARES[s] for s in shares}) > 1:
        handles = [
            Line2D([], [], color="#5B5B5B", marker=MARKERS[s], linestyle="none", markersize=6, label=SHARES[s])
            for s in shares
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def _labels(figure: Any, axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Names beside the points, none over another or over a point; a thin line leads to one that had to go far."""
    to_pixels, renderer, scale = axes.transData, figure.canvas.get_renderer(), figure.dpi / 72
    anchors = [tuple(map(float, to_pixels.transform((p["x"], p["y"])))) for p in points]
    texts = [axes.text(0, 0, p["label"], transform=None, va="bottom", ha="left", zorder=5) for p in points]
    sizes = []
    for text in texts:
        box = text.get_window_extent(renderer)
        sizes.append((box.width + 2 * scale, box.height + scale))
    obstacles: list[Box] = []
    for (x, y), point in zip(anchors, points, strict=True):
        half = abs(to_pixels.transform((point["x"], point["y"] + point["std"]))[1] - y)
        reach = max(half + 2 * scale, 4.5 * scale)
        obstacles.append((x - 4.5 * scale, y - reach, x + 4.5 * scale, y + reach))
    inside = axes.get_window_extent(renderer)
    bounds = (inside.x0 + 2 * scale, inside.y0 + 2 * scale, inside.x1, inside.y1)
    to_data = axes.transData.inverted()
    for text, (x, y), size, box in zip(
        texts, anchors, sizes, place_labels(anchors, sizes, bounds, obstacles, unit=scale), strict=True
    ):
        # In data coordinates: a picture is saved at another resolution than it was laid out for.
        text.set_transform(axes.transData)
        text.set_position(to_data.transform((box[0] + scale, box[1])))
        nearest = min(max(x, box[0]), box[0] + size[0]), min(max(y, box[1]), box[1] + size[1])
        if math.dist(nearest, (x, y)) > 14 * scale:
            ends = [to_data.transform(end) for end in ((x, y), nearest)]
            axes.plot(*zip(*ends, strict=True), color="#9A9A9A", linewidth=0.6, zorder=2)
