# SPDX-License-Identifier: MIT
"""What is particular to metric learning: torch's triplets, and what a batch's rows choose."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import TOLERANCES, Case, find_case
from support import assert_close, check_against_oracle, each_case, gradients, upstream_for
from test_memory import SLACK, allocations, step
from torch import Tensor
from torch.nn import functional as torch_functional

import fastloss.functional as F

BATCH_HARD = each_case(lambda case: case.family.engine == "batch_hard")


# ----------------------------------------------------------------------------------------- as torch


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 7, math.inf])
def test_torchs_triplets(p: float, swap: bool, reduction: str) -> None:
    options: dict[str, Any] = {"margin": 0.7, "p": p, "eps": 1e-3, "swap": swap}
    for shape in ((40, 9), (4, 5, 17), (33,)):
        generator = torch.Generator().manual_seed(3)
        results = []
        for function in (F.triplet_margin_loss, torch_functional.triplet_margin_loss):
            generator.manual_seed(3)
            members = [
                torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
                for _ in range(3)
            ]
            loss = function(*members, reduction=reduction, **options)
            results.append([loss, *torch.autograd.grad(loss, members, upstream_for(loss))])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_identical_rows_have_a_gradient_of_zero(p: float, device: str) -> None:
    """The loss is the margin, as torch's is."""
    rows = [torch.ones(4, 8, device=device, requires_grad=True) for _ in range(3)]
    loss = F.triplet_margin_loss(*rows, p=p, eps=0.0, margin=0.25, reduction="none")
    assert loss.tolist() == [0.25] * 4
    for gradient in torch.autograd.grad(loss.sum(), rows):
        assert not gradient.any()


@pytest.mark.parametrize("p", [0.5, 3.0, 40.0])
def test_powers_of_large_and_small_numbers(p: float, device: str) -> None:
    """Of which the power itself is beyond float32."""
    case = find_case("triplet_margin_loss-p_3")
    for size in (1e-6, 1e6):
        arguments = case.arguments((20, 9), device=device)
        arguments["p"] = p
        for name in case.family.differentiable:
            arguments[name] = (arguments[name] * size).requires_grad_()
        check_against_oracle(case, arguments, f"{size}", reduction="sum")


def test_torchs_pairs_of_scores() -> None:
    arguments = find_case("margin_ranking_loss").arguments((6, 5), torch.float64)
    for target in (arguments["target"], arguments["target"][:1], arguments["target"][:, :1]):
        for margin in (0.0, 0.5, -0.5):
            for reduction in ("none", "mean", "sum"):
                given = {**arguments, "target": target, "margin": margin, "reduction": reduction}
                torch.testing.assert_close(
                    F.margin_ranking_loss(**given), torch_functional.margin_ranking_loss(**given)
                )


def test_gradient_of_some_members_only(device: str) -> None:
    case = find_case("triplet_margin_loss")
    everything = case.arguments((9, 11), device=device, requires_grad=True)
    expected = gradients(case.loss(everything), everything)
    for names in (["positive"], ["negative"], ["anchor", "negative"]):
        arguments = case.arguments((9, 11), device=device, requires_grad=names)
        for name, gradient in gradients(case.loss(arguments), arguments).items():
            assert torch.equal(gradient, expected[name])


# --------------------------------------------------------------------------------------- batch-hard


def by_hand(rows: list[list[float]], labels: list[int], margin: float | None) -> list[float]:
    losses = []
    for i, row in enumerate(rows):
        positives = [
            math.dist(row, other)
            for j, other in enumerate(rows)
            if labels[j] == labels[i] and j != i
        ]
        negatives = [
            math.dist(row, other) for j, other in enumerate(rows) if labels[j] != labels[i]
        ]
        if not positives or not negatives:
            losses.append(0.0)
            continue
        behind = max(positives) - min(negatives)
        losses.append(math.log1p(math.exp(behind)) if margin is None else max(0.0, behind + margin))
    return losses


@pytest.mark.parametrize("margin", [0.0, 1.0, None])
def test_batch_hard_by_hand(margin: float | None, device: str) -> None:
    arguments = find_case("batch_hard_triplet_loss").arguments(40, torch.float64, device=device)
    arguments["margin"] = margin
    expected = by_hand(arguments["embeddings"].tolist(), arguments["labels"].tolist(), margin)
    found = F.batch_hard_triplet_loss(**arguments, reduction="none")
    torch.testing.assert_close(found.cpu(), torch.tensor(expected, dtype=torch.float64))
    assert found[1] == 0  # alone in its class
    mean = F.batch_hard_triplet_loss(**arguments)
    torch.testing.assert_close(mean.item(), sum(expected) / 39)


