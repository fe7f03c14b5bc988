# SPDX-License-Identifier: MIT
"""The benchmarks: that they measure what they say, and how they show it; no times are tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image as pictures
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cases import BLEU, CASES, DECODING, MATCHING

from benchmarks import cases as benchmark_cases
from benchmarks import measure as measuring
from benchmarks.baselines import Baseline
from benchmarks.cases import BENCHMARKS, BenchmarkCase, Goal, select_cases
from benchmarks.measure import Contender, DisagreementError, Effort, Measurement, Timing, measure
from benchmarks.report import (
    BEGIN_MARK,
    END_MARK,
    as_json,
    describe_machine,
    markdown,
    notes,
    replace_marked,
    terminal_table,
    verdicts,
)
from benchmarks.run import main

QUICK = Effort(rounds=2, compile=False)


def tiny(case: BenchmarkCase, shape: tuple[int, ...] | None = None) -> BenchmarkCase:
    """The same case on a few elements."""
    return replace(case, shape=shape or case.row.family.shape_of(17))


def find(name: str) -> BenchmarkCase:
    (case,) = (case for case in BENCHMARKS if case.name == name)
    return case


def ignore(doing: object) -> None:
    """Nobody watches."""


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measuring, "TURN_SECONDS", 1e-4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pretended_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that returns its argument: what it gets is under test, not what it makes of it."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


# ---------------------------------------------------------------------------------------- the cases


def test_every_formula_is_measured() -> None:
    formulas = {(row.function, row.kernel_name) for row in (*CASES, DECODING, BLEU, MATCHING)}
    assert {(case.row.function, case.row.kernel_name) for case in BENCHMARKS} == formulas
    assert len({case.name for case in BENCHMARKS}) == len(BENCHMARKS)
    assert len({case.title for case in BENCHMARKS}) == len(BENCHMARKS)


def test_select_by_pattern_and_by_loss() -> None:
    assert select_cases([]) == list(BENCHMARKS)
    assert [case.name for case in select_cases(["?iou-1m", "mse", "ciou-1m"])] == [
        "ciou-1m",
        "siou-1m",
        "giou-1m",
        "mse",
    ]
    by_loss = select_cases(["sigmoid_focal_loss"])
    assert [case.name for case in by_loss] == ["focal", "focal-indices", "retinanet"]
    with pytest.raises(ValueError, match="no benchmark is called 'ciuo'"):
        select_cases(["ciuo"])


def test_compulsory_bytes() -> None:
    def moved(name: str) -> tuple[int, int]:
        case = find(name)
        return case.compulsory_bytes(case.inputs("cpu"))

    assert moved("ciou-8192") == (2 * 8192 * 16, 8192 * 16)
    assert moved("focal-indices") == (67200 * 80 * 4 + 67200 * 8, 67200 * 80 * 4)
    assert moved("pairwise-ciou") == (16 * (60 + 8400) * 16, 16 * 60 * 8400 * 4)


# ------------------------------------------------------------------------------------ the measuring


@pytest.mark.usefixtures("pretended_compiler")
@pytest.mark.parametrize("case", BENCHMARKS, ids=[case.name for case in BENCHMARKS])
def test_contenders_agree_and_are_timed(case: BenchmarkCase, device: str) -> None:
    # That they agree, loss and gradient, is what `measure` itself insists on.
    found = measure(tiny(case), device, replace(QUICK, compile=True), ignore)
    contenders = [found.fastloss, found.eager]
    if case.yardstick is None:
        assert found.limit is not None
        assert found.limit.ms > 0
        assert (found.compiled is None) == (case.baseline.compiled is None)
        if found.compiled is not None:
            contenders.append(found.compiled)
    for contender in contenders:
        assert contender.timing is not None
        assert contender.timing.rounds == 2
        assert 0 < contender.timing.ms_low <= contender.timing.ms <= contender.timing.ms_high
        assert contender.peak_extra_bytes is not None
        assert contender.peak_extra_bytes >= found.bytes_written
        assert (contender.launches is not None) == (device == "cuda")


def test_a_compiler_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Callable[..., Tensor], **options: object) -> None:
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", fail)
    found = measure(tiny(find("mse")), "cpu", replace(QUICK, compile=True), ignore)
    assert found.compiled == Contender("torch.compile", failure="RuntimeError: no C++ compiler")
    hopeful = replace(found.case, headline=False, goal=Goal(compiled=2))
    (verdict,) = verdicts(replace(found, case=hopeful))
    assert (verdict.found, verdict.reached) == ("not measured", None)
    machine = describe_machine("cpu", 1)
    assert "| failed |" in markdown([found], machine, "")
    assert "MSE, 4 M: torch.compile failed: RuntimeError: no C++ compiler" in [
        str(note) for note in notes([found], machine)
    ]


def test_contenders_that_disagree_are_not_compared() -> None:
    def half(boxes1: Tensor, boxes2: Tensor, reduction: str) -> Tensor:
        return 0.5 * (boxes1 - boxes2).abs().mean()

    case = replace(tiny(find("ciou-8192")), yardstick=Baseline(half, half, "wrong"))
    with pytest.raises(DisagreementError, match="ciou-8192: the loss of eager"):
        measure(case, "cpu", QUICK, ignore)


class _CountBytes(TorchDispatchMode):
    """The bytes the operations of the streaming pass read and write."""

    read = written = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = function._overloadpacket.__name__
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        if name == "add":
            self.read += sum(tensor.nbytes for tensor in tensors)
            self.written += options["out"].nbytes
        elif name == "copy_":
            self.read += tensors[1].nbytes
            self.written += tensors[0].nbytes
        elif name == "fill_":
            self.written += tensors[0].nbytes
        elif name == "sum":
            self.read += tensors[0].nbytes
        else:
            raise AssertionError(f"the streaming pass runs {name}")
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("read", "written"),
    [(800, 400), (600, 400), (400, 400), (100, 400), (1000, 400), (400, 0), (0, 400)],
)
def test_streaming_pass_moves_the_bytes_of_the_case(read: int, written: int) -> None:
    step = measuring.streaming_pass(read, written, "cpu")
    with _CountBytes() as count:
        step()
    assert (count.read, count.written) == (read, written)


def test_extra_memory_is_the_peak() -> None:
    kept: list[Tensor] = []

    def step() -> None:
        kept.append(torch.empty(1 << 16))  # 256 KiB that stay
        torch.empty(1 << 18)  # 1 MiB for a moment
        torch.empty(1 << 17)

    assert measuring.peak_extra_bytes(step, "cpu") == (1 << 20) + (1 << 18)
    assert measuring.peak_extra_bytes(lambda: None, "cpu") == 0


def test_turns_stop_when_precise_or_late() -> None:
    steps = {"a": lambda: None}
    rounds: list[int] = []
    timings = measuring.take_turns(steps, "cpu", 0.0, None, rounds.append)
    assert timings["a"].rounds == measuring.MIN_ROUNDS == rounds[-1]
    assert measuring.take_turns(steps, "cpu", 0.0, 3, ignore)["a"].rounds == 3


# -------------------------------------------------------------------------------------- the reports


def made_up(
    case: BenchmarkCase, fastloss: float, eager: float, compiled: float, limit: float
) -> Measurement:
    def contender(source: str, ms: float, extra: int) -> Contender:
        return Contender(source, Timing(ms, ms, ms, 9, 1), extra)

    return Measurement(
        case,
        2 << 20,
        1 << 20,
        contender("fastloss", fastloss, (1 << 20) + 4),
        contender("torchvision", eager, 5 << 20),
        contender("torch.compile", compiled, 1 << 20),
        Timing(limit, limit, limit, 9, 1),
    )


def test_verdicts() -> None:
    case = find("ciou-1m")
    assert (case.goal.eager, case.goal.compiled, case.goal.limit) == (25, 12, 2.5)
    good = verdicts(made_up(case, fastloss=1, eager=25, compiled=12, limit=0.4))
    assert [(verdict.goal, verdict.found) for verdict in good] == [
        ("≥ 25× eager", "25×"),
        ("≥ 12× compile", "12×"),
        ("≤ 2.5× limit", "2.5×"),
        ("gradient only", "0 MiB more"),
    ]
    assert all(verdict.reached for verdict in good)
    bad = made_up(case, fastloss=1, eager=24, compiled=11, limit=0.3)
    bad = replace(bad, fastloss=replace(bad.fastloss, peak_extra_bytes=2 << 20))
    assert [verdict.reached for verdict in verdicts(bad)] == [False] * 4
    modest = replace(bad, case=replace(case, goal=Goal(memory_of_eager=True)))
    (verdict,) = verdicts(modest)
    assert (verdict.goal, verdict.found, verdict.reached) == (
        "memory of eager",
        "-3 MiB more",
        True,
    )
    idle = {**describe_machine("cpu", 2), "load_before": 0.0}
    assert [str(note) for note in notes([bad], idle)][-1] == (
        "CIoU, 1 M: gradient only not reached: 1 MiB more"
    )
    (busy,) = notes([], {**idle, "load_before": 9.0, "cores": 2})
    assert "do not trust" in str(busy)


def test_json_holds_everything() -> None:
    measurements = [made_up(case, 0.5, 10, 5, 0.25) for case in BENCHMARKS[:2]]
    machine = describe_machine("cpu", 2)
    found = json.loads(json.dumps(as_json(measurements, machine), allow_nan=False))
    assert set(found) == {"format", "machine", "cases"}
    for name in ("cpu", "cores", "threads", "instruction_set", "torch", "fastloss", "date"):
        assert found["machine"][name], name
    case = found["cases"][0]
    assert (case["name"], case["loss"]) == ("ciou-8192", "complete_box_iou_loss")
    assert case["shape"] == [8192]
    assert case["fastloss"]["timing"]["ms"] == 0.5
    assert (case["speedup_over_eager"], case["speedup_over_compiled"]) == (20, 10)
    assert case["times_limit"] == 2
    assert case["gigabytes_per_second"] == pytest.approx(3 * 1.048576 / 0.5)
    assert [goal["reached"] for goal in case["goals"]] == [False, True, True]


def test_markdown_goes_between_the_marks(tmp_path: Path) -> None:
    measurements = [made_up(case, 1, 20, 9, 0.5) for case in (find("ciou-8192"), find("l1_loss"))]
    text = markdown(measurements, describe_machine("cpu", 2), "make bench")
    assert "Measured with `make bench` on" in text
    assert "2 of 3 goals reached" in text
    headline, _, others = text.partition("<details>")
    assert "| CIoU, 8192 | 20 | 9 | 0.5 | 1 | 20× | 9× | 2× |" in headline
    assert "≥ 25× eager **✗ 20×**, ≥ 8× compile ✓, gradient only ✓ |" in headline
    assert "| L1, " in others
    for table in (headline, others):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1

    readme = tmp_path / "README.md"
    page = "before\n{}\n{}\n{}\nafter\n"
    readme.write_text(page.format(BEGIN_MARK, "old", END_MARK), encoding="utf-8")
    replace_marked(readme, text)
    assert readme.read_text(encoding="utf-8") == page.format(BEGIN_MARK, text, END_MARK)
    readme.write_text(f"{END_MARK}\n{BEGIN_MARK}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must have one line"):
        replace_marked(readme, text)


def test_terminal_table_has_a_row_per_case() -> None:
    measurements = [made_up(case, 1, 20, 9, 0.5) for case in BENCHMARKS]
    assert terminal_table(measurements, describe_machine("cpu", 2)).row_count == len(BENCHMARKS)


def test_whole_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tuple(tiny(find(name)) for name in ("ciou-8192", "call-step", "l1_loss"))
    monkeypatch.setattr(benchmark_cases, "BENCHMARKS", some)
    monkeypatch.setenv("COLUMNS", "200")  # room for every title, whatever the times are
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN_MARK}\n{END_MARK}\n", encoding="utf-8")
    numbers, plot = tmp_path / "new" / "cpu.json", tmp_path / "new" / "cpu.png"
    options = ["--repeats", "2", "--threads", "1", "--no-compile"]
    files = ["--json", str(numbers), "--plot", str(plot), "--markdown", str(readme)]
    assert main([*options, *files]) == 0
    shown = capsys.readouterr().out
    for case in some:
        assert case.title in shown
        assert case.title in readme.read_text(encoding="utf-8")
    written = json.loads(numbers.read_text(encoding="utf-8"))["cases"]
    assert [case["name"] for case in written] == [case.name for case in some]
    picture = pictures.imread(plot)
    assert picture.shape[0] > 200
    assert picture.std() > 0.01


def test_command_line_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (
        (["nothing"], "no benchmark is called 'nothing'"),
        (["--threads", "0"], "must be at least 1"),
        (["--device", "cuda"], "torch sees no GPU"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(BENCHMARKS)
