# SPDX-License-Identifier: MIT
"""Plain-PyTorch twins of :mod:`fastloss.functional`: same names, same signatures, same meaning.

They are the oracle of the tests, and they compute where no kernel does: on devices without one,
under ``torch.func`` transforms and for derivatives of higher order.
"""

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
