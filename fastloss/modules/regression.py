# SPDX-License-Identifier: MIT
"""Regression losses as modules."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ._base import Loss

__all__ = ["HuberLoss", "L1Loss", "MSELoss", "SmoothL1Loss"]


class _RegressionLoss(Loss):
    """A loss of every element against its target."""

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of the input against the target; both, and ``weight``, have one shape."""
        return self.function(input, target, weight=weight, avg_factor=avg_factor, **self.options())


class MSELoss(_RegressionLoss):
    """Squared error: :func:`fastloss.functional.mse_loss`."""

    function = staticmethod(functional.mse_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class L1Loss(_RegressionLoss):
    """Absolute error: :func:`fastloss.functional.l1_loss`."""

    function = staticmethod(functional.l1_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class SmoothL1Loss(_RegressionLoss):
    """Smooth L1 loss: :func:`fastloss.functional.smooth_l1_loss`."""

    function = staticmethod(functional.smooth_l1_loss)
    beta: float

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction=reduction, beta=beta)


class HuberLoss(_RegressionLoss):
    """Huber loss: :func:`fastloss.functional.huber_loss`."""

    function = staticmethod(functional.huber_loss)
    delta: float

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction=reduction, delta=delta)
