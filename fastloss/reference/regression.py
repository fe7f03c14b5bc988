# SPDX-License-Identifier: MIT
"""Regression losses in plain PyTorch: the formulas, one operation after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ._reduce import promote, reduce_loss, root

__all__ = [
    "huber_loss",
    "l1_loss",
    "log_cosh_loss",
    "mse_loss",
    "quantile_loss",
    "rmse_loss",
    "smooth_l1_loss",
]


def _difference(input: Tensor, target: Tensor) -> Tensor:
    input, target = promote(input, target)
    return input - target


def mse_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``(x - t)²``."""
    return reduce_loss(_difference(input, target).square(), weight, reduction, avg_factor)


def l1_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``|x - t|``."""
    return reduce_loss(_difference(input, target).abs(), weight, reduction, avg_factor)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    beta: float = 1.0,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``d² / 2β`` where ``|d| < β``, else ``|d| - β / 2``, with d = x - t."""
    difference = _difference(input, target)
    distance = difference.abs()
    loss = distance - beta / 2
    if beta > 0:  # β = 0 is the L1 loss
        loss = torch.where(distance < beta, difference.square() / (2 * beta), loss)
    return reduce_loss(loss, weight, reduction, avg_factor)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``d² / 2`` where ``|d| <= δ``, else ``δ (|d| - δ / 2)``, with d = x - t."""
    difference = _difference(input, target)
    distance = difference.abs()
    quadratic = difference.square() / 2
    loss = torch.where(distance <= delta, quadratic, delta * (distance - delta / 2))
    return reduce_loss(loss, weight, reduction, avg_factor)


def rmse_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    eps: float = 0.0,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``√(reduced (x - t)² + eps)``."""
    squares = mse_loss(input, target, reduction, weight=weight, avg_factor=avg_factor)
    return root(squares + eps)


def log_cosh_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``ln cosh(x - t)``."""
    difference = _difference(input, target)
    distance = difference.abs()
    near = distance < 1
    slope = torch.tanh(torch.where(near, difference, 0.0))
    loss = torch.where(
        near,
        -torch.log1p(-slope.square()) / 2,
        distance + softplus(-2 * distance) - math.log(2),
    )
    return reduce_loss(loss, weight, reduction, avg_factor)


def quantile_loss(
    input: Tensor,
    target: Tensor,
    quantiles: float | Sequence[float] | Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``max(q (t - x), (q - 1) (t - x))``."""
    if target.dim() < input.dim():  # one target for all quantiles
        target = target.unsqueeze(-1)
    below = -_difference(input, target)
    levels = torch.as_tensor(quantiles, dtype=below.dtype, device=below.device)
    loss = torch.maximum(levels * below, (levels - 1) * below)
    return reduce_loss(loss, weight, reduction, avg_factor)
