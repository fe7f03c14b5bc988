# SPDX-License-Identifier: MIT
"""Extra peak memory is the gradient, nothing more; no copy of an input is made where a stride will do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cases import Arguments, Case
from support import each_case

# Scalars, their gradients, and what the profiler itself cannot leave alone.
SLACK = 4096


def allocations(function: object, *arguments: object) -> int:
    """The bytes that were allocated on the CPU meanwhile, all together: an upper bound of the peak."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function(*arguments)  # type: ignore[operator]
    total = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.nbytes() > 0:
            total += event.nbytes()
    return total


def test_the_count_sees_allocations() -> None:
    counted = allocations(lambda: [torch.empty(100_000), torch.empty(50_000)])
    assert 600_000 <= counted <= 600_000 + SLACK


def step(case: Case, arguments: Arguments) -> None:
    """Forward and backward of a training step."""
    case.loss(arguments, reduction="mean").backward()


def size(case: Case) -> tuple[int, ...]:
    return {"box_pair": (20_000,), "pointwise": (20_000, 5)}[case.family.engine]


@each_case(lambda case: case.family.element_wise)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_allocates_the_gradient_alone(case: Case, dtype: torch.dtype) -> None:
    step(case, case.arguments(size(case), dtype, requires_grad=[case.prediction]))  # warm up
    arguments = case.arguments(size(case), dtype, requires_grad=[case.prediction])
    gradient = arguments[case.prediction].nbytes
    # Ignored labels are counted in a boolean row, the mean's only pre-pass.
    labels = sum(arguments[name].numel() for name in case.family.integers)
    allocated = allocations(step, case, arguments)
    assert gradient <= allocated <= gradient + 2 * labels + SLACK


@each_case(lambda case: case.family.element_wise)
def test_no_gradient_no_memory(case: Case) -> None:
    arguments = case.arguments(size(case))
    case.loss(arguments, reduction="mean")
    labels = sum(arguments[name].numel() for name in case.family.integers)
    assert allocations(lambda: case.loss(arguments, reduction="mean")) <= labels + SLACK


@each_case(lambda case: case.family.element_wise)
def test_strided_input_is_not_copied(case: Case) -> None:
    dense = case.arguments(size(case))
    strided = {}
    for name, value in dense.items():
        if isinstance(value, Tensor) and value.dim() > 1:
            *leading, last = value.shape
            value = torch.empty(*leading, 2 * last, dtype=value.dtype)[..., :last].copy_(value)
        strided[name] = value
    strided[case.prediction].requires_grad_()
    step(case, strided)
    strided[case.prediction].grad = None
    labels = sum(dense[name].numel() for name in case.family.integers)
    allocated = allocations(step, case, strided)
    # The leaf is not contiguous, so torch may lay its .grad out as the leaf: one copy of the gradient, made by torch.
    assert allocated <= 2 * dense[case.prediction].nbytes + 2 * labels + SLACK


@each_case(lambda case: case.family.engine == "box_matrix")
def test_a_matrix_is_all_the_forward_allocates(case: Case) -> None:
    arguments = case.arguments((4, 60, 500))
    case.loss(arguments)
    assert allocations(lambda: case.loss(arguments)) <= 4 * 60 * 500 * 4 + SLACK


@each_case(lambda case: case.family.engine == "box_crowd")
def test_a_crowd_needs_memory_linear_in_the_boxes(case: Case) -> None:
    per_box = []
    for boxes in (500, 1000):
        arguments = case.arguments((boxes, 20), requires_grad=True)
        step(case, arguments)
        per_box.append(allocations(step, case, arguments) / boxes)
    assert per_box[1] <= 1.1 * per_box[0]
    assert per_box[1] < 400
