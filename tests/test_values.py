# SPDX-License-Identifier: MIT
"""Losses and gradients against the float64 oracle: sizes, reductions, weights, avg_factor."""

from __future__ import annotations

import pytest
import torch
from cases import SIZES, Case, find_case
from support import (
    as_float64,
    assert_close,
    check_against_oracle,
    each_case,
    gradients,
    tolerance_of,
)
from torch import Tensor
from torch.nn import functional as torch_functional

import fastloss.functional as F


@each_case()
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradients(case: Case, size: int, device: str) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(size, device=device, requires_grad=True)
        loss = check_against_oracle(case, arguments, str(reduction), **reduction)
        assert loss.dtype == torch.float32


@each_case()
def test_without_gradient_the_loss_is_the_same(case: Case, device: str) -> None:
    for reduction in case.reductions:
        with_gradient = case.loss(
            case.arguments(33, device=device, requires_grad=True), **reduction
        )
        without = case.loss(case.arguments(33, device=device), **reduction)
        assert_close(without, with_gradient, tolerance_of(case, torch.float32), str(reduction))
        assert not without.requires_grad


@each_case(lambda case: case.takes_weight)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_weight(case: Case, dtype: torch.dtype, device: str) -> None:
    for weight in case.weights(33, dtype, device=device):
        for reduction in case.reductions:
            arguments = case.arguments(33, device=device, requires_grad=True)
            check_against_oracle(
                case, arguments, f"{reduction} {tuple(weight.shape)}", weight=weight, **reduction
            )


@each_case(lambda case: case.takes_weight)
def test_weight_of_zero_takes_the_element_out(case: Case) -> None:
    arguments = case.arguments(16, requires_grad=True)
    weight = torch.ones_like(case.weights(16)[0])
    weight[3] = 0
    loss = case.loss(arguments, weight=weight, reduction="none")
    assert not loss[3].any()
    assert loss[4].any()
    for gradient in gradients(loss.sum(), arguments).values():
        assert not gradient[3].any()


@each_case(lambda case: case.takes_weight)
def test_weights_that_add_up_to_zero_give_zero(case: Case, device: str) -> None:
    arguments = case.arguments(16, device=device, requires_grad=True)
    loss = case.loss(
        arguments, weight=torch.zeros_like(case.weights(16, device=device)[0]), reduction="mean"
    )
    assert loss.item() == 0
    for gradient in gradients(loss, arguments).values():
        assert not gradient.any()


@each_case(lambda case: case.takes_avg_factor)
@pytest.mark.parametrize(
    "kind", ["int", "float", "float32", "float64", "int64", "cpu", "zero", "zero_tensor"]
)
def test_avg_factor(case: Case, kind: str, device: str) -> None:
    avg_factor: float | Tensor = {
        "int": 3,
        "float": 2.5,
        "float32": torch.tensor(2.5, device=device),
        "float64": torch.tensor(2.5, device=device, dtype=torch.float64),
        "int64": torch.tensor(3, device=device),
        "cpu": torch.tensor(2.5),
        "zero": 0.0,
        "zero_tensor": torch.tensor(0.0, device=device),
    }[kind]
    for weight in (None, *case.weights(17, device=device)[:1]):
        arguments = case.arguments(17, device=device, requires_grad=True)
        more = {} if weight is None else {"weight": weight}
        loss = check_against_oracle(
            case, arguments, avg_factor=avg_factor, reduction="mean", **more
        )
        assert (loss == 0) == kind.startswith("zero")


@each_case(lambda case: case.family.ignored is not None)
def test_ignored_rows_do_not_count(case: Case, device: str) -> None:
    (label,) = case.family.integers
    for weight in (None, *case.weights(17, device=device)[:1]):
        more = {} if weight is None else {"weight": weight}
        arguments = case.arguments(17, device=device, requires_grad=True)
        arguments[label][:9] = case.family.ignored
        check_against_oracle(case, arguments, reduction="mean", **more)
        arguments[label][:] = case.family.ignored
        loss = check_against_oracle(case, arguments, reduction="mean", **more)
        assert loss.item() == 0


@each_case(lambda case: case.id == "sigmoid_focal_loss-indices")
def test_class_indices_equal_one_hot_targets(case: Case, device: str) -> None:
    arguments = case.arguments(40, device=device, requires_grad=True)
    logits, labels = arguments["inputs"], arguments["targets"].clamp(min=0)
    classes = logits.shape[-1]
    one_hot = torch_functional.one_hot(labels, classes + 1)[:, :classes]
    sparse = F.sigmoid_focal_loss(logits, labels)
    dense = F.sigmoid_focal_loss(logits, one_hot)
    assert torch.equal(sparse, dense)


# ---------------------------------------------------------------------- the functions torch has too

_BCE = "binary_cross_entropy_with_logits"
TORCH_TWINS = {
    "binary_cross_entropy": torch_functional.binary_cross_entropy,
    "mse_loss": torch_functional.mse_loss,
    "l1_loss": torch_functional.l1_loss,
    "smooth_l1_loss": torch_functional.smooth_l1_loss,
    "smooth_l1_loss-beta_0": torch_functional.smooth_l1_loss,
    "huber_loss": torch_functional.huber_loss,
    "huber_loss-delta": torch_functional.huber_loss,
    _BCE: torch_functional.binary_cross_entropy_with_logits,
    f"{_BCE}-pos_weight": torch_functional.binary_cross_entropy_with_logits,
}


@each_case(lambda case: case.id in TORCH_TWINS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_values_and_gradients_are_torchs(case: Case, reduction: str, device: str) -> None:
    arguments = case.arguments(100, device=device, requires_grad=True)
    wide = as_float64(arguments)
    expected = TORCH_TWINS[case.id](**wide, reduction=reduction)
    loss = case.loss(arguments, reduction=reduction)
    assert_close(loss, expected, tolerance_of(case, torch.float32), "loss")
    expected_gradients = gradients(expected, wide)
    for name, gradient in gradients(loss, arguments).items():
        assert_close(
            gradient,
            expected_gradients[name],
            tolerance_of(case, torch.float32),
            f"gradient of {name}",
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weighted_binary_cross_entropy_is_torchs(reduction: str) -> None:
    """Its weighted mean divides by the number of elements, unlike every other function's."""
    case = find_case("binary_cross_entropy_with_logits-pos_weight")
    arguments = case.arguments(40)
    for weight in case.weights(40):
        loss = case.loss(arguments, weight=weight, reduction=reduction)
        expected = TORCH_TWINS[case.id](
            **as_float64(arguments), weight=weight.double(), reduction=reduction
        )
        assert_close(loss, expected, tolerance_of(case, torch.float32), "loss")
