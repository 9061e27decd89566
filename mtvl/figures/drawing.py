"""What the pictures share: matplotlib where it is installed, one style, and PNG and SVG beside each other."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtvl.errors import ConfigError

STYLE = {"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "mtvl", "axes.spines.top": False,
         "axes.spines.right": False}  # fmt: skip
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def need_plots() -> None:
    """ConfigError where matplotlib, an optional extra, is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("drawing needs matplotlib; install it with: pip install 'mtvl[plots]'")


def write(stem: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> tuple[Path, Path]:
    """`draw` a figure of `size` (inches) and write it as STEM.png and STEM.svg; equal figures are equal files.

    ConfigError where they cannot be written.
    """
    from matplotlib import rc_context  # slow import, and optional
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            for ending, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
                draft = stem.with_name(f".tmp_{stem.name}{ending}")
                figure.savefig(draft, format=ending[1:], metadata=metadata)
                os.replace(draft, stem.with_name(stem.name + ending))
        except OSError as error:
            raise ConfigError(f"{stem}.png cannot be written: {error}; choose another place for the figure") from None
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
