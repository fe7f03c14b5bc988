# SPDX-License-Identifier: MIT
"""The one backward: upstream gradients, graphs walked twice, create_graph, in-place changes, hooks
and threads.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import HALF_DTYPES, Arguments, Case, find_case
from support import assert_close, each_case, gradients, tolerance_of, upstream_for
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import fastloss.functional as F

ONE = torch.ones(())


@each_case(lambda case: case.family.reduces)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF_DTYPES])
def test_gradient_scales_with_the_upstream_gradient(
    case: Case, dtype: torch.dtype, device: str
) -> None:
    """By powers of two, which change no digit."""
    for reduction in ("mean", "sum"):
        by_factor = {}
        for factor in (1.0, -4.0, 0.0):
            arguments = case.arguments(33, dtype, device=device, requires_grad=True)
            by_factor[factor] = gradients(
                case.loss(arguments, reduction=reduction), arguments, factor * ONE
            )
        for name, gradient in by_factor[1.0].items():
            normal = gradient.abs() > torch.finfo(dtype).smallest_normal  # not rounded up to it
            assert torch.equal(by_factor[-4.0][name][normal], -4 * gradient[normal])
            assert not by_factor[0.0][name].any()


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_an_upstream_gradient_of_one_touches_nothing(factor: float) -> None:
    """The gradient of the forward pass is handed on as it is: no kernel runs in the backward."""
    for id in ("mse_loss", "complete_box_iou_loss", "repulsion_loss"):
        arguments = find_case(id).arguments(33, requires_grad=True)
        loss = find_case(id).loss(arguments, reduction="mean")
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            gradients(loss, arguments, factor * ONE)
        scaled = any(event.name == "fastloss::scale_" for event in recorded.events())
        assert scaled == (factor != 1)
        assert not any("_forward" in event.name for event in recorded.events())


@each_case()
def test_the_loss_takes_part_in_a_larger_graph(case: Case, device: str) -> None:
    """Producers before it, operations after it, and two uses of one input."""

    def composed(function: Callable[..., Tensor], arguments: Arguments) -> Tensor:
        halved = {
            name: value / 2 if name == case.prediction else value
            for name, value in arguments.items()
        }
        options = {"reduction": "mean"} if case.family.reduces else {}
        return (
            3 * function(halved, **options).mean() + function(arguments, **options).square().mean()
        )

    arguments = case.arguments(17, torch.float64, device=device, requires_grad=True)
    found = gradients(composed(case.loss, arguments), arguments)
    expected = gradients(composed(case.reference, arguments), arguments)
    for name, gradient in found.items():
        assert_close(
            gradient, expected[name], tolerance_of(case, torch.float64), f"gradient of {name}"
        )


@each_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_retained_graph_gives_the_same_gradient_again(
    case: Case, dtype: torch.dtype, device: str
) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(33, dtype, device=device, requires_grad=True)
        loss = case.loss(arguments, **reduction)
        upstream = upstream_for(loss)
        first = gradients(loss, arguments, upstream, retain_graph=True)
        kept = {name: gradient.clone() for name, gradient in first.items()}
        second = gradients(loss, arguments, 2 * upstream, retain_graph=True)
        third = gradients(loss, arguments, upstream)
        for name, gradient in kept.items():
            assert torch.equal(first[name], gradient), "a later walk changed an earlier gradient"
            assert torch.equal(third[name], gradient)
            normal = gradient.abs() > torch.finfo(dtype).smallest_normal  # not rounded up to it
            # Numbers on the way that are too small for the dtype do not double exactly.
            slack = torch.finfo(dtype).eps if case.family.rounds_inside else 0.0
            torch.testing.assert_close(
                second[name][normal], 2 * gradient[normal], rtol=slack, atol=0.0
            )


@each_case()
def test_a_graph_that_is_not_retained_is_gone(case: Case) -> None:
    arguments = case.arguments(5, requires_grad=True)
    loss = case.loss(arguments, **case.reductions[0]).sum()
    gradients(loss, arguments)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, arguments)


@each_case()
def test_gradients_accumulate(case: Case, device: str) -> None:
    """``backward`` twice adds up; the first gradient, kept by the caller, is not written to by the
    second call.
    """
    arguments = case.arguments(17, device=device, requires_grad=True)
    for _ in range(2):
        case.loss(arguments, **case.reductions[0]).sum().backward()
    once = case.arguments(17, device=device, requires_grad=True)
    case.loss(once, **case.reductions[0]).sum().backward()
    for name in case.family.differentiable:
        assert torch.equal(arguments[name].grad, 2 * once[name].grad)


@each_case()
def test_create_graph_gives_the_same_first_derivative(case: Case, device: str) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(17, device=device, requires_grad=True)
        with_graph = gradients(case.loss(arguments, **reduction), arguments, create_graph=True)
        without = gradients(case.loss(arguments, **reduction), arguments)
        for name, gradient in with_graph.items():
            assert_close(
                gradient, without[name], tolerance_of(case, torch.float32), f"gradient of {name}"
            )
            assert gradient.dtype == without[name].dtype


@each_case()
def test_detached_arguments_have_no_graph(case: Case) -> None:
    arguments = case.arguments(5)
    assert not case.loss(arguments, **case.reductions[0]).requires_grad
    with torch.no_grad():
        assert not case.loss(
            case.arguments(5, requires_grad=True), **case.reductions[0]
        ).requires_grad
    with torch.inference_mode():
        loss = case.loss(case.arguments(5), **case.reductions[0])
        assert loss.is_inference()


@each_case()
def test_activation_checkpointing(case: Case) -> None:
    arguments = case.arguments(17, requires_grad=True)
    expected = gradients(case.loss(arguments, **case.reductions[0]), arguments)
    names = case.family.differentiable

    def function(*tensors: Tensor) -> Tensor:
        return case.loss(
            {**arguments, **dict(zip(names, tensors, strict=True))}, **case.reductions[0]
        )

    loss = checkpoint(function, *(arguments[name] for name in names), use_reentrant=False)
    for name, gradient in gradients(loss, arguments).items():
        assert torch.equal(gradient, expected[name])


# --------------------------------------------------------------------------------- in-place changes


@each_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_changing_an_argument_before_backward_never_gives_a_wrong_gradient(
    case: Case, dtype: torch.dtype
) -> None:
    """Either the gradient of what the loss was computed from, or torch's error about the in-place
    change.
    """
    weights = {"weight": case.weights(9)[0]} if case.takes_weight else {}
    for reduction in case.reductions:
        averages = (
            {"avg_factor": torch.tensor(2.0)}
            if weights and reduction == {"reduction": "mean"}
            else {}
        )
        for more in ({}, weights, averages):
            names = [name for name, value in case.arguments(9).items() if isinstance(value, Tensor)]
            for changed in [*names, *more]:
                for walks in (1, 2):
                    check_in_place_change(case, dtype, {**reduction, **more}, changed, walks)


def check_in_place_change(
    case: Case, dtype: torch.dtype, more: Arguments, changed: str, walks: int
) -> None:
    leaves = case.arguments(9, dtype, requires_grad=True)
    arguments = {
        name: value * 1 if isinstance(value, Tensor) and value.requires_grad else value
        for name, value in leaves.items()
    }
    more = {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in more.items()
    }
    expected = gradients(case.loss(leaves, **more), leaves)
    loss = case.loss(arguments, **more)
    if walks == 2:
        gradients(loss, leaves, retain_graph=True)
    with torch.no_grad():
        target = {**arguments, **more}[changed]
        target.copy_(
            target.flip(0) + (1 if target.is_floating_point() else 0)
            if target.dim()
            else target + 1
        )
    try:
        found = gradients(loss, leaves)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), (
            f"{changed} changed, {more.keys()}, walk {walks}: gradient of {name}"
        )


def test_a_leaf_may_be_updated_before_a_gradient_of_an_older_loss() -> None:
    """The gradient was computed in the forward pass: the usual mistake of a fused optimiser step
    costs nothing here.
    """
    prediction = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = F.mse_loss(prediction, torch.zeros(2), reduction="sum")
    with torch.no_grad():
        prediction.mul_(10)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [2.0, 4.0]


def test_backward_on_other_threads() -> None:
    """Several graphs at once: nothing is shared between calls."""
    from concurrent.futures import ThreadPoolExecutor

    case = find_case("complete_box_iou_loss")

    def gradient(seed: int) -> Tensor:
        arguments = case.arguments(3000, seed=seed, requires_grad=True)
        return gradients(case.loss(arguments, reduction="mean"), arguments)["boxes1"]

    with ThreadPoolExecutor(4) as pool:
        concurrent = list(pool.map(gradient, range(12)))
    for seed, found in enumerate(concurrent):
        assert torch.equal(found, gradient(seed))
