# SPDX-License-Identifier: MIT
"""Losses of dense detectors: every anchor predicts, a few boxes are there to be found."""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from ._shared import check_number, documented

__all__ = ["task_aligned_assignment", "task_aligned_detection_loss"]


@documented
def task_aligned_assignment(
    logits: Tensor,
    distances: Tensor,
    anchors: Tensor,
    strides: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    *,
    topk: int = 10,
    topk2: int | None = None,
    alpha: float = 0.5,
    beta: float = 6.0,
    candidate_boxes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which box each anchor of a dense detector is to predict, and how well it suits.

    An anchor inside a box suits it by sigmoid(logit of its class)^alpha · max(CIoU, 0)^beta, with
    the box that the anchor predicts. Each box takes the ``topk`` anchors that suit it best, as far
    as they suit it at all; an anchor that several boxes took goes to the one its prediction
    overlaps most. Its score then is how well it suits, divided by the best of the box's anchors and
    times the largest overlap among them.

    Nothing as large as boxes times anchors is in memory, and only predictions of anchors inside a
    box are decoded. No gradient flows back.

    TOOD: Task-aligned One-stage Object Detection, 2021, arXiv 2108.07755; the box as distributions
    of its distances is Generalized Focal Loss, 2020, arXiv 2006.04388.

    Args:
        {detection_logits}
        {detection_distances}
        {anchors}
        {anchor_strides}
        {detection_labels}
        {detection_boxes}
        topk: The most anchors a box takes, at least 1.
        topk2: The most anchors it keeps once each anchor has one box only. None: all of them.
        alpha: How much the score of the class matters, at least 0.
        beta: How much the overlap matters, above 0.
        candidate_boxes: What counts as inside each box (B, G, 4), in pixels, such as the box made
            larger where it is so small that no anchor is inside. None: the box.

    Returns:
        The index of every anchor's box (B, A), int64, -1 for background; and its score (B, A),
        float32, or float64 if logits, distances or boxes are, 0 for background.

    {raises}
        IndexError: On CPU, for a label of C or more. On CUDA that is a device-side assertion.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> anchors = torch.tensor([[0.5, 0.5], [1.5, 0.5]])  # two cells of 8 × 8 pixels
        >>> logits = torch.tensor([[[2.0, -1.0]]])
        >>> distances = torch.zeros(1, 8, 2)  # of two bins: every side is half a cell away
        >>> F.task_aligned_assignment(
        ...     logits, distances, anchors, torch.tensor([8, 8]),
        ...     torch.tensor([[0]]), torch.tensor([[[0.0, 0.0, 9.0, 8.0]]]),
        ... )
        (tensor([[ 0, -1]]), tensor([[0.8871, 0.0000]]))
    """
    function = "task_aligned_assignment"
    check_number(function, "topk", topk, "at least 1")
    check_number(function, "topk2", topk2, "at least 1 or None")
    check_number(function, "alpha", alpha, "at least 0 and finite")
    check_number(function, "beta", beta, "above 0 and finite")
    return _ops.task_aligned_assignment(
        (logits, distances, anchors, strides, target_labels, target_boxes),
        topk,
        topk2,
        alpha,
        beta,
        candidate_boxes,
    )


@documented
def task_aligned_detection_loss(
    logits: Tensor,
    distances: Tensor,
    anchors: Tensor,
    strides: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    target_indices: Tensor,
    target_scores: Tensor,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Losses of a dense detector: boxes, classes and distances, from a sparse assignment.

    Over the anchors that have a box, with their scores s: Σ s (1 - CIoU) of the predicted box;
    binary cross-entropy of all logits, whose targets are s at the class of the box and 0 elsewhere;
    and Σ s DFL, the distribution focal loss of the four distances, averaged over the sides. Each is
    divided by max(Σ s, 1).

    The targets of the logits are never a tensor; boxes are decoded at anchors that have one only;
    the gradients of logits and distances are written once, where those lie.

    TOOD: Task-aligned One-stage Object Detection, 2021, arXiv 2108.07755; Generalized Focal Loss,
    2020, arXiv 2006.04388; CIoU: Distance-IoU Loss, 2020, arXiv 1911.08287.

    Args:
        {detection_logits}
        {detection_distances}
        {anchors}
        {anchor_strides}
        {detection_labels}
        {detection_boxes}
        target_indices: Index in [0, G) of every anchor's box (B, A), of any integer dtype; negative
            for background. :func:`task_aligned_assignment` gives them.
        target_scores: Score of every anchor (B, A), in [0, 1]. That of background does not count.
        weight: Factor of every class (C,) of the cross-entropy. The sum of scores has none.

    Returns:
        The losses of boxes, classes and distances (3,), float32, or float64 if logits, distances,
        boxes or scores are. Without any box, those of boxes and distances are 0.

    {raises}
        IndexError: On CPU, for an index of G or more, or the label of its box of C or more. On CUDA
            that is a device-side assertion.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> anchors = torch.tensor([[0.5, 0.5], [1.5, 0.5]])  # two cells of 8 × 8 pixels
        >>> logits = torch.tensor([[[2.0, -1.0]]], requires_grad=True)
        >>> distances = torch.zeros(1, 8, 2)  # of two bins: every side is half a cell away
        >>> detections = (
        ...     logits, distances, anchors, torch.tensor([8, 8]),
        ...     torch.tensor([[0]]), torch.tensor([[[0.0, 0.0, 9.0, 8.0]]]),
        ... )
        >>> F.task_aligned_detection_loss(*detections, *F.task_aligned_assignment(*detections))
        tensor([0.1001, 0.6659, 0.6149], grad_fn=<...>)
    """
    return _ops.task_aligned_detection_loss(
        (logits, distances, anchors, strides, target_labels, target_boxes),
        target_indices,
        target_scores,
        weight,
    )
