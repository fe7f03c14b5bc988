# SPDX-License-Identifier: MIT
"""The pictures: loss and slope of a function side by side, the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from docs.curves import curves_of, has_curves
from fastloss import functional

COLORS = ("#2f6fde", "#e0641e", "#2a9d5c", "#a13fc1", "#c0392b", "#7f8c8d", "#b8860b")
INK, FAINT = "#24292f", "#d8dee4"
STYLE: Any = {
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: small files, and the reader's fonts
    "svg.hashsalt": "fastloss",  # names inside the file follow from what it shows
}


def draw_all(folder: Path) -> list[Path]:
    """Draws every picture, and removes those of functions that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in functional.__all__ if has_curves(name)]
    drawn = [draw(name, folder / f"{name}.svg") for name in names]
    for file in set(folder.glob("*.svg")) - set(drawn):
        file.unlink()
    return drawn


def draw(function: str, file: Path) -> Path:
    """Draws one function with its variants, a colour each."""
    curves = curves_of(function)
    colors = dict(zip(dict.fromkeys(drawn.case.id for drawn in curves), COLORS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 2.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for drawn in curves:
            names = (drawn.case.label if len(colors) > 1 else "", drawn.curve.label)
            line: dict[str, Any] = {
                "color": colors.get(drawn.case.id, INK),
                "linestyle": "--" if drawn.curve.dashed else "-",
                "linewidth": 1.4,
            }
            left.plot(drawn.axis.places, drawn.loss, label=", ".join(filter(None, names)), **line)
            right.plot(drawn.axis.places, drawn.slope, **line)
        for axes, title in ((left, "loss"), (right, "slope")):
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel(curves[0].axis.title)
            axes.grid(color=FAINT, linewidth=0.6)
            axes.margins(x=0)
        if left.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right center", frameon=False, fontsize=7.5)
        figure.savefig(file, metadata={"Date": None, "Creator": None})
    return file
