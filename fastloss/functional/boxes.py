# SPDX-License-Identifier: MIT
"""Losses between boxes (..., 4), given as x1, y1, x2, y2, and the similarities behind them.

Which one? CIoU is the usual choice, GIoU and DIoU its simpler forms; the IoU loss alone has no
gradient for boxes that do not overlap. SIoU, EIoU and WIoU are tried where CIoU converges slowly,
WIoU v3 where labels are noisy. NWD is for objects of a few pixels, repulsion for crowds, DFL for
detectors that predict a distribution for each side. Rotated boxes (..., 5), given as x, y, width,
height and angle, have losses of their own, as ProbIoU, and so have keypoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _ops
from ..reference.boxes import _keypoint_factors
from ._shared import check_number, documented, option_error

__all__ = [
    "box_iou_loss",
    "complete_box_iou_loss",
    "detr_matching_cost",
    "distance_box_iou_loss",
    "distribution_focal_loss",
    "efficient_box_iou_loss",
    "generalized_box_iou_loss",
    "normalized_wasserstein_loss",
    "object_keypoint_similarity_loss",
    "pairwise_box_iou",
    "probabilistic_iou_loss",
    "repulsion_loss",
    "scylla_box_iou_loss",
    "sigmoid_aspect_box_iou_loss",
    "wise_box_iou_loss",
]

_BOX_IOU_FORMULAS = {mode: f"box_iou_loss/{mode}" for mode in ("linear", "square", "log")}
_WASSERSTEIN_FORMULAS = {
    mode: f"normalized_wasserstein_loss/{mode}" for mode in ("exp", "sqrt", "log", "w2")
}
_PAIRWISE_KINDS = frozenset({"iou", "giou", "diou", "ciou", "eiou", "siou", "nwd"})


@documented
def box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    mode: str = "linear",
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """IoU loss: how little two boxes overlap, relative to their union.

    ``linear``: 1 - IoU; ``square``: 1 - IoU²; ``log``: -ln max(IoU, eps). IoU = I / (U + eps), with
    I and U the areas of intersection and union. Boxes that do not overlap have a gradient of 0.

    The logarithm is UnitBox: An Advanced Object Detection Network, 2016, arXiv 1608.01471.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        mode: ``"linear"``, ``"square"`` or ``"log"``.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.box_iou_loss(boxes1, boxes2)
        tensor([0.2373, 1.0000])
        >>> F.box_iou_loss(boxes1, boxes2, mode="log")
        tensor([ 0.2709, 16.1181])
    """
    formula = _BOX_IOU_FORMULAS.get(mode) if isinstance(mode, str) else None
    if formula is None:
        raise option_error("box_iou_loss", "mode", "'linear', 'square' or 'log'", mode)
    return _ops.box_pair(
        formula,
        boxes1,
        boxes2,
        (eps,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def generalized_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """GIoU loss: the IoU loss, with a pull together for boxes that do not overlap.

    1 - (IoU - (C - U) / (C + eps)), with C the area of the smallest box around both and U the area
    of the union. torchvision's values.

    Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression, 2019,
    arXiv 1902.09630.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.generalized_box_iou_loss(boxes1, boxes2)
        tensor([0.2540, 1.1905])
    """
    return _ops.box_pair(
        "generalized_box_iou_loss",
        boxes1,
        boxes2,
        (eps,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def distance_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """DIoU loss: the IoU loss and the distance of the centres.

    1 - (IoU - ρ² / (c² + eps)), with ρ the distance of the centres and c the diagonal of the
    smallest box around both. torchvision's values.

    Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, 2019,
    arXiv 1911.08287.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.distance_box_iou_loss(boxes1, boxes2)
        tensor([0.2376, 1.1912])
    """
    return _ops.box_pair(
        "distance_box_iou_loss",
        boxes1,
        boxes2,
        (eps,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def complete_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    aspect_threshold: float = 0.0,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """CIoU loss: the DIoU loss and the difference of the aspect ratios.

    1 - (DIoU - α v), with v = 4 / π² (atan(w₂ / h₂) - atan(w₁ / h₁))² and
    α = v / (1 - IoU + v + eps), which has no gradient. torchvision's values, and finite also for
    identical, flat and zero-area boxes.

    Enhancing Geometric Factors in Model Learning and Inference for Object Detection and Instance
    Segmentation, 2020, arXiv 2005.03572.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        aspect_threshold: α is 0 where the IoU is not above it, in [0, 1]. 0 switches that off;
            mmdet uses 0.5.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.complete_box_iou_loss(boxes1, boxes2)
        tensor([0.2379, 1.1915])
        >>> F.complete_box_iou_loss(boxes1, boxes2, aspect_threshold=0.5)
        tensor([0.2379, 1.1912])
    """
    check_number("complete_box_iou_loss", "aspect_threshold", aspect_threshold, "in [0, 1]")
    return _ops.box_pair(
        "complete_box_iou_loss",
        boxes1,
        boxes2,
        (eps, aspect_threshold),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def efficient_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    gamma: float = 0.0,
    detach_focal: bool = False,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """EIoU loss, and Focal-EIoU: the DIoU loss and the differences of the sides.

    (1 - (DIoU - Δw² / (cw² + eps) - Δh² / (ch² + eps))) IoU^γ, with Δw and Δh the differences of
    widths and heights, cw and ch the sides of the smallest box around both.

    Focal and Efficient IOU Loss for Accurate Bounding Box Regression, 2021, arXiv 2101.08158.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        gamma: Exponent γ of the focal factor, at least 0. 0: EIoU; the paper's Focal-EIoU: 0.5.
        detach_focal: Whether the focal factor is a constant for the gradient.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.efficient_box_iou_loss(boxes1, boxes2)
        tensor([0.2754, 1.3006])
        >>> F.efficient_box_iou_loss(boxes1, boxes2, reduction="sum", gamma=0.5)
        tensor(0.2405)
    """
    check_number("efficient_box_iou_loss", "gamma", gamma, "at least 0")
    return _ops.box_pair(
        "efficient_box_iou_loss",
        boxes1,
        boxes2,
        (eps, gamma, float(detach_focal)),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def scylla_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    theta: float = 4.0,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """SIoU loss: the IoU loss, a distance that minds the direction, and the shapes.

    1 - IoU + (Δ + Ω) / 2. The distance cost is Δ = 2 - exp(-γ ρx) - exp(-γ ρy), with
    ρx = (dx / cw)², ρy = (dy / ch)² and γ = 2 - sin 2α, where α is the angle of the line between
    the centres. The shape cost is Ω = Σ (1 - exp(-|s₁ - s₂| / max(s₁, s₂)))^θ over the two sides s.
    The signs are the paper's: distance is punished.

    SIoU Loss: More Powerful Learning for Bounding Box Regression, 2022, arXiv 2205.12740.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        theta: Exponent θ of the shape cost, above 0; the paper's: 4.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.scylla_box_iou_loss(boxes1, boxes2)
        tensor([0.2384, 1.2363])
    """
    check_number("scylla_box_iou_loss", "theta", theta, "above 0")
    return _ops.box_pair(
        "scylla_box_iou_loss",
        boxes1,
        boxes2,
        (eps, theta),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def wise_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    version: int = 1,
    iou_mean: Tensor | float | None = None,
    alpha: float = 1.9,
    delta: float = 3.0,
    gamma: float = 0.5,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """WIoU loss: the IoU loss times an attention to the distance, focused on ordinary boxes.

    r exp(ρ² / c²) (1 - IoU), with ρ the distance of the centres and c the diagonal of the smallest
    box around both, which has no gradient. The focus is r = 1 (version 1), β^γ (version 2) or
    β / (δ α^(β - δ)) (version 3), where β = (1 - IoU) / ``iou_mean``, without a gradient, tells how
    much of an outlier a box is. :class:`fastloss.WiseBoxIoULoss` keeps the running mean.

    Wise-IoU: Bounding Box Regression Loss with Dynamic Focusing Mechanism, 2023, arXiv 2301.10051.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        version: 1, 2 or 3.
        iou_mean: Running mean of 1 - IoU, number or 0-d tensor. Versions 2 and 3 need it.
        alpha: α of version 3, at least 1: a larger one forgets outliers faster.
        delta: δ of version 3, above 0: the outlier degree whose focus is 1.
        gamma: γ of version 2, at least 0.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.wise_box_iou_loss(boxes1, boxes2)
        tensor([0.2374, 1.2107])
        >>> F.wise_box_iou_loss(boxes1, boxes2, version=3, iou_mean=0.4)
        tensor([0.2200, 1.3907])
    """
    mean, device_mean = 1.0, None
    if version in (2, 3):
        if isinstance(iou_mean, Tensor):
            mean, device_mean = math.nan, iou_mean
        elif iou_mean is not None:
            mean = iou_mean
        else:
            expected = f"a number or a 0-d tensor for version {version}"
            raise option_error("wise_box_iou_loss", "iou_mean", expected, iou_mean)
    elif version != 1:
        raise option_error("wise_box_iou_loss", "version", "1, 2 or 3", version)
    check_number("wise_box_iou_loss", "alpha", alpha, "at least 1")
    check_number("wise_box_iou_loss", "delta", delta, "above 0")
    check_number("wise_box_iou_loss", "gamma", gamma, "at least 0")
    return _ops.box_pair(
        "wise_box_iou_loss",
        boxes1,
        boxes2,
        (eps, float(version), mean, alpha, delta, gamma),
        extra=device_mean,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def sigmoid_aspect_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """XIoU loss: the CIoU loss with a logistic function for the arctangent.

    1 - (DIoU - α v), with v = (σ(w₂ / h₂) - σ(w₁ / h₁))² and α = v / (1 - IoU + v + eps), which
    has no gradient.

    Known by this name among users of YOLO detectors; no paper describes it.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        {eps}
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.sigmoid_aspect_box_iou_loss(boxes1, boxes2)
        tensor([0.2377, 1.1912])
    """
    return _ops.box_pair(
        "sigmoid_aspect_box_iou_loss",
        boxes1,
        boxes2,
        (eps,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def normalized_wasserstein_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    constant: float = 12.8,
    mode: str = "exp",
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """NWD loss: the Wasserstein distance of the boxes as Gaussians, meant for tiny objects.

    W² = Δx² + Δy² + (Δw² + Δh²) / 4 + eps, of the centres and the sides. ``exp``: 1 - exp(-W / C);
    ``sqrt``: W; ``log``: ln(1 + W²); ``w2``: W². The distance has a gradient also where boxes do
    not overlap.

    A Normalized Gaussian Wasserstein Distance for Tiny Object Detection, 2021, arXiv 2110.13389.

    Args:
        {boxes1}
        {boxes2}
        {reduction}
        eps: Added to W², so that identical boxes have a finite gradient while it is above 0.
        constant: C, in the unit of the boxes, above 0: about the size of an object. The paper's:
            12.8 pixels.
        mode: ``"exp"``, ``"sqrt"``, ``"log"`` or ``"w2"``; only ``"exp"`` uses the constant.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.normalized_wasserstein_loss(boxes1, boxes2)
        tensor([0.2535, 0.9619])
        >>> F.normalized_wasserstein_loss(boxes1, boxes2, mode="sqrt")
        tensor([ 3.7417, 41.8330])
    """
    formula = _WASSERSTEIN_FORMULAS.get(mode) if isinstance(mode, str) else None
    if formula is None:
        expected = "'exp', 'sqrt', 'log' or 'w2'"
        raise option_error("normalized_wasserstein_loss", "mode", expected, mode)
    check_number("normalized_wasserstein_loss", "constant", constant, "above 0")
    return _ops.box_pair(
        formula,
        boxes1,
        boxes2,
        (eps, constant),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def probabilistic_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-3,
    *,
    floor: float = 0.0,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """ProbIoU loss of rotated boxes: how far their Gaussians are apart.

    1 - ProbIoU = √(1 - exp(-D) + eps), with D = Δᵀ (Σ₁ + Σ₂)⁻¹ Δ / 4 +
    ½ ln(|Σ₁ + Σ₂| / (4 √(|Σ₁| |Σ₂|)) + eps), held between eps and 100. Δ is the offset of the
    centres; the covariance Σ of a box has the variances w² / 12 + floor and h² / 12 + floor along
    its sides. With eps = 1e-7 it is 1 minus ultralytics' ``probiou``.

    Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection, 2021,
    arXiv 2106.06072.

    Args:
        {rotated_boxes1}
        {boxes2}
        {reduction}
        eps: Added to denominators, to the logarithm's argument and below the root; above 0.
            Identical boxes have a loss of about √(2 eps). ultralytics': 1e-7.
        floor: Added to the variances, at least 0: bounds the gradient of thin boxes. In
            ultralytics' training it is 0.01.
        {box_weight}
        {avg_factor}

    {box_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[30.0, 25.0, 40.0, 30.0, 0.2], [40.0, 50.0, 40.0, 60.0, 0.0]])
        >>> boxes2 = torch.tensor([[31.0, 26.0, 36.0, 36.0, 0.0], [80.0, 55.0, 20.0, 50.0, 1.0]])
        >>> F.probabilistic_iou_loss(boxes1, boxes2)
        tensor([0.1213, 0.9125])
    """
    check_number("probabilistic_iou_loss", "eps", eps, "above 0")
    check_number("probabilistic_iou_loss", "floor", floor, "at least 0 and finite")
    return _ops.box_pair(
        "probabilistic_iou_loss",
        boxes1,
        boxes2,
        (eps, floor),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def object_keypoint_similarity_loss(
    keypoints: Tensor,
    targets: Tensor,
    visibility: Tensor,
    area: Tensor,
    sigmas: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """OKS loss: how unlike predicted keypoints are to those of an object.

    K v (1 - exp(-d² / (2 (2σ)² A))) / V of every keypoint, with d its distance to the target, σ how
    far annotators are apart for its kind, v its visibility, A the object's area, K the number of
    keypoints of an object and V of those whose visibility is not 0. The mean is over all keypoints,
    so each object counts the same however many of its keypoints are visible. ultralytics' values.

    YOLO-Pose: Enhancing YOLO for Multi Person Pose Estimation Using Object Keypoint Similarity
    Loss, 2022, arXiv 2204.06806.

    Args:
        keypoints: Predicted keypoints (N, K, 2), x and y in any unit, of any floating dtype and any
            strides. There may be any number of leading dimensions.
        targets: Keypoints of the same shape. The dtype may be another one.
        visibility: Factor of every keypoint (N, K), 0 where it does not count; bool or any number.
            Of COCO's flags 0, 1 and 2 it is ``flags > 0``.
        area: Area of every object (N,), in the unit of the keypoints squared.
        sigmas: σ of each of the K keypoints (K,), above 0.
        {reduction}

    Returns:
        The loss: shape (N, K) for ``"none"``, else a 0-d tensor; float32, or float64 if keypoints
        or targets are. The mean over no keypoints is 0, with a gradient of 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> keypoints = torch.tensor([[[10.0, 12.0], [31.0, 40.0]]])
        >>> targets = torch.tensor([[[11.0, 10.0], [30.0, 36.0]]])
        >>> visibility, area = torch.tensor([[True, False]]), torch.tensor([900.0])
        >>> F.object_keypoint_similarity_loss(
        ...     keypoints, targets, visibility, area, torch.tensor([0.025, 0.05])
        ... )
        tensor(0.6708)
    """
    name = "object_keypoint_similarity_loss"
    for argument, tensor in (
        ("keypoints", keypoints),
        ("targets", targets),
        ("visibility", visibility),
        ("area", area),
        ("sigmas", sigmas),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(tensor).__name__}")
    points = keypoints.shape[:-1]
    for argument, tensor, shape in (
        ("visibility", visibility, points),
        ("area", area, points[:-1]),
        ("sigmas", sigmas, points[-1:]),
    ):
        if tensor.is_complex():
            raise TypeError(f"{name}: {argument} must be real numbers, got {tensor.dtype}")
        if tensor.device != keypoints.device:
            device = f"on keypoints's device {keypoints.device}"
            raise ValueError(f"{name}: {argument} must be {device}, got {tensor.device}")
        if tensor.shape != shape:
            fit = f"shape {list(shape)} for keypoints of shape {list(keypoints.shape)}"
            raise ValueError(f"{name}: {argument} must have {fit}, got {list(tensor.shape)}")
    is_double = torch.float64 in (keypoints.dtype, targets.dtype)
    dtype = torch.float64 if is_double else torch.float32
    weight, spread = _keypoint_factors(visibility, area, sigmas, dtype)
    return _ops.box_pair(
        name, keypoints, targets, (), extra=spread, weight=weight, reduction=reduction
    )


@documented
def repulsion_loss(
    boxes: Tensor,
    target_boxes: Tensor,
    target_index: Tensor,
    reduction: str = "mean",
    *,
    sigma_gt: float = 0.9,
    sigma_box: float = 0.5,
    alpha: float = 0.5,
    beta: float = 0.5,
    batch_index: Tensor | None = None,
    target_batch_index: Tensor | None = None,
) -> Tensor:
    """Repulsion loss: to the own ground truth, away from the neighbours'. For crowds.

    attraction + α RepGT + β RepBox. The attraction of a box is the smooth L1 loss (β = 1) to its
    ground truth, summed over the coordinates. RepGT is S(IoG) with, of the other ground truths of
    the image, the one of the largest IoU; IoG is the intersection over that ground truth's area.
    RepBox is S(IoU) of every pair of boxes of an image that aim at different ground truths.
    S(x) = -ln(1 - x) up to σ and its tangent's line (x - σ) / (1 - σ) - ln(1 - σ) beyond.

    ``"mean"`` is the mean over the boxes of attraction and RepGT, and RepBox' sum over the number
    of its pairs that overlap. ``"none"`` gives a box half of each of its pairs.

    Repulsion Loss: Detecting Pedestrians in a Crowd, 2018, arXiv 1711.07752.

    Args:
        boxes: Predicted boxes (P, 4): x1, y1, x2, y2, of any floating dtype and any strides.
        target_boxes: Ground truths (G, 4). The dtype may be another one.
        target_index: Ground truth of every box (P,), integers in [0, G).
        reduction: ``"none"`` (shape (P,)), ``"mean"`` or ``"sum"``.
        sigma_gt: σ of RepGT, in [0, 1).
        sigma_box: σ of RepBox, in [0, 1).
        alpha: Factor α of RepGT.
        beta: Factor β of RepBox.
        batch_index: Image of every box (P,), integers. None: all boxes lie in one image.
        target_batch_index: Image of every ground truth (G,), given together with ``batch_index``.

    Returns:
        The loss, float32, or float64 if one of the boxes is. It is 0 without boxes. Time grows with
        P (G + P), memory with P.

    {raises}
        IndexError: On CPU, for an index outside [0, G).

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes = torch.tensor([[10.0, 10.0, 50.0, 40.0], [30.0, 12.0, 72.0, 40.0]])
        >>> targets = torch.tensor([[10.0, 10.0, 48.0, 40.0], [34.0, 12.0, 72.0, 42.0]])
        >>> F.repulsion_loss(boxes, targets, torch.tensor([0, 1]))
        tensor(3.7050)
    """
    check_number("repulsion_loss", "sigma_gt", sigma_gt, "in [0, 1)")
    check_number("repulsion_loss", "sigma_box", sigma_box, "in [0, 1)")
    return _ops.box_crowd(
        "repulsion_loss",
        boxes,
        target_boxes,
        target_index,
        (sigma_gt, sigma_box, alpha, beta),
        batch_index=batch_index,
        target_batch_index=target_batch_index,
        reduction=reduction,
    )


@documented
def detr_matching_cost(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    *,
    class_cost: float = 1.0,
    bbox_cost: float = 5.0,
    giou_cost: float = 2.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    kind: str = "softmax",
) -> Tensor:
    """What it costs to match every prediction with every target, for the Hungarian algorithm.

    λ_class C + λ_bbox ‖b - b*‖₁ - λ_giou GIoU(b, b*), in one pass, without another matrix of that
    size. C is -p of the target's class, p the softmax of the logits (DETR); or, for ``"focal"``,
    α (1 - p)^γ (-ln(p + 1e-8)) - (1 - α) p^γ (-ln(1 - p + 1e-8)) with p = σ(x) (Deformable DETR,
    RT-DETR, D-FINE). Boxes without an area have a finite cost. Matchers choose by these costs and
    do not train them: there is no gradient.

    End-to-End Object Detection with Transformers, 2020, arXiv 2005.12872; Deformable DETR, 2021,
    arXiv 2010.04159.

    Args:
        logits: Logits (..., N, C) of N predictions, any floating dtype, any strides.
        boxes: Predicted boxes (..., N, 4): centre x, centre y, width, height, in units of the image
            as a rule. Any floating dtype.
        target_labels: Classes (..., M) of the targets, in [0, C); uint8, int16, int32 or int64.
        target_boxes: The targets' boxes (..., M, 4), in the form of ``boxes``.
        class_cost: λ_class.
        bbox_cost: λ_bbox.
        giou_cost: λ_giou.
        alpha: α in [0, 1], for ``"focal"``.
        gamma: γ, at least 0, for ``"focal"``.
        kind: Which C: ``"softmax"`` or ``"focal"``.

    Returns:
        The costs (..., N, M), float32, or float64 if one of the inputs is.

    {raises}
        IndexError: On CPU, for a label outside [0, C). On CUDA that is a device-side assertion.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
        >>> boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.25, 0.3, 0.1, 0.4]])
        >>> target_boxes = torch.tensor([[0.5, 0.5, 0.25, 0.2], [0.25, 0.25, 0.1, 0.5]])
        >>> F.detr_matching_cost(logits, boxes, torch.tensor([0, 2]), target_boxes)
        tensor([[-2.1370,  5.6435],
                [ 5.1077, -1.7594]])
    """
    name = "detr_matching_cost"
    costs = {"class_cost": class_cost, "bbox_cost": bbox_cost, "giou_cost": giou_cost}
    for argument, value in costs.items():
        check_number(name, argument, value, "finite")
    check_number(name, "alpha", alpha, "in [0, 1]")
    check_number(name, "gamma", gamma, "at least 0")
    numbers = (class_cost, bbox_cost, giou_cost, alpha, gamma)
    return _ops.detr_matching_cost(logits, boxes, target_labels, target_boxes, numbers, kind)


@documented
def distribution_focal_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Distribution focal loss (DFL): a box side as a distribution over bins.

    -(i + 1 - y) ln p_i - (y - i) ln p_j, with p the softmax of the bins, y the target, i the
    integer below it and j = i + 1.

    Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object
    Detection, 2020, arXiv 2006.04388.

    Args:
        input: Logits (..., bins), at least two bins, any floating dtype, any strides.
        target: Distance of the side in bins (...,), of any dtype. What lies outside
            [0, bins - 1.01] counts as the nearest end; the target itself is left alone.
        {reduction}
        weight: Factor of every side, shape ``target.shape``. The mean divides by its sum.
        {avg_factor}

    Returns:
        The loss: shape ``target.shape`` for ``"none"``, else a 0-d tensor; float32, or float64 if
        input or target is. The mean over no sides is 0, with a gradient of 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[0.0, 2.0, 3.0, 0.0], [4.0, 1.0, 0.0, 0.0]])
        >>> F.distribution_focal_loss(logits, torch.tensor([1.75, 0.1]))
        tensor(0.5082)
    """
    return _ops.softmax(
        "distribution_focal_loss",
        input,
        target,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def pairwise_box_iou(
    boxes1: Tensor, boxes2: Tensor, kind: str = "iou", eps: float = 1e-7
) -> Tensor:
    """Similarity of every box of one set with every box of another, for assigners and matchers.

    A similarity is 1 minus the loss of its name with the default options: ``"iou"``, ``"giou"``,
    ``"diou"``, ``"ciou"``, ``"eiou"``, ``"siou"`` and ``"nwd"`` (exp(-W / 12.8)). It can be
    differentiated with respect to both sets.

    Args:
        boxes1: Boxes (..., N, 4): x1, y1, x2, y2, of any floating dtype and any strides.
        boxes2: Boxes (..., M, 4). The leading dimensions broadcast; the dtype may be another one.
        kind: Which similarity.
        {eps}

    Returns:
        The similarities (..., N, M), float32, or float64 if one of the sets is.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> F.pairwise_box_iou(boxes1, boxes2, "giou")
        tensor([[ 0.7460, -0.6071],
                [ 0.0972, -0.1905]])
    """
    if not isinstance(kind, str) or kind not in _PAIRWISE_KINDS:
        expected = "'iou', 'giou', 'diou', 'ciou', 'eiou', 'siou' or 'nwd'"
        raise option_error("pairwise_box_iou", "kind", expected, kind)
    return _ops.box_matrix(kind, boxes1, boxes2, eps)
