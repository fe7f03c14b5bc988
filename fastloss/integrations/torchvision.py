# SPDX-License-Identifier: MIT
"""torchvision: the box losses and the focal loss of ``torchvision.ops``.

Signatures, defaults, reductions, dtypes, errors and empty inputs are torchvision's. Calls that the
kernels do not take run torchvision's own code: shapes that differ, integers, tensor subclasses,
``torch.jit.script`` and ``torch.jit.trace``, a focal loss without focus (gamma 0), a CIoU loss with
an eps of the caller's. What differs from torchvision: losses and gradients are finite where its own
are NaN (boxes of zero area), and half-precision focal losses are computed in float32.
"""

from __future__ import annotations

import functools

from torch import Tensor

from fastloss import functional

from ._adapters import REDUCTIONS, are_plain, autocasts, scripted_as
from .patching import Framework, Function, Replacement

_DEFAULT_EPS = 1e-7


def _box_loss(kernel: Function, *, only_default_eps: bool = False) -> Function:
    """Makes the wrapper of a loss of boxes."""

    def wrap(original: Function) -> Function:
        @functools.wraps(original)
        def stand_in(
            boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = _DEFAULT_EPS
        ) -> Tensor:
            fits = (
                are_plain(boxes1, boxes2)
                and boxes1.dim() > 0
                and boxes1.shape[-1] == 4
                and reduction in REDUCTIONS
                and isinstance(eps, float)
                and (eps == _DEFAULT_EPS or not only_default_eps)
            )
            call = kernel if fits else original
            return call(boxes1, boxes2, reduction, eps)

        return scripted_as(original, stand_in)

    return wrap


def _focal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(
        inputs: Tensor,
        targets: Tensor,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: str = "none",
    ) -> Tensor:
        fits = (
            are_plain(inputs, targets)
            and inputs.numel() > 0  # torchvision's mean over nothing is NaN
            and reduction in REDUCTIONS
            and isinstance(alpha, (float, int))
            and (0 <= alpha <= 1 or alpha == -1)
            and isinstance(gamma, (float, int))
            and gamma > 0  # with 0 it promises not to exceed torch's cross-entropy by one bit
        )
        if not fits:
            return original(inputs, targets, alpha, gamma, reduction)
        loss = functional.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
        if inputs.dtype == targets.dtype != loss.dtype and not autocasts(inputs):
            loss = loss.to(inputs.dtype)  # torchvision computes in half precision, to the end
        return loss

    return scripted_as(original, stand_in)


TORCHVISION = Framework(
    name="torchvision",
    oldest=(0, 25),
    newest=(0, 29),
    replacements=(
        Replacement(
            "torchvision.ops.giou_loss",
            "generalized_box_iou_loss",
            _box_loss(functional.generalized_box_iou_loss),
        ),
        Replacement(
            "torchvision.ops.diou_loss",
            "distance_box_iou_loss",
            _box_loss(functional.distance_box_iou_loss),
        ),
        # torchvision's CIoU uses a caller's eps in one of its three denominators only.
        Replacement(
            "torchvision.ops.ciou_loss",
            "complete_box_iou_loss",
            _box_loss(functional.complete_box_iou_loss, only_default_eps=True),
        ),
        Replacement("torchvision.ops.focal_loss", "sigmoid_focal_loss", _focal_loss),
    ),
)
