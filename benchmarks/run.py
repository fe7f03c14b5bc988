# SPDX-License-Identifier: MIT
"""Measures fastloss against eager PyTorch, torch.compile and the streaming limit.

Run from the project's folder: python -m benchmarks.run
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import fastloss
from benchmarks.cases import BENCHMARKS, BenchmarkCase, select_cases
from benchmarks.measure import Effort, Measurement, measure
from benchmarks.report import (
    as_json,
    describe_machine,
    markdown,
    notes,
    replace_marked,
    terminal_table,
)

# What the table needs; a pipe has no width of its own.
TABLE_WIDTH = 150


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    cases: list[BenchmarkCase]
    device: str
    threads: int
    effort: Effort
    json: Path | None
    plot: Path | None
    markdown: Path | None
    list: bool
    command: str


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Returns what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    effort = Effort()
    parser.add_argument("cases", nargs="*", help="names or patterns as ciou-*; default: all")
    parser.add_argument("--list", action="store_true", help="show the cases and stop")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--threads", type=_positive, default=2, help="CPU threads; default: 2")
    parser.add_argument(
        "--seconds",
        type=float,
        default=effort.seconds,
        help=f"at most so long on the rounds of a case, about; default: {effort.seconds:g}",
    )
    parser.add_argument("--repeats", type=_positive, help="exactly so many rounds instead")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the speed-ups")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables between the file's marks"
    )
    found = parser.parse_args(arguments)
    if found.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if found.device == "cuda" and not fastloss.build_info()["cuda"]:
        parser.error("--device cuda: fastloss is built without CUDA kernels")
    try:
        cases = select_cases(found.cases)
    except ValueError as error:
        parser.error(str(error))
    return Settings(
        cases,
        found.device,
        found.threads,
        Effort(found.seconds, found.repeats, not found.no_compile),
        found.json,
        found.plot,
        found.markdown,
        found.list,
        shlex.join(("python", "-m", "benchmarks.run", *arguments)),
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def measure_all(settings: Settings, console: Console) -> list[Measurement]:
    """Measures the cases under a progress bar."""
    torch.set_num_threads(settings.threads)
    measurements = []
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
        console=console,
    ) as progress:
        task = progress.add_task("measuring", total=len(settings.cases), doing="")
        for case in settings.cases:

            def show(doing: str, case: BenchmarkCase = case) -> None:
                progress.update(task, doing=f"{case.title}: {doing}")

            measurements.append(measure(case, settings.device, settings.effort, show))
            progress.advance(task)
        progress.update(task, doing="")
    return measurements


def write_files(
    measurements: list[Measurement], machine: dict[str, Any], settings: Settings, console: Console
) -> None:
    """Writes what the command line asks for."""
    for file in (settings.json, settings.plot):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if settings.json is not None:
        content = json.dumps(as_json(measurements, machine), indent=1, ensure_ascii=False)
        settings.json.write_text(content + "\n", encoding="utf-8")
        console.print(f"numbers: {settings.json}")
    if settings.plot is not None:
        from benchmarks.plot import save_plot  # matplotlib takes a second, and only this needs it

        save_plot(measurements, machine, settings.plot)
        console.print(f"plot: {settings.plot}")
    if settings.markdown is not None:
        replace_marked(settings.markdown, markdown(measurements, machine, settings.command))
        console.print(f"tables: {settings.markdown}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    if settings.list:
        for case in BENCHMARKS:
            console.print(f"{case.name:34} {case.title}", highlight=False)
        return 0
    machine = describe_machine(settings.device, settings.threads)
    measurements = measure_all(settings, console)
    console.print(terminal_table(measurements, machine))
    for note in notes(measurements, machine):
        console.print(note)
    write_files(measurements, machine, settings, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
