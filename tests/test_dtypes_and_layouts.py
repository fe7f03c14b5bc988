# SPDX-License-Identifier: MIT
"""Every dtype and mixture of dtypes, every stride and every alignment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES, HALF_DTYPES, INTEGER_DTYPES, Arguments, Case
from support import assert_close, check_against_oracle, each_case, floating, gradients
from torch import Tensor

import fastloss.functional as F

FLOAT_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
INTEGER_IDS = [str(dtype).removeprefix("torch.") for dtype in INTEGER_DTYPES]


@each_case(lambda case: not case.family.rounds_inside)
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
@pytest.mark.parametrize("size", [3, 67])
def test_dtype(case: Case, dtype: torch.dtype, size: int, device: str) -> None:
    for reduction in case.reductions:
        arguments = case.arguments(size, dtype, device=device, requires_grad=True)
        loss = check_against_oracle(case, arguments, str(reduction), **reduction)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@each_case(lambda case: not case.family.rounds_inside)
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
def test_prediction_of_another_dtype_than_the_rest(
    case: Case, dtype: torch.dtype, device: str
) -> None:
    other = torch.float32 if dtype != torch.float32 else torch.bfloat16
    for reduction in case.reductions:
        arguments = case.arguments(
            67, other, device=device, requires_grad=True, **{case.prediction: dtype}
        )
        loss = check_against_oracle(case, arguments, str(reduction), **reduction)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def measured(case: Case) -> list[str]:
    """The floating tensors whose dtypes make the loss's; weights follow."""
    return [
        name
        for name, tensor in floating(case.arguments(1))
        if tensor.dim() > 0 and name not in {"pos_weight", "weight", "alpha", "quantiles"}
    ]


# (What scales the distance of keypoints does not decide the dtype.)
@each_case(
    lambda case: (
        len(measured(case)) > 1 and not case.family.rounds_inside and "sigmas" not in measured(case)
    )
)
def test_target_in_float64_makes_the_loss_float64(case: Case) -> None:
    *_, last = measured(case)
    arguments = case.arguments(17, torch.float32, requires_grad=True, **{last: torch.float64})
    assert check_against_oracle(case, arguments).dtype == torch.float64


