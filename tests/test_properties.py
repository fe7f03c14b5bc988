# SPDX-License-Identifier: MIT
"""What must hold for any boxes at all: symmetry, range, invariances, finiteness."""

from __future__ import annotations

import math
from typing import Any

import torch
from cases import BOX_PAIRS, CASES, Case, find_case
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import gradients
from torch import Tensor

import fastloss.functional as F

settings.register_profile("fastloss", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fastloss")

# Sixteenths: sums, differences, translations and doublings are exact in float64, and nearly so in
# float32.
coordinates = st.integers(-1600, 1600).map(lambda number: number / 16)
sides = st.integers(1, 1600).map(lambda number: number / 16)


@st.composite
def proper_boxes(draw: Any) -> tuple[float, float, float, float]:
    left, top = draw(coordinates), draw(coordinates)
    return left, top, left + draw(sides), top + draw(sides)


def tensors(*boxes: tuple[float, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor([box], dtype=dtype) for box in boxes]


proper = proper_boxes()
any_box = st.tuples(coordinates, coordinates, coordinates, coordinates)

# The pairwise kinds are the formulas; the losses are 1 minus them.
KINDS = ("iou", "giou", "diou", "ciou", "eiou", "siou", "nwd")
# Least and greatest similarity of proper boxes.
RANGE = {
    "iou": (0.0, 1.0),
    "giou": (-1.0, 1.0),
    "diou": (-1.0, 1.0),
    "ciou": (-2.0, 1.0),
    "eiou": (-3.0, 1.0),
    "siou": (-2.0, 1.0),
    "nwd": (0.0, 1.0),
}
SCALE_INVARIANT = ("iou", "giou", "diou", "ciou", "eiou", "siou")
ROUNDING = 1e-9


def similarity(kind: str, first: Tensor, second: Tensor, eps: float = 0.0) -> float:
    return F.pairwise_box_iou(first, second, kind, eps).item()


@given(proper, proper)
def test_similarities_are_symmetric(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    a, b = tensors(first, second)
    for kind in KINDS:
        assert math.isclose(
            similarity(kind, a, b, 1e-7), similarity(kind, b, a, 1e-7), abs_tol=ROUNDING
        ), kind


@given(proper, proper)
def test_similarities_lie_in_their_range(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    a, b = tensors(first, second)
    for kind, (least, greatest) in RANGE.items():
        assert least - ROUNDING <= similarity(kind, a, b, 1e-7) <= greatest + ROUNDING, kind


@given(proper)
def test_a_box_is_most_similar_to_itself(box: tuple[float, ...]) -> None:
    a, b = tensors(box, box)
    for kind in KINDS:
        assert math.isclose(similarity(kind, a, b, 1e-12), 1.0, abs_tol=1e-6), kind


@given(proper, proper)
def test_similarities_are_ordered_by_what_they_punish(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    a, b = tensors(first, second)
    value = {kind: similarity(kind, a, b, 1e-7) for kind in KINDS}
    for stricter, laxer in (
        ("giou", "iou"),
        ("diou", "iou"),
        ("ciou", "diou"),
        ("eiou", "diou"),
        ("siou", "iou"),
    ):
        assert value[stricter] <= value[laxer] + ROUNDING, (stricter, laxer)


@given(proper, proper, coordinates, coordinates)
def test_similarities_do_not_depend_on_the_place(
    first: tuple[float, ...], second: tuple[float, ...], dx: float, dy: float
) -> None:
    a, b = tensors(first, second)
    shift = torch.tensor([dx, dy, dx, dy], dtype=torch.float64)
    for kind in KINDS:
        moved = similarity(kind, a + shift, b + shift, 1e-7)
        assert math.isclose(similarity(kind, a, b, 1e-7), moved, abs_tol=ROUNDING), kind


@given(proper, proper, st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_similarities_do_not_depend_on_the_unit(
    first: tuple[float, ...], second: tuple[float, ...], scale: float
) -> None:
    """But for NWD, whose constant has the boxes' unit: it scales with them."""
    a, b = tensors(first, second)
    tiny = 1e-15  # eps has a unit of its own
    for kind in SCALE_INVARIANT:
        scaled = similarity(kind, scale * a, scale * b, tiny)
        assert math.isclose(similarity(kind, a, b, tiny), scaled, abs_tol=ROUNDING), kind
    loss = F.normalized_wasserstein_loss(a, b, eps=tiny, constant=10.0)
    scaled_loss = F.normalized_wasserstein_loss(
        scale * a, scale * b, eps=tiny, constant=10.0 * scale
    )
    torch.testing.assert_close(loss, scaled_loss, rtol=0, atol=1e-7)


@given(proper, proper)
def test_similarities_do_not_depend_on_the_axes(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    """Mirrored, or with x and y exchanged."""
    a, b = tensors(first, second)
    for change in (
        lambda box: box[:, [1, 0, 3, 2]],
        lambda box: -box[:, [2, 1, 0, 3]] * torch.tensor([1, -1, 1, -1]),
    ):
        for kind in KINDS:
            changed = similarity(kind, change(a), change(b), 1e-7)
            assert math.isclose(similarity(kind, a, b, 1e-7), changed, abs_tol=ROUNDING), kind


@given(proper, proper)
def test_gradient_of_a_translation_adds_up_to_zero(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    """Moving both boxes together changes nothing: the gradients say so too."""
    for kind in KINDS:
        a, b = (box.requires_grad_() for box in tensors(first, second))
        F.pairwise_box_iou(a, b, kind).sum().backward()
        both = a.grad + b.grad
        assert abs(both[0, 0] + both[0, 2]) < 1e-6 * (1 + both.abs().max()), kind
        assert abs(both[0, 1] + both[0, 3]) < 1e-6 * (1 + both.abs().max()), kind


PAIR_LOSSES = [case for case in CASES if case.family is BOX_PAIRS]


@given(
    any_box,
    any_box,
    st.sampled_from(PAIR_LOSSES),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@example(
    (1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), find_case("complete_box_iou_loss"), torch.float16
)
def test_any_boxes_have_a_finite_loss_and_gradient(
    first: tuple[float, ...], second: tuple[float, ...], case: Case, dtype: torch.dtype
) -> None:
    a, b = (box.requires_grad_() for box in tensors(first, second, dtype=dtype))
    arguments = {**case.arguments(1), "boxes1": a, "boxes2": b}
    loss = case.loss(arguments, reduction="none")
    assert loss.isfinite().all()
    for gradient in gradients(loss, arguments, torch.ones(1)).values():
        assert gradient.isfinite().all()


@given(any_box, any_box, st.sampled_from(PAIR_LOSSES))
def test_any_boxes_have_the_oracles_loss(
    first: tuple[float, ...], second: tuple[float, ...], case: Case
) -> None:
    a, b = tensors(first, second)
    arguments = {**case.arguments(1), "boxes1": a, "boxes2": b}
    torch.testing.assert_close(
        case.loss(arguments, reduction="none"),
        case.reference(arguments, reduction="none"),
        rtol=1e-9,
        atol=1e-12,
    )


@given(proper, proper, st.sampled_from(PAIR_LOSSES))
def test_proper_boxes_have_no_negative_loss(
    first: tuple[float, ...], second: tuple[float, ...], case: Case
) -> None:
    arguments = {
        **case.arguments(1),
        **dict(zip(("boxes1", "boxes2"), tensors(first, second), strict=True)),
    }
    assert case.loss(arguments, reduction="none").item() >= -1e-6


@given(st.lists(proper, min_size=1, max_size=12), st.integers(0, 3))
def test_pairs_do_not_depend_on_their_neighbours(
    boxes: list[tuple[float, ...]], offset: int
) -> None:
    """A box's loss is the same alone as among others, at any place in a vector."""
    first = torch.tensor(boxes)
    second = first.roll(1, 0) + offset
    for function in (F.complete_box_iou_loss, F.scylla_box_iou_loss):
        together = function(first, second)
        alone = torch.cat(
            [function(first[i : i + 1], second[i : i + 1]) for i in range(len(boxes))]
        )
        assert torch.equal(together, alone)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), st.floats(0, 1, width=32))
def test_logits_have_finite_positive_losses(logits: list[float], target: float) -> None:
    x = torch.tensor(logits, requires_grad=True)
    t = torch.full_like(x, target)
    for loss in (
        F.sigmoid_focal_loss(x, t),
        F.binary_cross_entropy_with_logits(x, t, reduction="none"),
    ):
        assert loss.isfinite().all()
        assert (loss >= 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert gradient.isfinite().all()
    focal, plain = (
        F.sigmoid_focal_loss(x, t, alpha=-1),
        F.binary_cross_entropy_with_logits(x, t, reduction="none"),
    )
    assert (focal <= plain * (1 + 1e-6)).all(), "the focal factor is at most 1"
    assert torch.allclose(F.sigmoid_focal_loss(x, t, alpha=-1, gamma=0), plain)
