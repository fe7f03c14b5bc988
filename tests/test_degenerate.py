# SPDX-License-Identifier: MIT
"""Finite in, finite out; NaN in, NaN out in that element only; nothing in, zero out; nothing is
ever mutated.
"""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, TOLERANCES, Arguments, Case
from support import (
    as_float64,
    assert_close,
    check_against_oracle,
    each_case,
    gradients,
    upstream_for,
)
from torch import Tensor

import fastloss.functional as F

FLOAT_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


@each_case()
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
def test_degenerate_input_is_finite(case: Case, dtype: torch.dtype, device: str) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(dtype=dtype, device=device, requires_grad=True, degenerate=True)
        loss = case.loss(arguments, **reduction)
        assert loss.isfinite().all(), reduction
        for name, gradient in gradients(loss, arguments).items():
            assert gradient.isfinite().all(), f"gradient of {name} {reduction}"


@each_case()
def test_degenerate_input_has_the_oracles_values_and_gradients(case: Case, device: str) -> None:
    """In float64, where nothing is lost: both take the same side of every edge."""
    for reduction in case.reductions[:1]:
        arguments = case.arguments(
            dtype=torch.float64, device=device, requires_grad=True, degenerate=True
        )
        wide = as_float64(arguments)
        loss, expected = case.loss(arguments, **reduction), case.reference(wide, **reduction)
        error = case.family.degenerate_error
        assert_each_close(loss, expected, "loss", error)
        upstream = upstream_for(loss)
        expected_gradients = gradients(expected, wide, upstream)
        for name, gradient in gradients(loss, arguments, upstream).items():
            what = f"gradient of {name}"
            assert_each_close(gradient, expected_gradients[name], what, error)


def assert_each_close(found: Tensor, expected: Tensor, what: str, error: float) -> None:
    """Relative to each number itself: degenerate gradients are up to 1e7, and would drown the
    others.
    """
    wrong = (found - expected).abs() > 1e-9 * expected.abs() + error
    assert not wrong.any(), f"{what}: {found[wrong][:5]}, expected {expected[wrong][:5]}"


@each_case(
    lambda case: (
        ("input" in case.prediction or case.family.engine == "pointwise")
        and not case.family.rounds_inside
        and not case.family.bounded
    )
)
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
def test_largest_numbers_of_half_precision(case: Case, dtype: torch.dtype, device: str) -> None:
    """A gradient that float16 cannot hold is its largest number, not infinity."""
    arguments = case.arguments((2, 3), dtype, device=device)
    largest = torch.finfo(torch.float16).max
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]], device=device)
    arguments[case.prediction] = (largest * signs).to(dtype).requires_grad_()
    for reduction in case.reductions:
        loss = case.loss(arguments, **reduction)
        assert loss.isfinite().all()
        (gradient,) = gradients(loss, arguments).values()
        assert gradient.isfinite().all()


def test_float16_gradient_saturates() -> None:
    prediction = torch.tensor([60000.0, -60000.0, 3.0], dtype=torch.float16, requires_grad=True)
    F.mse_loss(prediction, -prediction.detach(), reduction="sum").backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [65504.0, -65504.0, 12.0]


# -------------------------------------------------------------------------------------------- empty


@each_case(lambda case: case.family.reduces)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_elements_give_zero_connected_to_the_graph(
    case: Case, dtype: torch.dtype, device: str
) -> None:
    weights = [None, *case.weights(0, device=device)] if case.takes_weight else [None]
    for weight in weights:
        if weight is not None and weight.numel() > 0:
            continue  # a weight per class of no elements
        options = {} if weight is None else {"weight": weight}
        for reduction in ("mean", "sum"):
            arguments = case.arguments(0, dtype, device=device, requires_grad=True)
            assert arguments[case.prediction].numel() == 0
            loss = case.loss(arguments, reduction=reduction, **options)
            assert loss.dim() == 0
            assert loss.item() == 0
            for name, gradient in gradients(loss, arguments).items():
                assert gradient.shape == arguments[name].shape
        arguments = case.arguments(0, dtype, device=device, requires_grad=True)
        loss = case.loss(arguments, **case.reductions[0], **options)
        # Over a batch, classes have a loss all the same: there is nothing to lose.
        assert loss.numel() == 0 or not (case.family.element_wise or loss.any())
        loss.sum().backward()


