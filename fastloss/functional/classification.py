# SPDX-License-Identifier: MIT
"""Classification losses."""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from ._shared import documented, option_error

__all__ = ["binary_cross_entropy_with_logits", "sigmoid_focal_loss"]


@documented
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Sigmoid cross-entropy, or log loss: torch's function of this name in one pass.

    -(p t ln σ(x) + (1 - t) ln σ(-x)), with p the positive weight. Unlike torch's, the mean over no
    elements is 0.

    Args:
        input: Logits x, any shape, any floating dtype, any strides.
        target: Probabilities t in [0, 1], of the same shape.
        weight: Factor of every element, broadcastable to the input. The mean still divides by the
            number of elements, as torch's does.
        {reduction}
        pos_weight: Factor p of the positive part, broadcastable to the input.
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> F.binary_cross_entropy_with_logits(logits, target)
        tensor(0.3657)
    """
    return _ops.pointwise(
        "binary_cross_entropy_with_logits",
        input,
        target,
        weight=weight,
        pos_weight=pos_weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
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
    """Focal loss on logits: sigmoid cross-entropy that turns away from what is easy.

    -α_t (1 - p_t)^γ ln p_t, with p = σ(x), p_t = p t + (1 - p) (1 - t) and
    α_t = α t + (1 - α) (1 - t). torchvision's values. Class indices as targets spare the one-hot
    tensor.

    Focal Loss for Dense Object Detection, 2017, arXiv 1708.02002.

    Args:
        inputs: Logits x, any shape, any floating dtype, any strides.
        targets: Either probabilities t of the shape of the inputs; or, for inputs (..., C), integer
            class indices (...,): C is background (a row of zeros), a negative index marks a row
            that is ignored: no loss, no gradient, not counted by the mean.
        alpha: α in [0, 1], the balance of positives and negatives, or -1 for none.
        gamma: γ, at least 0. 0 is the plain cross-entropy.
        {reduction}
        weight: Factor of every element, broadcastable to the inputs. The mean divides by its sum.
        {avg_factor}

    {element_returns}

    {raises}
        IndexError: On CPU, for a class index above C.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> F.sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), reduction="sum")
        tensor(0.3006)
        >>> F.sigmoid_focal_loss(logits, torch.tensor([0, 2]), reduction="sum")
        tensor(0.3006)
    """
    if not (0 <= alpha <= 1 or alpha == -1):
        raise option_error("sigmoid_focal_loss", "alpha", "in [0, 1] or -1", alpha)
    if not gamma >= 0:
        raise option_error("sigmoid_focal_loss", "gamma", "at least 0", gamma)
    return _ops.pointwise(
        "sigmoid_focal_loss",
        inputs,
        targets,
        (alpha, gamma),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )
