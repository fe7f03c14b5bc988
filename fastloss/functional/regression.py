# SPDX-License-Identifier: MIT
"""Regression losses."""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from ._shared import check_number, documented

__all__ = ["huber_loss", "l1_loss", "mse_loss", "smooth_l1_loss"]


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
