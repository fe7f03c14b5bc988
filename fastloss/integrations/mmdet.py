# SPDX-License-Identifier: MIT
"""MMDetection 3: the losses of ``mmdet.models.losses``, for everything its registry builds of them.

``IoULoss``, ``GIoULoss``, ``DIoULoss``, ``CIoULoss``, ``FocalLoss``, ``QualityFocalLoss``,
``VarifocalLoss``, ``DistributionFocalLoss``, ``L1Loss`` and ``SmoothL1Loss`` get another
``forward``, with their own defaults, weights (n,) or (n, 4), ``reduction_override`` and
``avg_factor``. Focal losses take labels as indices: no one-hot tensor is made of them.

They compute themselves what the kernels do not take: half precision throughout, losses of
probabilities, further arguments, and an unreduced loss of boxes with a weight. What differs: where
a union or an enclosing area is below eps, the quotient (IoU and GIoU); losses that are NaN there
(CIoU of a box with itself); on a GPU nobody waits to see whether all weights are 0. ``EIoULoss``
(an extended, not the efficient IoU), ``SIoULoss`` (whose default has the sign of γ the other way)
and ``BoundedIoULoss`` are other formulas than fastloss's, and stay. ``CrossEntropyLoss`` calls
torch's functions, which ``fastloss.patch("torch")`` exchanges.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastloss import functional

from ._adapters import (
    PLAIN,
    REDUCTIONS,
    are_plain,
    in_dtype_of,
    is_served,
    unless_refused,
)
from .patching import Framework, Function, Replacement

# Nothing beside any area that is to be trained on, where theirs is only a lower bound.
_TINY = 1e-16
_EPS = torch.finfo(torch.float32).eps


def _forward(call: Function, *, per_row: bool = False) -> Function:
    """Makes the wrapper of a ``forward``.

    Args:
        call: The loss of a module, a prediction, a target and how to reduce; None where the
            kernels have another formula than the module.
        per_row: Whether the unreduced loss has a number per row, whatever ``pred`` has in it.
    """

    def wrap(original: Function) -> Function:
        @functools.wraps(original)
        def forward(
            self: Any,
            pred: Tensor,
            target: Any,
            weight: Tensor | None = None,
            avg_factor: Any = None,
            reduction_override: str | None = None,
            **more: Any,
        ) -> Tensor:
            loss = None
            if not more and _is_of_kernels(self, pred, weight, avg_factor, reduction_override):
                reduction = reduction_override or self.reduction
                count = len(pred) if per_row else pred.numel()
                fits, factor = _as_factor(weight, pred, per_row)
                if fits and reduction != "none":
                    # The weighted sum over a number of our own: the kernels' mean with a weight
                    # divides by the weight's sum.
                    divisor = 1.0 if reduction == "sum" else count
                    if avg_factor is not None:
                        divisor = avg_factor + _EPS
                    loss = call(
                        self,
                        pred,
                        target,
                        reduction="mean",
                        weight=factor,
                        avg_factor=divisor / self.loss_weight,
                    )
                elif fits and weight is None:
                    loss = call(self, pred, target, reduction="none", weight=None, avg_factor=None)
                    if loss is not None:
                        loss = self.loss_weight * loss
            if loss is None:
                found: Tensor = original(
                    self, pred, target, weight, avg_factor, reduction_override, **more
                )
                return found
            return loss

        return forward

    return wrap


def _is_of_kernels(
    module: Any, pred: Tensor, weight: Tensor | None, avg_factor: Any, override: str | None
) -> bool:
    """Whether the kernels reduce as the module does."""
    reduction = override or module.reduction
    return (
        is_served(pred)
        and pred.numel() > 0  # their mean over nothing is NaN
        and pred.dim() == 2
        and reduction in REDUCTIONS
        and (avg_factor is None or reduction != "sum")  # they have an error for that
        and (
            avg_factor is None
            or isinstance(avg_factor, (int, float))
            or (
                type(avg_factor) is Tensor
                and avg_factor.dim() == 0
                and not avg_factor.requires_grad
                and avg_factor.device == pred.device
            )
        )
        and isinstance(module.loss_weight, (int, float))
        and module.loss_weight > 0
        and (
            weight is None
            or (
                type(weight) in PLAIN
                and not weight.requires_grad
                and weight.is_floating_point()
                and weight.device == pred.device
                # They return a 0 of another kind where no weight is above 0.
                and not (weight.is_cpu and not bool((weight > 0).any()))
            )
        )
    )


def _as_factor(weight: Tensor | None, pred: Tensor, per_row: bool) -> tuple[bool, Tensor | None]:
    """Whether a weight fits, and the weight as the kernels take it."""
    if weight is None:
        return True, None
    if weight.shape == pred.shape[:1]:
        return True, weight if per_row else weight.unsqueeze(1)
    if weight.shape == pred.shape:
        return True, weight.mean(-1) if per_row else weight
    return False, None


def _is_of_elements(weight: Tensor | None, pred: Tensor) -> bool:
    """Whether a weight is one of every element, where theirs takes no other."""
    return weight is None or weight.shape == pred.shape


# -------------------------------------------------------------------------------------------- boxes


def _are_boxes(pred: Tensor, target: Any) -> bool:
    return (
        isinstance(target, Tensor)
        and are_plain(pred, target)
        and pred.shape[1] == 4
        and not target.requires_grad
        and torch.promote_types(pred.dtype, target.dtype) in (torch.float32, torch.float64)
    )


def _box_loss(loss_of: Function) -> Function:
    """Makes the wrapper of a loss of boxes, ``loss_of(module)`` being the function and its eps."""

    def call(module: Any, pred: Tensor, target: Any, **reducing: Any) -> Tensor | None:
        if not _are_boxes(pred, target) or not 0 < module.eps < 1e-3:
            return None
        kernel, options = loss_of(module)
        return unless_refused(kernel, pred, target, **options, **reducing)

    return _forward(call, per_row=True)


_iou_loss = _box_loss(
    lambda module: (
        functional.box_iou_loss,
        # The logarithm's bound is eps itself.
        {"mode": module.mode, "eps": module.eps if module.mode == "log" else _TINY},
    )
)
_giou_loss = _box_loss(lambda module: (functional.generalized_box_iou_loss, {"eps": _TINY}))
_diou_loss = _box_loss(lambda module: (functional.distance_box_iou_loss, {"eps": module.eps}))
_ciou_loss = _box_loss(
    lambda module: (
        functional.complete_box_iou_loss,
        {"eps": module.eps, "aspect_threshold": 0.5},
    )
)


def _elements(loss_of: Function) -> Function:
    """Makes the wrapper of a loss of coordinates."""

    def call(module: Any, pred: Tensor, target: Any, **reducing: Any) -> Tensor | None:
        if not isinstance(target, Tensor) or not are_plain(pred, target) or target.requires_grad:
            return None
        if torch.promote_types(pred.dtype, target.dtype) not in (torch.float32, torch.float64):
            return None
        if not _is_of_elements(reducing["weight"], pred):
            return None
        kernel, options = loss_of(module)
        return unless_refused(kernel, pred, target, **options, **reducing)

    return _forward(call)


_l1_loss = _elements(lambda module: (functional.l1_loss, {}))
_smooth_l1_loss = _elements(lambda module: (functional.smooth_l1_loss, {"beta": module.beta}))


# ------------------------------------------------------------------------------------------- logits


def _focal(module: Any, pred: Tensor, target: Any, **reducing: Any) -> Tensor | None:
    if module.activated or not module.use_sigmoid or not isinstance(target, Tensor):
        return None
    if target.dim() == 1 and target.dtype == torch.int64 and len(target) == len(pred):
        if target.is_cpu:
            if bool((target < 0).any()):
                return None  # an error on the CPU, and background on a GPU
        else:
            target = torch.where(target < 0, pred.shape[1], target)
    elif not are_plain(pred, target) or target.requires_grad:
        return None
    loss = unless_refused(
        functional.sigmoid_focal_loss, pred, target, module.alpha, module.gamma, **reducing
    )
    return None if loss is None else in_dtype_of(pred, loss)


def _varifocal(module: Any, pred: Tensor, target: Any, **reducing: Any) -> Tensor | None:
    if not module.iou_weighted or not isinstance(target, Tensor) or target.requires_grad:
        return None
    if not are_plain(pred, target) or not _is_of_elements(reducing["weight"], pred):
        return None
    loss = unless_refused(
        functional.varifocal_loss, pred, target, module.alpha, module.gamma, **reducing
    )
    return None if loss is None else in_dtype_of(pred, loss)


def _quality_focal(module: Any, pred: Tensor, target: Any, **reducing: Any) -> Tensor | None:
    if module.activated:
        return None
    if isinstance(target, Tensor):
        qualities = target
    else:
        label, score = target
        if not (score.dim() == label.dim() == 1 and len(score) == len(label) == len(pred)):
            return None
        # A column more, for the background.
        background = torch.where((label >= 0) & (label < pred.shape[1]), label, pred.shape[1])
        wide = torch.promote_types(score.dtype, torch.float32)
        qualities = pred.new_zeros(len(pred), pred.shape[1] + 1, dtype=wide)
        qualities.scatter_(1, background.long().unsqueeze(1), score.to(wide).unsqueeze(1))
        qualities = qualities[:, :-1]
    if not are_plain(pred, qualities) or qualities.requires_grad:
        return None
    if reducing["weight"] is not None:
        reducing["weight"] = reducing["weight"].unsqueeze(1)
    loss = unless_refused(functional.quality_focal_loss, pred, qualities, module.beta, **reducing)
    if loss is None:
        return None
    return in_dtype_of(pred, loss if loss.dim() == 0 else loss.sum(1))


def _distribution_focal(module: Any, pred: Tensor, target: Any, **reducing: Any) -> Tensor | None:
    if not (
        isinstance(target, Tensor)
        and type(target) in PLAIN
        and target.is_floating_point()
        and target.shape == pred.shape[:1]
        and not target.requires_grad
        and target.device == pred.device
    ):
        return None
    loss = unless_refused(functional.distribution_focal_loss, pred, target, **reducing)
    return None if loss is None else in_dtype_of(pred, loss)


_FILES = {
    "iou_loss": {
        "IoULoss": _iou_loss,
        "GIoULoss": _giou_loss,
        "DIoULoss": _diou_loss,
        "CIoULoss": _ciou_loss,
    },
    "smooth_l1_loss": {"L1Loss": _l1_loss, "SmoothL1Loss": _smooth_l1_loss},
    "focal_loss": {"FocalLoss": _forward(_focal)},
    "varifocal_loss": {"VarifocalLoss": _forward(_varifocal)},
    "gfocal_loss": {
        "QualityFocalLoss": _forward(_quality_focal, per_row=True),
        "DistributionFocalLoss": _forward(_distribution_focal, per_row=True),
    },
}

MMDET = Framework(
    name="mmdet",
    oldest=(3, 3),
    newest=(3, 3),
    replacements=tuple(
        Replacement(f"mmdet.models.losses.{file}", f"{name}.forward", wrap)
        for file, losses in _FILES.items()
        for name, wrap in losses.items()
    ),
)
