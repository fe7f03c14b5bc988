# SPDX-License-Identifier: MIT
"""torchvision: the losses of ``torchvision.ops``, its ``box_iou``, and the heads built on them.

The heads of RetinaNet and FCOS take their classes as indices: no tensor of zeros and ones is made
of them, nothing is copied to leave out ignored anchors, and boxes are decoded only where there is
an object. ``box_iou`` serves the matching of RetinaNet, Faster R-CNN and SSD. What else these
compute is small beside it, or torch's own (``fastloss.patch("torch")`` has its cross-entropy).

Signatures, defaults, reductions, dtypes, errors and empty inputs are torchvision's. Calls that the
kernels do not take run torchvision's own code: shapes that differ, integers, tensor subclasses,
``torch.jit.script`` and ``torch.jit.trace``, a focal loss without focus (gamma 0), a CIoU loss with
an eps of the caller's, overlaps that need a gradient. What differs from torchvision: losses and
gradients are finite where its own are NaN (boxes of zero area), and half-precision focal losses are
computed in float32. ``torch.jit.script`` compiles RetinaNet and FCOS only while they are not
patched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastloss import functional

from ._adapters import (
    PLAIN,
    REDUCTIONS,
    are_plain,
    has_kernels,
    in_dtype_of,
    is_served,
    scripted_as,
    unless_refused,
)
from .patching import Framework, Function, Replacement

_DEFAULT_EPS = 1e-7


def _box_loss(kernel: Function, *, only_default_eps: bool = False) -> Function:
    """Makes the wrapper of a loss of boxes."""

    def wrap(original: Function) -> Function:
        @functools.wraps(original)
        def stand_in(
            boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = _DEFAULT_EPS
        ) -> Tensor:
            fits = (
                are_plain(boxes1, boxes2)
                and boxes1.dim() > 0
                and boxes1.shape[-1] == 4
                and reduction in REDUCTIONS
                and isinstance(eps, float)
                and (eps == _DEFAULT_EPS or not only_default_eps)
            )
            call = kernel if fits else original
            return call(boxes1, boxes2, reduction, eps)

        return scripted_as(original, stand_in)

    return wrap


def _focal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(
        inputs: Tensor,
        targets: Tensor,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: str = "none",
    ) -> Tensor:
        fits = (
            are_plain(inputs, targets)
            and inputs.numel() > 0  # torchvision's mean over nothing is NaN
            and reduction in REDUCTIONS
            and isinstance(alpha, (float, int))
            and (0 <= alpha <= 1 or alpha == -1)
            and isinstance(gamma, (float, int))
            and gamma > 0  # with 0 it promises not to exceed torch's cross-entropy by one bit
        )
        if not fits:
            return original(inputs, targets, alpha, gamma, reduction)
        loss = functional.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)
        return in_dtype_of(inputs, loss) if inputs.dtype == targets.dtype else loss

    return scripted_as(original, stand_in)


def _wide(logits: Tensor) -> torch.dtype:
    """The dtype in which the kernels compute."""
    return torch.promote_types(logits.dtype, torch.float32)


def _box_iou(original: Function) -> Function:
    @functools.wraps(original)
    def stand_in(boxes1: Tensor, boxes2: Tensor, *options: Any, **named: Any) -> Tensor:
        fits = (
            are_plain(boxes1, boxes1)
            and are_plain(boxes2, boxes2)
            and boxes1.dim() == boxes2.dim() == 2
            and boxes1.shape[1] == boxes2.shape[1] == 4
            and boxes1.device == boxes2.device
            and boxes1.dtype == boxes2.dtype
            and boxes1.dtype in (torch.float32, torch.float64)
            and has_kernels(boxes1)
            and not (torch.is_grad_enabled() and (boxes1.requires_grad or boxes2.requires_grad))
            # Newer versions take other formats too.
            and named.keys() <= {"fmt"}
            and (*options, *named.values()) in ((), ("xyxy",))
        )
        if not fits:
            return original(boxes1, boxes2, *options, **named)
        # Without an eps the overlaps are torchvision's to the last bit, and so are the matches.
        return functional.pairwise_box_iou(boxes1, boxes2, "iou", 0.0)

    return scripted_as(original, stand_in)


# ------------------------------------------------------------------------------------------- heads


def _retinanet_classes(original: Function) -> Function:
    @functools.wraps(original)
    def compute_loss(
        self: Any,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        matched_idxs: list[Tensor],
    ) -> Tensor:
        logits = head_outputs["cls_logits"]
        loss = None
        if _are_dense(logits, targets, matched_idxs):
            classes, matched = logits.shape[2], torch.stack(list(matched_idxs))
            indices = _class_indices(targets, matched, classes, lambda label: label + classes)
            indices.masked_fill_(matched == self.BETWEEN_THRESHOLDS, -1)  # ignored
            foreground = (matched >= 0).sum(1).clamp(min=1)
            loss = unless_refused(
                functional.sigmoid_focal_loss,
                logits,
                indices,
                reduction="sum",
                weight=(1 / (foreground * len(targets)).to(_wide(logits))).view(-1, 1, 1),
            )
        if loss is None:
            return original(self, targets, head_outputs, matched_idxs)
        return in_dtype_of(logits, loss)

    return compute_loss


def _fcos_head(original: Function) -> Function:
    names = original.__globals__  # the stand-ins, by the time of a call

    @functools.wraps(original)
    def compute_loss(
        self: Any,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        logits = head_outputs["cls_logits"]
        class_loss = None
        if _are_dense(logits, targets, matched_idxs):
            classes, matched = logits.shape[2], torch.stack(list(matched_idxs))
            indices = _class_indices(targets, matched, classes, lambda label: classes)
            class_loss = unless_refused(
                functional.sigmoid_focal_loss, logits, indices, reduction="sum"
            )
        if class_loss is None:
            return original(self, targets, head_outputs, anchors, matched_idxs)

        is_object = indices != classes
        points = torch.stack(list(anchors))[is_object]
        boxes = torch.cat(
            [
                target["boxes"][match[chosen]]
                for target, match, chosen in zip(targets, matched, is_object, strict=True)
            ]
        )
        predicted = self.box_coder.decode(head_outputs["bbox_regression"][is_object], points)
        box_loss = names["generalized_box_iou_loss"](predicted, boxes, reduction="sum")

        left, top, right, bottom = self.box_coder.encode(points, boxes).unbind(-1)
        centerness = torch.sqrt(
            (torch.minimum(left, right) / torch.maximum(left, right))
            * (torch.minimum(top, bottom) / torch.maximum(top, bottom))
        )
        centerness_loss = torch.nn.functional.binary_cross_entropy_with_logits(
            head_outputs["bbox_ctrness"].squeeze(dim=2)[is_object], centerness, reduction="sum"
        )
        count = max(1, len(points))
        return {
            "classification": in_dtype_of(logits, class_loss / count),
            "bbox_regression": box_loss / count,
            "bbox_ctrness": centerness_loss / count,
        }

    return compute_loss


def _are_dense(logits: Tensor, targets: list[dict[str, Tensor]], matches: list[Tensor]) -> bool:
    """Whether these are logits (B, A, C), and for each image its labels and matches (A,)."""
    return (
        is_served(logits)
        and logits.dim() == 3
        and logits.numel() > 0
        and len(logits) == len(targets) == len(matches)
        and all(
            type(match) is Tensor
            and match.dtype == torch.int64
            and match.shape == logits.shape[1:2]
            and match.device == logits.device
            for match in matches
        )
        and all(
            type(label) in PLAIN
            and label.dtype == torch.int64
            and label.dim() == 1
            and label.device == logits.device
            for label in (target["labels"] for target in targets)
        )
    )


def _class_indices(
    targets: list[dict[str, Tensor]],
    matched: Tensor,
    classes: int,
    of_negative: Callable[[Tensor], Tensor | int],
) -> Tensor:
    """The class of every anchor (B, A), that of the background being the number of classes.

    Args:
        targets: The labels of each image.
        matched: Which of them an anchor has, or a negative number (B, A).
        classes: How many there are. What is none of them becomes a number that the kernels refuse.
        of_negative: The class that a label below 0 stands for.
    """
    unknown = classes + 1
    rows = []
    for label, match in zip((target["labels"] for target in targets), matched, strict=True):
        known = torch.where(label < 0, of_negative(label), label)
        known = torch.where((label < classes) & (known >= 0), known, unknown)
        # One more that is no class: an image may have no labels.
        known = torch.nn.functional.pad(known, (0, 1), value=unknown)
        rows.append(torch.where(match >= 0, known[match.clamp(min=0)], classes))
    return torch.stack(rows)


TORCHVISION = Framework(
    name="torchvision",
    oldest=(0, 25),
    newest=(0, 29),
    replacements=(
        Replacement(
            "torchvision.ops.giou_loss",
            "generalized_box_iou_loss",
            _box_loss(functional.generalized_box_iou_loss),
        ),
        Replacement(
            "torchvision.ops.diou_loss",
            "distance_box_iou_loss",
            _box_loss(functional.distance_box_iou_loss),
        ),
        # torchvision's CIoU uses a caller's eps in one of its three denominators only.
        Replacement(
            "torchvision.ops.ciou_loss",
            "complete_box_iou_loss",
            _box_loss(functional.complete_box_iou_loss, only_default_eps=True),
        ),
        Replacement("torchvision.ops.focal_loss", "sigmoid_focal_loss", _focal_loss),
        Replacement("torchvision.ops.boxes", "box_iou", _box_iou),
        Replacement(
            "torchvision.models.detection.retinanet",
            "RetinaNetClassificationHead.compute_loss",
            _retinanet_classes,
        ),
        Replacement("torchvision.models.detection.fcos", "FCOSHead.compute_loss", _fcos_head),
    ),
)
