# SPDX-License-Identifier: MIT
"""What is shown of the measurements: a table, JSON, and the README's tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

import fastloss
from benchmarks.cases import Work
from benchmarks.measure import Contender, Measurement, Timing

JSON_FORMAT = 1
BEGIN_MARK = "<!-- benchmarks: begin -->"
END_MARK = "<!-- benchmarks: end -->"

# "The gradient and nothing more" leaves room for the loss itself and for partial sums.
SMALL_BYTES = 64 << 10

MIB = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """One goal of a case: what was asked, what was found; None where it could not be measured."""

    goal: str
    found: str
    reached: bool | None


def _ratio(slower: Contender | Timing | None, faster: Contender | Timing | None) -> float | None:
    times = []
    for one in (slower, faster):
        timing = one.timing if isinstance(one, Contender) else one
        if timing is None:
            return None
        times.append(timing.ms)
    return times[0] / times[1]


def speedup_over_eager(measurement: Measurement) -> float | None:
    """How many times as fast as eager PyTorch fastloss is."""
    return _ratio(measurement.eager, measurement.fastloss)


def speedup_over_compiled(measurement: Measurement) -> float | None:
    """How many times as fast as ``torch.compile`` fastloss is."""
    return _ratio(measurement.compiled, measurement.fastloss)


def times_limit(measurement: Measurement) -> float | None:
    """How many times the streaming limit fastloss takes."""
    return _ratio(measurement.fastloss, measurement.limit)


def gigabytes_per_second(measurement: Measurement) -> float | None:
    """The compulsory bytes over fastloss's time; None where the bytes do not matter."""
    timing = measurement.fastloss.timing
    if timing is None or measurement.limit is None:
        return None
    return (measurement.bytes_read + measurement.bytes_written) / timing.ms / 1e6


def verdicts(measurement: Measurement) -> list[Verdict]:
    """The goals of a case, and whether they were reached."""
    case, goal = measurement.case, measurement.case.goal
    found = []
    if goal.eager is not None:
        opponent = "eager" if case.yardstick is None else case.yardstick.source
        speedup = speedup_over_eager(measurement)
        found.append(_at_least(goal.eager, speedup, opponent))
    if goal.compiled is not None:
        found.append(_at_least(goal.compiled, speedup_over_compiled(measurement), "compile"))
    if goal.limit is not None:
        multiple = times_limit(measurement)
        reached = None if multiple is None else multiple <= goal.limit
        found.append(Verdict(f"≤ {goal.limit:g}× limit", _found(multiple), reached))
    peak = measurement.fastloss.peak_extra_bytes
    if case.headline and case.work is Work.STEP and peak is not None:
        allowed, name = (
            (measurement.eager.peak_extra_bytes, "memory of eager")
            if goal.memory_of_eager
            else (measurement.bytes_written, "gradient only")
        )
        extra = None if allowed is None else peak - allowed
        shown = "not measured" if extra is None else f"{_number(round(extra / MIB, 2))} MiB more"
        found.append(Verdict(name, shown, None if extra is None else extra <= SMALL_BYTES))
    return found


def _at_least(goal: float, speedup: float | None, opponent: str) -> Verdict:
    reached = None if speedup is None else speedup >= goal
    return Verdict(f"≥ {goal:g}× {opponent}", _found(speedup), reached)


def _found(ratio: float | None) -> str:
    return "not measured" if ratio is None else f"{_number(ratio)}×"


# ------------------------------------------------------------------------------------ the machine


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """Where and with what it is measured."""
    build = fastloss.build_info()
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_set": build["instruction_set"],
        "device": device,
        "gpu": None,
        "torch": torch.__version__,
        "fastloss": fastloss.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
        machine["cuda"] = torch.version.cuda
    return machine


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ------------------------------------------------------------------------------------------- JSON


