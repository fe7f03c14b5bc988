# SPDX-License-Identifier: MIT
"""How it is measured: the contenders of a case, in random order, round after round.

Every contender takes a turn in every round: one step that is not timed, so that nobody pays for the
caches the one before has left, then as many as fill a few milliseconds. A contender's time is the
median of its turns, so that all of them have seen the same machine.

A step is what a training loop does: drop the last gradient, run the loss on the same inputs, run
backward from the scalar. On a GPU, several sets of inputs take turns, more than its L2 cache holds.

The streaming limit is one more contender: a plain pass that reads as many bytes as the case's
inputs have, and writes as many as its gradient (or matrix), by torch's own vectorised and
multi-threaded operations on contiguous float32 tensors whose memory has been touched before:
``torch.add(a, b, out=c)`` as far as two bytes are read for one written, ``c.copy_(a)`` as far as
it is one for one, ``c.fill_`` and ``a.sum()`` for what is left to write or to read.

Extra memory is the peak of what a step allocates through torch's allocators, gradient included,
over what was allocated before it: on a CPU from the events of ``torch.profiler``, on a GPU from the
statistics of the caching allocator.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.baselines import LossFunction
from benchmarks.cases import BenchmarkCase, Work
from tests.cases import Arguments

Step = Callable[[], None]
Notify = Callable[[str], None]

TURN_SECONDS = 0.02
MAX_STEPS_PER_TURN = 10_000
MIN_ROUNDS = 7
MAX_ROUNDS = 100
# A case is done when the medians are known to this standard error, relative.
PRECISION = 0.005

# Two implementations may differ by the rounding of float32, a wrong one differs by more.
AGREEMENT = 1e-3


@dataclass(frozen=True)
class Timing:
    """One step of one contender: the median over the rounds, and the quartiles."""

    ms: float
    ms_low: float
    ms_high: float
    rounds: int
    steps_per_round: int


@dataclass(frozen=True)
class Contender:
    """What one contender needed.

    Attributes:
        source: Whose code it is.
        timing: The time of a step; None where the compiler failed.
        peak_extra_bytes: The most it had allocated during a step.
        launches: GPU kernels, copies and fills per step; None on a CPU.
        compile_seconds: How long ``torch.compile`` took.
        failure: Why there is no timing.
    """

    source: str
    timing: Timing | None = None
    peak_extra_bytes: int | None = None
    launches: int | None = None
    compile_seconds: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One case, measured.

    Attributes:
        case: Which case.
        bytes_read: Bytes any implementation reads.
        bytes_written: Bytes any implementation writes.
        fastloss: The time and memory of fastloss.
        eager: Those of eager PyTorch.
        compiled: Those of ``torch.compile``; None where it was not measured.
        limit: The time of the streaming limit; None for a call's overhead, which moves no bytes.
    """

    case: BenchmarkCase
    bytes_read: int
    bytes_written: int
    fastloss: Contender
    eager: Contender
    compiled: Contender | None
    limit: Timing | None


@dataclass(frozen=True)
class Effort:
    """How much time may be spent.

    Attributes:
        seconds: On the rounds of one case, about; headline cases get it whole, the others a third.
        rounds: The number of rounds, whatever time they take; None: as many as precision needs.
        compile: Whether ``torch.compile`` takes part.
    """

    seconds: float = 6.0
    rounds: int | None = None
    compile: bool = True

    def seconds_for(self, case: BenchmarkCase) -> float:
        """The time for one case."""
        return self.seconds if case.headline else self.seconds / 3


class DisagreementError(RuntimeError):
    """Two contenders do not compute the same."""


