# SPDX-License-Identifier: MIT
"""MMYOLO: ``IoULoss`` of ``mmyolo.models.losses``, with its CIoU, GIoU and SIoU.

It gets another ``forward``, with its box formats, weights, ``reduction_override``, ``avg_factor``
and, where asked for, the overlaps it returns beside the loss. What it imports of MMDetection,
``fastloss.patch("mmdet")`` exchanges. Half-precision boxes and further dimensions stay its own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastloss import functional

from ._adapters import REDUCTIONS, are_plain, corners, has_kernels, unless_refused
from .patching import Framework, Function, Replacement

_KERNELS = {
    "ciou": functional.complete_box_iou_loss,
    "giou": functional.generalized_box_iou_loss,
    "siou": functional.scylla_box_iou_loss,
}


def _iou_loss(original: Function) -> Function:
    reduce = original.__globals__["weight_reduce_loss"]

    @functools.wraps(original)
    def forward(
        self: Any,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Any = None,
        reduction_override: str | None = None,
    ) -> Any:
        reduction = reduction_override or self.reduction
        losses = None
        if (
            are_plain(pred, target)
            and has_kernels(pred)
            and pred.dim() == 2
            and pred.shape[1] == 4
            and torch.promote_types(pred.dtype, target.dtype) in (torch.float32, torch.float64)
            and reduction in REDUCTIONS
            # It returns a 0 of another kind where no weight is above 0.
            and (weight is None or bool((weight > 0).any()))
        ):
            boxes = (
                (corners(pred), corners(target)) if self.bbox_format == "xywh" else (pred, target)
            )
            losses = unless_refused(_KERNELS[self.iou_mode], *boxes, reduction="none", eps=self.eps)
        if losses is None:
            return original(self, pred, target, weight, avg_factor, reduction_override)
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(-1)
        loss = self.loss_weight * reduce(losses, weight, reduction, avg_factor)
        return (loss, 1 - losses) if self.return_iou else loss

    return forward


MMYOLO = Framework(
    name="mmyolo",
    oldest=(0, 6),
    newest=(0, 6),
    replacements=(Replacement("mmyolo.models.losses.iou_loss", "IoULoss.forward", _iou_loss),),
)
