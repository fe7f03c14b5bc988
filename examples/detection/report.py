# SPDX-License-Identifier: MIT
"""What the comparison leaves behind: a table, two pictures and a file of numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.table import Table

from detection.evaluation import Objects
from detection.scenes import Scenes
from detection.training import History

matplotlib.use("Agg")  # draws to files, needs no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

_PLAIN_COLOUR = "#8c8c8c"
_FUSED_COLOUR = "#d1495b"
_TRUTH_COLOUR = "#ffffff"
_FRAME_COLOUR = "#1e1e1e"
_CLASS_COLOURS = (
    "#3d8bfd",
    "#fd7e14",
    "#20c997",
    "#e63946",
    "#9b5de5",
    "#b08968",
    "#f15bb5",
    "#ffb703",
    "#8ac926",
    "#00bbf9",
)
_SHOWN_SCORE = 0.4


@dataclass(frozen=True)
class Result:
    """One run, trained and evaluated."""

    implementation: str
    history: History
    mean_average_precision: float

    def summary(self) -> dict[str, Any]:
        """Returns the run's figures, without its curves."""
        return {
            "implementation": self.implementation,
            "final_loss": self.history.final_loss,
            "map50": self.mean_average_precision,
            "step_ms": self.history.median_step_ms,
            "loss_forward_ms": self.history.median_loss_forward_ms,
            "loss_backward_ms": self.history.median_loss_backward_ms,
            "loss_ms": self.history.median_loss_ms,
            "loss_share": self.history.median_loss_ms / self.history.median_step_ms,
        }


def results_table(plain: Result, fused: Result, title: str) -> Table:
    """Returns the comparison for the terminal."""
    table = Table(title=title, caption="times: median over the steps")
    table.add_column("loss implementation")
    table.add_column(plain.implementation, justify="right")
    table.add_column(fused.implementation, justify="right")
    table.add_column("faster", justify="right")
    rows = (
        ("final loss", "final_loss", ".4f"),
        ("mAP@0.5", "map50", ".4f"),
        ("ms per step", "step_ms", ".1f"),
        ("ms in the loss, forward", "loss_forward_ms", ".3f"),
        ("ms in the loss, backward", "loss_backward_ms", ".3f"),
        ("ms in the loss, both", "loss_ms", ".3f"),
        ("share of the step", "loss_share", ".2%"),
    )
    plain_figures, fused_figures = plain.summary(), fused.summary()
    for name, key, form in rows:
        before, after = plain_figures[key], fused_figures[key]
        ratio = f"{before / after:.2f}x" if key.endswith("_ms") else ""
        table.add_row(name, format(before, form), format(after, form), ratio)
    return table


def save_numbers(
    path: Path, plain: Result, fused: Result, difference: list[float], facts: dict[str, Any]
) -> None:
    """Writes the facts of the run, both summaries and all curves as JSON."""
    numbers = {
        **facts,
        "runs": [
            {**result.summary(), "curves": asdict(result.history)} for result in (plain, fused)
        ],
        "relative_difference": difference,
    }
    path.write_text(json.dumps(numbers, indent=1) + "\n")


def save_curves(
    path: Path,
    plain: Result,
    fused: Result,
    difference: list[float],
    *,
    compared_steps: int,
    tolerance: float,
) -> None:
    """Draws both loss curves, and how far they are apart."""
    figure, (curves, distance) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    steps = range(1, len(plain.history.loss) + 1)
    curves.plot(steps, plain.history.loss, color=_PLAIN_COLOUR, lw=2.5, label=plain.implementation)
    curves.plot(steps, fused.history.loss, color=_FUSED_COLOUR, lw=0.9, label=fused.implementation)
    curves.set(ylabel="training loss", ylim=(0, None), title="The same training with both losses")
    curves.legend(frameon=False)

    visible = [max(value, 1e-8) for value in difference]  # zero has no place on a log axis
    distance.plot(steps, visible, color=_FUSED_COLOUR, lw=0.9)
    distance.hlines(tolerance, 1, compared_steps, color="black", ls="--", lw=1)
    distance.axvspan(1, compared_steps, color=_PLAIN_COLOUR, alpha=0.15, lw=0)
    distance.text(
        compared_steps,
        min(visible),
        f"  shaded: the first {compared_steps} steps must agree to {tolerance:g};\n"
        "  later, rounding grows until the two trainings differ, as equals",
        va="bottom",
        fontsize=9,
    )
    distance.set(xlabel="step", ylabel="relative difference", yscale="log")
    for axes in (curves, distance):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def save_detections(path: Path, scenes: Scenes, detections: list[Objects]) -> None:
    """Draws a grid of scenes with the boxes found in them and the true ones."""
    columns = 4
    rows = -(-len(detections) // columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(3.2 * columns, 3.2 * rows + 0.6),
        squeeze=False,
        layout="constrained",
        facecolor=_FRAME_COLOUR,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for scene, (axes, found) in enumerate(zip(grid.flat, detections, strict=False)):
        axes.imshow(scenes.images[scene, 0].cpu().numpy(), cmap="gray", vmin=-0.3, vmax=1.1)
        for box in scenes.boxes[scene][scenes.valid[scene]].tolist():
            _draw_box(axes, box, _TRUTH_COLOUR, lw=1.0, ls=":")
        for box, label, score in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        ):
            if score >= _SHOWN_SCORE:
                colour = _CLASS_COLOURS[label]
                _draw_box(axes, box, colour, lw=1.8, ls="-")
                _draw_caption(axes, box, f"{label}  {score:.2f}", colour)
    handles = [
        Line2D([], [], color=_CLASS_COLOURS[0], lw=1.8, label="found (class and score)"),
        Line2D([], [], color=_TRUTH_COLOUR, lw=1.0, ls=":", label="truth"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        labelcolor=_TRUTH_COLOUR,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_box(axes: Axes, box: list[float], colour: str, lw: float, ls: str) -> None:
    x1, y1, x2, y2 = (value - 0.5 for value in box)  # imshow puts pixel centres at integers
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=lw, ls=ls))


def _draw_caption(axes: Axes, box: list[float], text: str, colour: str) -> None:
    above = box[1] > 10
    axes.text(
        box[0] - 0.5,
        box[1] - 1.5 if above else box[3] + 0.5,
        text,
        va="bottom" if above else "top",
        fontsize=7,
        color="white",
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.2},
        clip_on=True,
    )
