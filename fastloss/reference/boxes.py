# SPDX-License-Identifier: MIT
"""Box losses in plain PyTorch: the formulas, one operation after the other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._reduce import power, promote, reduce_loss, root

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

# The constants of the pairwise similarities: those of the losses' defaults.
PAIRWISE_THETA = 4.0
PAIRWISE_CONSTANT = 12.8

# Repulsion has no eps argument: its overlaps are of boxes in pixels.
REPULSION_EPS = 1e-7


class _Pair(NamedTuple):
    """Two boxes measured against each other; every field has the boxes' leading shape."""

    w1: Tensor
    h1: Tensor
    w2: Tensor
    h2: Tensor
    dx: Tensor  # from the second centre to the first
    dy: Tensor
    enclosing_w: Tensor
    enclosing_h: Tensor
    intersection: Tensor
    union: Tensor
    iou: Tensor

    @property
    def squared_distance(self) -> Tensor:
        """Squared distance of the centres."""
        return self.dx.square() + self.dy.square()

    @property
    def squared_diagonal(self) -> Tensor:
        """Squared diagonal of the enclosing box."""
        return self.enclosing_w.square() + self.enclosing_h.square()


def _measure(boxes1: Tensor, boxes2: Tensor, eps: float) -> _Pair:
    """Measures boxes (..., 4) xyxy of one dtype and broadcastable shapes."""
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    w1, h1 = right1 - left1, bottom1 - top1
    w2, h2 = right2 - left2, bottom2 - top2
    inner_w = torch.minimum(right1, right2) - torch.maximum(left1, left2)
    inner_h = torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)
    # Each side is masked by itself: nothing, not even NaN, flows back where boxes do not meet.
    meet = (inner_w > 0) & (inner_h > 0)
    intersection = torch.where(meet, inner_w, 0.0) * torch.where(meet, inner_h, 0.0)
    union = w1 * h1 + w2 * h2 - intersection
    # A union of NaN must give NaN, although NaN never "meets".
    divide = (intersection > 0) | union.isnan()
    iou = torch.where(divide, intersection / torch.where(divide, union + eps, 1.0), 0.0)
    return _Pair(
        w1=w1,
        h1=h1,
        w2=w2,
        h2=h2,
        dx=((left1 + right1) - (left2 + right2)) / 2,
        dy=((top1 + bottom1) - (top2 + bottom2)) / 2,
        enclosing_w=torch.maximum(right1, right2) - torch.minimum(left1, left2),
        enclosing_h=torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2),
        intersection=intersection,
        union=union,
        iou=iou,
    )


def _measure_promoted(boxes1: Tensor, boxes2: Tensor, eps: float) -> _Pair:
    boxes1, boxes2 = promote(boxes1, boxes2)
    return _measure(boxes1, boxes2, eps)


def _nonzero(denominator: Tensor, eps: float) -> Tensor:
    """The denominator, and eps where it is 0: inverted boxes can cancel the eps added to it."""
    return torch.where(denominator == 0, eps, denominator)


def _angle(w: Tensor, h: Tensor) -> Tensor:
    """``atan(w / h)``: a quarter turn for h = 0, and 0 without a gradient for a point."""
    # The angle does not depend on the scale, so the scale can be a constant: w² + h² in atan2's
    # derivative (h dw - w dh) / (w² + h²) then does not underflow for tiny boxes.
    scale = torch.maximum(w.abs(), h.abs()).detach()
    point = scale == 0
    scale = torch.where(point, 1.0, scale)
    # Turned into the half plane h >= 0, where atan2(w, h) is atan(w / h).
    scale = torch.where(h < 0, -scale, scale)
    return torch.atan2(torch.where(point, 0.0, w / scale), torch.where(point, 1.0, h / scale))


def _giou(pair: _Pair, eps: float) -> Tensor:
    enclosing = pair.enclosing_w * pair.enclosing_h
    return pair.iou - (enclosing - pair.union) / _nonzero(enclosing + eps, eps)


def _diou(pair: _Pair, eps: float) -> Tensor:
    return pair.iou - pair.squared_distance / (pair.squared_diagonal + eps)


def _aspect_weight(pair: _Pair, v: Tensor, eps: float) -> Tensor:
    """α, the weight of the aspect term v; it has no gradient."""
    return (v / ((1 - pair.iou).clamp(min=0) + v + eps)).detach()


