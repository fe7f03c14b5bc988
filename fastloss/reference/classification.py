# SPDX-License-Identifier: MIT
"""Classification losses in plain PyTorch: the formulas, one operation after the other."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn.functional import logsigmoid

from ._reduce import power, promote, reduce_loss
from ._rows import Labels, classes_last, of_all_ranks

__all__ = [
    "asymmetric_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "crammer_singer_loss",
    "cross_entropy",
    "hinge_loss",
    "linear_cross_entropy",
    "multi_margin_loss",
    "nll_loss",
    "poly_cross_entropy",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]


def _cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """Of logits, without cancellation at any of them."""
    return -(target * logsigmoid(input) + (1 - target) * logsigmoid(-input))


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-(t ln x + (1 - t) ln(1 - x))``; nearly certain, with torch's limits."""
    input, target = promote(input, target)
    certain = (1 - input) * input < 1e-12
    inside = torch.where(certain, 0.5, input)
    plain = -(target * torch.log(inside) + (1 - target) * torch.log1p(-inside))
    # The value with logarithms of at least -100, and a parabola through it with torch's slope,
    # (x - t) / 1e-12.
    outside = torch.where(certain, input, 0.5)
    fixed = outside.detach()
    limited = -(
        target * torch.log(fixed).clamp_min(-100)
        + (1 - target) * torch.log1p(-fixed).clamp_min(-100)
    )
    parabola = 1e12 * (outside.square() / 2 - target.detach() * outside)
    loss = torch.where(certain, limited + (parabola - parabola.detach()), plain)
    return reduce_loss(loss, weight, reduction, avg_factor, weighted_mean=False)


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
    cross_entropy = _cross_entropy(inputs, targets)
    miss = torch.sigmoid(inputs) * (1 - targets) + torch.sigmoid(-inputs) * targets  # 1 - p_t
    loss = cross_entropy * power(miss, gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    if counted is not None:
        loss = torch.where(counted, loss, 0.0)
    return reduce_loss(loss, weight, reduction, avg_factor, counted=counted)


def hinge_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    squared: bool = False,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``max(0, margin - t x)``, or its square."""
    input, target = promote(input, target)
    loss = torch.relu(margin - target * input)
    if squared:
        loss = loss.square()
    return reduce_loss(loss, weight, reduction, avg_factor)


def quality_focal_loss(
    input: Tensor,
    target: Tensor,
    beta: float = 2.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-|t - σ(x)|^β (t ln σ(x) + (1 - t) ln σ(-x))``."""
    input, target = promote(input, target)
    # t - σ(x), which keeps its digits for t = 1 too.
    miss = target * torch.sigmoid(-input) - (1 - target) * torch.sigmoid(input)
    loss = _cross_entropy(input, target) * power(miss.abs(), beta)
    return reduce_loss(loss, weight, reduction, avg_factor)


def varifocal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy times ``t`` where ``t > 0``, else times ``α |σ(x) - t|^γ``."""
    input, target = promote(input, target)
    of_negative = alpha * power((torch.sigmoid(input) - target).abs(), gamma)
    loss = torch.where(target > 0, target, of_negative) * _cross_entropy(input, target)
    return reduce_loss(loss, weight, reduction, avg_factor)


def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 1,
    clip: float = 0.05,
    detach_focusing: bool = True,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-(t ln p + (1 - t) ln(1 - p_c)) (1 - p_t)^(γ₊ t + γ₋ (1 - t))``, p_c = max(p - clip, 0)."""
    input, target = promote(input, target)
    probability, complement = torch.sigmoid(input), torch.sigmoid(-input)
    if clip > 0:
        lowered = torch.relu(probability - clip)
        # ln(1 - lowered), each half of the way to 1 by the form that keeps its digits there.
        small = lowered < 0.5
        log_negative = torch.where(
            small, torch.log1p(-torch.where(small, lowered, 0.0)), torch.log(complement + clip)
        )
    else:
        lowered, log_negative = probability, logsigmoid(-input)
    miss = target * complement + (1 - target) * lowered  # 1 - p_t
    exponent = gamma_pos * target + gamma_neg * (1 - target)
    focus = torch.exp(exponent * torch.log(miss.clamp_min(torch.finfo(miss.dtype).tiny)))
    if detach_focusing:
        focus = focus.detach()
    loss = -(target * logsigmoid(input) + (1 - target) * log_negative) * focus
    return reduce_loss(loss, weight, reduction, avg_factor)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    avg_factor: Tensor | float | None = None,
    process_group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """``-w_y ln p_y``, or ``-Σ w_c t_c ln p_c`` for probabilities t."""
    if process_group is not None:
        input = of_all_ranks(input, process_group, min(input.dim() - 1, 1))
    if target.is_floating_point():
        input, target = promote(input, target)
    else:
        (input,) = promote(input)
    class_weight = None if weight is None else weight.to(input.dtype)
    if target.is_floating_point():
        logits, shares = _soft_capped(classes_last(input), logit_softcap), classes_last(target)
        shares = shares * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
        if class_weight is not None:
            shares = shares * class_weight
        loss = -(shares * logits.log_softmax(-1)).sum(-1)
        loss = loss + _z_loss(logits, z_loss)
        return reduce_loss(loss, None, reduction, avg_factor)
    labels = Labels(input, target, class_weight, ignore_index)
    logits = _soft_capped(labels.logits, logit_softcap)
    log_probability = logits.log_softmax(-1)
    loss = -(1 - label_smoothing) * labels.weight * labels.pick(log_probability)
    if label_smoothing:
        spread = log_probability if class_weight is None else log_probability * class_weight
        loss = loss - label_smoothing * spread.mean(-1)
    loss = labels.only(loss + _z_loss(logits, z_loss))
    return reduce_loss(loss, None, reduction, avg_factor, divisor=labels.weight.sum())


def _soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``cross_entropy(input @ linear_weight.T + linear_bias, target)``."""
    logits = torch.nn.functional.linear(input, linear_weight, linear_bias)
    if logits.dim() > 2:  # (..., C): torch's classes would be dimension 1
        logits = logits.movedim(-1, 1)
        target = target.movedim(-1, 1) if target.is_floating_point() else target
    return cross_entropy(
        logits,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        avg_factor=avg_factor,
    )


def _z_loss(logits: Tensor, factor: float) -> Tensor | float:
    return factor * logits.logsumexp(-1).square() if factor else 0.0


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-w_y x_y``, for log-probabilities x."""
    (input,) = promote(input)
    labels = Labels(input, target, weight, ignore_index)
    loss = labels.only(-labels.weight * labels.pick(labels.logits))
    return reduce_loss(loss, None, reduction, avg_factor, divisor=labels.weight.sum())


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-α_y (1 - p_y)^γ ln p_y``."""
    (input,) = promote(input)
    class_weight = alpha if isinstance(alpha, Tensor) else None
    labels = Labels(input, target, class_weight, ignore_index)
    cross_entropy = -labels.pick(labels.logits.log_softmax(-1))
    miss = -torch.expm1(-cross_entropy)
    loss = labels.weight * power(miss, gamma) * cross_entropy
    if alpha is not None and class_weight is None:
        loss = alpha * loss
    return reduce_loss(labels.only(loss), None, reduction, avg_factor, divisor=labels.counts.sum())


def poly_cross_entropy(
    input: Tensor,
    target: Tensor,
    epsilon: float = 1.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``w_y (-ln p_y + ε (1 - p_y))``."""
    (input,) = promote(input)
    labels = Labels(input, target, weight, ignore_index)
    cross_entropy = -labels.pick(labels.logits.log_softmax(-1))
    loss = labels.weight * (cross_entropy - epsilon * torch.expm1(-cross_entropy))
    loss = labels.only(loss)
    return reduce_loss(loss, None, reduction, avg_factor, divisor=labels.weight.sum())


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``w_y / C Σ_{c≠y} max(0, margin + x_c - x_y)^p``."""
    (input,) = promote(input)
    labels = Labels(input, target, weight)
    excess = torch.relu(margin + labels.logits - labels.pick(labels.logits).unsqueeze(-1))
    loss = labels.weight * _without_label(labels, excess, 0.0).pow(int(p)).mean(-1)
    return reduce_loss(loss, None, reduction, avg_factor)


def crammer_singer_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``w_y max(0, margin + max_{c≠y} x_c - x_y)``."""
    (input,) = promote(input)
    labels = Labels(input, target, weight)
    runner_up = _without_label(labels, labels.logits, -torch.inf).amax(-1)
    loss = labels.weight * torch.relu(margin + runner_up - labels.pick(labels.logits))
    return reduce_loss(loss, None, reduction, avg_factor, divisor=labels.weight.sum())


def _without_label(labels: Labels, rows: Tensor, filling: float) -> Tensor:
    classes = torch.arange(rows.shape[-1], device=rows.device)
    return torch.where(classes == labels.index.unsqueeze(-1), filling, rows)
