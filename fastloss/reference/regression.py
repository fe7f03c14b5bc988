# SPDX-License-Identifier: MIT
"""Regression losses in plain PyTorch: the formulas, one operation after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from ._reduce import promote, reduce_loss

__all__ = ["huber_loss", "l1_loss", "mse_loss", "smooth_l1_loss"]


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
