# SPDX-License-Identifier: MIT
"""Losses of dense detectors as modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import functional

__all__ = ["TaskAlignedDetectionLoss"]


class TaskAlignedDetectionLoss(nn.Module):
    """Losses of a dense detector: :func:`fastloss.functional.task_aligned_detection_loss`.

    The module assigns boxes to anchors first, by
    :func:`fastloss.functional.task_aligned_assignment`, whose options it takes. It gives the losses
    of boxes, classes and distances (3,); their gains, and their sum, are yours.

    Args:
        topk: The most anchors a box takes.
        topk2: The most anchors it keeps once each anchor has one box only. None: all of them.
        alpha: How much the score of the class matters.
        beta: How much the overlap matters.
        weight: Factor of every class (C,) of the cross-entropy.

    Example:
        >>> import torch
        >>> import fastloss
        >>> criterion = fastloss.TaskAlignedDetectionLoss(topk=1)
        >>> anchors = torch.tensor([[0.5, 0.5], [1.5, 0.5]])
        >>> criterion(
        ...     torch.zeros(1, 1, 2), torch.zeros(1, 8, 2), anchors, torch.tensor([8, 8]),
        ...     torch.tensor([[0]]), torch.tensor([[[0.0, 0.0, 16.0, 8.0]]]),
        ... )
        tensor([...])
    """

    function = staticmethod(functional.task_aligned_detection_loss)
    weight: Tensor | None

    def __init__(
        self,
        topk: int = 10,
        topk2: int | None = None,
        alpha: float = 0.5,
        beta: float = 6.0,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.topk = topk
        self.topk2 = topk2
        self.alpha = alpha
        self.beta = beta
        self.register_buffer("weight", weight)

    def forward(
        self,
        logits: Tensor,
        distances: Tensor,
        anchors: Tensor,
        strides: Tensor,
        target_labels: Tensor,
        target_boxes: Tensor,
        candidate_boxes: Tensor | None = None,
    ) -> Tensor:
        """The losses of boxes, classes and distances, after the assignment."""
        detections = (logits, distances, anchors, strides, target_labels, target_boxes)
        assigned = functional.task_aligned_assignment(
            *detections, **self._assignment(), candidate_boxes=candidate_boxes
        )
        return self.function(*detections, *assigned, weight=self.weight)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._assignment().items())

    def _assignment(self) -> dict[str, Any]:
        names = ("topk", "topk2", "alpha", "beta")
        return {name: getattr(self, name) for name in names}
