# SPDX-License-Identifier: MIT
"""Regression losses as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import functional
from ._base import ElementLoss

__all__ = [
    "HuberLoss",
    "L1Loss",
    "LogCoshLoss",
    "MSELoss",
    "QuantileLoss",
    "RMSELoss",
    "SmoothL1Loss",
]


class MSELoss(ElementLoss):
    """Squared error: :func:`fastloss.functional.mse_loss`."""

    function = staticmethod(functional.mse_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class L1Loss(ElementLoss):
    """Absolute error: :func:`fastloss.functional.l1_loss`."""

    function = staticmethod(functional.l1_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class SmoothL1Loss(ElementLoss):
    """Smooth L1 loss: :func:`fastloss.functional.smooth_l1_loss`."""

    function = staticmethod(functional.smooth_l1_loss)
    beta: float

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction=reduction, beta=beta)


class HuberLoss(ElementLoss):
    """Huber loss: :func:`fastloss.functional.huber_loss`."""

    function = staticmethod(functional.huber_loss)
    delta: float

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction=reduction, delta=delta)


class RMSELoss(ElementLoss):
    """Root of the squared error: :func:`fastloss.functional.rmse_loss`."""

    function = staticmethod(functional.rmse_loss)
    eps: float

    def __init__(self, reduction: str = "mean", eps: float = 0.0) -> None:
        super().__init__(reduction=reduction, eps=eps)


class LogCoshLoss(ElementLoss):
    """Logarithm of the hyperbolic cosine: :func:`fastloss.functional.log_cosh_loss`."""

    function = staticmethod(functional.log_cosh_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class QuantileLoss(ElementLoss):
    """Quantile loss: :func:`fastloss.functional.quantile_loss`.

    Quantiles given as a tensor are a buffer.
    """

    function = staticmethod(functional.quantile_loss)
    quantiles: float | Sequence[float] | Tensor

    def __init__(
        self, quantiles: float | Sequence[float] | Tensor, reduction: str = "mean"
    ) -> None:
        super().__init__(quantiles=quantiles, reduction=reduction)
