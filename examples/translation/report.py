# SPDX-License-Identifier: MIT
"""What the training leaves behind: tables, a picture and a file of numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table

from translation.training import Quality

matplotlib.use("Agg")  # draws to files, needs no display
from matplotlib import pyplot as plt

_COLOURS = {"cross-entropy": "#8c8c8c", "BLEU": "#d1495b"}


@dataclass(frozen=True)
class Point:
    """What was reached after so many steps, the last of which were of this phase."""

    phase: str
    step: int
    seconds: float
    quality: Quality


def results_table(ends: Sequence[Point], title: str) -> Table:
    """Returns what each phase reached, for the terminal."""
    table = Table(title=title)
    for column in ("trained with", "steps", "seconds", "BLEU", "without an error"):
        table.add_column(column, justify="left" if column == "trained with" else "right")
    for point in ends:
        table.add_row(
            point.phase,
            str(point.step),
            f"{point.seconds:.1f}",
            f"{point.quality.bleu:.2f}",
            f"{point.quality.exact:.1%}",
        )
    return table


def examples_table(examples: Sequence[tuple[str, str, str, str]]) -> Table:
    """Returns a few translations, for the terminal."""
    table = Table()
    for column in ("number", "after cross-entropy", "after BLEU", "right"):
        table.add_column(column)
    for row in examples:
        table.add_row(*row)
    return table


def save_curve(path: Path, points: Sequence[Point]) -> None:
    """Draws BLEU over the steps, a colour for each phase."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for phase, colour in _COLOURS.items():
        own = [i for i, point in enumerate(points) if point.phase == phase]
        part = points[own[0] - 1 : own[-1] + 1]  # from where the phase before ended
        steps, scores = [point.step for point in part], [point.quality.bleu for point in part]
        axes.plot(steps, scores, color=colour, marker="o", markersize=3, label=phase)
    axes.set(xlabel="step", ylabel="BLEU of held-out numbers")
    axes.grid(alpha=0.3)
    axes.legend(title="trained with")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_numbers(path: Path, points: Sequence[Point], facts: dict[str, Any]) -> None:
    """Writes the course of the training, and `facts`, as JSON."""
    content = {**facts, "points": [asdict(point) for point in points]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
