# SPDX-License-Identifier: MIT
"""Trains a small detector of a framework, stock and under fastloss.patch, from the same seed.

Both see the same scenes of handwritten digits. What is reported: whether the loss curves agree, how
long the criterion takes, forward and backward to the predictions, and how long the whole step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from detection.scenes import Scenes, draw_scenes, load_digit_split
from detection.training import curve_difference
from frameworks import FRAMEWORKS, Trainee, trainee_of
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils import _pytree as pytree

import fastloss

# As ultralytics trains: slowly at first, and with gradients that cannot be too long. (Five times as
# fast, one rounding of the weights is a 2000th of the loss after twenty steps, with stock losses.)
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 100
LARGEST_GRADIENT = 10.0

# The relative difference of the curves over the first steps.
AGREEMENT = 1e-4
STEPS_THAT_AGREE = 20


@dataclass
class Run:
    """One training: losses and milliseconds, step by step."""

    losses: list[float] = field(default_factory=list)
    criterion_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("framework", nargs="*", default=list(FRAMEWORKS), help="all by default")
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    parser.add_argument("--batch", type=int, default=4, help="scenes per step")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args(arguments)
    for name in options.framework:
        if name not in FRAMEWORKS:
            parser.error(f"framework must be among {', '.join(FRAMEWORKS)}, got {name}")
    return options


def train_step(
    trainee: Trainee, optimizer: torch.optim.Optimizer, scenes: Scenes, run: Run
) -> None:
    """One step, in which the criterion is timed by itself.

    Its gradient goes to the predictions first, and from there through the model.
    """
    begin = time.perf_counter()
    predictions = trainee.predict(scenes)
    outputs, structure = pytree.tree_flatten(predictions)
    ends = [
        output.detach().requires_grad_(output.requires_grad)
        if isinstance(output, Tensor)
        else output
        for output in outputs
    ]
    before = time.perf_counter()
    loss = trainee.criterion(pytree.tree_unflatten(ends, structure), scenes)
    loss.backward()
    run.criterion_ms.append(1e3 * (time.perf_counter() - before))
    pairs = [
        (output, end.grad)
        for output, end in zip(outputs, ends, strict=True)
        if isinstance(end, Tensor) and end.grad is not None
    ]
    optimizer.zero_grad()
    torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
    torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), LARGEST_GRADIENT)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min((len(run.losses) + 1) / WARM_UP_STEPS, 1.0)
    optimizer.step()
    run.step_ms.append(1e3 * (time.perf_counter() - begin))
    run.losses.append(loss.item())


def train(name: str, options: argparse.Namespace, console: Console) -> tuple[Run, Run]:
    """Both trainings, a step of the one and a step of the other in turn.

    Raises:
        ImportError: Where the framework cannot be imported, or not be patched.
    """
    make = trainee_of(name)
    fastloss.patch(name, **make.patch_options).undo()
    digits, _ = load_digit_split()
    rng = np.random.default_rng(options.seed)
    runs, trainees, optimizers = (Run(), Run()), [], []
    for _ in runs:
        torch.manual_seed(options.seed)
        trainees.append(make())
        optimizers.append(torch.optim.SGD(trainees[-1].model.parameters(), momentum=0.9))
    for _ in track(range(options.steps), description=name, console=console):
        scenes = draw_scenes(digits, options.batch, rng)
        train_step(trainees[0], optimizers[0], scenes, runs[0])
        with fastloss.patch(name, **make.patch_options):
            train_step(trainees[1], optimizers[1], scenes, runs[1])
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    table = Table("framework", "criterion, ms", "step, ms", "share of loss", "losses differ by")
    failures = []
    for name in options.framework:
        try:
            stock, patched = train(name, options, console)
        except ImportError as error:
            console.print(f"{name} is left out: {error}")
            continue
        difference = max(curve_difference(stock.losses, patched.losses)[:STEPS_THAT_AGREE])

        def both(one: list[float], other: list[float]) -> str:
            first, second = statistics.median(one), statistics.median(other)
            return f"{first:.1f} → {second:.1f} ({first / second:.2f}x)"

        share = statistics.median(stock.criterion_ms) / statistics.median(stock.step_ms)
        table.add_row(
            name,
            both(stock.criterion_ms, patched.criterion_ms),
            both(stock.step_ms, patched.step_ms),
            f"{share:.0%}",
            f"{difference:.1e}",
        )
        if not difference <= AGREEMENT:
            failures.append(f"{name}: the curves differ by {difference:.2g}")
        if not np.isfinite(stock.losses + patched.losses).all():
            failures.append(f"{name}: a loss is not finite")
    console.print(table)
    for failure in failures:
        console.print(f"[red]{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
