# SPDX-License-Identifier: MIT
"""torchvision's known numbers, and torchvision itself where it is installed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from cases import DTYPES, Case
from support import assert_close, each_case, gradients, tolerance_of
from torch import Tensor

import fastloss.functional as F

# The boxes of torchvision's own tests, and what its losses are for four pairs of them.
BOX1 = [-1.0, -1.0, 1.0, 1.0]
BOX2 = [0.0, 0.0, 1.0, 1.0]
BOX3 = [0.0, 1.0, 1.0, 2.0]
BOX4 = [1.0, 1.0, 2.0, 2.0]
DISTANCE = [(BOX1, BOX1, 0.0), (BOX1, BOX2, 0.8125), (BOX1, BOX3, 1.1923), (BOX1, BOX4, 1.25)]
KNOWN = {
    "generalized_box_iou_loss": [
        (BOX1, BOX1, 0.0),
        (BOX1, BOX2, 0.75),
        (BOX2, BOX3, 1.0),
        (BOX2, BOX4, 1.5),
    ],
    "distance_box_iou_loss": DISTANCE,
    "complete_box_iou_loss": DISTANCE,
}
# Of the pairs (BOX2, BOX3) and (BOX2, BOX4).
KNOWN_SUM = {
    "generalized_box_iou_loss": 2.5,
    "distance_box_iou_loss": 2.45,
    "complete_box_iou_loss": 2.45,
}
# Its own tolerance.
TORCHVISION_TOLERANCE = 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", KNOWN)
def test_known_numbers(name: str, dtype: torch.dtype) -> None:
    function = getattr(F, name)
    for first, second, value in KNOWN[name]:
        loss = function(torch.tensor(first, dtype=dtype), torch.tensor(second, dtype=dtype))
        assert loss.item() == pytest.approx(value, abs=TORCHVISION_TOLERANCE)
    first, second = torch.tensor([BOX2, BOX2], dtype=dtype), torch.tensor([BOX3, BOX4], dtype=dtype)
    total = KNOWN_SUM[name]
    assert function(first, second, reduction="sum").item() == pytest.approx(
        total, abs=TORCHVISION_TOLERANCE
    )
    assert function(first, second, reduction="mean").item() == pytest.approx(
        total / 2, abs=TORCHVISION_TOLERANCE
    )


@pytest.mark.parametrize("name", KNOWN)
def test_known_errors_and_empty_input(name: str) -> None:
    function = getattr(F, name)
    with pytest.raises(ValueError, match="reduction"):
        function(torch.tensor(BOX1), torch.tensor(BOX2), reduction="xyz")
    empty1, empty2 = torch.rand(0, 4).requires_grad_(), torch.rand(0, 4).requires_grad_()
    loss = function(empty1, empty2, reduction="mean")
    loss.backward()
    assert loss.item() == 0
    assert empty1.grad is not None
    assert empty2.grad is not None
    assert function(empty1, empty2, reduction="none").numel() == 0


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.58, 1.0])
@pytest.mark.parametrize("gamma", [0, 2])
def test_focal_loss_is_the_weighted_cross_entropy(alpha: float, gamma: int) -> None:
    """torchvision's ratio test: focal / cross-entropy = α_t (1 - p_t)^γ."""
    generator = torch.Generator().manual_seed(3)
    logits = 5 * torch.randn(45, 2, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (45, 2), generator=generator).double()
    focal = F.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    plain = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    correct = torch.where(targets == 1, logits.sigmoid(), (-logits).sigmoid())
    balance = (
        torch.where(targets == 1, alpha, 1 - alpha) if alpha >= 0 else torch.ones_like(correct)
    )
    torch.testing.assert_close(focal, balance * (1 - correct) ** gamma * plain)


HAS_IT = {*KNOWN, "sigmoid_focal_loss"}


@each_case(lambda case: case.function in HAS_IT and not case.variant)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_values_and_gradients_are_torchvisions(
    case: Case, reduction: str, torchvision: ModuleType
) -> None:
    theirs: Any = getattr(torchvision.ops, case.function)
    mine, other = (case.arguments(200, torch.float64, requires_grad=True) for _ in range(2))
    loss = case.loss(mine, reduction=reduction)
    expected: Tensor = theirs(*other.values(), reduction=reduction)
    assert_close(loss, expected, tolerance_of(case, torch.float32), "loss")
    expected_gradients = gradients(expected, other)
    for name, gradient in gradients(loss, mine).items():
        assert_close(
            gradient,
            expected_gradients[name],
            tolerance_of(case, torch.float32),
            f"gradient of {name}",
        )


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("iou", "box_iou"),
        ("giou", "generalized_box_iou"),
        ("diou", "distance_box_iou"),
        ("ciou", "complete_box_iou"),
    ],
)
def test_pairwise_values_are_torchvisions(kind: str, theirs: str, torchvision: ModuleType) -> None:
    generator = torch.Generator().manual_seed(4)
    corner = 50 * torch.rand(2, 30, 2, generator=generator, dtype=torch.float64)
    boxes = torch.cat(
        (corner, corner + 1 + 40 * torch.rand(2, 30, 2, generator=generator, dtype=torch.float64)),
        -1,
    )
    expected = getattr(torchvision.ops, theirs)(boxes[0], boxes[1])
    torch.testing.assert_close(
        F.pairwise_box_iou(boxes[0], boxes[1], kind), expected, rtol=1e-6, atol=1e-6
    )