@each_case(lambda case: case.family.engine == "box_matrix")
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 3, 4), (2, 0, 3)])
def test_empty_sets_of_boxes(case: Case, shape: tuple[int, ...], device: str) -> None:
    arguments = case.arguments(shape, device=device, requires_grad=True)
    matrix = case.loss(arguments)
    assert matrix.shape == shape
    for name, gradient in gradients(matrix, arguments).items():
        assert gradient.shape == arguments[name].shape
        assert not gradient.any()


@each_case(lambda case: case.family.engine == "box_crowd")
def test_boxes_without_rivals(case: Case, device: str) -> None:
    """One ground truth, or one box: nothing to be repelled from."""
    for shape in ((1, 1), (5, 1), (1, 4)):
        for reduction in case.reductions:
            check_against_oracle(
                case, case.arguments(shape, device=device, requires_grad=True), **reduction
            )
    no_boxes = case.arguments((0, 0), device=device, requires_grad=True)
    assert case.loss(no_boxes, reduction="mean").item() == 0


# ---------------------------------------------------------------------------------------------- NaN


@each_case(lambda case: case.family.element_wise)
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
@pytest.mark.parametrize("size", [5, 67])
def test_nan_stays_in_its_element(case: Case, dtype: torch.dtype, size: int, device: str) -> None:
    clean = case.arguments(size, dtype, device=device, requires_grad=True)
    clean_loss = case.loss(clean, reduction="none")
    clean_gradients = gradients(clean_loss, clean)
    for name in case.family.differentiable:
        for coordinate in range(clean[name].shape[-1] if case.family.engine == "box_pair" else 1):
            arguments = case.arguments(size, dtype, device=device, requires_grad=True)
            with torch.no_grad():
                row = 2
                position = (row, coordinate) if arguments[name].dim() > 1 else (row,)
                arguments[name][position] = torch.nan
            loss = case.loss(arguments, reduction="none")
            # The element, the pair of boxes or the row of logits.
            bad = torch.zeros_like(loss, dtype=torch.bool)
            bad[position if loss.dim() == arguments[name].dim() else (row,)] = True
            if name == case.prediction and case.family.ignored is not None:
                label = arguments[case.family.integers[0]][row]
                assert (label >= 0).any(), "an ignored row has no NaN to show"
            wide = as_float64(arguments)
            expected_loss = case.reference(wide, reduction="none")
            assert torch.equal(loss.isnan(), expected_loss.isnan()), f"{name} {coordinate}"
            assert not (loss.isnan() & ~bad).any(), f"{name} {coordinate}"
            assert torch.equal(loss[~bad], clean_loss[~bad])
            expected = gradients(expected_loss, wide)
            for other, gradient in gradients(loss, arguments).items():
                lost = expected[other].isnan() & ~gradient.isnan()
                assert not lost.any(), f"{name} {coordinate}, gradient of {other}"
                bad_gradient = bad
                if gradient.dim() > bad.dim():  # by coordinates, or by classes: (N, C, d1, ...)
                    added = -1 if case.family.engine == "box_pair" else 1
                    bad_gradient = bad.unsqueeze(added).expand_as(gradient)
                assert torch.equal(gradient[~bad_gradient], clean_gradients[other][~bad_gradient])


@each_case(lambda case: case.family.reduces)
def test_nan_shows_in_the_reduced_loss(case: Case, device: str) -> None:
    arguments = case.arguments(9, device=device)
    with torch.no_grad():
        arguments[case.prediction][4] = torch.nan
        if case.family.ignored is not None:
            arguments[case.family.integers[0]][4] = 0
        if "mask" in arguments:
            arguments["mask"][4] = True
    for reduction in ("mean", "sum"):
        assert case.loss(arguments, reduction=reduction).isnan()


