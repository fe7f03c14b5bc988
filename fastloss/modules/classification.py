# SPDX-License-Identifier: MIT
"""Classification losses as modules."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ._base import Loss

__all__ = ["BCEWithLogitsLoss", "SigmoidFocalLoss"]


class BCEWithLogitsLoss(Loss):
    """Sigmoid cross-entropy: :func:`fastloss.functional.binary_cross_entropy_with_logits`.

    ``weight`` and ``pos_weight`` are buffers, as torch's module of this name has them.
    """

    function = staticmethod(functional.binary_cross_entropy_with_logits)
    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(
        self, input: Tensor, target: Tensor, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """The loss of logits against probabilities of the same shape."""
        return self.function(
            input,
            target,
            weight=self.weight,
            pos_weight=self.pos_weight,
            avg_factor=avg_factor,
            **self.options(),
        )


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
