# SPDX-License-Identifier: MIT
"""Segmentation losses as modules."""

from __future__ import annotations

from torch import Tensor, distributed

from .. import functional
from ._base import Loss

__all__ = [
    "DiceCrossEntropyLoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "LovaszSoftmaxLoss",
    "TverskyLoss",
]


class _SegmentationLoss(Loss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, C, *spatial) against labels (B, *spatial) or dense targets."""
        return self.function(input, target, **self.options())


class _WeightedSegmentationLoss(_SegmentationLoss):
    """``weight`` is a buffer, so that it follows the module to a device."""

    weight: Tensor | None

    def __init__(self, weight: Tensor | None, **options: object) -> None:
        super().__init__(buffers={"weight": weight}, **options)


class DiceLoss(_WeightedSegmentationLoss):
    """Dice loss: :func:`fastloss.functional.dice_loss`."""

    function = staticmethod(functional.dice_loss)

    def __init__(
        self,
        *,
        activation: str | None = "softmax",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        squared_pred: bool = False,
        jaccard: bool = False,
        include_background: bool = True,
        batch: bool = False,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            weight,
            activation=activation,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            squared_pred=squared_pred,
            jaccard=jaccard,
            include_background=include_background,
            batch=batch,
            ignore_index=ignore_index,
            reduction=reduction,
            process_group=process_group,
        )


class TverskyLoss(_WeightedSegmentationLoss):
    """Tversky loss: :func:`fastloss.functional.tversky_loss`."""

    function = staticmethod(functional.tversky_loss)

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        activation: str | None = "softmax",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        include_background: bool = True,
        batch: bool = False,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weight,
            alpha=alpha,
            beta=beta,
            activation=activation,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            include_background=include_background,
            batch=batch,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class FocalTverskyLoss(_WeightedSegmentationLoss):
    """Focal Tversky loss: :func:`fastloss.functional.focal_tversky_loss`."""

    function = staticmethod(functional.focal_tversky_loss)

    def __init__(
        self,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        activation: str | None = "softmax",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        include_background: bool = True,
        batch: bool = False,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weight,
            alpha=alpha,
            beta=beta,
            gamma=gamma,
            activation=activation,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            include_background=include_background,
            batch=batch,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class GeneralizedDiceLoss(_SegmentationLoss):
    """Generalised Dice loss: :func:`fastloss.functional.generalized_dice_loss`."""

    function = staticmethod(functional.generalized_dice_loss)

    def __init__(
        self,
        *,
        w_type: str = "square",
        activation: str | None = "softmax",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        include_background: bool = True,
        batch: bool = False,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            w_type=w_type,
            activation=activation,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            include_background=include_background,
            batch=batch,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class DiceCrossEntropyLoss(_WeightedSegmentationLoss):
    """Dice and cross-entropy: :func:`fastloss.functional.dice_cross_entropy_loss`."""

    function = staticmethod(functional.dice_cross_entropy_loss)

    def __init__(
        self,
        *,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        activation: str = "softmax",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        squared_pred: bool = False,
        jaccard: bool = False,
        include_background: bool = True,
        batch: bool = False,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weight,
            lambda_dice=lambda_dice,
            lambda_ce=lambda_ce,
            label_smoothing=label_smoothing,
            activation=activation,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            squared_pred=squared_pred,
            jaccard=jaccard,
            include_background=include_background,
            batch=batch,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class DiceFocalLoss(_WeightedSegmentationLoss):
    """Dice and focal loss: :func:`fastloss.functional.dice_focal_loss`."""

    function = staticmethod(functional.dice_focal_loss)

    def __init__(
        self,
        *,
        alpha: float = -1.0,
        gamma: float = 2.0,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        activation: str | None = "softmax",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        squared_pred: bool = False,
        jaccard: bool = False,
        include_background: bool = True,
        batch: bool = False,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weight,
            alpha=alpha,
            gamma=gamma,
            lambda_dice=lambda_dice,
            lambda_focal=lambda_focal,
            activation=activation,
            smooth_nr=smooth_nr,
            smooth_dr=smooth_dr,
            squared_pred=squared_pred,
            jaccard=jaccard,
            include_background=include_background,
            batch=batch,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class LovaszSoftmaxLoss(_SegmentationLoss):
    """Lovász-softmax loss: :func:`fastloss.functional.lovasz_softmax_loss`."""

    function = staticmethod(functional.lovasz_softmax_loss)

    def __init__(
        self,
        *,
        classes: str = "present",
        per_image: bool = False,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            classes=classes,
            per_image=per_image,
            ignore_index=ignore_index,
            reduction=reduction,
        )