def as_json(measurements: Sequence[Measurement], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, as plain numbers, strings, lists and dictionaries."""
    return {
        "format": JSON_FORMAT,
        "machine": machine,
        "cases": [_case_as_json(measurement) for measurement in measurements],
    }


def _case_as_json(measurement: Measurement) -> dict[str, Any]:
    case = measurement.case
    return {
        "name": case.name,
        "title": case.title,
        "loss": case.row.id,
        "shape": list(case.shape),
        "work": case.work.value,
        "headline": case.headline,
        "bytes_read": measurement.bytes_read,
        "bytes_written": measurement.bytes_written,
        "fastloss": asdict(measurement.fastloss),
        "eager": asdict(measurement.eager),
        "compiled": None if measurement.compiled is None else asdict(measurement.compiled),
        "limit": None if measurement.limit is None else asdict(measurement.limit),
        "speedup_over_eager": speedup_over_eager(measurement),
        "speedup_over_compiled": speedup_over_compiled(measurement),
        "times_limit": times_limit(measurement),
        "gigabytes_per_second": gigabytes_per_second(measurement),
        "goals": [asdict(verdict) for verdict in verdicts(measurement)],
    }


# ------------------------------------------------------------------------------------- the tables


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.4f}"


def _cell(value: float | None, unit: str = "") -> str:
    return "–" if value is None else _number(value) + unit


def _time(contender: Contender | Timing | None) -> str:
    if isinstance(contender, Contender):
        if contender.failure is not None:
            return "failed"
        contender = contender.timing
    return _cell(None if contender is None else contender.ms)


def _both(measurement: Measurement, value: Callable[[Contender], float | None]) -> str:
    return f"{_cell(value(measurement.fastloss))} / {_cell(value(measurement.eager))}"


def _extra_mib(contender: Contender) -> float | None:
    if contender.peak_extra_bytes is None:
        return None
    return round(contender.peak_extra_bytes / MIB, 2)


# The columns of both tables: heading and cell.
_COLUMNS: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("eager, ms", lambda m: _time(m.eager)),
    ("compile, ms", lambda m: _time(m.compiled)),
    ("limit, ms", lambda m: _time(m.limit)),
    ("fastloss, ms", lambda m: _time(m.fastloss)),
    ("× eager", lambda m: _cell(speedup_over_eager(m), "×")),
    ("× compile", lambda m: _cell(speedup_over_compiled(m), "×")),
    ("× limit", lambda m: _cell(times_limit(m), "×")),
    ("GB/s", lambda m: _cell(gigabytes_per_second(m))),
    ("MiB, ours / eager", lambda m: _both(m, _extra_mib)),
)
_LAUNCHES = ("launches, ours / eager", lambda m: _both(m, lambda contender: contender.launches))


def _columns(
    measurements: Sequence[Measurement],
) -> tuple[tuple[str, Callable[[Measurement], str]], ...]:
    on_gpu = any(measurement.fastloss.launches is not None for measurement in measurements)
    return (*_COLUMNS, _LAUNCHES) if on_gpu else _COLUMNS


def terminal_table(measurements: Sequence[Measurement], machine: dict[str, Any]) -> Table:
    """The table for a terminal."""
    table = Table(title=machine_line(machine), caption=summary_line(measurements))
    table.add_column("case", no_wrap=True)
    columns = _columns(measurements)
    for heading, _ in columns:
        table.add_column(heading, justify="right", style="bold" if "fastloss" in heading else "")
    table.add_column("goals", justify="right", no_wrap=True)
    section = True
    for measurement in measurements:
        if section and not measurement.case.headline:
            table.add_section()
            section = False
        cells = [cell(measurement) for _, cell in columns]
        table.add_row(measurement.case.title, *cells, _goals_text(verdicts(measurement)))
    return table


def _goals_text(found: Sequence[Verdict]) -> Text:
    if not found:
        return Text("")
    reached = sum(verdict.reached is True for verdict in found)
    style = "green" if reached == len(found) else "red"
    return Text(f"{reached} of {len(found)}", style=style)


def notes(measurements: Sequence[Measurement], machine: dict[str, Any]) -> list[Text]:
    """What the table has no room for: missed goals, failures of the compiler, doubts."""
    lines = []
    for measurement in measurements:
        title = measurement.case.title
        for verdict in verdicts(measurement):
            if verdict.reached is False:
                lines.append(Text(f"{title}: {verdict.goal} not reached: {verdict.found}", "red"))
            elif verdict.reached is None:
                lines.append(Text(f"{title}: {verdict.goal} not measured", "yellow"))
        if measurement.compiled is not None and measurement.compiled.failure is not None:
            failure = measurement.compiled.failure
            lines.append(Text(f"{title}: torch.compile failed: {failure}", "yellow"))
    load, cores = machine["load_before"], machine["cores"]
    if load is not None and load > cores / 2:
        busy = f"The machine was busy (load {load} on {cores} cores): do not trust these times."
        lines.append(Text(busy, "yellow"))
    return lines


def machine_line(machine: dict[str, Any]) -> str:
    """Where and with what it was measured, in a line."""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    place = machine["gpu"] or f"{machine['cpu']}, {threads}"
    return (
        f"{place}, {machine['instruction_set']}, float32, torch {machine['torch']}, "
        f"fastloss {machine['fastloss']}, {machine['date'][:10]}"
    )


def summary_line(measurements: Sequence[Measurement]) -> str:
    """How many goals were reached."""
    found = [verdict for measurement in measurements for verdict in verdicts(measurement)]
    reached = sum(verdict.reached is True for verdict in found)
    return f"{reached} of {len(found)} goals reached"


def markdown(measurements: Sequence[Measurement], machine: dict[str, Any], command: str) -> str:
    """The README's tables: the cases with a goal, and folded away the other losses."""
    headline = [measurement for measurement in measurements if measurement.case.headline]
    others = [measurement for measurement in measurements if not measurement.case.headline]
    parts = [f"Measured with `{command}` on {machine_line(machine)}. {summary_line(measurements)}."]
    if headline:
        parts.append(_markdown_table(headline, with_goals=True))
    if others:
        parts.append("<details><summary>Every other loss</summary>")
        parts.append(_markdown_table(others, with_goals=False))
        parts.append("</details>")
    return "\n\n".join(parts)


def _markdown_table(measurements: Sequence[Measurement], *, with_goals: bool) -> str:
    columns = _columns(measurements)
    headings = ["case", *(heading for heading, _ in columns)]
    rows = [
        [measurement.case.title, *(cell(measurement) for _, cell in columns)]
        for measurement in measurements
    ]
    rule = ["---", *("---:" for _ in columns)]
    if with_goals:
        headings.append("goals")
        rule.append("---")
        for row, measurement in zip(rows, measurements, strict=True):
            row.append(_goals_markdown(verdicts(measurement)))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def _goals_markdown(found: Sequence[Verdict]) -> str:
    marks = {True: "✓", None: "(not measured)"}
    return ", ".join(
        f"{verdict.goal} {marks.get(verdict.reached, f'**✗ {verdict.found}**')}"
        for verdict in found
    )


def replace_marked(file: Path, text: str) -> None:
    """Puts the text between the two marks of a file.

    Raises:
        ValueError: If the marks do not stand there once each, in order.
    """
    content = file.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end or BEGIN_MARK in after or END_MARK in after:
        raise ValueError(f"{file} must have one line {BEGIN_MARK} and after it one line {END_MARK}")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