def _ciou(pair: _Pair, eps: float, aspect_threshold: float = 0.0) -> Tensor:
    v = (4 / math.pi**2) * (_angle(pair.w2, pair.h2) - _angle(pair.w1, pair.h1)).square()
    alpha = _aspect_weight(pair, v, eps)
    if aspect_threshold > 0:
        alpha = torch.where(pair.iou <= aspect_threshold, 0.0, alpha)
    return _diou(pair, eps) - alpha * v


def _eiou(pair: _Pair, eps: float) -> Tensor:
    w_term = (pair.w1 - pair.w2).square() / (pair.enclosing_w.square() + eps)
    h_term = (pair.h1 - pair.h2).square() / (pair.enclosing_h.square() + eps)
    return _diou(pair, eps) - w_term - h_term


def _siou(pair: _Pair, eps: float, theta: float) -> Tensor:
    # sin 2α of the angle α between the axis and the line of the centres, without an arcsine
    sin_double_angle = 2 * pair.dx.abs() * pair.dy.abs() / (pair.squared_distance + eps)
    steepness = 2 - sin_double_angle
    distance_x = pair.dx.square() / (pair.enclosing_w.square() + eps)
    distance_y = pair.dy.square() / (pair.enclosing_h.square() + eps)
    distance = -torch.expm1(-steepness * distance_x) - torch.expm1(-steepness * distance_y)
    shape = _side_difference(pair.w1, pair.w2, eps, theta) + _side_difference(
        pair.h1, pair.h2, eps, theta
    )
    return pair.iou - (distance + shape) / 2


def _side_difference(side1: Tensor, side2: Tensor, eps: float, theta: float) -> Tensor:
    """One term of SIoU's shape cost."""
    difference = (side1 - side2).abs() / (torch.maximum(side1, side2).clamp(min=0) + eps)
    return power(-torch.expm1(-difference), theta)


def _squared_wasserstein(pair: _Pair, eps: float) -> Tensor:
    """Squared 2-Wasserstein distance of the boxes as Gaussians (centre, half the sides)."""
    shape = ((pair.w1 - pair.w2).square() + (pair.h1 - pair.h2).square()) / 4
    return pair.squared_distance + shape + eps


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
    """``1 - IoU``, ``1 - IoU²`` or ``-ln max(IoU, eps)``."""
    iou = _measure_promoted(boxes1, boxes2, eps).iou
    if mode == "linear":
        loss = 1 - iou
    elif mode == "square":
        loss = 1 - iou.square()
    elif mode == "log":
        loss = -iou.clamp(min=eps).log()
    else:
        raise ValueError(f"box_iou_loss: unknown mode {mode!r}")
    return reduce_loss(loss, weight, reduction, avg_factor)


def generalized_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``1 - (IoU - (C - U) / C)``, C and U the areas of the enclosing box and of the union."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    return reduce_loss(1 - _giou(pair, eps), weight, reduction, avg_factor)


def distance_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``1 - (IoU - ρ² / c²)``, ρ the distance of the centres, c the enclosing box's diagonal."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    return reduce_loss(1 - _diou(pair, eps), weight, reduction, avg_factor)


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
    """``1 - (DIoU - α v)``, v the squared difference of the aspect angles, α detached."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    return reduce_loss(1 - _ciou(pair, eps, aspect_threshold), weight, reduction, avg_factor)


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
    """``(1 - (DIoU - Δw² / cw² - Δh² / ch²)) IoU^γ``."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    loss = 1 - _eiou(pair, eps)
    if gamma != 0:
        focal = power(pair.iou, gamma)
        loss = loss * (focal.detach() if detach_focal else focal)
    return reduce_loss(loss, weight, reduction, avg_factor)


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
    """``1 - IoU + (Δ + Ω) / 2``, Δ the distance cost bent by the angle, Ω the shape cost."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    return reduce_loss(1 - _siou(pair, eps, theta), weight, reduction, avg_factor)


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
    """``r e^(ρ² / c²) (1 - IoU)`` with c detached; r = 1, β^γ or β / (δ α^(β - δ))."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    iou_loss = 1 - pair.iou
    diagonal = (pair.squared_diagonal + eps).detach()
    # Centres of inverted boxes may lie anywhere: the exponential must not overflow.
    loss = (pair.squared_distance / diagonal).clamp(max=2).exp() * iou_loss
    if version != 1:
        if iou_mean is None:
            raise ValueError(f"wise_box_iou_loss: version {version} needs iou_mean")
        mean = torch.as_tensor(iou_mean, dtype=loss.dtype, device=loss.device)
        outlier_degree = (iou_loss / mean.clamp(min=eps)).detach()  # β
        if version == 2:
            loss = power(outlier_degree, gamma) * loss
        elif version == 3:
            # The negative exponent makes a far outlier's factor 0 where α^(β - δ) would overflow.
            decay = torch.exp((delta - outlier_degree) * math.log(alpha))
            loss = outlier_degree / delta * decay * loss
        else:
            raise ValueError(f"wise_box_iou_loss: unknown version {version!r}")
    return reduce_loss(loss, weight, reduction, avg_factor)


