# SPDX-License-Identifier: MIT
"""Gradients against finite differences in float64, and second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import TOLERANCES, Arguments, Case
from support import as_float64, assert_close, each_case, gradients, upstream_for
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck


def of_differentiable(
    case: Case, arguments: Arguments, **more: Any
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of its differentiable arguments alone, and those arguments."""
    names = case.family.differentiable

    def function(*tensors: Tensor) -> Tensor:
        return case.loss({**arguments, **dict(zip(names, tensors, strict=True))}, **more)

    return function, tuple(arguments[name] for name in names)


@each_case(lambda case: case.exact_gradient)
def test_gradient_is_that_of_finite_differences(case: Case, device: str) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(5, torch.float64, device=device, requires_grad=True)
        assert gradcheck(*of_differentiable(case, arguments, **reduction), nondet_tol=0.0)


@each_case(lambda case: case.exact_gradient and case.takes_weight)
def test_weighted_gradient_is_that_of_finite_differences(case: Case) -> None:
    arguments = case.arguments(5, torch.float64, requires_grad=True)
    weight = case.weights(5, torch.float64)[-1]
    for more in (
        {"reduction": "none"},
        {"reduction": "mean"},
        {"reduction": "mean", "avg_factor": 2.5},
    ):
        assert gradcheck(*of_differentiable(case, arguments, weight=weight, **more))


@each_case(lambda case: case.exact_gradient)
def test_second_derivative_is_that_of_finite_differences(case: Case) -> None:
    arguments = case.arguments(3, torch.float64, requires_grad=True)
    # (Along random directions, which takes a tenth of the time of all elements.)
    assert gradgradcheck(*of_differentiable(case, arguments, **case.reductions[0]), fast_mode=True)


@each_case()
def test_second_derivative_is_the_oracles(case: Case, device: str) -> None:
    """Of every row: finite differences do not see which factors are held constant."""
    for reduction in case.reductions:
        found = second_derivative(
            case.loss,
            case.arguments(9, torch.float64, device=device, requires_grad=True),
            reduction,
        )
        arguments = as_float64(case.arguments(9, torch.float64, device=device, requires_grad=True))
        expected = second_derivative(case.reference, arguments, reduction)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert_close(
                gradient, expected[name], TOLERANCES[torch.float64], f"second derivative of {name}"
            )


def second_derivative(
    function: Callable[..., Tensor], arguments: Arguments, reduction: Arguments
) -> dict[str, Tensor]:
    """The gradient of a sum of squared gradients, as a gradient penalty takes it."""
    loss = function(arguments, **reduction)
    first = gradients(loss, arguments, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first.values())
    return gradients(penalty + loss.square().sum(), arguments, torch.ones(()))


@each_case()
def test_gradient_of_one_argument_alone(case: Case, device: str) -> None:
    """Each differentiable argument by itself: the others' gradients are not computed, its own does
    not change.
    """
    every = case.arguments(17, device=device, requires_grad=True)
    for reduction in case.reductions:
        expected = gradients(case.loss(every, **reduction), every)
        for name in case.family.differentiable:
            arguments = case.arguments(17, device=device, requires_grad=[name])
            (found,) = gradients(case.loss(arguments, **reduction), arguments).values()
            assert_close(found, expected[name], case.float32, f"gradient of {name} alone")


@each_case(lambda case: case.takes_weight)
def test_gradient_of_weight_comes_from_the_reference(case: Case) -> None:
    """A weight that requires a gradient gets the right one."""
    weight = case.weights(9, torch.float64)[0].requires_grad_()
    arguments = case.arguments(9, torch.float64, requires_grad=True)
    found = torch.autograd.grad(case.loss(arguments, weight=weight, reduction="mean"), weight)[0]
    expected = torch.autograd.grad(
        case.reference(arguments, weight=weight, reduction="mean"), weight
    )[0]
    assert_close(found, expected, TOLERANCES[torch.float64], "gradient of weight")
    assert found.any()


@pytest.mark.parametrize("as_tensor", [False, True])
@each_case(lambda case: case.takes_weight)
def test_gradient_of_avg_factor_comes_from_the_reference(case: Case, as_tensor: bool) -> None:
    avg_factor = torch.tensor(2.5, dtype=torch.float64, requires_grad=as_tensor)
    arguments = case.arguments(9, torch.float64, requires_grad=True)
    loss = case.loss(arguments, avg_factor=avg_factor, reduction="mean")
    assert_close(
        gradients(loss, arguments, upstream_for(loss), retain_graph=True)[case.prediction],
        gradients(
            case.reference(arguments, avg_factor=2.5, reduction="mean"),
            arguments,
            upstream_for(loss),
        )[case.prediction],
        TOLERANCES[torch.float64],
        "gradient",
    )
    if as_tensor:
        (found,) = torch.autograd.grad(loss, avg_factor)
        expected = case.reference(arguments, avg_factor=avg_factor, reduction="mean")
        torch.testing.assert_close(found, torch.autograd.grad(expected, avg_factor)[0])
        assert found < 0
