# SPDX-License-Identifier: MIT
"""Classification losses as modules."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from .. import functional
from ._base import ElementLoss, Loss

__all__ = [
    "AsymmetricLoss",
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrammerSingerLoss",
    "CrossEntropyLoss",
    "HingeLoss",
    "LinearCrossEntropyLoss",
    "MultiMarginLoss",
    "NLLLoss",
    "PolyCrossEntropy",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
]


class _BinaryCrossEntropy(Loss):
    """Cross-entropy of every element; its weights are buffers, as torch's modules have them."""

    weight: Tensor | None

    def forward(
        self, input: Tensor, target: Tensor, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """The loss of the input against probabilities of the same shape."""
        return self.function(input, target, avg_factor=avg_factor, **self.options())


class BCELoss(_BinaryCrossEntropy):
    """Cross-entropy of probabilities: :func:`fastloss.functional.binary_cross_entropy`.

    ``weight`` is a buffer, as torch's module of this name has it.
    """

    function = staticmethod(functional.binary_cross_entropy)

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction, buffers={"weight": weight})


class BCEWithLogitsLoss(_BinaryCrossEntropy):
    """Sigmoid cross-entropy: :func:`fastloss.functional.binary_cross_entropy_with_logits`.

    ``weight`` and ``pos_weight`` are buffers, as torch's module of this name has them.
    """

    function = staticmethod(functional.binary_cross_entropy_with_logits)
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction=reduction, buffers={"weight": weight, "pos_weight": pos_weight})


class SigmoidFocalLoss(Loss):
    """Focal loss on logits: :func:`fastloss.functional.sigmoid_focal_loss`."""

    function = staticmethod(functional.sigmoid_focal_loss)
    alpha: float
    gamma: float

    def __init__(self, alpha: float = 0.25, gamma: float = 2, reduction: str = "mean") -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of logits against probabilities, or of logits (..., C) against class indices."""
        return self.function(
            inputs, targets, weight=weight, avg_factor=avg_factor, **self.options()
        )


class HingeLoss(ElementLoss):
    """Hinge loss: :func:`fastloss.functional.hinge_loss`."""

    function = staticmethod(functional.hinge_loss)
    margin: float
    squared: bool

    def __init__(self, margin: float = 1.0, squared: bool = False, reduction: str = "mean") -> None:
        super().__init__(margin=margin, squared=squared, reduction=reduction)


class QualityFocalLoss(ElementLoss):
    """Quality focal loss: :func:`fastloss.functional.quality_focal_loss`."""

    function = staticmethod(functional.quality_focal_loss)
    beta: float

    def __init__(self, beta: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(beta=beta, reduction=reduction)


class VarifocalLoss(ElementLoss):
    """Varifocal loss: :func:`fastloss.functional.varifocal_loss`."""

    function = staticmethod(functional.varifocal_loss)
    alpha: float
    gamma: float

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(alpha=alpha, gamma=gamma, reduction=reduction)


class AsymmetricLoss(ElementLoss):
    """Asymmetric loss for many labels: :func:`fastloss.functional.asymmetric_loss`."""

    function = staticmethod(functional.asymmetric_loss)
    gamma_neg: float
    gamma_pos: float
    clip: float
    detach_focusing: bool

    def __init__(
        self,
        gamma_neg: float = 4,
        gamma_pos: float = 1,
        clip: float = 0.05,
        detach_focusing: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            gamma_neg=gamma_neg,
            gamma_pos=gamma_pos,
            clip=clip,
            detach_focusing=detach_focusing,
            reduction=reduction,
        )


class _RowLoss(Loss):
    """A loss of every row of logits against its label. Weights per class are buffers."""

    def forward(
        self, input: Tensor, target: Tensor, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """The loss of logits (N, C), (C,) or (N, C, d1, ...) against their labels."""
        return self.function(input, target, avg_factor=avg_factor, **self.options())


class CrossEntropyLoss(_RowLoss):
    """Softmax cross-entropy: :func:`fastloss.functional.cross_entropy`."""

    function = staticmethod(functional.cross_entropy)
    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
            process_group=process_group,
            buffers={"weight": weight},
        )


class LinearCrossEntropyLoss(Loss):
    """A linear layer and its cross-entropy: :func:`fastloss.functional.linear_cross_entropy`.

    The layer is ``self.linear``, as in torch's module of this name.
    """

    function = staticmethod(functional.linear_cross_entropy)
    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__(
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            logit_softcap=logit_softcap,
            buffers={"weight": weight},
        )
        self.linear = nn.Linear(in_features, num_classes, bias, device, dtype)

    def forward(
        self, input: Tensor, target: Tensor, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """The loss of features (..., in_features) against class indices or probabilities."""
        return self.function(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            avg_factor=avg_factor,
            **self.options(),
        )


class NLLLoss(_RowLoss):
    """Negative log-likelihood: :func:`fastloss.functional.nll_loss`."""

    function = staticmethod(functional.nll_loss)
    weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction, buffers={"weight": weight})


class SoftmaxFocalLoss(_RowLoss):
    """Focal loss over classes: :func:`fastloss.functional.softmax_focal_loss`."""

    function = staticmethod(functional.softmax_focal_loss)
    alpha: Tensor | float | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Tensor | float | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(gamma=gamma, alpha=alpha, ignore_index=ignore_index, reduction=reduction)


class PolyCrossEntropy(_RowLoss):
    """Poly-1 cross-entropy: :func:`fastloss.functional.poly_cross_entropy`."""

    function = staticmethod(functional.poly_cross_entropy)
    weight: Tensor | None

    def __init__(
        self,
        epsilon: float = 1.0,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            reduction=reduction,
            ignore_index=ignore_index,
            buffers={"weight": weight},
        )


class MultiMarginLoss(_RowLoss):
    """Hinge loss of Weston and Watkins: :func:`fastloss.functional.multi_margin_loss`."""

    function = staticmethod(functional.multi_margin_loss)
    weight: Tensor | None

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(p=p, margin=margin, reduction=reduction, buffers={"weight": weight})


class CrammerSingerLoss(_RowLoss):
    """Hinge loss of Crammer and Singer: :func:`fastloss.functional.crammer_singer_loss`."""

    function = staticmethod(functional.crammer_singer_loss)
    weight: Tensor | None

    def __init__(
        self, margin: float = 1.0, reduction: str = "mean", weight: Tensor | None = None
    ) -> None:
        super().__init__(margin=margin, reduction=reduction, buffers={"weight": weight})