def measure(case: BenchmarkCase, device: str, effort: Effort, notify: Notify) -> Measurement:
    """Measures all contenders of one case.

    Args:
        case: What to measure.
        device: ``"cpu"`` or ``"cuda"``.
        effort: How long.
        notify: Called with a word about what is being done.

    Raises:
        DisagreementError: If a contender's loss or gradient is not fastloss's.
    """
    baseline = case.baseline
    inputs = case.inputs(device)
    read, written = case.compulsory_bytes(inputs)
    sets = [inputs, *(_copy(inputs) for _ in range(_input_sets(read + written, device) - 1))]
    opponent_sets = [_rename(arguments, baseline.renamed) for arguments in sets]
    wanted = case.with_gradient
    opponent_wanted = tuple(baseline.renamed.get(name, name) for name in wanted)

    notify("first steps")
    own = case.function
    steps = {
        "fastloss": _step_of(own, sets, wanted, case.work),
        "eager": _step_of(baseline.eager, opponent_sets, opponent_wanted, case.work),
    }
    compiled: Contender | None = None
    if baseline.same_loss:
        expected = _evaluate(own, sets[0], wanted)
        _check_agreement(case, "eager", expected, _evaluate(baseline.eager, sets[0], wanted))
        steps["limit"] = streaming_pass(read, written, device, len(sets))
        if effort.compile and baseline.compiled is not None:
            notify("torch.compile")
            compiled, step, found = _compile(baseline.compiled, sets, wanted, case.work)
            if step is not None and found is not None:
                _check_agreement(case, "torch.compile", expected, found)
                steps["compiled"] = step

    notify("memory")
    peaks, launches = {}, {}
    for name, step in steps.items():
        if name != "limit":
            step()
            _drop_gradients(sets, wanted)
            peaks[name] = peak_extra_bytes(step, device)
            launches[name] = count_launches(step) if device == "cuda" else None
    _drop_gradients(sets, wanted)

    timings = take_turns(
        steps, device, effort.seconds_for(case), effort.rounds, lambda done: notify(f"round {done}")
    )

    def contender(name: str, source: str, seconds: float | None = None) -> Contender:
        return Contender(source, timings[name], peaks[name], launches[name], seconds)

    if compiled is not None and "compiled" in steps:
        compiled = contender("compiled", compiled.source, compiled.compile_seconds)
    return Measurement(
        case,
        read,
        written,
        contender("fastloss", "fastloss"),
        contender("eager", baseline.source),
        compiled,
        timings.get("limit"),
    )


# ------------------------------------------------------------------------------------- what to run


def _input_sets(bytes_moved: int, device: str) -> int:
    """One set on a CPU; on a GPU enough that the L2 cache has dropped a set at its next turn."""
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(1 + math.ceil(2 * cache / bytes_moved), 256)