def sigmoid_aspect_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``1 - (DIoU - α v)``, v the squared difference of the logistic aspect ratios, α detached."""
    pair = _measure_promoted(boxes1, boxes2, eps)
    aspect1 = torch.sigmoid(pair.w1 / _nonzero(pair.h1 + eps, eps))
    aspect2 = torch.sigmoid(pair.w2 / _nonzero(pair.h2 + eps, eps))
    v = (aspect2 - aspect1).square()
    loss = 1 - (_diou(pair, eps) - _aspect_weight(pair, v, eps) * v)
    return reduce_loss(loss, weight, reduction, avg_factor)


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
    """``1 - exp(-W / C)``, ``W``, ``ln(1 + W²)`` or ``W²`` of the Wasserstein distance W."""
    squared = _squared_wasserstein(_measure_promoted(boxes1, boxes2, eps), eps)
    if mode == "exp":
        loss = -torch.expm1(-squared.sqrt() / constant)
    elif mode == "sqrt":
        loss = squared.sqrt()
    elif mode == "log":
        loss = squared.log1p()
    elif mode == "w2":
        loss = squared
    else:
        raise ValueError(f"normalized_wasserstein_loss: unknown mode {mode!r}")
    return reduce_loss(loss, weight, reduction, avg_factor)


class _Ellipse(NamedTuple):
    """A rotated box as a Gaussian: the deviations along and across its axis, and the axis."""

    along: Tensor
    across: Tensor
    cosine: Tensor
    sine: Tensor

    @classmethod
    def of(cls, along: Tensor, across: Tensor, angle: Tensor) -> _Ellipse:
        return cls(along, across, angle.cos(), angle.sin())

    def turn_to(self, other: _Ellipse) -> tuple[Tensor, Tensor]:
        """cos² and sin² of the angle between two axes."""
        cosine = self.cosine * other.cosine + self.sine * other.sine
        sine = self.sine * other.cosine - self.cosine * other.sine
        return cosine.square(), sine.square()

    def offset(self, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """A vector along and across the axis."""
        return self.cosine * dx + self.sine * dy, self.cosine * dy - self.sine * dx


def _sum_of_covariances(first: _Ellipse, second: _Ellipse) -> tuple[Tensor, Tensor]:
    """The determinant of the sum of two covariances as 4 · product + excess.

    The product is √(|Σ₁| |Σ₂|), and the excess a sum of squares, which is 0 for equal covariances.
    """
    cosine2, sine2 = first.turn_to(second)
    area1, area2 = first.along * first.across, second.along * second.across
    excess = (
        (area1 - area2).square()
        + cosine2 * (first.along * second.across - second.along * first.across).square()
        + sine2 * (first.along * second.along - first.across * second.across).square()
    )
    return area1 * area2, excess


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
    """``√(1 - e^(-D))``, D Bhattacharyya's distance of the Gaussians."""
    boxes1, boxes2 = promote(boxes1, boxes2)
    (x1, y1, w1, h1, angle1), (x2, y2, w2, h2, angle2) = boxes1.unbind(-1), boxes2.unbind(-1)

    def deviation(side: Tensor) -> Tensor:
        return root(side.square() / 12 + floor)

    first = _Ellipse.of(deviation(w1), deviation(h1), angle1)
    second = _Ellipse.of(deviation(w2), deviation(h2), angle2)
    product, excess = _sum_of_covariances(first, second)
    along1, across1 = first.offset(x2 - x1, y2 - y1)
    along2, across2 = second.offset(x2 - x1, y2 - y1)
    apart = (
        (first.along * across1).square()
        + (first.across * along1).square()
        + (second.along * across2).square()
        + (second.across * along2).square()
    )
    of_centers = apart / (4 * product + excess + eps) / 4
    of_shapes = ((excess - eps) / (4 * product + eps) + eps).log1p() / 2
    distance = (of_centers + of_shapes).clamp(eps, 100.0)
    return reduce_loss((eps - torch.expm1(-distance)).sqrt(), weight, reduction, avg_factor)


