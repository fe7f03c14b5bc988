# SPDX-License-Identifier: MIT
"""What segmentation asks for beyond the table: many voxels, many classes, many dimensions, no
one-hot in memory, nothing there.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import CASES, HALF_DTYPES, TOLERANCES, Case
from support import as_float64, assert_close, check_against_oracle, each_case, gradients
from test_dtypes_and_layouts import operands, transposed, with_layout
from test_memory import SLACK, allocations, step
from torch import Tensor

import fastloss.functional as F
from fastloss import reference

REGIONS = ("region", "ranked_region")


def of_regions(case: Case) -> bool:
    return case.family.engine in REGIONS


def voxels(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits, labels


# -------------------------------------------------------------------------------------------- sizes


@pytest.mark.table
@pytest.mark.parametrize("classes", [1, 2, 33, 300, 1500])
@each_case(lambda case: of_regions(case) and not case.variant)
def test_number_of_classes(case: Case, classes: int, device: str) -> None:
    """Down to none beside the background, up to more than a tile or a block takes at a time."""
    arguments = case.arguments((2, classes, 45), device=device, requires_grad=True)
    for reduction in case.reductions:
        check_against_oracle(case, arguments, str(reduction), **reduction)


@each_case(of_regions)
def test_many_dimensions(case: Case, device: str) -> None:
    """More spatial dimensions than a kernel iterates over, in an order that cannot be merged."""
    shape = (2, 3, 2, 1, 2, 2, 3, 2, 1, 2, 2, 2, 1)
    dense = case.arguments(shape, device=device, requires_grad=True)
    arguments = with_layout(dense, transposed, operands(dense))
    check_against_oracle(case, arguments, **case.reductions[0])


@each_case(of_regions)
def test_samples_without_space(case: Case, device: str) -> None:
    """Logits (B, C): every sample is one voxel."""
    arguments = case.arguments((6, 4), device=device, requires_grad=True)
    for reduction in case.reductions:
        check_against_oracle(case, arguments, str(reduction), **reduction)


@each_case(of_regions)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES])
def test_losses_are_as_exact_as_any(case: Case, dtype: torch.dtype, device: str) -> None:
    """The rows' tolerance is wider for the sake of gradients."""
    for reduction in case.reductions:
        arguments = case.arguments((2, 5, 3000), dtype, device=device)
        expected = case.reference(as_float64(arguments), **reduction)
        loss = case.loss(arguments, **reduction)
        assert_close(loss, expected, TOLERANCES[torch.float32], f"{reduction}")


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("squared", [False, True])
def test_half_precision_sums_do_not_overflow(dtype: torch.dtype, squared: bool) -> None:
    """512 × 512 voxels are more than float16 counts to."""
    logits, labels = voxels(1, 2, 512, 512, dtype=dtype)
    logits.requires_grad_()
    loss = F.dice_loss(logits, labels, squared_pred=squared)
    wide = logits.detach().double().requires_grad_()
    expected = reference.dice_loss(wide, labels, squared_pred=squared)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0.0)
    # As a gradient scaler has it: before it is rounded to half precision.
    loss.backward(torch.tensor(65536.0))
    expected.backward(torch.tensor(65536.0, dtype=torch.float64))
    assert logits.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_case(lambda case: case.family.engine == "region" and "target" in case.family.integers)
