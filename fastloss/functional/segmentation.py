# SPDX-License-Identifier: MIT
"""Segmentation losses: overlap of regions, and of regions and voxels together."""

from __future__ import annotations

from torch import Tensor, distributed

from .. import _ops
from ._parallel import dice_of_all_ranks
from ._shared import check_number, documented, option_error

__all__ = [
    "dice_cross_entropy_loss",
    "dice_focal_loss",
    "dice_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "lovasz_softmax_loss",
    "tversky_loss",
]


def _check_at_least_0(function: str, **options: float) -> None:
    for argument, value in options.items():
        check_number(function, argument, value, "at least 0")


@documented
def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    process_group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Dice loss: 1 - (2 I + smooth_nr) / (P + G + smooth_dr) of every sample and class.

    With p the activated logits and g the targets, I = Σ p g, P = Σ p and G = Σ g over space.
    MONAI's values. A region in which nothing is predicted and nothing is there costs nothing.

    V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation, 2016,
    arXiv 1606.04797.

    Args:
        {voxel_input}
        {voxel_target}
        {activation}
        {smooth_nr}
        {smooth_dr}
        squared_pred: Whether P and G are sums of squares, as in the paper.
        jaccard: Whether 1 - (2 I + smooth_nr) / (2 (P + G - I) + smooth_dr), the Jaccard loss, is
            taken instead.
        {include_background}
        {batch}
        {region_weight}
        {voxel_ignore_index}
        {region_reduction}
        process_group: Group of processes over whose samples the sums run as well, with ``batch``
            only; ``torch.distributed.group.WORLD`` is all of them. Each returns the loss of the
            whole batch, and its gradients are such that their mean over the processes, which is
            what ``DistributedDataParallel`` makes, is the gradient of that loss. Two numbers per
            class are exchanged. Each process makes every call, with the same classes; the gradient
            cannot be differentiated again.

    {region_returns}

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.dice_loss(logits, torch.tensor([[0, 1, 1]]))
        tensor(0.2532)
        >>> F.dice_loss(logits, torch.tensor([[0, 1, 1]]), reduction="none")
        tensor([[0.2954, 0.2110]])
    """
    _check_at_least_0("dice_loss", smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    if process_group is not None:
        if not batch:
            raise option_error("dice_loss", "batch", "True with a process_group", batch)
        return dice_of_all_ranks(
            input,
            target,
            smooth_nr,
            smooth_dr,
            jaccard,
            weight,
            reduction,
            (ignore_index, activation or "none", squared_pred, include_background),
            process_group,
        )
    return _ops.region(
        "dice_loss",
        input,
        target,
        (smooth_nr, smooth_dr, float(jaccard)),
        activation=activation,
        squared_pred=squared_pred,
        include_background=include_background,
        batch=batch,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@documented
def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Tversky loss: the Dice loss with prices of its own for false positives and negatives.

    1 - (I + smooth_nr) / (I + α FP + β FN + smooth_dr) of every sample and class. With p the
    activated logits and g the targets, I = Σ p g, FP = Σ p (1 - g) and FN = Σ (1 - p) g over space.
    α = β = 0.5 is the Dice loss, α = β = 1 the Jaccard loss.

    Tversky loss function for image segmentation using 3D fully convolutional deep networks, 2017,
    arXiv 1706.05721.

    Args:
        {voxel_input}
        {voxel_target}
        alpha: α, what a false positive costs, at least 0.
        beta: β, what a false negative costs, at least 0.
        {activation}
        {smooth_nr}
        {smooth_dr}
        {include_background}
        {batch}
        {region_weight}
        {voxel_ignore_index}
        {region_reduction}

    {region_returns}

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.tversky_loss(logits, torch.tensor([[0, 1, 1]]), alpha=0.3, beta=0.7)
        tensor(0.2439)
    """
    _check_at_least_0(
        "tversky_loss", alpha=alpha, beta=beta, smooth_nr=smooth_nr, smooth_dr=smooth_dr
    )
    return _ops.region(
        "tversky_loss",
        input,
        target,
        (alpha, beta, smooth_nr, smooth_dr),
        activation=activation,
        include_background=include_background,
        batch=batch,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@documented
def focal_tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal Tversky loss: the Tversky loss of every sample and class to the power of γ.

    γ below 1 turns the loss towards regions that are hard to find. The gradient is 0 where the
    Tversky loss is, at any γ.

    A Novel Focal Tversky loss function with improved Attention U-Net for lesion segmentation, 2018,
    arXiv 1810.07842. The paper's γ is 1 / γ here; its α weighs false negatives.

    Args:
        {voxel_input}
        {voxel_target}
        alpha: What a false positive costs, at least 0.
        beta: What a false negative costs, at least 0.
        gamma: γ, above 0.
        {activation}
        {smooth_nr}
        {smooth_dr}
        {include_background}
        {batch}
        {region_weight}
        {voxel_ignore_index}
        {region_reduction}

    {region_returns}

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.focal_tversky_loss(logits, torch.tensor([[0, 1, 1]]))
        tensor(0.3470)
    """
    _check_at_least_0(
        "focal_tversky_loss", alpha=alpha, beta=beta, smooth_nr=smooth_nr, smooth_dr=smooth_dr
    )
    check_number("focal_tversky_loss", "gamma", gamma, "above 0")
    return _ops.region(
        "focal_tversky_loss",
        input,
        target,
        (alpha, beta, gamma, smooth_nr, smooth_dr),
        activation=activation,
        include_background=include_background,
        batch=batch,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@documented
def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    w_type: str = "square",
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    include_background: bool = True,
    batch: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Generalised Dice loss: small regions count as much as large ones.

    1 - (2 Σ w I + smooth_nr) / (Σ w (P + G) + smooth_dr) of every sample. I, P and G are those of
    :func:`dice_loss`; the sums are over the classes, each weighted by its target volume G.

    Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations,
    2017, arXiv 1707.03237.

    Args:
        {voxel_input}
        {voxel_target}
        w_type: w of a class: ``"square"`` 1 / G², ``"simple"`` 1 / G, ``"uniform"`` 1. A class that
            is absent has the largest weight of those that are there.
        {activation}
        {smooth_nr}
        {smooth_dr}
        {include_background}
        {batch}
        {voxel_ignore_index}
        {region_reduction}

    Returns:
        The loss: shape (B,) for ``"none"``, else (and with ``batch``) a 0-d tensor; float32, or
        float64 if input or target is. The mean over no samples is 0, with a gradient of 0.

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.generalized_dice_loss(logits, torch.tensor([[0, 1, 1]]))
        tensor(0.2735)
    """
    _check_at_least_0("generalized_dice_loss", smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    if w_type not in ("square", "simple", "uniform"):
        raise option_error(
            "generalized_dice_loss", "w_type", "'square', 'simple' or 'uniform'", w_type
        )
    return _ops.region(
        f"generalized_dice_loss/{w_type}",
        input,
        target,
        (smooth_nr, smooth_dr),
        activation=activation,
        include_background=include_background,
        batch=batch,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@documented
def dice_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    label_smoothing: float = 0.0,
    activation: str = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Dice loss and cross-entropy together: λ_dice Dice + λ_ce cross-entropy.

    Both come out of the same passes over the logits. The cross-entropy is that of the activation:
    over the classes for ``"softmax"``, binary and of every class by itself for ``"sigmoid"``. It
    takes in the background whatever the Dice loss does.

    nnU-Net: Self-adapting Framework for U-Net-Based Medical Image Segmentation, 2018,
    arXiv 1809.10486.

    Args:
        {voxel_input}
        {voxel_target}
        lambda_dice: λ_dice, at least 0.
        lambda_ce: λ_ce, at least 0.
        label_smoothing: ε in [0, 1] of the cross-entropy, with the softmax only: its targets become
            (1 - ε) g + ε / C.
        activation: What makes probabilities of the logits: ``"softmax"`` or ``"sigmoid"``.
        {smooth_nr}
        {smooth_dr}
        squared_pred: As in :func:`dice_loss`.
        jaccard: As in :func:`dice_loss`.
        {include_background}
        {batch}
        weight: Factor of every class, (C,), in both: the Dice loss of a class is multiplied; the
            softmax cross-entropy is torch's with class weights, whose mean over labels divides by
            the sum of the labels' weights; in the binary one it is the weight of the positive part.
        {voxel_ignore_index}
        reduction: ``"mean"`` or ``"sum"``, of each of the two.

    {both_returns}

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.dice_cross_entropy_loss(logits, torch.tensor([[0, 1, 1]]))
        tensor(0.5688)
    """
    name = "dice_cross_entropy_loss"
    _check_at_least_0(
        name,
        lambda_dice=lambda_dice,
        lambda_ce=lambda_ce,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
    )
    if activation not in ("softmax", "sigmoid"):
        raise option_error(name, "activation", "'softmax' or 'sigmoid'", activation)
    check_number(name, "label_smoothing", label_smoothing, "in [0, 1]")
    if label_smoothing and activation == "sigmoid":
        raise option_error(name, "label_smoothing", "0 with activation='sigmoid'", label_smoothing)
    return _ops.region(
        f"{name}/{activation}",
        input,
        target,
        (lambda_dice, lambda_ce, label_smoothing, smooth_nr, smooth_dr, float(jaccard)),
        activation=activation,
        squared_pred=squared_pred,
        include_background=include_background,
        batch=batch,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@documented
def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = -1.0,
    gamma: float = 2.0,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Dice loss and focal loss together: λ_dice Dice + λ_focal focal.

    Both come out of the same passes over the logits. The focal loss is that of
    :func:`sigmoid_focal_loss` on the logits of every class, also where the Dice loss takes the
    softmax: MONAI's choice. Without background, it is left out of both.

    AnatomyNet: Deep Learning for Fast and Fully Automated Whole-volume Segmentation of Head and
    Neck Anatomy, 2018, arXiv 1808.05238.

    Args:
        {voxel_input}
        {voxel_target}
        alpha: α of the focal loss in [0, 1], or -1 for none.
        gamma: γ of the focal loss, at least 0.
        lambda_dice: λ_dice, at least 0.
        lambda_focal: λ_focal, at least 0.
        {activation}
        {smooth_nr}
        {smooth_dr}
        squared_pred: As in :func:`dice_loss`.
        jaccard: As in :func:`dice_loss`.
        {include_background}
        {batch}
        {region_weight}
        {voxel_ignore_index}
        reduction: ``"mean"``: of the Dice loss over samples and classes, of the focal loss over
            voxels and classes. ``"sum"``: over samples and classes; the focal loss is averaged over
            space.

    {both_returns}

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.dice_focal_loss(logits, torch.tensor([[0, 1, 1]]))
        tensor(0.3641)
    """
    name = "dice_focal_loss"
    _check_at_least_0(
        name,
        gamma=gamma,
        lambda_dice=lambda_dice,
        lambda_focal=lambda_focal,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
    )
    check_number(name, "alpha", alpha, "in [0, 1] or -1")
    return _ops.region(
        name,
        input,
        target,
        (alpha, gamma, lambda_dice, lambda_focal, smooth_nr, smooth_dr, float(jaccard)),
        activation=activation,
        squared_pred=squared_pred,
        include_background=include_background,
        batch=batch,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


@documented
def lovasz_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    classes: str = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Lovász-softmax loss: a convex surrogate of 1 - IoU, class by class.

    The errors of a class, 1 - p where it is and p where it is not, are sorted; each counts by how
    much the Jaccard loss grows when its voxel is taken for wrong after all that are worse.

    The Lovász-Softmax loss: A tractable surrogate for the optimization of the
    intersection-over-union measure in neural networks, 2017, arXiv 1705.08790.

    Args:
        {voxel_input}
        target: Class indices (B, *spatial) of any integer dtype, in [0, C).
        classes: ``"present"``: the mean over the classes that occur in the target; ``"all"``: over
            every class.
        per_image: Whether each sample is a region of its own, and the mean over the samples is
            taken; else all samples are one region.
        ignore_index: A label whose voxels are left out.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. A class that does not count is 0.

    Returns:
        The loss: shape (C,), or (B, C) with ``per_image``, for ``"none"``, else a 0-d tensor;
        float32, or float64 if the input is. The mean over no classes is 0, with a gradient of 0.

    {voxel_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])  # 1 sample, 2 classes
        >>> F.lovasz_softmax_loss(logits, torch.tensor([[0, 1, 1]]))
        tensor(0.3096)
    """
    if classes not in ("present", "all"):
        raise option_error("lovasz_softmax_loss", "classes", "'present' or 'all'", classes)
    return _ops.ranked_region(
        "lovasz_softmax_loss",
        input,
        target,
        present=classes == "present",
        per_image=per_image,
        ignore_index=ignore_index,
        reduction=reduction,
    )
