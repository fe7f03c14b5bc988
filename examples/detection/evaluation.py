# SPDX-License-Identifier: MIT
"""From predictions to detections (non-maximum suppression) and to mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detection.model import Predictions

_SCORE_THRESHOLD = 0.02
_MAX_CANDIDATES = 200
_NMS_IOU = 0.5


@dataclass(frozen=True)
class Objects:
    """The objects of one image: detections, or ground truths (whose scores are 1)."""

    boxes: Tensor  # (N, 4) xyxy in pixels
    labels: Tensor  # (N,) int64
    scores: Tensor  # (N,)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Returns the IoU of every box (N, 4) with every box (M, 4), (N, M)."""
    left_top = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    right_bottom = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = (right_bottom - left_top).clamp(min=0).prod(dim=-1)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(dim=-1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(dim=-1)
    union = area1[:, None] + area2[None, :] - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def non_maximum_suppression(objects: Objects, iou_threshold: float) -> Objects:
    """Keeps, of detections of one class that overlap more than the threshold, the best.

    The detections come back sorted by falling score.
    """
    order = objects.scores.argsort(descending=True, stable=True)
    boxes, labels = objects.boxes[order], objects.labels[order]
    rivals = (box_iou(boxes, boxes) > iou_threshold) & (labels[:, None] == labels[None, :])
    keep = torch.ones(len(order), dtype=torch.bool, device=order.device)
    for i in range(len(order)):
        if keep[i]:
            keep[i + 1 :] &= ~rivals[i, i + 1 :]
    kept = order[keep]
    return Objects(objects.boxes[kept], objects.labels[kept], objects.scores[kept])


@torch.no_grad()
def detect(predictions: Predictions) -> list[Objects]:
    """Returns the detections of each image, best first, on the CPU."""
    detections = []
    scores = predictions.logits.sigmoid().cpu()
    for image_scores, image_boxes in zip(scores, predictions.boxes.cpu(), strict=True):
        location, label = (image_scores > _SCORE_THRESHOLD).nonzero(as_tuple=True)
        score = image_scores[location, label]
        score, best = score.topk(min(_MAX_CANDIDATES, len(score)))
        candidates = Objects(image_boxes[location[best]], label[best], score)
        detections.append(non_maximum_suppression(candidates, _NMS_IOU))
    return detections


def mean_average_precision(
    detections: list[Objects], truths: list[Objects], iou_threshold: float = 0.5
) -> float:
    """Returns the mean, over the classes that occur in `truths`, of the average precision."""
    classes = {label for truth in truths for label in truth.labels.tolist()}
    precisions = [average_precision(detections, truths, label, iou_threshold) for label in classes]
    return sum(precisions) / len(precisions)


def average_precision(
    detections: list[Objects], truths: list[Objects], label: int, iou_threshold: float
) -> float:
    """Returns the area under the interpolated precision-recall curve of one class.

    A detection is right if it overlaps a ground truth of its image and class by at least the
    threshold and no better-scored detection has taken it. Precision is interpolated at all points:
    at each recall it is the highest precision at that recall or beyond.
    """
    scores, right, num_truths = [], [], 0
    for found, truth in zip(detections, truths, strict=True):
        mine, targets = found.labels == label, truth.labels == label
        order = found.scores[mine].argsort(descending=True, stable=True)
        iou = box_iou(found.boxes[mine][order], truth.boxes[targets])
        scores.append(found.scores[mine][order])
        right.append(_match(iou, iou_threshold))
        num_truths += int(targets.sum())
    order = torch.cat(scores).argsort(descending=True, stable=True)
    true_positives = torch.cat(right)[order].double().cumsum(0)
    precision = true_positives / torch.arange(1, len(order) + 1)
    recall = true_positives / num_truths
    precision = precision.flip(0).cummax(0).values.flip(0)
    step = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((step * precision).sum())


def _match(iou: Tensor, threshold: float) -> Tensor:
    """Marks which detections, rows of (N, M) sorted by score, take a free ground truth."""
    matched = torch.zeros(iou.shape[0], dtype=torch.bool)
    if iou.shape[1] == 0:
        return matched
    free = iou.clone()
    for row in range(iou.shape[0]):
        value, column = free[row].max(dim=0)
        if value >= threshold:
            matched[row] = True
            free[:, column] = -1.0
    return matched