def test_a_step_allocates_the_gradient_alone(case: Case, dtype: torch.dtype) -> None:
    """No one-hot, no probabilities, whatever dtype the labels have."""
    size = (2, 9, 100, 130)
    for labels in (torch.uint8, torch.int64):
        arguments = case.arguments(size, dtype, requires_grad=True)
        arguments["target"] = arguments["target"].clamp(min=0).to(labels)
        options = {"ignore_index": 255} if case.family.ignored is not None else {}
        arguments |= options
        step(case, arguments)
        arguments[case.prediction].grad = None
        allocated = allocations(step, case, arguments)
        gradient = arguments[case.prediction].nbytes
        # The sums of 512 voxels together, in float64.
        sums = 8 * (3 * size[1] + 2) * 2 * (size[2] * size[3] // 512 + 2)
        assert gradient <= allocated <= gradient + sums + SLACK


# ---------------------------------------------------------------------------------- nothing there


@each_case(of_regions)
def test_no_voxels(case: Case, device: str) -> None:
    arguments = case.arguments((2, 4, 0, 3), device=device, requires_grad=True)
    for reduction in case.reductions:
        loss = case.loss(arguments, **reduction)
        expected = case.reference(arguments, **reduction)
        assert loss.shape == expected.shape
        assert not loss.any()
        gradients(loss, arguments)


@pytest.mark.parametrize("smooth", [0.0, 1e-5])
def test_a_perfect_prediction_costs_nothing_and_has_a_gradient(smooth: float) -> None:
    _, labels = voxels(2, 3, 6, 7)
    logits = torch.where(labels[:, None] == torch.arange(3)[:, None, None], 1e4, -1e4)
    for function in (F.dice_loss, F.tversky_loss, F.focal_tversky_loss, F.generalized_dice_loss):
        x = logits.clone().requires_grad_()
        loss = function(x, labels, smooth_nr=smooth, smooth_dr=smooth)
        loss.backward()
        assert loss.item() == 0
        assert x.grad is not None
        assert not x.grad.any()


def test_a_class_that_is_neither_predicted_nor_there_costs_nothing() -> None:
    logits = torch.tensor([[[-1e4, -1e4], [1.0, -1.0]]])
    target = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    for smooth_nr, smooth_dr in itertools.product((0.0, 1e-5), repeat=2):
        loss = F.dice_loss(
            logits,
            target,
            activation="sigmoid",
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            reduction="none",
        )
        assert loss[0, 0] == 0
        assert loss[0, 1] > 0


def test_ignored_voxels_hold_anything_in_every_kind_of_target() -> None:
    logits, labels = voxels(2, 3, 20)
    one_hot = (labels[:, None] == torch.arange(3)[:, None]).float()
    ignored = labels == 2
    unassigned = torch.where(ignored[:, None], 0.0, one_hot)
    expected = F.dice_loss(logits, torch.where(ignored, 255, labels), ignore_index=255)
    poisoned = torch.where(ignored[:, None], torch.nan, logits).requires_grad_()
    for target, index in ((labels, 2), (one_hot, 2), (unassigned, -1), (unassigned, 3)):
        loss = F.dice_loss(poisoned, target, ignore_index=index)
        assert_close(loss, expected, find("dice_loss").float32, f"ignore_index {index}")
        (gradient,) = torch.autograd.grad(loss, poisoned)
        assert gradient.isfinite().all()
        assert not gradient[ignored[:, None].expand_as(gradient)].any()


def test_a_single_class_ignores_voxels_by_value() -> None:
    logits, _ = voxels(2, 1, 30)
    mask = (torch.rand(2, 1, 30, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.uint8)
    marked = mask.clone()
    marked[:, :, ::3] = 255
    kept = torch.arange(30) % 3 != 0
    found = F.dice_loss(logits, marked, activation="sigmoid", ignore_index=255)
    expected = F.dice_loss(logits[..., kept], mask[..., kept], activation="sigmoid")
    torch.testing.assert_close(found, expected)


def find(id: str) -> Case:
    return next(case for case in CASES if case.id == id)


# ------------------------------------------------------------------------------- gradient of target


@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss", "dice_cross_entropy_loss"])
def test_gradient_of_soft_targets_and_weights_comes_from_the_reference(name: str) -> None:
    logits, _ = voxels(2, 3, 20, dtype=torch.float64)
    for wanted in ("target", "weight"):
        target = torch.rand(2, 3, 20, dtype=torch.float64)
        weight = torch.rand(3, dtype=torch.float64)
        leaf = {"target": target, "weight": weight}[wanted].requires_grad_()
        arguments = {"input": logits, "target": target, "weight": weight}
        (found,) = torch.autograd.grad(getattr(F, name)(**arguments), leaf)
        (expected,) = torch.autograd.grad(getattr(reference, name)(**arguments), leaf)
        torch.testing.assert_close(found, expected)
        assert found.any()


# ------------------------------------------------------------------------------------------- Lovász


@pytest.mark.table
@each_case(lambda case: case.family.engine == "ranked_region")
def test_long_rankings(case: Case, device: str) -> None:
    """More voxels than a block takes at a time; in float64, where no two errors are equal."""
    arguments = case.arguments((2, 3, 5200), torch.float64, device=device, requires_grad=True)
    for reduction in case.reductions:
        check_against_oracle(case, arguments, str(reduction), **reduction)


def jaccard_loss(missed: int, wrong: int, count: int) -> float:
    return 1 - (count - missed) / (count + wrong) if count + wrong else 0.0


def test_lovasz_by_hand() -> None:
    """One voxel after the other, as the paper's theorem 1 has it."""
    logits, labels = voxels(2, 4, 15, dtype=torch.float64)
    labels = labels.clamp(max=2)  # a class is absent
    losses = []
    for c in range(4):
        p = logits.softmax(1)[:, c].flatten().tolist()
        is_class = (labels == c).flatten().tolist()
        errors = [1 - q if hit else q for q, hit in zip(p, is_class, strict=True)]
        count, missed, wrong, loss = sum(is_class), 0, 0, 0.0
        for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
            before = jaccard_loss(missed, wrong, count)
            missed, wrong = missed + is_class[i], wrong + (not is_class[i])
            loss += errors[i] * (jaccard_loss(missed, wrong, count) - before)
        losses.append(loss)
    for function in (F.lovasz_softmax_loss, reference.lovasz_softmax_loss):
        each = function(logits, labels, classes="all", reduction="none")
        torch.testing.assert_close(each, torch.tensor(losses, dtype=torch.float64))
        assert function(logits, labels).item() == pytest.approx(sum(losses[:3]) / 3)


def test_lovasz_of_hard_predictions_is_the_jaccard_loss() -> None:
    """Which it extends."""
    predicted, labels = voxels(3, 4, 50)[1], voxels(3, 4, 50)[1].flip(-1)
    logits = torch.where(predicted[:, None] == torch.arange(4)[:, None], 1e4, 0.0)
    each = F.lovasz_softmax_loss(logits, labels, reduction="none")
    for c in range(4):
        common = ((predicted == c) & (labels == c)).sum().item()
        union = ((predicted == c) | (labels == c)).sum().item()
        assert each[c].item() == pytest.approx(1 - common / union, rel=1e-6)


def test_lovasz_gradient_is_that_of_every_order_of_equal_errors() -> None:
    """Ties are broken by position: the same gradient on every run."""
    logits = torch.zeros(1, 2, 8, requires_grad=True)
    labels = torch.tensor([[0, 1, 0, 1, 1, 0, 0, 1]])
    runs = [torch.autograd.grad(F.lovasz_softmax_loss(logits, labels), logits)[0] for _ in range(3)]
    assert all(torch.equal(run, runs[0]) for run in runs)
    twin = logits.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(reference.lovasz_softmax_loss(twin, labels), twin)
    torch.testing.assert_close(runs[0], expected)
