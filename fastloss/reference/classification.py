# SPDX-License-Identifier: MIT
"""Classification losses in plain PyTorch: the formulas, one operation after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._reduce import power, promote, reduce_loss

__all__ = ["binary_cross_entropy_with_logits", "sigmoid_focal_loss"]


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-(pos_weight t ln σ(x) + (1 - t) ln σ(-x))``."""
    input, target = promote(input, target)
    positive = target if pos_weight is None else pos_weight.to(input.dtype) * target
    loss = -(positive * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    return reduce_loss(loss, weight, reduction, avg_factor, weighted_mean=False)


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-α_t (1 - p_t)^γ ln p_t``."""
    counted = None
    if targets.shape == inputs.shape:
        inputs, targets = promote(inputs, targets)
    else:
        (inputs,) = promote(inputs)
        labels = targets.unsqueeze(-1)
        counted = labels >= 0
        # Ignored rows leave the graph here, whatever their logits are.
        inputs = torch.where(counted, inputs, 0.0)
        classes = torch.arange(inputs.shape[-1], device=inputs.device)
        targets = (labels == classes).to(inputs.dtype)
    # 1 - σ(x) is taken as σ(-x): no digit is lost at large logits.
    cross_entropy = -(targets * logsigmoid(inputs) + (1 - targets) * logsigmoid(-inputs))
    miss = torch.sigmoid(inputs) * (1 - targets) + torch.sigmoid(-inputs) * targets  # 1 - p_t
    loss = cross_entropy * power(miss, gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    if counted is not None:
        loss = torch.where(counted, loss, 0.0)
    return reduce_loss(loss, weight, reduction, avg_factor, counted=counted)
