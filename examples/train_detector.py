# SPDX-License-Identifier: MIT
"""Trains a digit detector twice, with plain PyTorch losses and with fastloss, and compares.

Both trainings start from the same weights and see the same scenes; they are interleaved step by
step, so that they also see the same machine. The program fails if their loss curves part within
the first 50 steps, or, on the default settings, if either detector's mAP@0.5 is below 0.85.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from detection.evaluation import Objects, mean_average_precision
from detection.losses import BOX_LOSSES, CLASSIFICATION_LOSSES, fused_loss, plain_pytorch_loss
from detection.report import Result, results_table, save_curves, save_detections, save_numbers
from detection.scenes import Scenes, draw_scenes, load_digit_split
from detection.training import (
    curve_difference,
    detect_objects,
    ground_truths,
    make_trainers,
    train_side_by_side,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fastloss

COMPARED_STEPS = 50
CURVE_TOLERANCE = 1e-3
REQUIRED_MAP = 0.85
SHOWN_SCENES = 8


@dataclass(frozen=True)
class Settings:
    """What the command line can change, and the number of scenes to evaluate on."""

    steps: int = 700
    loss: str = "ciou"
    classification: str = "focal"
    batch: int = 16
    device: str = "cpu"
    output: Path = Path("output/train_detector")
    seed: int = 0
    threads: int = field(default_factory=torch.get_num_threads)
    evaluation_scenes: int = 320

    def is_default_training(self) -> bool:
        """Returns whether the default training runs, wherever it runs and writes."""
        return Settings() == replace(
            self, device=Settings.device, output=Settings.output, threads=torch.get_num_threads()
        )


@dataclass(frozen=True)
class Comparison:
    """Both runs, and what the second one finds in the first scenes of the evaluation."""

    plain: Result
    fused: Result
    difference: list[float]  # of the loss curves, relative, step by step
    shown_scenes: Scenes
    shown_detections: list[Objects]

    @property
    def largest_difference(self) -> float:
        """How far the curves are apart in the steps that are compared; NaN if a loss is NaN."""
        return float(np.max(self.difference[:COMPARED_STEPS]))


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Returns the settings that the command line asks for."""
    default = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=_positive, help="training steps of each run")
    parser.add_argument("--loss", choices=BOX_LOSSES, help="box loss")
    parser.add_argument(
        "--classification", choices=CLASSIFICATION_LOSSES, help="classification loss"
    )
    parser.add_argument("--batch", type=_positive, help="scenes per step")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    parser.add_argument("--output", type=Path, help="folder for the pictures and the numbers")
    parser.add_argument("--seed", type=int, help="seed of the initial weights and the scenes")
    parser.add_argument("--threads", type=_positive, help="CPU threads")
    parser.set_defaults(**vars(default))
    settings = Settings(**vars(parser.parse_args(arguments)))
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return settings


def compare(settings: Settings, console: Console) -> Comparison:
    """Trains and evaluates both runs under a progress bar."""
    device = torch.device(settings.device)
    train_digits, held_out_digits = load_digit_split()
    losses = (
        plain_pytorch_loss(settings.loss, settings.classification),
        fused_loss(settings.loss, settings.classification),
    )
    trainers = make_trainers(losses, settings.steps, settings.seed, device)
    evaluation_rng = np.random.default_rng([settings.seed, 1])
    scenes = draw_scenes(held_out_digits, settings.evaluation_scenes, evaluation_rng).to(device)

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    ) as progress:
        training = progress.add_task("training both", total=settings.steps, status="")

        def show_step() -> None:
            plain, fused = (trainer.history.loss[-1] for trainer in trainers)
            progress.update(training, advance=1, status=f"loss {plain:.4f} / {fused:.4f}")

        train_side_by_side(
            trainers,
            train_digits,
            steps=settings.steps,
            batch=settings.batch,
            seed=settings.seed,
            device=device,
            on_step=show_step,
        )
        evaluation = progress.add_task("evaluating", total=len(trainers), status="")
        truths = ground_truths(scenes)
        results = []
        for trainer in trainers:
            detections = detect_objects(trainer.model, scenes.images)
            quality = mean_average_precision(detections, truths)
            results.append(Result(trainer.loss.source, trainer.history, quality))
            progress.update(evaluation, advance=1, status=f"mAP@0.5 {quality:.4f}")

    plain, fused = results
    return Comparison(
        plain,
        fused,
        curve_difference(plain.history.loss, fused.history.loss),
        scenes[:SHOWN_SCENES],
        detections[:SHOWN_SCENES],
    )


def write_report(comparison: Comparison, settings: Settings, seconds: float) -> list[Path]:
    """Writes the pictures and the numbers; returns the files."""
    settings.output.mkdir(parents=True, exist_ok=True)
    curves = settings.output / "loss_curves.png"
    pictures = settings.output / "detections.png"
    numbers = settings.output / "results.json"
    save_curves(
        curves,
        comparison.plain,
        comparison.fused,
        comparison.difference,
        compared_steps=COMPARED_STEPS,
        tolerance=CURVE_TOLERANCE,
    )
    save_detections(pictures, comparison.shown_scenes, comparison.shown_detections)
    facts = {
        "settings": {**asdict(settings), "output": str(settings.output)},
        "fastloss": fastloss.build_info(),
        "machine": platform.machine(),
        "seconds": seconds,
        "largest_difference_in_compared_steps": comparison.largest_difference,
    }
    save_numbers(numbers, comparison.plain, comparison.fused, comparison.difference, facts)
    return [curves, pictures, numbers]


def find_failures(comparison: Comparison, settings: Settings) -> list[str]:
    """Returns what the comparison promises and does not keep."""
    failures = []
    # Written so that a NaN fails too.
    if not comparison.largest_difference <= CURVE_TOLERANCE:
        failures.append(
            f"the loss curves differ by {comparison.largest_difference:.2e} (relative) within the "
            f"first {COMPARED_STEPS} steps, more than {CURVE_TOLERANCE:g}"
        )
    if settings.is_default_training():
        failures += [
            f"{result.implementation}: mAP@0.5 is {result.mean_average_precision:.4f}, "
            f"below {REQUIRED_MAP}"
            for result in (comparison.plain, comparison.fused)
            if not result.mean_average_precision >= REQUIRED_MAP
        ]
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status."""
    start = time.perf_counter()
    settings = parse_arguments(arguments)
    torch.set_num_threads(settings.threads)
    # TF32 would round the two runs apart, and the comparison is one of float32 losses.
    torch.backends.cudnn.allow_tf32 = False
    console = Console()
    comparison = compare(settings, console)
    seconds = time.perf_counter() - start
    files = write_report(comparison, settings, seconds)

    title = (
        f"{settings.loss} + {settings.classification}, {settings.steps} steps of "
        f"{settings.batch} scenes on {settings.device}"
    )
    console.print(results_table(comparison.plain, comparison.fused, title))
    console.print(
        f"largest relative difference of the loss curves in the first {COMPARED_STEPS} steps: "
        f"{comparison.largest_difference:.2e} (allowed: {CURVE_TOLERANCE:g})"
    )
    console.print(f"{seconds:.0f} s in all; written: {', '.join(str(file) for file in files)}")
    failures = find_failures(comparison, settings)
    for failure in failures:
        console.print(f"[bold red]FAILED[/]: {failure}")
    return 1 if failures else 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
