# SPDX-License-Identifier: MIT
"""The detector's loss, twice: as one writes it in plain PyTorch, and with fastloss.

Both compute the same function: a box loss over the positive locations, weighted by alignment,
plus a classification loss over all locations and classes, divided by the number of positives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nnf

import fastloss.functional as F
from detection.assigner import Assignment
from fastloss import reference

_EPS = 1e-7
_FOCAL_ALPHA = 0.25
_FOCAL_GAMMA = 2.0

# boxes (P, 4), targets (P, 4), weight (P,), avg_factor () -> loss ()
BoxLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# logits (B, L, C), labels (B, L) with C as background, avg_factor -> loss ()
ClassificationLoss = Callable[[Tensor, Tensor, float], Tensor]

BOX_LOSSES = {
    "ciou": "complete_box_iou_loss",
    "giou": "generalized_box_iou_loss",
    "diou": "distance_box_iou_loss",
    "iou": "box_iou_loss",
    "eiou": "efficient_box_iou_loss",
    "siou": "scylla_box_iou_loss",
    "wiou": "wise_box_iou_loss",
    "xiou": "sigmoid_aspect_box_iou_loss",
    "nwd": "normalized_wasserstein_loss",
}
CLASSIFICATION_LOSSES = ("focal", "bce")


@dataclass(frozen=True)
class DetectionLoss:
    """The sum of a box loss and a classification loss."""

    source: str  # where the formulas come from, for the report
    box: BoxLoss
    classification: ClassificationLoss

    def __call__(self, logits: Tensor, boxes: Tensor, assignment: Assignment) -> Tensor:
        """Returns the loss of all logits (B, L, C) and of the positives' boxes (P, 4)."""
        box = self.box(boxes, assignment.boxes, assignment.weight, assignment.weight_sum)
        num_positives = max(len(boxes), 1)
        return box + self.classification(logits, assignment.labels, num_positives)


def plain_pytorch_loss(box: str, classification: str) -> DetectionLoss:
    """Returns the loss without fastloss' kernels; `box` is a key of `BOX_LOSSES`."""
    handwritten = _HANDWRITTEN_BOX_LOSSES.get(box)
    if handwritten is not None:
        source, unreduced = "torchvision's formulas", handwritten
    else:
        source, unreduced = "fastloss.reference", getattr(reference, BOX_LOSSES[box])

    def box_loss(boxes: Tensor, targets: Tensor, weight: Tensor, avg_factor: Tensor) -> Tensor:
        return (unreduced(boxes, targets, reduction="none") * weight).sum() / avg_factor

    classification_losses = {"focal": _plain_focal, "bce": _plain_bce}
    return DetectionLoss(
        f"plain PyTorch ({source})", box_loss, classification_losses[classification]
    )


def fused_loss(box: str, classification: str) -> DetectionLoss:
    """Returns the same loss from fastloss; `box` is a key of `BOX_LOSSES`."""
    function = getattr(F, BOX_LOSSES[box])

    def box_loss(boxes: Tensor, targets: Tensor, weight: Tensor, avg_factor: Tensor) -> Tensor:
        loss: Tensor = function(
            boxes, targets, reduction="mean", weight=weight, avg_factor=avg_factor
        )
        return loss

    classification_losses = {"focal": _fused_focal, "bce": _fused_bce}
    return DetectionLoss("fastloss", box_loss, classification_losses[classification])


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Returns dense targets (B, L, C) of `like`'s dtype; background rows are zero."""
    num_classes = like.shape[-1]
    dense = like.new_zeros(*labels.shape, num_classes + 1)
    return dense.scatter_(-1, labels.unsqueeze(-1), 1.0)[..., :num_classes]


def _plain_focal(logits: Tensor, labels: Tensor, avg_factor: float) -> Tensor:
    targets = _one_hot(labels, logits)
    probability = torch.sigmoid(logits)
    cross_entropy = nnf.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = probability * targets + (1 - probability) * (1 - targets)
    balance = _FOCAL_ALPHA * targets + (1 - _FOCAL_ALPHA) * (1 - targets)
    return (balance * cross_entropy * (1 - right) ** _FOCAL_GAMMA).sum() / avg_factor


def _plain_bce(logits: Tensor, labels: Tensor, avg_factor: float) -> Tensor:
    targets = _one_hot(labels, logits)
    return nnf.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / avg_factor


def _fused_focal(logits: Tensor, labels: Tensor, avg_factor: float) -> Tensor:
    return F.sigmoid_focal_loss(
        logits, labels, _FOCAL_ALPHA, _FOCAL_GAMMA, reduction="mean", avg_factor=avg_factor
    )


def _fused_bce(logits: Tensor, labels: Tensor, avg_factor: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(
        logits, _one_hot(labels, logits), reduction="mean", avg_factor=avg_factor
    )


def _sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    left_top = torch.maximum(boxes1[:, :2], boxes2[:, :2])
    right_bottom = torch.minimum(boxes1[:, 2:], boxes2[:, 2:])
    sides = (right_bottom - left_top).clamp(min=0)
    intersection = sides[:, 0] * sides[:, 1]
    width1, height1 = _sides(boxes1)
    width2, height2 = _sides(boxes2)
    return intersection, width1 * height1 + width2 * height2 - intersection


def _enclosing_sides(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    left_top = torch.minimum(boxes1[:, :2], boxes2[:, :2])
    return torch.maximum(boxes1[:, 2:], boxes2[:, 2:]) - left_top


def _generalized(boxes1: Tensor, boxes2: Tensor, reduction: str) -> Tensor:
    intersection, union = _intersection_and_union(boxes1, boxes2)
    sides = _enclosing_sides(boxes1, boxes2)
    enclosing = sides[:, 0] * sides[:, 1]
    return 1 - intersection / (union + _EPS) + (enclosing - union) / (enclosing + _EPS)


def _distance_and_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    intersection, union = _intersection_and_union(boxes1, boxes2)
    iou = intersection / (union + _EPS)
    diagonal = _enclosing_sides(boxes1, boxes2).square().sum(dim=1) + _EPS
    offset = (boxes1[:, :2] + boxes1[:, 2:] - boxes2[:, :2] - boxes2[:, 2:]) / 2
    return 1 - iou + offset.square().sum(dim=1) / diagonal, iou


def _distance(boxes1: Tensor, boxes2: Tensor, reduction: str) -> Tensor:
    return _distance_and_iou(boxes1, boxes2)[0]


def _complete(boxes1: Tensor, boxes2: Tensor, reduction: str) -> Tensor:
    loss, iou = _distance_and_iou(boxes1, boxes2)
    width1, height1 = _sides(boxes1)
    width2, height2 = _sides(boxes2)
    angle = torch.atan(width2 / height2) - torch.atan(width1 / height1)
    aspect = (4 / math.pi**2) * angle.square()
    with torch.no_grad():
        trade_off = aspect / (1 - iou + aspect + _EPS)
    return loss + trade_off * aspect


# torchvision's values, in fewer operations than its own code: the stronger baseline.
_HANDWRITTEN_BOX_LOSSES = {"ciou": _complete, "giou": _generalized, "diou": _distance}
