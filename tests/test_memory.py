# SPDX-License-Identifier: MIT
"""Extra peak memory is the gradient, nothing more; no copy of an input is made where a stride will
do.
"""

from __future__ import annotations

import pytest
import torch
from cases import Arguments, Case, find_case
from support import each_case
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastloss

# Scalars, their gradients, and what the profiler itself cannot leave alone.
SLACK = 4096


def allocations(function: object, *arguments: object) -> int:
    """The bytes allocated on the CPU meanwhile, all together: an upper bound of the peak."""
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


def allocates_nothing_else(case: Case) -> bool:
    """(A mask of rows goes into the labels, eight bytes a row; what visibility, area and sigma come
    down to are two numbers per keypoint.)
    """
    others = ("policy_gradient_loss-mask", "object_keypoint_similarity_loss")
    return case.family.element_wise and case.id not in others


def size(case: Case) -> tuple[int, ...]:
    dims = len(case.family.shape_of(3))
    softmax = (20_000, 5) if dims == 2 else (20, 5, 1000)
    return {
        "box_pair": (20_000,),
        "pointwise": (20_000, 5),
        "softmax": softmax,
        "triplet": (2_000, 50),
        "row_pair": (2_000, 50),
    }[case.family.engine]


@each_case(allocates_nothing_else)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_allocates_the_gradient_alone(case: Case, dtype: torch.dtype) -> None:
    step(case, case.arguments(size(case), dtype, requires_grad=[case.prediction]))  # warm up
    arguments = case.arguments(size(case), dtype, requires_grad=[case.prediction])
    gradient = arguments[case.prediction].nbytes
    allocated = allocations(step, case, arguments)
    assert gradient <= allocated <= gradient + SLACK


@each_case(allocates_nothing_else)
def test_no_gradient_no_memory(case: Case) -> None:
    arguments = case.arguments(size(case))
    case.loss(arguments, reduction="mean")
    allocated = allocations(lambda: case.loss(arguments, reduction="mean"))
    assert allocated <= SLACK


@each_case(allocates_nothing_else)
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
    allocated = allocations(step, case, strided)
    # The leaf is not dense: torch itself copies the gradient to lay .grad out as the leaf is.
    assert allocated <= 2 * dense[case.prediction].nbytes + SLACK


def test_large_gradients_come_from_kept_memory() -> None:
    """A block freed is given out again, never while somebody still looks at it."""
    case = find_case("mse_loss")

    def gradient(seed: int) -> Tensor:
        arguments = case.arguments(400_000, seed=seed, requires_grad=["input"])
        case.loss(arguments, reduction="sum").backward()
        return arguments["input"].grad

    first, address = gradient(1), gradient(1).data_ptr()
    expected = first.clone()
    assert gradient(2).data_ptr() == address != first.data_ptr()
    view = gradient(1)[5:]  # keeps its memory, although the gradient itself is gone
    others = [gradient(seed) for seed in range(2, 14)]
    assert (
        len({first.data_ptr(), view.data_ptr() - 20, *(other.data_ptr() for other in others)}) == 14
    )
    assert torch.equal(first, expected)
    assert torch.equal(view, expected[5:])
    del others
    fastloss.empty_cache()
    assert torch.equal(gradient(1), expected)


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


def test_gradient_memory_waits_for_the_next_step() -> None:
    """What a step frees is not given to others, but to the gradient of the next step."""
    values = torch.randn(1 << 20, requires_grad=True)

    def gradient_address() -> int:
        values.grad = None
        fastloss.functional.mse_loss(values, torch.zeros(1 << 20)).backward()
        assert values.grad is not None
        return values.grad.data_ptr()

    fastloss.empty_cache()
    first = gradient_address()
    values.grad = None
    others = [torch.empty(1 << 20) for _ in range(4)]
    assert first not in [other.data_ptr() for other in others]
    assert gradient_address() == first


def test_gradients_from_the_stock_are_ordinary_tensors() -> None:
    """A gradient is a tensor like any other: it can be resized, and outlives the stock."""
    large = torch.randn(1 << 19, requires_grad=True)
    fastloss.functional.mse_loss(large, torch.zeros(1 << 19)).backward()
    assert large.grad is not None
    expected = large.grad.clone()
    large.grad.resize_(1 << 20)
    torch.testing.assert_close(large.grad[: 1 << 19], expected)
    fastloss.empty_cache()
