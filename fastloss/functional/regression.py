# SPDX-License-Identifier: MIT
"""Regression losses.

Which one? The mean is wanted and outliers are few: MSE, or RMSE in the unit of the targets. The
median, whatever the outliers: L1. Between the two: Huber and smooth L1, which are the same up to a
factor, or log-cosh, which has second derivatives. A quantile, or an interval of forecasts:
quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _ops
from ..reference._reduce import root
from ._shared import check_number, documented, option_error

__all__ = [
    "huber_loss",
    "l1_loss",
    "log_cosh_loss",
    "mse_loss",
    "quantile_loss",
    "rmse_loss",
    "smooth_l1_loss",
]


@documented
def mse_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Squared error: (x - t)². torch's values; the mean over no elements is 0.

    Args:
        {input}
        {target}
        {reduction}
        {element_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.mse_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 1.0]))
        tensor(3.0833)
    """
    return _ops.pointwise(
        "mse_loss",
        input,
        target,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def l1_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Absolute error: |x - t|, with a gradient of 0 where x = t. torch's values.

    Args:
        {input}
        {target}
        {reduction}
        {element_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.l1_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 1.0]))
        tensor(1.1667)
    """
    return _ops.pointwise(
        "l1_loss",
        input,
        target,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    beta: float = 1.0,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Smooth L1 loss: quadratic near the target, linear with slope 1 farther away.

    d² / 2β where |d| < β, else |d| - β / 2, with d = x - t. torch's values; unlike torch's function
    it takes a weight.

    Fast R-CNN, 2015, arXiv 1504.08083.

    Args:
        {input}
        {target}
        {reduction}
        beta: β, where the two parts meet, at least 0. 0 is the L1 loss.
        {element_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.smooth_l1_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 1.0]))
        tensor(0.8750)
    """
    check_number("smooth_l1_loss", "beta", beta, "at least 0")
    return _ops.pointwise(
        "smooth_l1_loss",
        input,
        target,
        (beta,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Huber loss: quadratic near the target, linear with slope δ farther away.

    d² / 2 where |d| <= δ, else δ (|d| - δ / 2), with d = x - t. torch's values; unlike torch's, the
    weighted mean divides by the sum of the weights.

    Robust Estimation of a Location Parameter, 1964.

    Args:
        {input}
        {target}
        {reduction}
        delta: δ, where the two parts meet, above 0.
        {element_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.huber_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 1.0]))
        tensor(0.8750)
    """
    check_number("huber_loss", "delta", delta, "above 0")
    return _ops.pointwise(
        "huber_loss",
        input,
        target,
        (delta,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def rmse_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    eps: float = 0.0,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Root of the squared error: an error in the unit of the targets.

    √(s + ε), with s the squared error (x - t)², reduced first: ``"mean"`` gives the root of the
    mean, ``"sum"`` the root of the sum (the distance of two vectors), ``"none"`` the root of each
    element's own square. Where all errors are 0 the gradient is 0, unlike that of
    ``torch.sqrt(mse_loss(...))``, which is NaN.

    Args:
        {input}
        {target}
        reduction: How the squared error is reduced: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: ε, added under the root, at least 0. Above 0 it makes the loss smooth.
        {element_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.rmse_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 1.0]))
        tensor(1.7559)
    """
    check_number("rmse_loss", "eps", eps, "at least 0")
    squares = _ops.pointwise(
        "rmse_loss:mse_loss",
        input,
        target,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )
    return root(squares + eps)


@documented
def log_cosh_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Log-cosh loss: quadratic near the target, linear farther away, smooth everywhere.

    ln cosh(x - t), with the gradient tanh(x - t): like the Huber loss, but twice differentiable.

    Args:
        {input}
        {target}
        {reduction}
        {element_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.log_cosh_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 1.0]))
        tensor(0.8098)
    """
    return _ops.pointwise(
        "log_cosh_loss",
        input,
        target,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def quantile_loss(
    input: Tensor,
    target: Tensor,
    quantiles: float | Sequence[float] | Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Quantile or pinball loss: its minimum is a quantile of the targets, not their mean.

    max(q (t - x), (q - 1) (t - x)): a prediction that is too small costs q per unit, one that is
    too large 1 - q. With q = 0.5 it is half the absolute error.

    Regression Quantiles, 1978.

    Args:
        input: Predictions x, any floating dtype, any strides: any shape for one quantile, (..., Q)
            for Q of them.
        target: Targets t of the shape of the input, or (...,): the same for all quantiles. The
            dtype may be another one.
        quantiles: q in [0, 1]; or Q of them, one for each place in the input's last dimension, as
            numbers or as a tensor (Q,). The values of a tensor, which may be () too, are not
            checked. On a GPU a tensor spares a small copy per call, and CUDA graphs need one.
        {reduction}
        {broadcast_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> forecasts = torch.tensor([[1.0, 2.0, 4.0], [2.0, 3.0, 3.5]])
        >>> F.quantile_loss(forecasts, torch.tensor([2.5, 2.5]), (0.1, 0.5, 0.9))
        tensor(0.1583)
    """
    levels, parameter = None, math.nan
    if isinstance(quantiles, (Sequence, Tensor)) and not isinstance(quantiles, str):
        if isinstance(input, Tensor) and isinstance(target, Tensor):
            levels = _levels(input, target, quantiles)
            if input.dim() > 0 and target.shape == input.shape[:-1]:
                target = target.unsqueeze(-1).expand_as(input)
    else:
        check_number("quantile_loss", "quantiles", quantiles, "in [0, 1]")
        parameter = float(quantiles)
    return _ops.pointwise(
        "quantile_loss",
        input,
        target,
        (parameter,),
        extra=levels,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


def _levels(input: Tensor, target: Tensor, quantiles: Sequence[float] | Tensor) -> Tensor:
    """The quantiles as a tensor on the input's device, one for each place in its last dimension."""
    shape = tuple(quantiles.shape) if isinstance(quantiles, Tensor) else (len(quantiles),)
    if shape != () and shape != tuple(input.shape[-1:]):
        expected = f"one for each place in the last dimension of input, {tuple(input.shape)}"
        raise option_error("quantile_loss", "quantiles", expected, quantiles)
    if isinstance(quantiles, Tensor):
        return quantiles
    for number in quantiles:
        check_number("quantile_loss", "quantiles", number, "in [0, 1]")
    double = torch.float64 in (input.dtype, target.dtype)
    levels = torch.tensor(quantiles, dtype=torch.float64 if double else torch.float32)
    return levels.to(input.device, non_blocking=True)  # not waited for