def _copy(arguments: Arguments) -> Arguments:
    return {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


def _rename(arguments: Arguments, names: Mapping[str, str]) -> Arguments:
    return {names.get(name, name): value for name, value in arguments.items()}


def _drop_gradients(sets: Sequence[Arguments], wanted: Sequence[str]) -> None:
    for arguments in sets:
        for name in wanted:
            arguments[name].grad = None


def _step_of(
    function: LossFunction, sets: Sequence[Arguments], wanted: Sequence[str], work: Work
) -> Step:
    """One step of a training loop, on the next of the inputs."""
    turn = itertools.cycle(sets)

    def forward() -> None:
        function(**next(turn))

    if not wanted or work is Work.GRAPH:
        return forward

    def forward_and_backward() -> None:
        arguments = next(turn)
        for name in wanted:
            arguments[name].grad = None
        function(**arguments).backward()

    return forward_and_backward


def _compile(
    function: LossFunction, sets: Sequence[Arguments], wanted: Sequence[str], work: Work
) -> tuple[Contender, Step | None, list[Tensor] | None]:
    """The compiled function's step and results, or why there are none."""
    torch.compiler.reset()  # the caches of Python frames are shared by all cases, and limited
    begin = time.perf_counter()
    try:
        compiled = torch.compile(function, dynamic=False)
        found = _evaluate(compiled, sets[0], wanted)
    # Anything may go wrong in a compiler, a missing C++ compiler included, and is a result here.
    except Exception as error:
        failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Contender("torch.compile", failure=failure), None, None
    contender = Contender("torch.compile", compile_seconds=time.perf_counter() - begin)
    return contender, _step_of(compiled, sets, wanted, work), found


def streaming_pass(bytes_read: int, bytes_written: int, device: str, sets: int = 1) -> Step:
    """A step that only reads and writes so many bytes; see the module's description."""
    read, written = bytes_read // 4, bytes_written // 4
    added = min(max(read - written, 0), written)
    copied = min(read - 2 * added, written - added)
    filled = written - added - copied
    summed = read - 2 * added - copied

    def touched(count: int) -> Tensor:
        return torch.ones(count, device=device)  # ones, not empty: every page has been written

    def passes() -> list[Callable[[], object]]:
        a, b, out = touched(added), touched(added), touched(added)
        source, copy = touched(copied), touched(copied)
        fill, total = touched(filled), touched(summed)
        operations: list[tuple[int, Callable[[], object]]] = [
            (added, lambda: torch.add(a, b, out=out)),
            (copied, lambda: copy.copy_(source)),
            (filled, lambda: fill.fill_(1.0)),
            (summed, total.sum),
        ]
        return [operation for count, operation in operations if count > 0]

    turn = itertools.cycle([passes() for _ in range(sets)])

    def step() -> None:
        for operation in next(turn):
            operation()

    return step


# ------------------------------------------------------------------------------- the same results?


def _evaluate(function: LossFunction, inputs: Arguments, wanted: Sequence[str]) -> list[Tensor]:
    """The loss (or matrix, or tags), and the gradients."""
    found = function(**inputs)
    loss = found[0].float() if isinstance(found, tuple) else found
    if not wanted:
        return [loss]
    return [loss.detach(), *torch.autograd.grad(loss, [inputs[name] for name in wanted])]


def _check_agreement(
    case: BenchmarkCase, who: str, expected: list[Tensor], found: list[Tensor]
) -> None:
    gradients = (f"gradient of {name}" for name in case.with_gradient)
    for what, a, b in zip(("loss", *gradients), expected, found, strict=True):
        difference, size = (a - b).norm().item(), a.norm().item()
        if not difference <= AGREEMENT * size:
            raise DisagreementError(
                f"{case.name}: the {what} of {who} differs from fastloss's by "
                f"{difference:.3g}, where its norm is {size:.3g}"
            )


# ------------------------------------------------------------------------------------------- time


def take_turns(
    steps: Mapping[str, Step],
    device: str,
    seconds: float,
    rounds: int | None,
    on_round: Callable[[int], None],
) -> dict[str, Timing]:
    """Times the steps in random order, round after round.

    Args:
        steps: By name.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: When to stop at the latest (but not before a few rounds are done).
        rounds: The exact number of rounds instead.
        on_round: Called with the number of rounds done.
    """
    clock = _cuda_seconds if device == "cuda" else _cpu_seconds
    counts = {name: _steps_per_turn(step, clock) for name, step in steps.items()}
    turns: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    shuffle = random.Random(0).shuffle
    begin = time.perf_counter()

    def done(finished: int) -> bool:
        if rounds is not None:
            return finished >= rounds
        if finished < MIN_ROUNDS:
            return False
        late = time.perf_counter() - begin > seconds
        return late or finished >= MAX_ROUNDS or all(map(_is_precise, turns.values()))

    collect = gc.isenabled()
    gc.collect()
    gc.disable()  # the collector strikes at random and belongs to no contender
    try:
        for finished in itertools.count(1):
            shuffle(order)
            for name in order:
                steps[name]()
                turns[name].append(clock(steps[name], counts[name]) / counts[name])
            on_round(finished)
            if done(finished):
                break
    finally:
        if collect:
            gc.enable()
    return {name: _summary(turns[name], counts[name]) for name in steps}


def _cpu_seconds(step: Step, count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - begin


def _cuda_seconds(step: Step, count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _steps_per_turn(step: Step, clock: Callable[[Step, int], float]) -> int:
    """How many steps fill a turn; also warms up."""
    count = 1
    while (spent := clock(step, count)) < TURN_SECONDS / 4 and count < MAX_STEPS_PER_TURN:
        count *= 2
    return max(1, min(MAX_STEPS_PER_TURN, round(count * TURN_SECONDS / spent)))


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _is_precise(turns: Sequence[float]) -> bool:
    """Whether the standard error of the median, as of a normal distribution, is small."""
    low, median, high = _quartiles(turns)
    deviation = (high - low) / 1.349
    return 1.2533 * deviation / math.sqrt(len(turns)) <= PRECISION * median


def _summary(turns: Sequence[float], count: int) -> Timing:
    low, median, high = (1e3 * value for value in _quartiles(turns))
    return Timing(median, low, high, len(turns), count)


# ------------------------------------------------------------------------------ memory and launches


def peak_extra_bytes(step: Step, device: str) -> int:
    """The most one step has allocated over what was allocated before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    allocated = itertools.accumulate(size for _, size in sorted(events, key=lambda event: event[0]))
    return max(0, *allocated) if events else 0


def count_launches(step: Step) -> int:
    """The kernels, copies and fills one step runs on the GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(
        event.device_type is torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        for event in profiler.events()
    )
