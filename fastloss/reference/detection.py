# SPDX-License-Identifier: MIT
"""Losses of dense detectors in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .boxes import complete_box_iou_loss, pairwise_box_iou
from .classification import binary_cross_entropy_with_logits

__all__ = ["task_aligned_assignment", "task_aligned_detection_loss"]


def task_aligned_assignment(
    logits: Tensor,
    distances: Tensor,
    anchors: Tensor,
    strides: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    *,
    topk: int = 10,
    topk2: int | None = None,
    alpha: float = 0.5,
    beta: float = 6.0,
    candidate_boxes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """By tensors of all anchors times all targets (B, G, A)."""
    dtype = _accumulate_type(logits, distances, target_boxes)
    x, d = logits.detach().to(dtype), distances.detach().to(dtype)
    points, cells = anchors.to(dtype), strides.to(dtype)
    boxes = target_boxes.to(dtype)
    batch, _, count = x.shape
    targets = boxes.shape[1]
    nothing = x.new_full((batch, count), -1, dtype=torch.int64), x.new_zeros(batch, count)
    if targets == 0 or count == 0:
        return nothing

    centers = points * cells[:, None]
    reach = boxes if candidate_boxes is None else candidate_boxes.to(dtype)
    margins = torch.cat(
        (centers - reach[:, :, None, :2], reach[:, :, None, 2:] - centers), dim=-1
    )  # (B, G, A, 4)
    valid = target_labels >= 0
    inside = (margins > 1e-9).all(-1) & valid[..., None]

    predicted = _decoded(d, points)[0] * cells[:, None]
    overlaps = pairwise_box_iou(boxes, predicted, "ciou").clamp_min(0)
    overlaps = torch.where(inside, overlaps, 0.0)
    labels = target_labels.long().clamp_min(0)
    picked = x.gather(1, labels[..., None].expand(-1, -1, count)).sigmoid()
    metrics = torch.where(overlaps == 0, 0.0, picked.pow(alpha) * overlaps.pow(beta))
    chosen = _largest(metrics, topk)

    # An anchor has one target: of several that chose it, the one it overlaps most, chosen or not.
    several = chosen.sum(1, keepdim=True) > 1
    order = torch.arange(targets, device=x.device)[:, None]
    best = order == overlaps.argmax(1, keepdim=True)
    chosen = torch.where(several, best, chosen)
    if topk2 is not None:
        chosen &= _largest(torch.where(chosen, metrics, 0.0), topk2)

    metrics, overlaps = torch.where(chosen, metrics, 0.0), torch.where(chosen, overlaps, 0.0)
    highest, closest = metrics.amax(-1, keepdim=True), overlaps.amax(-1, keepdim=True)
    scores = (metrics * closest / (highest + 1e-9)).amax(1)
    indices = torch.where(chosen.any(1), chosen.int().argmax(1), -1)
    return indices, scores


def task_aligned_detection_loss(
    logits: Tensor,
    distances: Tensor,
    anchors: Tensor,
    strides: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    target_indices: Tensor,
    target_scores: Tensor,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """By dense target scores (B, C, A)."""
    dtype = _accumulate_type(logits, distances, target_boxes, target_scores)
    x, d = logits.to(dtype), distances.to(dtype)
    points, cells = anchors.to(dtype), strides.to(dtype)
    batch, classes, count = x.shape
    bins = d.shape[1] // 4
    if target_boxes.shape[1] == 0 or count == 0:
        foreground = torch.zeros(batch, count, dtype=torch.bool, device=x.device)
    else:
        foreground = target_indices >= 0
    image, anchor = foreground.nonzero(as_tuple=True)
    scores = target_scores.to(dtype)[image, anchor]
    target = target_indices[image, anchor].long()
    labels = target_labels[image, target].long()
    # No assignment has a target of padding; its anchors would be background.
    known = labels >= 0
    image, anchor, scores, target, labels = (
        tensor[known] for tensor in (image, anchor, scores, target, labels)
    )
    total = scores.sum().clamp_min(1)

    dense = torch.zeros_like(x).index_put((image, labels, anchor), scores)
    factors = None if weight is None else weight.to(dtype)[:, None].expand(classes, count)
    of_classes = binary_cross_entropy_with_logits(x, dense, factors, "sum")

    predicted, shares = _decoded(d, points)
    boxes = target_boxes.to(dtype)[image, target] / cells[anchor, None]
    of_boxes = scores * complete_box_iou_loss(predicted[image, anchor], boxes)

    at = points[anchor]
    sides = torch.cat((at - boxes[:, :2], boxes[:, 2:] - at), dim=-1).clamp(0, bins - 1 - 0.01)
    # Both neighbouring bins, each the more the nearer it is.
    steps = torch.arange(bins, device=x.device, dtype=dtype)
    wanted = (1 - (sides[..., None] - steps).abs()).clamp_min(0)
    costs = -(wanted * shares[image, anchor]).sum(-1).mean(-1)
    return torch.stack((of_boxes.sum(), of_classes, (scores * costs).sum())) / total


def _accumulate_type(*tensors: Tensor) -> torch.dtype:
    is_wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_wide else torch.float32


def _decoded(distances: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes (B, A, 4) in cells, and the log-probabilities of the bins (B, A, 4, bins)."""
    shares = distances.unflatten(1, (4, -1)).movedim(3, 1).log_softmax(-1)
    steps = torch.arange(shares.shape[-1], device=distances.device, dtype=distances.dtype)
    sides = (shares.exp() * steps).sum(-1)
    return torch.cat((points - sides[..., :2], points + sides[..., 2:]), dim=-1), shares


def _largest(metrics: Tensor, count: int) -> Tensor:
    """Whether a number is one of the largest of its row, and above 0; of equal ones the first."""
    order = metrics.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(metrics, dtype=torch.bool).scatter(-1, order, True) & (metrics != 0)
