# SPDX-License-Identifier: MIT
"""transformers: the detection losses and matchers of DETR and of those after it.

- The matchers of DETR, Deformable DETR, RT-DETR, D-FINE and LW-DETR get their costs from one kernel
  and match every image with its own targets: the originals compute the costs of all targets of the
  batch. Where boxes have no area, a cost is finite where theirs is NaN. What is NaN all the same is
  matched last, as in the newer versions; the older ones have an error for it.
- ``loss_boxes`` computes the GIoU of matched boxes; theirs is the diagonal of a matrix of all.
- ``loss_labels`` of Deformable DETR takes classes as indices, ``loss_labels_vfl`` of RT-DETR and
  D-FINE touches only the targets' logits beside one pass over all, and both sigmoid focal losses
  are one pass.

Everything else is theirs: the assignment itself (scipy's), ``loss_local`` of D-FINE, the labels of
DETR and LW-DETR, masks, the matchers of Grounding DINO and RF-DETR. Half-precision logits and boxes
are computed in float32. Boxes with negative sides go to the originals, whose error is clearer; on a
GPU nobody waits to look for them in ``loss_boxes``.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastloss import functional

from ._adapters import (
    FLOATING,
    PLAIN,
    are_plain,
    corners,
    has_kernels,
    in_dtype_of,
    is_served,
    unless_refused,
)
from .patching import Framework, Function, Replacement

Outputs = dict[str, Any]
Targets = list[dict[str, Tensor]]
Indices = list[tuple[Tensor, Tensor]]

# Nothing beside the area of a box of a pixel, in units of the image, and enough for those without.
_EPS = 1e-16


# ----------------------------------------------------------------------------------------- matchers


def _matcher(original: Function, options_of: Function) -> Function:
    """Makes the stand-in of a matcher whose class costs are ``options_of(matcher)``."""
    assign = inspect.unwrap(original).__globals__["linear_sum_assignment"]

    @functools.wraps(original)
    @torch.no_grad()
    def forward(
        self: Any, outputs: Outputs, targets: Targets, group_detr: int | None = None
    ) -> Indices:
        costs = _costs(self, outputs, targets, options_of(self))
        if costs is None:
            more = () if group_detr is None else (group_detr,)
            found: Indices = original(self, outputs, targets, *more)
            return found
        queries = outputs["logits"].shape[1] // (group_detr or 1)
        matches = []
        for cost in costs:
            # Every group of queries has all targets to itself.
            of_groups = [
                (torch.as_tensor(rows) + group * queries, torch.as_tensor(columns))
                for group, part in enumerate(cost.split(max(queries, 1)))
                for rows, columns in (assign(part),)
            ][: group_detr or 1]
            rows, columns = (torch.cat(parts) for parts in zip(*of_groups, strict=True))
            matches.append((rows, columns))
        return matches

    return forward


def _costs(
    matcher: Any, outputs: Outputs, targets: Targets, options: dict[str, Any]
) -> list[Tensor] | None:
    """The costs of every image (N, M) on the CPU; None where the original is to compute them."""
    logits, boxes = outputs["logits"], outputs["pred_boxes"]
    labels, target_boxes = ([each[key] for each in targets] for key in ("class_labels", "boxes"))
    everything = (logits, boxes, *labels, *target_boxes)
    if not (
        all(type(tensor) in PLAIN and tensor.device == logits.device for tensor in everything)
        and has_kernels(logits)
        and logits.dim() == boxes.dim() == 3
        and logits.numel() > 0
        and len(logits) == len(targets)
        and all(tensor.dtype in FLOATING for tensor in (logits, boxes, *target_boxes))
        and all(label.dtype == torch.int64 and label.dim() == 1 for label in labels)
        and all(map(_are_proper, (boxes, *target_boxes)))
    ):
        return None
    costs = unless_refused(
        functional.detr_matching_cost,
        logits,
        boxes,
        pad_sequence(labels, batch_first=True),
        pad_sequence(target_boxes, batch_first=True),
        class_cost=matcher.class_cost,
        bbox_cost=matcher.bbox_cost,
        giou_cost=matcher.giou_cost,
        **options,
    )
    if costs is None:
        return None
    worst = torch.finfo(costs.dtype).max
    costs = costs.nan_to_num(nan=worst, posinf=worst, neginf=worst).cpu()
    return [cost[:, : len(label)] for cost, label in zip(costs, labels, strict=True)]


def _softmax_matcher(original: Function) -> Function:
    return _matcher(original, lambda matcher: {"kind": "softmax"})


def _focal_matcher(original: Function) -> Function:
    return _matcher(original, lambda matcher: {"kind": "focal", "alpha": 0.25, "gamma": 2.0})


def _rt_detr_matcher(original: Function) -> Function:
    return _matcher(
        original,
        lambda matcher: (
            {"kind": "focal", "alpha": matcher.alpha, "gamma": matcher.gamma}
            if matcher.use_focal_loss
            else {"kind": "softmax"}
        ),
    )


# ------------------------------------------------------------------------------------------- losses


def _loss_boxes(original: Function) -> Function:
    @functools.wraps(original)
    def loss_boxes(
        self: Any, outputs: Outputs, targets: Targets, indices: Indices, num_boxes: Any
    ) -> dict[str, Tensor]:
        pair = _matched_boxes(self, outputs, targets, indices)
        if pair is None:
            found: dict[str, Tensor] = original(self, outputs, targets, indices, num_boxes)
            return found
        predicted, target = pair
        giou = functional.generalized_box_iou_loss(corners(predicted), corners(target), "sum", _EPS)
        return {
            "loss_bbox": functional.l1_loss(predicted, target, reduction="sum") / num_boxes,
            "loss_giou": giou / num_boxes,
        }

    return loss_boxes


def _loss_labels_vfl(original: Function) -> Function:
    @functools.wraps(original)
    def loss_labels_vfl(
        self: Any,
        outputs: Outputs,
        targets: Targets,
        indices: Indices,
        num_boxes: Any,
        log: bool = True,
    ) -> dict[str, Tensor]:
        pair = _matched_boxes(self, outputs, targets, indices)
        if pair is None or not _has_logits(self, outputs, targets):
            found: dict[str, Tensor] = original(self, outputs, targets, indices, num_boxes, log)
            return found
        logits = outputs["logits"]
        # All as if they were negatives, and then what the positives are instead.
        no_target = logits.new_zeros(()).expand_as(logits)
        negatives = functional.asymmetric_loss(
            logits, no_target, gamma_neg=self.gamma, clip=0.0, reduction="sum"
        )
        predicted, target = (corners(boxes.detach()) for boxes in pair)
        iou = 1 - functional.box_iou_loss(predicted, target, reduction="none", eps=_EPS)
        labels = torch.cat(
            [
                each["class_labels"][chosen]
                for each, (_, chosen) in zip(targets, indices, strict=True)
            ]
        )
        positive = logits[(*self._get_source_permutation_idx(indices), labels)].to(iou.dtype)
        softplus = torch.nn.functional.softplus
        negative_weight = self.alpha * positive.detach().sigmoid().pow(self.gamma)
        instead = iou * (
            iou * softplus(-positive) + (1 - iou) * softplus(positive)
        ) - negative_weight * softplus(positive)
        loss = (self.alpha * negatives + instead.sum()) / num_boxes
        return {"loss_vfl": in_dtype_of(logits, loss)}

    return loss_labels_vfl


def _loss_labels_focal(original: Function) -> Function:
    @functools.wraps(original)
    def loss_labels(
        self: Any, outputs: Outputs, targets: Targets, indices: Indices, num_boxes: Any
    ) -> dict[str, Tensor]:
        loss = None
        if _has_logits(self, outputs, targets) and 0 <= self.focal_alpha <= 1:
            logits = outputs["logits"]
            classes = torch.full(
                logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device
            )
            classes[self._get_source_permutation_idx(indices)] = torch.cat(
                [
                    each["class_labels"][chosen]
                    for each, (_, chosen) in zip(targets, indices, strict=True)
                ]
            )
            loss = unless_refused(
                functional.sigmoid_focal_loss, logits, classes, self.focal_alpha, 2, "sum"
            )
        if loss is None:
            found: dict[str, Tensor] = original(self, outputs, targets, indices, num_boxes)
            return found
        return {"loss_ce": in_dtype_of(logits, loss / num_boxes)}

    return loss_labels


def _sigmoid_focal_loss(original: Function) -> Function:
    # Grounding DINO's is a sum, that of the others a mean over the second dimension.
    is_sum = original.__module__.endswith("grounding_dino")

    @functools.wraps(original)
    def sigmoid_focal_loss(
        inputs: Tensor,
        targets: Tensor,
        num_boxes: Any,
        alpha: float = 0.25,
        gamma: float = 2,
    ) -> Tensor:
        loss = None
        if (
            are_plain(inputs, targets)
            and has_kernels(inputs)
            and inputs.numel() > 0
            and (is_sum or inputs.dim() > 1)
        ):
            of_alpha = alpha if alpha >= 0 else -1
            loss = unless_refused(
                functional.sigmoid_focal_loss, inputs, targets, of_alpha, gamma, "sum"
            )
        if loss is None:
            other: Tensor = original(inputs, targets, num_boxes, alpha, gamma)
            return other
        loss = (loss if is_sum else loss / inputs.shape[1]) / num_boxes
        return in_dtype_of(inputs, loss) if inputs.dtype == targets.dtype else loss

    return sigmoid_focal_loss


# --------------------------------------------------------------------------- what the losses share


def _matched_boxes(
    criterion: Any, outputs: Outputs, targets: Targets, indices: Indices
) -> tuple[Tensor, Tensor] | None:
    """The predicted boxes and their targets (M, 4); None where the original is to look at them."""
    boxes = outputs.get("pred_boxes")
    if not isinstance(boxes, Tensor) or type(boxes) not in PLAIN or not has_kernels(boxes):
        return None
    predicted = boxes[criterion._get_source_permutation_idx(indices)]
    target = torch.cat(
        [each["boxes"][chosen] for each, (_, chosen) in zip(targets, indices, strict=True)]
    )
    if not are_plain(predicted, target) or target.requires_grad:
        return None
    dtype = torch.promote_types(predicted.dtype, target.dtype)
    if dtype not in (torch.float32, torch.float64):
        return None
    if predicted.is_cpu and not (_are_proper(predicted) and _are_proper(target)):
        return None
    return predicted.to(dtype), target.to(dtype)


def _has_logits(criterion: Any, outputs: Outputs, targets: Targets) -> bool:
    """Whether there are logits (B, N, C) for labels that are known to be classes."""
    logits = outputs.get("logits")
    return (
        logits is not None
        and is_served(logits)
        and logits.dim() == 3
        and logits.numel() > 0
        and logits.shape[2] == criterion.num_classes
        and not (logits.is_cpu and any(bool((each["class_labels"] < 0).any()) for each in targets))
    )


def _are_proper(boxes: Tensor) -> bool:
    """Whether no box (..., 4) has a negative side."""
    return bool((boxes[..., 2:] >= 0).all())


_DETR = "transformers.loss.loss_for_object_detection"
_DEFORMABLE = "transformers.loss.loss_deformable_detr"
_RT_DETR = "transformers.loss.loss_rt_detr"
_LW_DETR = "transformers.loss.loss_lw_detr"

TRANSFORMERS = Framework(
    name="transformers",
    oldest=(5, 12),
    newest=(5, 24),
    within=("transformers.loss",),
    replacements=(
        Replacement(_DETR, "HungarianMatcher.forward", _softmax_matcher),
        Replacement(_DETR, "ImageLoss.loss_boxes", _loss_boxes),
        Replacement(_DETR, "sigmoid_focal_loss", _sigmoid_focal_loss),
        Replacement(_DEFORMABLE, "DeformableDetrHungarianMatcher.forward", _focal_matcher),
        Replacement(_DEFORMABLE, "DeformableDetrImageLoss.loss_labels", _loss_labels_focal),
        Replacement(_RT_DETR, "RTDetrHungarianMatcher.forward", _rt_detr_matcher),
        Replacement(_RT_DETR, "RTDetrLoss.loss_boxes", _loss_boxes),
        Replacement(_RT_DETR, "RTDetrLoss.loss_labels_vfl", _loss_labels_vfl),
        Replacement(_LW_DETR, "LwDetrHungarianMatcher.forward", _focal_matcher),
        Replacement(_LW_DETR, "LwDetrImageLoss.loss_boxes", _loss_boxes),
        Replacement(
            "transformers.loss.loss_grounding_dino", "sigmoid_focal_loss", _sigmoid_focal_loss
        ),
    ),
)
