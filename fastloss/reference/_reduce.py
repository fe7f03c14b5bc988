# SPDX-License-Identifier: MIT
"""What every reference shares: compute dtype, safe power and root, reduction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["power", "promote", "reduce_both", "reduce_loss", "root", "safe_reciprocal"]


class _FromHalf(torch.autograd.Function):
    """float16 to another dtype, with a gradient that saturates instead of becoming infinite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed again."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        largest = torch.finfo(torch.float16).max
        return gradient.clamp(-largest, largest).to(torch.float16), None


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Brings the tensors to the compute dtype: float64 if one of them is, else float32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if double else torch.float32
    return tuple(
        _FromHalf.apply(tensor, dtype) if tensor.dtype == torch.float16 else tensor.to(dtype)
        for tensor in tensors
    )


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` with the base held at the smallest normal number or above.

    Exponents below 1 have an infinite derivative at 0; here it is 0 below that number.
    """
    tiny = torch.finfo(base.dtype).tiny
    small = base < tiny
    # float(): under torch.compile an int may be symbolic, and pow has no derivative for that.
    return torch.where(small, tiny**exponent, torch.where(small, 1.0, base).pow(float(exponent)))


def root(value: Tensor) -> Tensor:
    """The square root, with a derivative of 0 at 0 instead of infinity."""
    positive = value > 0
    # value * 0: NaN stays NaN.
    return torch.where(positive, torch.where(positive, value, 1.0).sqrt(), value * 0.0)


def safe_reciprocal(value: Tensor) -> Tensor:
    """``1 / value``, and 0 where the value is 0."""
    zero = value == 0
    return torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, value))


def reduce_loss(
    loss: Tensor,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | float | None,
    *,
    weighted_mean: bool = True,
    counted: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Tensor:
    """Weights and reduces the loss of every element.

    Args:
        loss: Loss of every element, any shape.
        weight: Factor of every element, broadcastable to ``loss``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        avg_factor: Number or 0-d tensor that ``"mean"`` divides by. None: what the mean counts.
        weighted_mean: Whether ``"mean"`` divides by the sum of the weights instead of their number.
        counted: Boolean, broadcastable to ``loss``: the elements that ``"mean"`` counts. None: all.
        divisor: 0-d tensor that ``"mean"`` divides by, in place of what it would count.

    Returns:
        The loss, reduced. A mean over nothing (or over weights that add up to 0) is 0.

    Raises:
        ValueError: For an unknown reduction, or for ``avg_factor`` without ``"mean"``.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if avg_factor is not None and reduction != "mean":
        raise ValueError(f"avg_factor needs reduction='mean', got reduction={reduction!r}")
    if weight is not None:
        weight = weight.to(loss.dtype)
        loss = loss * weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if avg_factor is not None:
        divisor = torch.as_tensor(avg_factor, dtype=loss.dtype, device=loss.device)
    elif divisor is not None:
        divisor = divisor.to(loss.dtype)
    elif weight is not None and weighted_mean:
        share = weight if counted is None else weight * counted
        divisor = share.expand_as(loss).sum()
    elif counted is not None:
        divisor = counted.expand_as(loss).sum(dtype=loss.dtype)
    else:
        return loss.sum() / max(loss.numel(), 1)
    return loss.sum() * safe_reciprocal(divisor)


def reduce_both(first: Tensor, second: Tensor, reduction: str) -> Tensor:
    """The sum of two losses, each reduced by itself: their shapes may differ."""
    return reduce_loss(first, None, reduction, None) + reduce_loss(second, None, reduction, None)
