# SPDX-License-Identifier: MIT
"""fvcore, and detectron2, whose losses these are: GIoU, smooth L1 and the sigmoid focal loss.

``giou_loss``, ``smooth_l1_loss``, ``sigmoid_focal_loss`` and its scripted twin are exchanged in
fvcore and under every name that detectron2 has for them. fvcore computes itself what the kernels do
not take: half-precision boxes and coordinates, float64 logits (its own loss is float32 anyway),
shapes that differ, reductions it does not know, boxes on the CPU that are inside out, which are an
error; on a GPU nobody waits to look for them. ``sigmoid_focal_loss_star`` and detectron2's own
DIoU and CIoU stay.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastloss import functional

from ._adapters import REDUCTIONS, are_plain, has_kernels, unless_refused
from .patching import Framework, Function, Replacement

_WIDE = (torch.float32, torch.float64)


def _fit(first: Tensor, second: Tensor, reduction: Any) -> bool:
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and are_plain(first, second)
        and has_kernels(first)
        and reduction in REDUCTIONS
    )


def _giou_loss(original: Function) -> Function:
    @functools.wraps(original)
    def giou_loss(
        boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
    ) -> Tensor:
        loss = None
        if (
            _fit(boxes1, boxes2, reduction)
            and boxes1.dtype == boxes2.dtype
            and boxes1.dtype in _WIDE
            and not (boxes1.is_cpu and not bool((boxes1[..., 2:] >= boxes1[..., :2]).all()))
        ):
            loss = unless_refused(
                functional.generalized_box_iou_loss, boxes1, boxes2, reduction, eps
            )
        return original(boxes1, boxes2, reduction, eps) if loss is None else loss

    return giou_loss


def _smooth_l1_loss(original: Function) -> Function:
    @functools.wraps(original)
    def smooth_l1_loss(
        input: Tensor, target: Tensor, beta: float, reduction: str = "none"
    ) -> Tensor:
        loss = None
        if _fit(input, target, reduction) and input.dtype == target.dtype and input.dtype in _WIDE:
            if beta < 1e-5:
                loss = unless_refused(functional.l1_loss, input, target, reduction)
            else:
                loss = unless_refused(
                    functional.smooth_l1_loss, input, target, reduction, beta=beta
                )
        return original(input, target, beta, reduction) if loss is None else loss

    return smooth_l1_loss


def _focal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def sigmoid_focal_loss(
        inputs: Tensor,
        targets: Tensor,
        alpha: float = -1,
        gamma: float = 2,
        reduction: str = "none",
    ) -> Tensor:
        loss = None
        if (
            _fit(inputs, targets, reduction)
            and torch.float64 not in (inputs.dtype, targets.dtype)
            and inputs.numel() > 0  # its mean over nothing is NaN
        ):
            of_alpha = alpha if alpha >= 0 else -1
            loss = unless_refused(
                functional.sigmoid_focal_loss, inputs, targets, of_alpha, gamma, reduction
            )
        return original(inputs, targets, alpha, gamma, reduction) if loss is None else loss

    return sigmoid_focal_loss


FVCORE = Framework(
    name="fvcore",
    oldest=(0, 1),
    newest=(0, 1),
    within=("fvcore", "detectron2"),
    replacements=(
        Replacement("fvcore.nn.giou_loss", "giou_loss", _giou_loss),
        Replacement("fvcore.nn.smooth_l1_loss", "smooth_l1_loss", _smooth_l1_loss),
        Replacement("fvcore.nn.focal_loss", "sigmoid_focal_loss", _focal_loss),
        Replacement("fvcore.nn.focal_loss", "sigmoid_focal_loss_jit", _focal_loss),
    ),
)