@each_case(lambda case: bool(case.family.integers))
@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=INTEGER_IDS)
def test_integer_dtype(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments(33, device=device, requires_grad=True)
    for name in case.family.integers:
        if dtype == torch.uint8:
            arguments[name] = arguments[name].clamp(min=0)
    reduction = {"reduction": "mean"} if case.family.reduces else {}
    expected = case.loss(arguments, **reduction)
    expected_gradients = gradients(expected, arguments)
    converted = {
        name: value.to(dtype) if name in case.family.integers else value
        for name, value in arguments.items()
    }
    loss = case.loss(converted, **reduction)
    assert torch.equal(loss, expected)
    for name, gradient in gradients(loss, converted).items():
        assert torch.equal(gradient, expected_gradients[name])


DENSE_INTEGER_TARGETS = {"target", "targets"}


# (Integer targets of a softmax are class indices.)
@each_case(
    lambda case: (
        not DENSE_INTEGER_TARGETS.isdisjoint(case.arguments())
        and not case.family.integers
        and case.family.engine not in ("row_pair", "box_pair")
        and (case.family.engine != "softmax" or case.function == "distribution_focal_loss")
    )
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, *INTEGER_DTYPES])
def test_dense_targets_may_be_integers(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments(33, device=device, requires_grad=[case.prediction])
    (target,) = DENSE_INTEGER_TARGETS & arguments.keys()
    arguments[target] = arguments[target].round().clamp(0, 1).to(dtype)
    loss = case.loss(arguments, reduction="sum")
    expected = case.loss({**arguments, target: arguments[target].float()}, reduction="sum")
    assert torch.equal(loss, expected)
    (gradient,) = gradients(loss, arguments).values()
    (expected_gradient,) = gradients(expected, arguments).values()
    assert torch.equal(gradient, expected_gradient)


# ------------------------------------------------------------------------------------------ strides

GUARD = float("nan")


def guarded(tensor: Tensor, offset: int) -> Tensor:
    """A contiguous copy that starts ``offset`` elements into a buffer of NaN: nothing around it may
    be used.
    """
    buffer = torch.full((tensor.numel() + offset + 64,), GUARD, dtype=torch.float64).to(tensor)
    view = buffer[offset : offset + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return view


def spread(tensor: Tensor) -> Tensor:
    """Every second element of every dimension of a larger tensor."""
    buffer = torch.full([2 * size + 1 for size in tensor.shape], GUARD, dtype=torch.float64).to(
        tensor
    )
    view = buffer[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    view.copy_(tensor)
    return view


def chunk(tensor: Tensor) -> Tensor:
    """A slice of the last dimension of a larger tensor, as ``chunk`` and ``split`` give it."""
    *leading, last = tensor.shape
    buffer = torch.full((*leading, last + 5), GUARD, dtype=torch.float64).to(tensor)
    view = buffer[..., 3 : 3 + last]
    view.copy_(tensor)
    return view


def transposed(tensor: Tensor) -> Tensor:
    """Dimensions in memory the other way round: channels last, or structure of arrays for boxes."""
    return (
        tensor.permute(*reversed(range(tensor.dim())))
        .contiguous()
        .permute(*reversed(range(tensor.dim())))
    )


def leading_swapped(tensor: Tensor) -> Tensor:
    """The first two dimensions the other way round in memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        f"offset_{offset}": (lambda tensor, offset=offset: guarded(tensor, offset))
        for offset in range(1, 5)
    },
    "spread": spread,
    "chunk": chunk,
    "transposed": transposed,
    "leading_swapped": leading_swapped,
}


def large_shape(case: Case) -> int | tuple[int, ...]:
    """More than one dimension wherever the family allows it, not a multiple of any vector width."""
    regions = (2, 4, 5, 7)
    return {
        "box_pair": (3, 23),
        "pointwise": (3, 5, 7),
        "region": regions,
        "ranked_region": regions,
    }.get(case.family.engine, 37)


def with_layout(
    arguments: Arguments, layout: Callable[[Tensor], Tensor], names: set[str]
) -> Arguments:
    result = dict(arguments)
    for name in names:
        tensor = arguments[name]
        result[name] = layout(tensor.detach()).requires_grad_(tensor.requires_grad)
        assert torch.equal(result[name], tensor)
    return result


def operands(arguments: Arguments) -> set[str]:
    return {
        name for name, value in arguments.items() if isinstance(value, Tensor) and value.dim() > 0
    }


@each_case()
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides_of_every_operand(
    case: Case, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    dense = case.arguments(large_shape(case), device=device, requires_grad=True)
    names = operands(dense)
    for reduction in case.reductions[::2]:  # "none" and "sum"
        for chosen in [{name} for name in sorted(names)] + [names]:
            arguments = with_layout(dense, layout, chosen)
            check_against_oracle(case, arguments, f"{sorted(chosen)} {reduction}", **reduction)


@each_case(lambda case: not case.family.rounds_inside)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["offset_1", "offset_3", "spread", "transposed"])
def test_strides_in_half_precision(
    case: Case, dtype: torch.dtype, layout: str, device: str
) -> None:
    dense = case.arguments(large_shape(case), dtype, device=device, requires_grad=True)
    arguments = with_layout(dense, LAYOUTS[layout], operands(dense))
    check_against_oracle(case, arguments, **case.reductions[0])


@each_case(lambda case: case.takes_weight)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides_of_weight(case: Case, layout: Callable[[Tensor], Tensor], device: str) -> None:
    arguments = case.arguments(large_shape(case), device=device, requires_grad=True)
    for weight in case.weights(large_shape(case), device=device):
        check_against_oracle(case, arguments, weight=layout(weight), reduction="mean")


@each_case()
def test_expanded_operands(case: Case, device: str) -> None:
    """A stride of 0: one row stands for many, and its gradient is their sum."""
    # (Over the classes of a layer, gradients add up to rounding errors.)
    names = case.family.differentiable[: 1 if case.family.rounds_inside else None]
    for name in names:
        dense = case.arguments(large_shape(case), device=device, requires_grad=True)
        if dense[name].dim() == 0:
            continue
        row = dense[name].detach()[:1].clone().requires_grad_()
        full = dense[name].shape
        expanded = {**dense, name: row.expand(full)}
        copied = {**dense, name: row.expand(full).contiguous()}
        for reduction in case.reductions[:1]:
            loss, expected = case.loss(expanded, **reduction), case.loss(copied, **reduction)
            assert_close(loss, expected, case.float32, f"loss of expanded {name}")
            upstream = torch.linspace(-1, 1, loss.numel(), device=device).view(loss.shape)
            (found,) = torch.autograd.grad(loss, row, upstream)
            (wanted,) = torch.autograd.grad(expected, row, upstream)
            assert_close(found, wanted, case.float32, f"gradient of expanded {name}")


@each_case(lambda case: case.family.engine in ("pointwise", "region", "ranked_region"))
def test_channels_last(case: Case, device: str) -> None:
    shape = (2, 5, 6, 7)
    dense = case.arguments(shape, device=device, requires_grad=True)
    names = {name for name in operands(dense) if dense[name].dim() == 4}
    arguments = with_layout(
        dense, lambda tensor: tensor.contiguous(memory_format=torch.channels_last), names
    )
    for reduction in case.reductions:
        check_against_oracle(case, arguments, str(reduction), **reduction)


@each_case(lambda case: case.family.engine in ("pointwise", "box_pair"))
def test_many_dimensions(case: Case, device: str) -> None:
    """More dimensions than a kernel iterates over, in an order that cannot be merged."""
    dense = case.arguments((2, 1, 3, 2, 1, 2, 2, 3, 2), device=device, requires_grad=True)
    arguments = with_layout(dense, transposed, operands(dense))
    for reduction in case.reductions:
        check_against_oracle(case, arguments, str(reduction), **reduction)


@each_case(lambda case: case.family.engine == "box_pair" and "boxes1" in case.prediction)
def test_one_pair_without_a_leading_dimension(case: Case, device: str) -> None:
    arguments = case.arguments((), device=device, requires_grad=True)
    for reduction in case.reductions:
        assert check_against_oracle(case, arguments, **reduction).dim() == 0


# (Log-probabilities have a dimension of tokens.)
@each_case(
    lambda case: (
        case.family.engine == "pointwise"
        and not case.family.integers
        and case.prediction != "log_probs"
    )
)
def test_one_number(case: Case, device: str) -> None:
    arguments = {
        name: value.flatten()[0].detach().requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in case.arguments((1,), device=device, requires_grad=True).items()
    }
    for reduction in case.reductions:
        assert check_against_oracle(case, arguments, **reduction).dim() == 0


@each_case(lambda case: case.family.engine == "box_matrix")
@pytest.mark.parametrize(
    ("batch1", "batch2"),
    [((), (3,)), ((3,), ()), ((2, 1), (3,)), ((1,), (1,)), ((), ()), ((2, 3), (2, 3))],
)
def test_batches_broadcast(
    case: Case, batch1: tuple[int, ...], batch2: tuple[int, ...], device: str
) -> None:
    options = case.arguments(2)
    first = case.arguments((*batch1, 6, 1), device=device)["boxes1"].requires_grad_()
    second = case.arguments((*batch2, 1, 7), device=device)["boxes2"].requires_grad_()
    loss = check_against_oracle(case, {**options, "boxes1": first, "boxes2": second})
    assert loss.shape == (*torch.broadcast_shapes(batch1, batch2), 6, 7)


def test_pairwise_wide_and_tall() -> None:
    """More columns and rows than a tile holds."""
    from cases import find_case

    case = find_case("pairwise_box_iou-ciou")
    for shape in ((300, 3), (3, 300), (65, 257)):
        check_against_oracle(case, case.arguments(shape, requires_grad=True), str(shape))


@pytest.mark.table
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
@pytest.mark.parametrize("offset", range(5))
def test_scaling_touches_nothing_but_the_gradient(
    dtype: torch.dtype, offset: int, device: str
) -> None:
    """The shared backward, on a gradient in the middle of other data."""
    buffer = torch.arange(96, device=device).to(dtype)
    before = buffer.clone()
    for numbers in (1, 15, 16, 17, 61):
        buffer.copy_(before)
        gradient = buffer[offset : offset + numbers]
        torch.ops.fastloss.scale_(gradient, torch.tensor(0.5, device=device))
        assert torch.equal(gradient, before[offset : offset + numbers] / 2)
        assert torch.equal(buffer[:offset], before[:offset])
        assert torch.equal(buffer[offset + numbers :], before[offset + numbers :])


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=["float16", "bfloat16"])
def test_autocast_leaves_the_loss_in_float32(dtype: torch.dtype) -> None:
    prediction = torch.randn(8, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        loss = F.mse_loss(prediction @ torch.eye(4), torch.zeros(8, 4))
    assert loss.dtype == torch.float32
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.dtype == torch.float32
