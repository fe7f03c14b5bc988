# SPDX-License-Identifier: MIT
"""Rotated boxes and keypoints: ultralytics' numbers, what a rotation must not change, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import find_case
from torch import Tensor

import fastloss.functional as F
from fastloss import reference

PROBIOU = find_case("probabilistic_iou_loss")
OKS = find_case("object_keypoint_similarity_loss")


def ultralytics(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    return pytest.importorskip("ultralytics.utils.loss")


# ------------------------------------------------------------------------------------------ ProbIoU


def covariance(w: float, h: float, angle: float, floor: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
    variances = torch.tensor([w * w / 12 + floor, h * h / 12 + floor], dtype=torch.float64)
    return turn @ variances.diag() @ turn.T


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_probabilistic_iou_by_matrices(floor: float) -> None:
    """Bhattacharyya's distance as the paper has it, by determinants and an inverse."""
    arguments = PROBIOU.arguments(40, torch.float64)
    eps = 1e-9
    expected = []
    for one, other in zip(arguments["boxes1"].tolist(), arguments["boxes2"].tolist(), strict=True):
        first, second = covariance(*one[2:], floor), covariance(*other[2:], floor)
        offset = torch.tensor(one[:2], dtype=torch.float64) - torch.tensor(other[:2]).double()
        mean = (first + second) / 2
        distance = offset @ mean.inverse() @ offset / 8
        distance += 0.5 * (mean.det() / (first.det() * second.det()).sqrt()).log()
        expected.append(math.sqrt(1 - math.exp(-min(distance, 100)) + eps))
    for function in (F.probabilistic_iou_loss, reference.probabilistic_iou_loss):
        found = function(**arguments, eps=eps, floor=floor)
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(("eps", "floor"), [(1e-7, 0.0), (1e-7, 0.01), (1e-3, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilistic_iou_is_that_of_ultralytics(
    eps: float, floor: float, dtype: torch.dtype, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own numbers in float64: in float32 its determinants are differences of large numbers."""
    theirs = ultralytics(tmp_path, monkeypatch).probiou
    arguments = PROBIOU.arguments(500, dtype, requires_grad=True)
    wide = {name: box.detach().double().requires_grad_() for name, box in arguments.items()}
    loss = F.probabilistic_iou_loss(**arguments, eps=eps, floor=floor)
    expected = 1 - theirs(wide["boxes1"], wide["boxes2"], eps=eps, floor=floor).squeeze(-1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(loss.sum(), list(arguments.values()))
    for gradient, other in zip(
        found, torch.autograd.grad(expected.sum(), list(wide.values())), strict=True
    ):
        assert other.isfinite().all()
        torch.testing.assert_close(gradient.double(), other, rtol=1e-5, atol=1e-5)


def test_boxes_that_are_the_same_but_written_otherwise() -> None:
    """Half a turn, and a quarter of one with the sides exchanged, are the same box."""
    boxes = PROBIOU.arguments(30, torch.float64)["boxes1"]
    x, y, w, h, angle = boxes.unbind(-1)
    other = PROBIOU.arguments(30, torch.float64)["boxes2"]
    expected = F.probabilistic_iou_loss(boxes, other)
    for same in (
        torch.stack((x, y, w, h, angle + math.pi), -1),
        torch.stack((x, y, h, w, angle + math.pi / 2), -1),
        torch.stack((x, y, w, h, angle - 100 * math.pi), -1),
    ):
        torch.testing.assert_close(F.probabilistic_iou_loss(same, other), expected)


def test_identical_boxes_are_at_the_least() -> None:
    boxes = PROBIOU.arguments(30)["boxes2"]
    loss = F.probabilistic_iou_loss(boxes, boxes.clone())
    torch.testing.assert_close(loss, torch.full_like(loss, math.sqrt(2e-3)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("angle", [0.0, 1.0, -3.1, 700.25, -6000.5, 1e6, 3e38])
def test_angles_of_any_size(angle: float) -> None:
    """Exact as far as a float32 tells angles apart, and always finite."""
    box = torch.tensor([[0.0, 0.0, 9.0, 4.0, angle]], requires_grad=True)
    other = torch.tensor([[1.0, 2.0, 8.0, 5.0, 0.5]])
    loss = F.probabilistic_iou_loss(box, other)
    (gradient,) = torch.autograd.grad(loss.sum(), box)
    assert gradient.isfinite().all()
    if abs(angle) < 1e6:
        expected = reference.probabilistic_iou_loss(box.double(), other.double())
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


# -------------------------------------------------------------------------------------- keypoints


def test_keypoints_by_hand() -> None:
    arguments = OKS.arguments(9, torch.float64)
    expected = torch.zeros(9, 5, dtype=torch.float64)
    for n in range(9):
        visible = int(arguments["visibility"][n].sum())
        for k in range(5):
            if not arguments["visibility"][n, k]:
                continue
            dx, dy = (arguments["keypoints"][n, k] - arguments["targets"][n, k]).tolist()
            sigma, area = arguments["sigmas"][k].item(), arguments["area"][n].item()
            e = (dx * dx + dy * dy) / (2 * (2 * sigma) ** 2 * area)
            expected[n, k] = 5 / visible * (1 - math.exp(-e))
    for function in (
        F.object_keypoint_similarity_loss,
        reference.object_keypoint_similarity_loss,
    ):
        torch.testing.assert_close(function(**arguments, reduction="none"), expected)
        torch.testing.assert_close(function(**arguments), expected.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keypoints_are_those_of_ultralytics(
    dtype: torch.dtype, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = ultralytics(tmp_path, monkeypatch).KeypointLoss
    arguments = OKS.arguments(200, dtype, requires_grad=["keypoints"])
    keypoints, targets, visibility, area, sigmas = arguments.values()
    found = F.object_keypoint_similarity_loss(**arguments)
    expected = theirs(sigmas)(keypoints, targets, visibility, area[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, keypoints)[0] for loss in (found, expected)),
        rtol=1e-4,
        atol=1e-8,
    )


def test_keypoints_of_other_leading_dimensions_and_gradients_of_the_rest() -> None:
    arguments = OKS.arguments((2, 3), torch.float64, requires_grad=["keypoints"])
    arguments["area"].requires_grad_()
    arguments["sigmas"].requires_grad_()
    wanted = [arguments[name] for name in ("keypoints", "area", "sigmas")]
    found = torch.autograd.grad(F.object_keypoint_similarity_loss(**arguments), wanted)
    expected = torch.autograd.grad(reference.object_keypoint_similarity_loss(**arguments), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("visibility", (3, 4)),
        ("visibility", (3, 5, 1)),
        ("area", (3, 1)),
        ("area", ()),
        ("sigmas", (4,)),
        ("sigmas", (3, 5)),
        ("keypoints", (3, 5, 3)),
        ("targets", (3, 5, 3)),
    ],
)
def test_shapes_of_keypoints(argument: str, shape: tuple[int, ...]) -> None:
    arguments = {**OKS.arguments(3), argument: torch.ones(shape)}
    with pytest.raises(ValueError, match=rf"^object_keypoint_similarity_loss: {argument} ") as said:
        F.object_keypoint_similarity_loss(**arguments)
    assert str(list(shape)) in str(said.value)


def test_complex_factors() -> None:
    for argument in ("visibility", "area", "sigmas"):
        arguments = OKS.arguments(3)
        arguments[argument] = arguments[argument].to(torch.complex64)
        with pytest.raises(TypeError, match=argument):
            F.object_keypoint_similarity_loss(**arguments)
