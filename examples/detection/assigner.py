# SPDX-License-Identifier: MIT
"""Task-aligned label assignment: which location is to learn which ground truth.

After *TOOD: Task-aligned One-stage Object Detection* (Feng et al. 2021, arXiv:2108.07755).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fastloss.functional as F
from detection.model import Predictions
from detection.scenes import Scenes


@dataclass(frozen=True)
class Assignment:
    """The targets of a batch of B images with L locations and C classes each."""

    labels: Tensor  # (B, L) int64, C where a location is background
    positive: Tensor  # (P,) int64, the positive locations in the flattened (B*L,)
    boxes: Tensor  # (P, 4) the ground-truth box of each positive location
    weight: Tensor  # (P,) how well the location is aligned with its ground truth, in [0, 1]
    weight_sum: Tensor  # () the sum of the weights, at least 1


class TaskAlignedAssigner:
    """Gives each ground truth the `topk` locations inside it that predict it best.

    "Best" is score^alpha * CIoU^beta, with the score of the ground truth's own class. A location
    that several ground truths want goes to the one it overlaps most.
    """

    def __init__(self, topk: int = 9, alpha: float = 0.5, beta: float = 4.0) -> None:
        self.topk = topk
        self.alpha = alpha
        self.beta = beta

    @torch.no_grad()
    def __call__(self, predictions: Predictions, scenes: Scenes) -> Assignment:
        """Returns the targets for `predictions`; every tensor stays on its device."""
        num_classes = predictions.logits.shape[-1]
        overlap = F.pairwise_box_iou(scenes.boxes, predictions.boxes, kind="ciou")  # (B, G, L)
        overlap = overlap.clamp(min=0.0)
        candidate = _inside(predictions.centres, scenes.boxes) & scenes.valid.unsqueeze(-1)
        alignment = self._alignment(predictions.logits, scenes.labels, overlap)
        alignment = torch.where(candidate, alignment, -1.0)  # -1: below every candidate

        chosen = self._topk(alignment)
        wanted = chosen.any(dim=1)  # (B, L)
        owner = torch.where(chosen, overlap, -1.0).argmax(dim=1)  # (B, L) among the G
        chosen = chosen & torch.zeros_like(chosen).scatter_(1, owner.unsqueeze(1), True)

        labels = torch.where(wanted, scenes.labels.gather(1, owner), num_classes)
        positive = wanted.flatten().nonzero().squeeze(-1)
        target_boxes = scenes.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
        weight = _normalised_alignment(alignment, overlap, chosen).flatten()[positive]
        return Assignment(
            labels=labels,
            positive=positive,
            boxes=target_boxes.reshape(-1, 4)[positive],
            weight=weight,
            weight_sum=weight.sum().clamp(min=1.0),
        )

    def _alignment(self, logits: Tensor, labels: Tensor, overlap: Tensor) -> Tensor:
        index = labels.unsqueeze(-1).expand(-1, -1, logits.shape[1])  # (B, G, L)
        own_score = logits.sigmoid().transpose(1, 2).gather(1, index)
        return own_score.pow(self.alpha) * overlap.pow(self.beta)

    def _topk(self, alignment: Tensor) -> Tensor:
        values, indices = alignment.topk(min(self.topk, alignment.shape[-1]), dim=-1)
        return torch.zeros_like(alignment, dtype=torch.bool).scatter_(-1, indices, values >= 0)


def _inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """Returns which centres (L, 2) lie strictly inside which boxes (B, G, 4), (B, G, L)."""
    left_top, right_bottom = boxes.unsqueeze(-2).chunk(2, dim=-1)  # (B, G, 1, 2)
    return ((centres > left_top) & (centres < right_bottom)).all(dim=-1)


def _normalised_alignment(alignment: Tensor, overlap: Tensor, chosen: Tensor) -> Tensor:
    """Scales alignments so that each ground truth's best location has its best IoU, (B, L)."""
    alignment = torch.where(chosen, alignment, 0.0)
    best_alignment = alignment.amax(dim=-1, keepdim=True)
    best_overlap = torch.where(chosen, overlap, 0.0).amax(dim=-1, keepdim=True)
    scaled = alignment * best_overlap / best_alignment.clamp(min=torch.finfo(overlap.dtype).tiny)
    return scaled.amax(dim=1)
