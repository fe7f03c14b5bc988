# SPDX-License-Identifier: MIT
"""Trains a translator from digits to English number words, with cross-entropy and then for BLEU.

Cross-entropy asks for each next word after the right ones before it. The second objective takes the
model's own translations, scores them with BLEU, and lowers the risk to be expected of them: minimum
risk training. The BLEU is that of numbers which are in no training batch. The program fails if,
on the default settings, the second objective does not raise it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from translation.model import Translator
from translation.numbers import Sentences, draw_numbers, read, translate
from translation.report import Point, examples_table, results_table, save_curve, save_numbers
from translation.training import bleu_risk_loss, cross_entropy_loss, evaluate

import fastloss

SHOWN = 4

Loss = Callable[[Translator, Sentences], Tensor]


@dataclass(frozen=True)
class Settings:
    """What the command line can change, and the number of sentences to evaluate on."""

    steps: int = 300
    bleu_steps: int = 300
    batch: int = 32
    samples: int = 8
    alpha: float = 0.05
    device: str = "cpu"
    output: Path = Path("output/train_translator")
    seed: int = 0
    threads: int = 1  # a model this small gains nothing from more
    evaluation_sentences: int = 1000

    def is_default_training(self) -> bool:
        """Returns whether the default training runs, wherever it runs and writes."""
        return Settings() == replace(
            self, device=Settings.device, output=Settings.output, threads=Settings.threads
        )


@dataclass(frozen=True)
class Outcome:
    """What was reached on the way, and what the model wrote at the end of both phases.

    Attributes:
        points: The course of the training: before it, and several times in each phase.
        examples: (number, translation after cross-entropy, after BLEU, the right one), of numbers
            that cross-entropy alone did not get right.
    """

    points: list[Point]
    examples: list[tuple[str, str, str, str]]

    def last(self, phase: str) -> Point:
        """Returns where a phase ended."""
        return [point for point in self.points if point.phase == phase][-1]


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Returns the settings that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=_positive, help="training steps with cross-entropy")
    parser.add_argument("--bleu-steps", type=_positive, help="training steps for BLEU")
    parser.add_argument("--batch", type=_positive, help="sentences per step")
    parser.add_argument("--samples", type=_positive, help="translations per sentence, for BLEU")
    parser.add_argument("--alpha", type=float, help="sharpness of minimum risk training")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train")
    parser.add_argument("--output", type=Path, help="folder for the picture and the numbers")
    parser.add_argument("--seed", type=int, help="seed of the initial weights and the sentences")
    parser.add_argument("--threads", type=_positive, help="CPU threads")
    parser.add_argument("--evaluation-sentences", type=_positive, help="sentences to evaluate on")
    parser.set_defaults(**vars(Settings()))
    settings = Settings(**vars(parser.parse_args(arguments)))
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return settings


def train(settings: Settings, console: Console) -> Outcome:
    """Trains and evaluates under a progress bar."""
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    rng = np.random.default_rng([settings.seed, 0])
    held_out_rng = np.random.default_rng([settings.seed, 1])
    numbers = draw_numbers(settings.evaluation_sentences, held_out_rng, held_out=True)
    held_out = translate(numbers).to(device)
    model = Translator().to(device)

    def risk(model: Translator, batch: Sentences) -> Tensor:
        return bleu_risk_loss(model, batch, settings.samples, settings.alpha)

    quality, _ = evaluate(model, held_out)
    points = [Point("untrained", 0, 0.0, quality)]
    written: list[list[str]] = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    ) as progress:

        def run(phase: str, loss: Loss, steps: int, learning_rate: float) -> None:
            optimizer = torch.optim.Adam(model.parameters(), learning_rate)
            task = progress.add_task(phase, total=steps, status="")
            start, before = time.perf_counter(), points[-1]
            for step in range(1, steps + 1):
                batch = translate(draw_numbers(settings.batch, rng, held_out=False)).to(device)
                optimizer.zero_grad()
                loss(model, batch).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                if step % max(steps // 10, 1) == 0 or step == steps:
                    quality, translations = evaluate(model, held_out)
                    seconds = before.seconds + time.perf_counter() - start
                    points.append(Point(phase, before.step + step, seconds, quality))
                    progress.update(task, status=f"BLEU {quality.bleu:.2f}")
                progress.advance(task)
            written.append([read(words) for words in translations])

        run("cross-entropy", cross_entropy_loss, settings.steps, 3e-3)
        run("BLEU", risk, settings.bleu_steps, 1e-3)

    spelled = [read(words) for words in held_out.words]
    examples = [
        (str(number), first, second, right)
        for number, first, second, right in zip(numbers, *written, spelled, strict=True)
        if first != right
    ]
    return Outcome(points, examples[:SHOWN])


def write_report(outcome: Outcome, settings: Settings) -> list[Path]:
    """Writes the picture and the numbers; returns the files."""
    settings.output.mkdir(parents=True, exist_ok=True)
    curve, numbers = settings.output / "bleu.png", settings.output / "results.json"
    save_curve(curve, outcome.points)
    facts = {
        "settings": {**asdict(settings), "output": str(settings.output)},
        "fastloss": fastloss.build_info(),
    }
    save_numbers(numbers, outcome.points, facts)
    return [curve, numbers]


def find_failures(outcome: Outcome, settings: Settings) -> list[str]:
    """Returns what the training promises and does not keep."""
    before, after = (outcome.last(phase).quality.bleu for phase in ("cross-entropy", "BLEU"))
    # Written so that a NaN fails too.
    if settings.is_default_training() and not after > before:
        return [f"BLEU is {after:.2f} after the training for it, and {before:.2f} before"]
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the training; returns the exit status."""
    start = time.perf_counter()
    settings = parse_arguments(arguments)
    torch.set_num_threads(settings.threads)
    console = Console()
    outcome = train(settings, console)
    files = write_report(outcome, settings)
    ends = [outcome.points[0], outcome.last("cross-entropy"), outcome.last("BLEU")]
    title = f"{settings.evaluation_sentences} held-out numbers, digits → words"
    console.print(results_table(ends, title))
    console.print(examples_table(outcome.examples))
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} s in all; written: {', '.join(str(file) for file in files)}")
    failures = find_failures(outcome, settings)
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
