# SPDX-License-Identifier: MIT
"""ultralytics: IoU, the losses of boxes, distances and focal losses; the criterion of detection.

``patch("ultralytics")`` replaces single functions: ``bbox_iou`` and ``probiou`` wherever they were
imported (losses, assigners, RT-DETR's matcher), ``DFLoss``, ``FocalLoss``, ``VarifocalLoss``,
``KeypointLoss``; ``BboxLoss`` and ``RotatedBboxLoss`` are made of the first three. Shapes, flags,
defaults and dtypes are ultralytics'; what the kernels do not take, it computes itself. ``DFLoss``
no longer clamps the caller's target in place; ``VarifocalLoss`` takes it that scores are 0 where
labels are, as RT-DETR's.

``patch("ultralytics", criterion="fused")`` also replaces what YOLO detectors of the v8 kind (with
distributions of distances, ``reg_max`` above 1) spend their loss on: ``v8DetectionLoss`` as a whole
runs on :func:`fastloss.functional.task_aligned_assignment` and
:func:`fastloss.functional.task_aligned_detection_loss`. Criteria that are made of others, or
subclassed with a step changed, stay ultralytics' own; so do segmentation, pose and oriented boxes,
which need the assignment as dense tensors.

Losses and gradients are ultralytics' up to rounding. What differs: its 1e-7 is added to the height
of boxes too; an anchor that suits a box by exactly 0 is not assigned to it, where ultralytics
assigns whichever its sort brings, with a score of 0.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastloss import functional

from ._adapters import PLAIN, are_plain, corners, has_kernels, is_served
from .patching import Framework, Function, Replacement

# ------------------------------------------------------------------------------- single functions


def _bbox_iou(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(
        box1: Tensor,
        box2: Tensor,
        xywh: bool = True,
        GIoU: bool = False,
        DIoU: bool = False,
        CIoU: bool = False,
        eps: float = 1e-7,
    ) -> Tensor:
        if not _are_boxes(box1, box2):
            return original(box1, box2, xywh, GIoU, DIoU, CIoU, eps)
        first, second = torch.broadcast_tensors(box1, box2)
        if xywh:
            first, second = corners(first), corners(second)
        loss = (
            functional.complete_box_iou_loss
            if CIoU
            else functional.distance_box_iou_loss
            if DIoU
            else functional.generalized_box_iou_loss
            if GIoU
            else functional.box_iou_loss
        )
        similarity: Tensor = 1 - loss(first, second, "none", eps)
        return similarity.unsqueeze(-1).to(torch.result_type(box1, box2))

    return stand_in


def _probiou(original: Function) -> Function:
    takes_floor = "floor" in inspect.signature(original).parameters

    @functools.wraps(original)
    def stand_in(
        obb1: Tensor, obb2: Tensor, CIoU: bool = False, eps: float = 1e-7, floor: float = 0.0
    ) -> Tensor:
        if CIoU or not _are_boxes(obb1, obb2, 5):
            return original(obb1, obb2, CIoU, eps, *([floor] if takes_floor else []))
        first, second = torch.broadcast_tensors(obb1, obb2)
        loss = functional.probabilistic_iou_loss(first, second, "none", eps, floor=floor)
        return (1 - loss).unsqueeze(-1).to(torch.result_type(obb1, obb2))

    return stand_in


def _keypoint_loss(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(
        self: Any, pred_kpts: Tensor, gt_kpts: Tensor, kpt_mask: Tensor, area: Tensor
    ) -> Tensor:
        if not (
            is_served(pred_kpts)
            and is_served(gt_kpts)
            and type(kpt_mask) in PLAIN
            and is_served(area)
            and pred_kpts.dim() == gt_kpts.dim() == 3
            and pred_kpts.shape[:2] == gt_kpts.shape[:2] == kpt_mask.shape
            and area.shape == (len(pred_kpts), 1)
            and pred_kpts.numel() > 0
            and not gt_kpts.requires_grad
        ):
            return original(self, pred_kpts, gt_kpts, kpt_mask, area)
        loss = functional.object_keypoint_similarity_loss(
            pred_kpts[..., :2], gt_kpts[..., :2], kpt_mask, area.squeeze(1), self.sigmas
        )
        return loss.to(torch.result_type(pred_kpts, gt_kpts))

    return stand_in


def _distribution_focal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(self: Any, pred_dist: Tensor, target: Tensor) -> Tensor:
        if not (
            is_served(pred_dist)
            and is_served(target)
            and pred_dist.dim() == 2
            and pred_dist.shape == (target.numel(), self.reg_max)
            and target.dim() == 2
            and self.reg_max > 1
        ):
            return original(self, pred_dist, target)
        losses = functional.distribution_focal_loss(pred_dist, target.reshape(-1), "none")
        return losses.view(target.shape).mean(-1, keepdim=True)

    return stand_in


def _focal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(self: Any, pred: Tensor, label: Tensor, *more: Any) -> Tensor:
        alpha = self.alpha if isinstance(getattr(self, "alpha", None), Tensor) else None
        if not (
            not more
            and alpha is not None
            and alpha.numel() == 1
            and alpha.is_cpu
            and are_plain(pred, label)
            and has_kernels(pred)
            and pred.dim() > 1
            and not label.requires_grad
            and self.gamma > 0
            and alpha.item() <= 1
        ):
            return original(self, pred, label, *more)
        # Without an alpha above 0 there is none.
        share = alpha.item() if alpha.item() > 0 else -1
        loss = functional.sigmoid_focal_loss(pred, label, share, self.gamma, "sum")
        return loss / pred.shape[1]

    return stand_in


def _varifocal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(
        self: Any, pred_score: Tensor, gt_score: Tensor, label: Tensor, *more: Any
    ) -> Tensor:
        if not (
            not more
            and hasattr(self, "alpha")
            and are_plain(pred_score, gt_score)
            and has_kernels(pred_score)
            and pred_score.dim() > 1
            and is_served(label)
            and label.shape == pred_score.shape
            and not (gt_score.requires_grad or label.requires_grad)
        ):
            return original(self, pred_score, gt_score, label, *more)
        # A positive whose score is 0 weighs nothing.
        counts = torch.where(gt_score > 0, 1, 1 - label)
        loss = functional.varifocal_loss(
            pred_score, gt_score, self.alpha, self.gamma, "sum", weight=counts
        )
        return loss / pred_score.shape[1]

    return stand_in


def _are_boxes(first: Tensor, second: Tensor, coordinates: int = 4) -> bool:
    """Whether these are boxes that the kernels take."""
    return (
        is_served(first)
        and is_served(second)
        and first.device == second.device
        and first.dim() > 0
        and second.dim() > 0
        and first.shape[-1] == second.shape[-1] == coordinates
    )


# ----------------------------------------------------------------------- the criterion of detection


def _detection_criterion(original: Function) -> Function:
    names = original.__globals__
    own, assigner, bbox_loss = (
        names[name] for name in ("v8DetectionLoss", "TaskAlignedAssigner", "BboxLoss")
    )
    # Before 8.4 the criterion is called with the maps of all levels.
    of_maps = original.__name__ == "__call__"
    step = "preprocess" if of_maps else "get_assigned_targets_and_loss"

    def serves(criterion: Any, logits: Tensor, distances: Tensor) -> bool:
        return (
            getattr(type(criterion), step) is getattr(own, step)
            and type(criterion.assigner) is assigner
            and type(criterion.bbox_loss) is bbox_loss
            and type(criterion.bce) is torch.nn.BCEWithLogitsLoss
            and criterion.use_dfl
            and criterion.assigner.eps == 1e-9
            and is_served(logits)
            and is_served(distances)
            and logits.numel() > 0
        )

    @functools.wraps(original)
    def stand_in(self: Any, preds: Any, batch: dict[str, Tensor]) -> Any:
        if of_maps:
            maps = preds[1] if isinstance(preds, tuple) else preds
            joined = torch.cat([level.flatten(2) for level in maps], 2)
            distances, logits = joined.split((self.reg_max * 4, self.nc), 1)
        else:
            maps, distances, logits = preds["feats"], preds["boxes"], preds["scores"]
        if not serves(self, logits, distances):
            return original(self, preds, batch)

        images = logits.shape[0]
        anchors, strides = names["make_anchors"](maps, self.stride, 0.5)
        size = torch.tensor(maps[0].shape[2:], device=self.device, dtype=logits.dtype)
        size = size * self.stride[0]
        found = (batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"])
        targets = self.preprocess(
            torch.cat(found, 1).to(self.device), images, scale_tensor=size[[1, 0, 1, 0]]
        )
        classes, boxes = targets.split((1, 4), 2)
        is_there = boxes.sum(2) > 0
        labels = torch.where(is_there, classes.squeeze(2).long(), -1)
        detections = (logits, distances, anchors, strides.squeeze(1), labels, boxes)
        keeps = getattr(self.assigner, "topk2", self.assigner.topk)
        assigned = functional.task_aligned_assignment(
            *detections,
            topk=self.assigner.topk,
            topk2=None if keeps == self.assigner.topk else keeps,
            alpha=self.assigner.alpha,
            beta=self.assigner.beta,
            candidate_boxes=_candidate_boxes(self.assigner, boxes),
        )
        weight = getattr(self, "class_weights", None)
        losses = functional.task_aligned_detection_loss(
            *detections, *assigned, weight=None if weight is None else weight.flatten()
        ).float()
        gains = (self.hyp.box, self.hyp.cls, self.hyp.dfl)
        losses = torch.stack([loss * gain for loss, gain in zip(losses, gains, strict=True)])
        shown: Any = losses.detach()
        if hasattr(self, "loss_names"):
            shown = dict(zip(self.loss_names, shown, strict=True))
        return losses * images, shown

    return stand_in


def _candidate_boxes(assigner: Any, boxes: Tensor) -> Tensor | None:
    """Where each box looks for anchors; since 8.4, a side that is too short counts as longer."""
    side = getattr(assigner, "stride_val", None)
    if side is None:
        return None
    center, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    make: Callable[..., Any] = type(assigner)
    limit = _shortest_side(make, tuple(assigner.stride), side)
    half = torch.where(sides < limit, side, sides) / 2
    return torch.cat((center - half, center + half), dim=-1)


@functools.cache
def _shortest_side(assigner: Callable[..., Any], strides: tuple[float, ...], side: float) -> float:
    """Below which a side counts as longer: the smallest stride, later the one it then counts as.

    Asked of the assigner, with a box that is between the two and a point beside it.
    """
    asked = assigner(stride=list(strides))
    between = (strides[0] + side) / 4
    box = torch.tensor([[[-between, -between, between, between]]])
    beside = torch.tensor([[(between + side / 2) / 2, 0.0]])
    reached = asked.select_candidates_in_gts(beside, box, torch.ones(1, 1, 1))
    return side if bool(reached.any()) else strides[0]


ULTRALYTICS = Framework(
    name="ultralytics",
    oldest=(8, 3, 100),
    newest=(8, 4),
    replacements=(
        Replacement("ultralytics.utils.metrics", "bbox_iou", _bbox_iou),
        Replacement("ultralytics.utils.metrics", "probiou", _probiou),
        Replacement("ultralytics.utils.loss", "KeypointLoss.forward", _keypoint_loss),
        Replacement("ultralytics.utils.loss", "DFLoss.__call__", _distribution_focal_loss),
        Replacement("ultralytics.utils.loss", "FocalLoss.forward", _focal_loss),
        Replacement("ultralytics.utils.loss", "VarifocalLoss.forward", _varifocal_loss),
    ),
    options={
        ("criterion", "fused"): (
            Replacement(
                "ultralytics.utils.loss",
                "v8DetectionLoss.loss|v8DetectionLoss.__call__",
                _detection_criterion,
            ),
        )
    },
)