# (A linear layer multiplies the features of an ignored row with a gradient of 0.)
@each_case(lambda case: case.family.ignored is not None and not case.family.rounds_inside)
def test_nan_in_an_ignored_row_does_not_show(case: Case, device: str) -> None:
    arguments = case.arguments(9, device=device, requires_grad=True)
    arguments[case.family.integers[0]][4] = case.family.ignored
    with torch.no_grad():
        arguments[case.prediction][4] = torch.nan
    loss = case.loss(arguments, reduction="mean")
    assert loss.isfinite()
    (gradient,) = gradients(loss, arguments).values()
    assert gradient.isfinite().all()
    assert not gradient[4].any()


@each_case(lambda case: case.family.engine == "box_matrix")
def test_nan_stays_in_its_row_and_column(case: Case, device: str) -> None:
    arguments = case.arguments((9, 7), device=device)
    clean = case.loss(arguments)
    arguments["boxes1"][3, 1] = torch.nan
    arguments["boxes2"][5, 2] = torch.nan
    matrix = case.loss(arguments)
    bad = torch.zeros_like(matrix, dtype=torch.bool)
    bad[3, :] = True
    bad[:, 5] = True
    assert torch.equal(matrix.isnan(), bad)
    assert torch.equal(matrix[~bad], clean[~bad])


@each_case(lambda case: case.family.engine == "box_crowd")
def test_nan_stays_in_its_box(case: Case, device: str) -> None:
    arguments = case.arguments((9, 4), device=device, requires_grad=True)
    with torch.no_grad():
        arguments["boxes"][3, 1] = torch.nan
    loss = case.loss(arguments, reduction="none")
    (gradient,) = gradients(loss, arguments).values()
    assert loss.isnan().nonzero().flatten().tolist() == [3]
    assert gradient.isnan().any(1).nonzero().flatten().tolist() == [3]
    wide = as_float64(arguments)
    expected = case.reference(wide, reduction="none")
    (expected_gradient,) = gradients(expected, wide).values()
    others = torch.arange(9) != 3
    assert_close(loss[others], expected[others], case.float32, "loss of the other boxes")
    assert_close(
        gradient[others], expected_gradient[others], case.float32, "gradient of the other boxes"
    )


# -------------------------------------------------------------------------------------- no mutation


@each_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nothing_is_mutated(case: Case, dtype: torch.dtype, device: str) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(33, dtype, device=device, requires_grad=True)
        if case.takes_weight:
            arguments["weight"] = case.weights(33, device=device)[0]
        before = _copies(arguments)
        loss = case.loss(arguments, **reduction)
        gradients(loss, arguments)
        versions = {
            name: value._version for name, value in arguments.items() if isinstance(value, Tensor)
        }
        assert not any(versions.values()), versions
        for name, value in before.items():
            assert torch.equal(arguments[name], value), name


def _copies(arguments: Arguments) -> Arguments:
    return {
        name: value.detach().clone()
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }


# ---------------------------------------------------------------------- precision of half gradients


@each_case(lambda case: case.family.element_wise)
def test_mean_over_many_elements_keeps_float16_gradients(case: Case, device: str) -> None:
    """A gradient scaler's 65536 meets the mean before anything is rounded to float16, whose steps
    are 6e-8 there.
    """
    size = {"box_pair": 20_000}.get(case.family.engine, 30_000)
    arguments = case.arguments(size, torch.float16, device=device, requires_grad=[case.prediction])
    scale = torch.tensor(65536.0, device=device)
    (gradient,) = gradients(case.loss(arguments, reduction="mean"), arguments, scale).values()
    wide = as_float64(arguments)
    (expected,) = gradients(case.reference(wide, reduction="mean"), wide, scale).values()
    assert expected.abs().max() > 1e-3, "the scaled gradient itself must be in float16's range"
    assert_close(gradient, expected, TOLERANCES[torch.float16], "gradient")