@BATCH_HARD
@pytest.mark.parametrize("labels", [[5, 5, 5, 5], [4, 3, 2, 1], [9]])
def test_without_an_anchor_the_loss_is_zero(case: Case, labels: list[int], device: str) -> None:
    embeddings = torch.randn(len(labels), 3, device=device, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        loss = case.loss(
            {
                **case.options,
                "embeddings": embeddings,
                "labels": torch.tensor(labels, device=device),
            },
            reduction=reduction,
        )
        assert not loss.any()
        (gradient,) = torch.autograd.grad(loss, embeddings, torch.ones_like(loss))
        assert not gradient.any()


@BATCH_HARD
def test_of_equal_distances_the_first_row_counts(case: Case, device: str) -> None:
    """Copies of a row: whoever is chosen gets the gradient."""
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    embeddings = embeddings.repeat(1, 9).to(device).requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1], device=device)
    loss = case.loss({**case.options, "embeddings": embeddings, "labels": labels}, reduction="none")
    (gradient,) = torch.autograd.grad(loss[0], embeddings)
    assert gradient.any(1).tolist() == [True, True, False, True, False]
    arguments = {**case.options, "embeddings": embeddings, "labels": labels}
    for reduction in case.reductions:
        check_against_oracle(case, arguments, **reduction)


@BATCH_HARD
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_are_any_integers(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments((30, 5), device=device)
    expected = case.loss(arguments, reduction="none")
    scattered = torch.tensor([7, 255, 0, 100, 30], device=device)[arguments["labels"]]
    found = case.loss({**arguments, "labels": scattered.to(dtype)}, reduction="none")
    assert torch.equal(found, expected)
    if dtype == torch.int32:
        scattered = scattered.long() * 2**50 - 2**55
        assert torch.equal(
            case.loss({**arguments, "labels": scattered}, reduction="none"), expected
        )


@BATCH_HARD
def test_many_features_and_rows(case: Case) -> None:
    """Several tiles of both, and none of them full."""
    for shape in ((5, 131), (141, 3), (70, 67)):
        for reduction in case.reductions:
            check_against_oracle(
                case, case.arguments(shape, requires_grad=True), f"{shape}", **reduction
            )


@BATCH_HARD
def test_nan_makes_every_anchor_nan(case: Case, device: str) -> None:
    arguments = case.arguments((20, 6), device=device, requires_grad=True)
    with torch.no_grad():
        arguments["embeddings"][11, 2] = torch.nan
    loss = case.loss(arguments, reduction="none")
    expected = case.reference(arguments, reduction="none")
    assert torch.equal(loss.isnan(), expected.isnan())
    assert loss.isnan().sum() == 19  # but for the row without a positive


@BATCH_HARD
def test_unreduced_gradient_is_weighted_by_anchor(case: Case, device: str) -> None:
    arguments = case.arguments((25, 6), device=device, requires_grad=True)
    each = case.loss(arguments, reduction="none")
    upstream = upstream_for(each)
    (together,) = gradients(each, arguments, upstream).values()
    alone = torch.zeros_like(together)
    for i in range(len(each)):
        each = case.loss(arguments, reduction="none")
        alone += torch.autograd.grad(each[i], arguments["embeddings"])[0] * upstream[i]
    assert_close(together, alone, TOLERANCES[torch.float32], "gradient")


@BATCH_HARD
def test_no_matrix_of_distances_is_in_memory(case: Case) -> None:
    """The gradient and a few numbers per row."""
    for rows in (300, 600):
        arguments = case.arguments((rows, 40), requires_grad=True)
        step(case, arguments)
        arguments["embeddings"].grad = None
        allocated = allocations(step, case, arguments)
        assert allocated <= arguments["embeddings"].nbytes + 16 * rows + SLACK


def test_embeddings_may_have_no_features(device: str) -> None:
    embeddings: Tensor = torch.zeros(4, 0, device=device, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1], device=device)
    loss = F.batch_hard_triplet_loss(embeddings, labels, 0.5, reduction="none")
    assert loss.tolist() == [0.5] * 4
    (gradient,) = torch.autograd.grad(loss.sum(), embeddings)
    assert gradient.shape == (4, 0)
    members = [torch.zeros(3, 0, device=device, requires_grad=True) for _ in range(3)]
    assert F.triplet_margin_loss(*members, reduction="none").tolist() == [1.0] * 3