def _keypoint_factors(
    visibility: Tensor, area: Tensor, sigmas: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The factor of every keypoint, and the squared distance at which it has lost 1 - 1/e."""
    visible = (visibility != 0).sum(-1, keepdim=True, dtype=dtype)
    weight = visibility.to(dtype) * (visibility.shape[-1] / (visible + 1e-9))
    # Keypoints without an extent are infinitely far apart, but for a finite number.
    spread = (area.to(dtype).unsqueeze(-1) + 1e-9) * (8 * sigmas.to(dtype).square())
    return weight, spread.clamp(min=1e-20)


def _keypoint_loss(
    keypoints: Tensor, targets: Tensor, spread: Tensor, weight: Tensor, reduction: str
) -> Tensor:
    """``1 - exp(-d² / spread)``, weighted."""
    keypoints, targets = promote(keypoints, targets)
    distance2 = (keypoints - targets).square().sum(-1)
    loss = -torch.expm1(-distance2 / spread)
    return reduce_loss(loss, weight, reduction, None, weighted_mean=False)


def object_keypoint_similarity_loss(
    keypoints: Tensor,
    targets: Tensor,
    visibility: Tensor,
    area: Tensor,
    sigmas: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """``1 - exp(-d² / (2 (2σ)² A))``, times the visibility over the mean number of visible ones."""
    dtype = promote(keypoints, targets)[0].dtype
    weight, spread = _keypoint_factors(visibility, area, sigmas, dtype)
    return _keypoint_loss(keypoints, targets, spread, weight, reduction)


def _smooth_ln(overlap: Tensor, sigma: float) -> Tensor:
    """``-ln(1 - x)`` up to σ, its tangent beyond: finite at a full overlap."""
    beyond = overlap > sigma
    logarithm = -torch.log1p(-torch.where(beyond, 0.0, overlap))
    return torch.where(beyond, (overlap - sigma) / (1 - sigma) - math.log(1 - sigma), logarithm)


def _same_image(batch_index1: Tensor | None, batch_index2: Tensor | None) -> Tensor | bool:
    """Which pairs lie in one image; without indices all of them."""
    if batch_index1 is None or batch_index2 is None:
        return True
    return batch_index1[:, None] == batch_index2[None, :]


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
    """Attraction to the own ground truth + α RepGT + β RepBox."""
    boxes, target_boxes = promote(boxes, target_boxes)
    target_index = target_index.long()
    offset = (boxes - target_boxes[target_index]).abs()
    attraction = torch.where(offset < 1, 0.5 * offset.square(), offset - 0.5).sum(-1)  # [P]

    # RepGT: away from the ground truth of the same image that overlaps most, the own one left out.
    to_targets = _measure(boxes[:, None], target_boxes[None], REPULSION_EPS)  # [P, G]
    column = torch.arange(target_boxes.shape[0], device=boxes.device)
    other = (to_targets.intersection > 0) & (column[None] != target_index[:, None])
    other = other & _same_image(batch_index, target_batch_index)
    candidate = torch.where(other, to_targets.iou, 0.0).detach()
    # One more column of zeros stands for "no other ground truth".
    nearest = torch.nn.functional.pad(candidate, (0, 1)).argmax(1, keepdim=True)
    target_area = (to_targets.w2 * to_targets.h2).expand_as(candidate)
    # Padding the areas with 1 keeps the quotient of the extra column finite.
    area = torch.nn.functional.pad(target_area, (0, 1), value=1.0).gather(1, nearest).squeeze(1)
    shared = torch.nn.functional.pad(torch.where(other, to_targets.intersection, 0.0), (0, 1))
    shared = shared.gather(1, nearest).squeeze(1)
    from_targets = _smooth_ln(shared / torch.where(shared > 0, area + REPULSION_EPS, 1.0), sigma_gt)

    # RepBox: away from the boxes of the same image that aim at another ground truth.
    between = _measure(boxes[:, None], boxes[None], REPULSION_EPS)  # [P, P]
    rival = (between.intersection > 0) & (target_index[:, None] != target_index[None])
    rival = rival & _same_image(batch_index, batch_index)
    overlap = torch.where(rival, between.intersection, 0.0) / torch.where(
        rival, between.union + REPULSION_EPS, 1.0
    )
    half_pairs = _smooth_ln(overlap, sigma_box).sum(1) / 2  # [P]: each pair stands in two rows

    if reduction == "mean":
        count = max(boxes.shape[0], 1)
        pair_count = (rival.sum() / 2).clamp(min=1)
        per_box = (attraction + alpha * from_targets).sum() / count
        return per_box + beta * half_pairs.sum() / pair_count
    return reduce_loss(attraction + alpha * from_targets + beta * half_pairs, None, reduction, None)


def pairwise_box_iou(
    boxes1: Tensor, boxes2: Tensor, kind: str = "iou", eps: float = 1e-7
) -> Tensor:
    """The similarity of every box of the first set with every box of the second."""
    boxes1, boxes2 = promote(boxes1, boxes2)
    pair = _measure(boxes1.unsqueeze(-2), boxes2.unsqueeze(-3), eps)
    if kind == "iou":
        return pair.iou
    if kind == "giou":
        return _giou(pair, eps)
    if kind == "diou":
        return _diou(pair, eps)
    if kind == "ciou":
        return _ciou(pair, eps)
    if kind == "eiou":
        return _eiou(pair, eps)
    if kind == "siou":
        return _siou(pair, eps, PAIRWISE_THETA)
    if kind == "nwd":
        return torch.exp(-_squared_wasserstein(pair, eps).sqrt() / PAIRWISE_CONSTANT)
    raise ValueError(f"pairwise_box_iou: unknown kind {kind!r}")


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
    """Of every prediction with every target; it has no gradient."""
    logits, boxes = promote(logits.detach(), boxes.detach())
    boxes, target_boxes = promote(boxes, target_boxes.detach())
    logits = logits.to(boxes.dtype)
    of_targets = target_labels.long().unsqueeze(-2).expand(*logits.shape[:-1], -1)
    if kind == "softmax":
        of_class = -logits.softmax(-1).gather(-1, of_targets)
    elif kind == "focal":
        probability, complement = (x.sigmoid().gather(-1, of_targets) for x in (logits, -logits))
        positive = -alpha * power(complement, gamma) * (probability + 1e-8).log()
        negative = -(1 - alpha) * power(probability, gamma) * (complement + 1e-8).log()
        of_class = positive - negative
    else:
        raise ValueError(f"detr_matching_cost: unknown kind {kind!r}")

    boxes, target_boxes = boxes.unsqueeze(-2), target_boxes.unsqueeze(-3)
    distance = (boxes - target_boxes).abs().sum(-1)
    (x1, y1, x2, y2), (u1, v1, u2, v2) = (
        torch.cat((b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2), -1).unbind(-1)
        for b in (boxes, target_boxes)
    )
    width, height = (
        torch.minimum(x2, u2) - torch.maximum(x1, u1),
        (torch.minimum(y2, v2) - torch.maximum(y1, v1)),
    )
    common = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - common
    around = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) * (
        torch.maximum(y2, v2) - torch.minimum(y1, v1)
    )
    iou = common / torch.where((common > 0) | union.isnan(), union, 1.0)
    giou = iou - (around - union) / torch.where(around == 0, 1.0, around)
    return class_cost * of_class + bbox_cost * distance - giou_cost * giou


def distribution_focal_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-(i + 1 - y) ln p_i - (y - i) ln p_{i+1}``, with i the integer below y."""
    input, target = promote(input, target)
    position = target.clamp(0, input.shape[-1] - 1 - 0.01)
    lower = position.detach().nan_to_num().long()
    upper_share = position - lower
    log_probability = input.log_softmax(-1)
    of_lower = log_probability.gather(-1, lower.unsqueeze(-1)).squeeze(-1)
    of_upper = log_probability.gather(-1, lower.unsqueeze(-1) + 1).squeeze(-1)
    loss = -(1 - upper_share) * of_lower - upper_share * of_upper
    return reduce_loss(loss, weight, reduction, avg_factor)
