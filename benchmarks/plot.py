# SPDX-License-Identifier: MIT
"""The picture: how many times as fast as the opponents fastloss is, case by case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cases import Goal
from benchmarks.measure import Measurement
from benchmarks.report import machine_line, speedup_over_compiled, speedup_over_eager

INK, FAINT, MISSED = "#24292f", "#d0d7de", "#c62828"
GOAL_MARK: dict[str, Any] = {
    "color": INK,
    "marker": "|",
    "linestyle": "",
    "markersize": 9,
    "markeredgewidth": 2,
}
BAR_HEIGHT = 0.36


@dataclass(frozen=True)
class Opponent:
    """The bars of one colour; ``offset`` is where they lie within a case."""

    label: str
    color: str
    offset: float
    speedup: Callable[[Measurement], float | None]
    goal: Callable[[Goal], float | None]


OPPONENTS = (
    Opponent(
        "over eager PyTorch",
        "#2f6fde",
        -BAR_HEIGHT / 2,
        speedup_over_eager,
        lambda goal: goal.eager,
    ),
    Opponent(
        "over torch.compile",
        "#f2a33a",
        BAR_HEIGHT / 2,
        speedup_over_compiled,
        lambda goal: goal.compiled,
    ),
)


def save_plot(measurements: Sequence[Measurement], machine: dict[str, Any], file: Path) -> None:
    """Draws the speed-ups over eager PyTorch and over ``torch.compile``, with the goals.

    The calls' overhead is left out: it is measured against another loss.
    """
    shown = [measurement for measurement in measurements if measurement.case.yardstick is None]
    with matplotlib.rc_context({"font.size": 9.5, "text.color": INK}):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
        figure = Figure(figsize=(9, 1.6 + 0.42 * len(shown)), layout=layout)
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.axvline(1, color=INK, linewidth=1)
        for opponent in OPPONENTS:
            for place, measurement in enumerate(shown):
                _draw_bar(axes, place, measurement, opponent)
        first_other = sum(measurement.case.headline for measurement in shown)
        if 0 < first_other < len(shown):
            axes.axhline(first_other - 0.5, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(shown)), [measurement.case.title for measurement in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, 0.9), right * 1.8)  # room for the last label
        _style_axes(axes)
        figure.suptitle("fastloss: speed-up", x=0.02, ha="left", fontsize=14, fontweight="bold")
        axes.set_title(machine_line(machine), fontsize=8.5, loc="right", pad=10)
        colors = [Patch(color=opponent.color, label=opponent.label) for opponent in OPPONENTS]
        goal = Line2D([], [], **GOAL_MARK, label="goal")
        figure.legend(handles=[*colors, goal], loc="outside upper right", ncols=3, frameon=False)
        figure.savefig(file, dpi=150)


def _draw_bar(axes: Any, place: int, measurement: Measurement, opponent: Opponent) -> None:
    speedup = opponent.speedup(measurement)
    if speedup is None:
        return
    height = place + opponent.offset
    # A logarithmic axis has no 0 to start from: bars grow from "just as fast".
    axes.barh(height, speedup - 1, BAR_HEIGHT, left=1, color=opponent.color, zorder=2)
    goal = opponent.goal(measurement.case.goal)
    missed = goal is not None and speedup < goal
    if goal is not None:
        axes.plot(goal, height, **GOAL_MARK, zorder=3)
    shown = f"{speedup:.0f}×" if speedup >= 10 else f"{speedup:.1f}×"
    axes.annotate(
        f"{shown}, goal {goal:g}×" if missed else shown,
        (max(speedup, goal or 1, 1), height),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=MISSED if missed else INK,
    )


def _style_axes(axes: Any) -> None:
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", length=0, colors=INK)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
