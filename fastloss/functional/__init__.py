# SPDX-License-Identifier: MIT
"""The losses as functions. :mod:`fastloss.reference` has the same in plain PyTorch."""

from .boxes import (
    box_iou_loss,
    complete_box_iou_loss,
    distance_box_iou_loss,
    efficient_box_iou_loss,
    generalized_box_iou_loss,
    normalized_wasserstein_loss,
    pairwise_box_iou,
    repulsion_loss,
    scylla_box_iou_loss,
    sigmoid_aspect_box_iou_loss,
    wise_box_iou_loss,
)
from .classification import binary_cross_entropy_with_logits, sigmoid_focal_loss
from .regression import huber_loss, l1_loss, mse_loss, smooth_l1_loss

__all__ = [
    "binary_cross_entropy_with_logits",
    "box_iou_loss",
    "complete_box_iou_loss",
    "distance_box_iou_loss",
    "efficient_box_iou_loss",
    "generalized_box_iou_loss",
    "huber_loss",
    "l1_loss",
    "mse_loss",
    "normalized_wasserstein_loss",
    "pairwise_box_iou",
    "repulsion_loss",
    "scylla_box_iou_loss",
    "sigmoid_aspect_box_iou_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "wise_box_iou_loss",
]
