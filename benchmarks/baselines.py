# SPDX-License-Identifier: MIT
"""What fastloss is compared with: each loss as people run it in plain PyTorch.

The baseline of a loss is torchvision's or MONAI's own where that can be imported, else torch's own,
else a formula of this file, else the twin in :mod:`fastloss.reference`.

The formulas are written the way the libraries that people take these losses from write them, one
tensor operation after the other. Those that torchvision or MONAI has too serve only where it cannot
be imported (there is no torchvision for every build of torch), and for ``torch.compile``.

``torch.compile`` gets the same function, with one exception in its favour: where the eager one
writes through a boolean mask, which breaks the graph, it gets the same formula without the mask,
which is several times faster compiled.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as torch_functional
from torch.utils.weak import WeakIdKeyDictionary

from fastloss import reference

try:
    from torchvision import ops as torchvision_ops
except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
    torchvision_ops = None

LossFunction = Callable[..., Tensor]
Intersect = Callable[["_Sides", "_Sides"], Tensor]

EPS = 1e-7


@dataclass(frozen=True)
class Baseline:
    """The opponents of one loss: functions that take fastloss's arguments by name.

    Attributes:
        eager: What runs eagerly.
        compiled: What ``torch.compile`` gets; None: nothing, it would unroll a long loop.
        source: Whose code the eager one is.
        renamed: The arguments that have another name than fastloss's.
        same_loss: False where the opponent is another loss, as a yardstick.
    """

    eager: LossFunction
    compiled: LossFunction | None
    source: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    same_loss: bool = True


def baseline_of(loss: str) -> Baseline:
    """Returns what the loss of this name in ``fastloss.functional`` is compared with."""
    if loss in _FORMULAS:
        eager, compiled = _FORMULAS[loss]
        if loss in _TORCHVISION and torchvision_ops is not None:
            return Baseline(getattr(torchvision_ops, loss), compiled, "torchvision")
        if loss in _MONAI and _monai_losses() is not None:
            return Baseline(_of_monai(loss), compiled, "MONAI")
        return Baseline(eager, compiled, "formula")
    if loss in _CHAINS:
        eager = _CHAINS[loss] if _torchcrf() is not None else getattr(reference, loss)
        return Baseline(eager, None, "fastloss.reference" if _torchcrf() is None else "pytorch-crf")
    if loss in _ULTRALYTICS and _ultralytics() is not None:
        return Baseline(_ULTRALYTICS[loss], getattr(reference, loss), "ultralytics")
    if loss == "sentence_bleu" and _sacrebleu() is not None:
        return Baseline(_sentence_bleu, None, "sacrebleu")
    if loss in _TORCH:
        function = getattr(torch_functional, loss)
        return Baseline(function, function, "torch")
    function = getattr(reference, loss)
    return Baseline(function, function, "fastloss.reference")


# What a call costs is held against a call everybody knows, on the same boxes.
CALL_YARDSTICK = Baseline(
    torch_functional.smooth_l1_loss,
    torch_functional.smooth_l1_loss,
    "smooth_l1_loss",
    renamed={"boxes1": "input", "boxes2": "target"},
    same_loss=False,
)


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    return loss


# ------------------------------------------------------------------------------------------ boxes


class _Sides(NamedTuple):
    """Where boxes begin and end."""

    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor

    @property
    def width(self) -> Tensor:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> Tensor:
        """From top to bottom."""
        return self.bottom - self.top

    @property
    def area(self) -> Tensor:
        """Width times height."""
        return self.width * self.height


def _sides(boxes: Tensor) -> _Sides:
    return _Sides(*boxes.unbind(-1))


def _common(a: _Sides, b: _Sides) -> _Sides:
    return _Sides(
        torch.max(a.left, b.left),
        torch.max(a.top, b.top),
        torch.min(a.right, b.right),
        torch.min(a.bottom, b.bottom),
    )


def _enclosing(a: _Sides, b: _Sides) -> _Sides:
    return _Sides(
        torch.min(a.left, b.left),
        torch.min(a.top, b.top),
        torch.max(a.right, b.right),
        torch.max(a.bottom, b.bottom),
    )


def _intersection_by_mask(a: _Sides, b: _Sides) -> Tensor:
    """As torchvision does it: the product is computed, and written, only where boxes meet."""
    common = _common(a, b)
    meet = (common.right > common.left) & (common.bottom > common.top)
    intersection = torch.zeros_like(a.left)
    intersection[meet] = (common.right[meet] - common.left[meet]) * (
        common.bottom[meet] - common.top[meet]
    )
    return intersection


def _intersection_by_clamp(a: _Sides, b: _Sides) -> Tensor:
    """As most detectors do it."""
    common = _common(a, b)
    return common.width.clamp(min=0) * common.height.clamp(min=0)


def _iou_and_union(a: _Sides, b: _Sides, eps: float, intersect: Intersect) -> tuple[Tensor, Tensor]:
    intersection = intersect(a, b)
    union = a.area + b.area - intersection
    return intersection / (union + eps), union


def _generalized_penalty(a: _Sides, b: _Sides, union: Tensor, eps: float) -> Tensor:
    enclosing_area = _enclosing(a, b).area
    return (enclosing_area - union) / (enclosing_area + eps)


def _distance_penalty(a: _Sides, b: _Sides, eps: float) -> Tensor:
    enclosing = _enclosing(a, b)
    squared_diagonal = enclosing.width**2 + enclosing.height**2 + eps
    dx = (a.left + a.right) / 2 - (b.left + b.right) / 2
    dy = (a.top + a.bottom) / 2 - (b.top + b.bottom) / 2
    return (dx**2 + dy**2) / squared_diagonal


def _aspect_penalty(a: _Sides, b: _Sides, iou: Tensor, eps: float) -> Tensor:
    angle = torch.atan(b.width / b.height) - torch.atan(a.width / a.height)
    v = (4 / math.pi**2) * angle**2
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return alpha * v


def _box_losses(intersect: Intersect) -> dict[str, LossFunction]:
    """The three box losses of torchvision, with one or the other way to the intersection."""

    def generalized_box_iou_loss(
        boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS
    ) -> Tensor:
        a, b = _sides(boxes1), _sides(boxes2)
        iou, union = _iou_and_union(a, b, eps, intersect)
        return _reduce(1 - iou + _generalized_penalty(a, b, union, eps), reduction)

    def distance_box_iou_loss(
        boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS
    ) -> Tensor:
        a, b = _sides(boxes1), _sides(boxes2)
        iou, _ = _iou_and_union(a, b, eps, intersect)
        return _reduce(1 - iou + _distance_penalty(a, b, eps), reduction)

    def complete_box_iou_loss(
        boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS
    ) -> Tensor:
        a, b = _sides(boxes1), _sides(boxes2)
        iou, _ = _iou_and_union(a, b, eps, intersect)
        loss = 1 - iou + _distance_penalty(a, b, eps) + _aspect_penalty(a, b, iou, eps)
        return _reduce(loss, reduction)

    return {
        function.__name__: function
        for function in (generalized_box_iou_loss, distance_box_iou_loss, complete_box_iou_loss)
    }


def _scylla_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPS
) -> Tensor:
    """SIoU loss with an arcsine and a cosine for the angle, as detectors write it."""
    a, b = _sides(boxes1), _sides(boxes2)
    iou, _ = _iou_and_union(a, b, eps, _intersection_by_clamp)
    enclosing = _enclosing(a, b)
    dx = (b.left + b.right - a.left - a.right) / 2
    dy = (b.top + b.bottom - a.top - a.bottom) / 2
    distance = torch.sqrt(dx**2 + dy**2) + eps
    sine, cosine = dx.abs() / distance, dy.abs() / distance
    angle = torch.asin(torch.where(sine > math.sqrt(0.5), cosine, sine))
    gamma = torch.cos(2 * angle - math.pi / 2) - 2
    rho_x = (dx / (enclosing.width + eps)) ** 2
    rho_y = (dy / (enclosing.height + eps)) ** 2
    distance_cost = 2 - torch.exp(gamma * rho_x) - torch.exp(gamma * rho_y)
    width_change = (a.width - b.width).abs() / torch.max(a.width, b.width)
    height_change = (a.height - b.height).abs() / torch.max(a.height, b.height)
    shape_cost = (1 - torch.exp(-width_change)) ** 4 + (1 - torch.exp(-height_change)) ** 4
    return _reduce(1 - iou + (distance_cost + shape_cost) / 2, reduction)


def _pairwise_box_iou(
    boxes1: Tensor, boxes2: Tensor, kind: str = "iou", eps: float = EPS
) -> Tensor:
    """Similarities of all pairs by broadcasting, as assigners compute them."""
    a, b = _sides(boxes1[..., :, None, :]), _sides(boxes2[..., None, :, :])
    iou, union = _iou_and_union(a, b, eps, _intersection_by_clamp)
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - _generalized_penalty(a, b, union, eps)
    if kind == "diou":
        return iou - _distance_penalty(a, b, eps)
    if kind == "ciou":
        return iou - _distance_penalty(a, b, eps) - _aspect_penalty(a, b, iou, eps)
    return reference.pairwise_box_iou(boxes1, boxes2, kind, eps)


def _detr_matching_cost(
    logits: Tensor, boxes: Tensor, target_labels: Tensor, target_boxes: Tensor
) -> Tensor:
    """DETR's matcher: a matrix of classes, one of distances, one of similarities, and their sum."""
    of_class = -logits.softmax(-1)[:, target_labels]
    distance = torch.cdist(boxes, target_boxes, p=1)
    corners, target_corners = (
        torch.cat((b[:, :2] - 0.5 * b[:, 2:], b[:, :2] + 0.5 * b[:, 2:]), -1)
        for b in (boxes, target_boxes)
    )
    similarity = _pairwise_box_iou(corners, target_corners, "giou", 0.0)
    return of_class + 5 * distance - 2 * similarity


# --------------------------------------------------------------------------------- classification


def _dense_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str
) -> Tensor:
    """What torchvision computes, for where it cannot be imported."""
    probability = torch.sigmoid(inputs)
    cross_entropy = torch_functional.binary_cross_entropy_with_logits(
        inputs, targets, reduction="none"
    )
    p_t = probability * targets + (1 - probability) * (1 - targets)
    loss = cross_entropy * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return _reduce(loss, reduction)


def _sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Class indices become zeros and ones by a mask, as in torchvision's RetinaNet."""
    if targets.dim() < inputs.dim():
        classes = targets
        foreground = classes < inputs.shape[-1]
        targets = torch.zeros_like(inputs)
        targets[foreground, classes[foreground]] = 1.0
    dense = _dense_focal_loss if torchvision_ops is None else torchvision_ops.sigmoid_focal_loss
    return dense(inputs, targets, alpha, gamma, reduction)


def _sigmoid_focal_loss_without_mask(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    if targets.dim() < inputs.dim():
        classes = torch.arange(inputs.shape[-1], device=inputs.device)
        targets = (targets[..., None] == classes).to(inputs.dtype)
    return _dense_focal_loss(inputs, targets, alpha, gamma, reduction)


def _distribution_focal_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Two cross-entropies, as in the code of the paper and in mmdetection."""
    target = target.clamp(0, input.shape[-1] - 1 - 0.01)
    lower = target.long()
    lower_share = lower.float() + 1 - target
    of_lower = torch_functional.cross_entropy(input, lower, reduction="none")
    of_upper = torch_functional.cross_entropy(input, lower + 1, reduction="none")
    return _reduce(of_lower * lower_share + of_upper * (1 - lower_share), reduction)


def _linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any
) -> Tensor:
    """Torch's own in chunks, which it has from 2.13 on."""
    if "z_loss" in options or not hasattr(torch_functional, "linear_cross_entropy"):
        return reference.linear_cross_entropy(input, linear_weight, target, **options)
    return torch_functional.linear_cross_entropy(
        input,
        linear_weight,
        target,
        options=torch.nn.LinearCrossEntropyOptions(),
        **options,
    )


# ------------------------------------------------------------------------------------ segmentation


@functools.cache
def _monai_losses() -> ModuleType | None:
    """Imported when it is needed: it takes seconds."""
    try:
        return importlib.import_module("monai.losses")
    except ImportError:
        return None


def _of_monai(loss: str) -> LossFunction:
    """MONAI's loss with fastloss's arguments; the formula where it has another meaning."""
    formula = _FORMULAS[loss][0]

    def compute(
        input: Tensor, target: Tensor, activation: str = "softmax", **options: Any
    ) -> Tensor:
        if activation != "softmax":
            return formula(input, target, activation=activation, **options)
        module = getattr(_monai_losses(), _MONAI[loss])
        return module(softmax=True, to_onehot_y=True, **options)(input, target.unsqueeze(1))

    return compute


class _Overlap(NamedTuple):
    """True and false positives and false negatives of every sample and class, and the targets."""

    hits: Tensor
    false_positives: Tensor
    false_negatives: Tensor
    target: Tensor


def _overlap(input: Tensor, target: Tensor, activation: str = "softmax") -> _Overlap:
    probability = input.softmax(1) if activation == "softmax" else input.sigmoid()
    if target.dim() < input.dim():
        target = torch.zeros_like(input).scatter_(1, target.unsqueeze(1), 1.0)
    space = tuple(range(2, input.dim()))
    hits = (probability * target).sum(space)
    return _Overlap(hits, probability.sum(space) - hits, target.sum(space) - hits, target)


_SMOOTH = 1e-5


def _dice_of(overlap: _Overlap) -> Tensor:
    double = 2 * overlap.hits
    both = double + overlap.false_positives + overlap.false_negatives
    return 1 - (double + _SMOOTH) / (both + _SMOOTH)


def _dice_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    return _reduce(_dice_of(_overlap(input, target)), reduction)


def _tversky_loss(
    input: Tensor, target: Tensor, alpha: float, beta: float, reduction: str = "mean"
) -> Tensor:
    overlap = _overlap(input, target)
    weighted = alpha * overlap.false_positives + beta * overlap.false_negatives
    ratio = (overlap.hits + _SMOOTH) / (overlap.hits + weighted + _SMOOTH)
    return _reduce(1 - ratio, reduction)


def _generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    w_type: str = "square",
    reduction: str = "mean",
) -> Tensor:
    overlap = _overlap(input, target)
    volume = overlap.hits + overlap.false_negatives
    weight = {"square": 1 / volume**2, "simple": 1 / volume, "uniform": torch.ones_like(volume)}[
        w_type
    ]
    weight = torch.where(weight.isinf(), 0.0, weight)
    weight = torch.where(weight == 0, weight.amax(1, keepdim=True), weight)
    numerator = 2 * (weight * overlap.hits).sum(1) + _SMOOTH
    misses = overlap.false_positives + overlap.false_negatives
    denominator = (weight * (2 * overlap.hits + misses)).sum(1) + _SMOOTH
    return _reduce(1 - numerator / denominator, reduction)


def _dice_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    activation: str = "softmax",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    dice = _dice_of(_overlap(input, target, activation))
    if weight is not None:
        dice = dice * weight
    if activation == "softmax":
        cross_entropy = torch_functional.cross_entropy(input, target, weight, reduction=reduction)
    else:
        positive = None if weight is None else weight.view(-1, *[1] * (input.dim() - 2))
        cross_entropy = torch_functional.binary_cross_entropy_with_logits(
            input, target, pos_weight=positive, reduction=reduction
        )
    return _reduce(dice, reduction) + cross_entropy


def _dice_focal_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    overlap = _overlap(input, target)
    focal = _dense_focal_loss(input, overlap.target, -1, 2, "none").flatten(2).mean(2)
    return _reduce(_dice_of(overlap), reduction) + _reduce(focal, reduction)


def _lovasz_softmax_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Class by class, as in the repository of the paper."""
    losses = []
    for c, probability in enumerate(input.softmax(1).unbind(1)):
        foreground = (target == c).flatten().to(input.dtype)
        if foreground.sum() == 0:
            continue
        errors, order = (foreground - probability.flatten()).abs().sort(descending=True)
        foreground = foreground[order]
        left = foreground.sum() - foreground.cumsum(0)
        jaccard = 1 - left / (foreground.sum() + (1 - foreground).cumsum(0))
        growth = torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))
        losses.append(torch.dot(errors, growth))
    return _reduce(torch.stack(losses), reduction)


def _hinge_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    squared: bool = False,
    reduction: str = "mean",
) -> Tensor:
    loss = torch.clamp(margin - target * input, min=0)
    return _reduce(loss**2 if squared else loss, reduction)


def _quality_focal_loss(
    input: Tensor, target: Tensor, beta: float = 2.0, reduction: str = "mean"
) -> Tensor:
    cross_entropy = torch_functional.binary_cross_entropy_with_logits(
        input, target, reduction="none"
    )
    return _reduce(cross_entropy * (target - input.sigmoid()).abs().pow(beta), reduction)


def _varifocal_loss(
    input: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0, reduction: str = "mean"
) -> Tensor:
    distance = (input.sigmoid() - target).abs()
    positive = (target > 0).float()
    weight = target * positive + alpha * distance.pow(gamma) * (1 - positive)
    cross_entropy = torch_functional.binary_cross_entropy_with_logits(
        input, target, reduction="none"
    )
    return _reduce(cross_entropy * weight, reduction)


def _asymmetric_loss(
    input: Tensor,
    target: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 1,
    clip: float = 0.05,
    detach_focusing: bool = True,
    reduction: str = "mean",
) -> Tensor:
    positive = torch.sigmoid(input)
    negative = (1 - positive + clip).clamp(max=1) if clip > 0 else 1 - positive
    loss = target * torch.log(positive.clamp(min=1e-8))
    loss = loss + (1 - target) * torch.log(negative.clamp(min=1e-8))
    with torch.set_grad_enabled(not detach_focusing):
        p_t = positive * target + negative * (1 - target)
        focus = torch.pow(1 - p_t, gamma_pos * target + gamma_neg * (1 - target))
    return _reduce(-loss * focus, reduction)


# ------------------------------------------------------------------------------------- regression


def _rmse_loss(input: Tensor, target: Tensor, reduction: str = "mean", eps: float = 0.0) -> Tensor:
    return torch.sqrt(torch_functional.mse_loss(input, target, reduction=reduction) + eps)


def _log_cosh_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    error = input - target
    return _reduce(error + torch_functional.softplus(-2.0 * error) - math.log(2.0), reduction)


def _quantile_loss(
    input: Tensor, target: Tensor, quantiles: float, reduction: str = "mean"
) -> Tensor:
    error = target - input
    return _reduce(torch.max((quantiles - 1) * error, quantiles * error), reduction)


# ------------------------------------------------------------------------------------- sequences


@functools.cache
def _torchcrf() -> ModuleType | None:
    try:
        return importlib.import_module("torchcrf")
    except ImportError:
        return None


@functools.cache
def _ultralytics() -> ModuleType | None:
    """The losses of ultralytics. Importing them writes settings, here to a folder that goes."""
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, {"YOLO_CONFIG_DIR": folder}),
        ):
            return importlib.import_module("ultralytics.utils.loss")
    except ImportError:
        return None


def _probabilistic_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-3, floor: float = 0.0
) -> Tensor:
    module: Any = _ultralytics()
    similarity = module.probiou(boxes1, boxes2, eps=eps, floor=floor)
    return _reduce(1.0 - similarity.squeeze(-1), reduction)


def _object_keypoint_similarity_loss(
    keypoints: Tensor,
    targets: Tensor,
    visibility: Tensor,
    area: Tensor,
    sigmas: Tensor,
    reduction: str = "mean",
) -> Tensor:
    module: Any = _ultralytics()
    assert reduction == "mean"  # it has no other
    loss: Tensor = module.KeypointLoss(sigmas)(keypoints, targets, visibility, area[:, None])
    return loss


def _crf(transitions: Tensor, start_transitions: Tensor, end_transitions: Tensor) -> Any:
    """pytorch-crf's module with these scores in the place of its parameters."""
    module: Any = _torchcrf()
    own = module.CRF
    crf = own.__new__(own)
    torch.nn.Module.__init__(crf)
    crf.num_tags, crf.batch_first = len(transitions), True
    crf.transitions, crf.start_transitions = transitions, start_transitions
    crf.end_transitions = end_transitions
    return crf


def _crf_loss(
    emissions: Tensor,
    tags: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    **scores: Tensor,
) -> Tensor:
    if mask is None:  # its own is of uint8, and a warning each time
        mask = torch.ones_like(tags, dtype=torch.bool)
    return -_crf(**scores)(emissions, tags, mask, reduction)


@functools.cache
def _sacrebleu() -> Any:
    """Sacrebleu's metric for sentences that are cut into words by spaces."""
    try:
        return importlib.import_module("sacrebleu").BLEU(tokenize="none", effective_order=True)
    except ImportError:
        return None


# sacrebleu takes strings: those of a tensor are written once, in the first, unmeasured call.
_WRITTEN: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _written(tokens: Tensor) -> list[str]:
    if tokens not in _WRITTEN:
        _WRITTEN[tokens] = [" ".join(map(str, sentence)) for sentence in tokens.tolist()]
    sentences: list[str] = _WRITTEN[tokens]
    return sentences


def _sentence_bleu(candidates: Tensor, references: Tensor) -> Tensor:
    pairs = zip(_written(candidates), _written(references), strict=True)
    scores = [_sacrebleu().sentence_score(sentence, [other]).score for sentence, other in pairs]
    return torch.tensor(scores, device=candidates.device)


def _crf_decode(emissions: Tensor, mask: Tensor | None = None, **scores: Tensor) -> Tensor:
    """Padded, so that it can be compared: its tags are a list for each sequence."""
    if mask is None:
        mask = torch.ones(emissions.shape[:2], dtype=torch.bool, device=emissions.device)
    rows = _crf(**scores).decode(emissions, mask)
    steps = emissions.shape[1]
    return torch.tensor([[*row, *[-1] * (steps - len(row))] for row in rows])


def _policy_gradient_loss(
    logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    entropy_coefficient: float,
    reduction: str,
) -> Tensor:
    """As trainers write it: log-softmax, the chosen ones of it, the entropy of all of it."""
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return _reduce(-advantages * chosen - entropy_coefficient * entropy, reduction)


# ------------------------------------------------------------------------------------- generation


def _lsgan_discriminator_loss(
    real: Tensor, fake: Tensor, a: float = 0.0, b: float = 1.0, reduction: str = "mean"
) -> Tensor:
    return 0.5 * (_reduce((real - b) ** 2, reduction) + _reduce((fake - a) ** 2, reduction))


def _lsgan_generator_loss(fake: Tensor, c: float = 1.0, reduction: str = "mean") -> Tensor:
    return 0.5 * _reduce((fake - c) ** 2, reduction)


def _wasserstein_discriminator_loss(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
    return _reduce(fake, reduction) - _reduce(real, reduction)


def _negative_score(fake: Tensor, reduction: str = "mean") -> Tensor:
    return -_reduce(fake, reduction)


def _non_saturating_discriminator_loss(
    real: Tensor, fake: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    cross_entropy = torch_functional.binary_cross_entropy_with_logits
    of_real = cross_entropy(real, torch.ones_like(real) - label_smoothing, reduction=reduction)
    return of_real + cross_entropy(fake, torch.zeros_like(fake), reduction=reduction)


def _non_saturating_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    return torch_functional.binary_cross_entropy_with_logits(
        fake, torch.ones_like(fake), reduction=reduction
    )


def _hinge_discriminator_loss(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
    of_real = _reduce(torch_functional.relu(1 - real), reduction)
    return of_real + _reduce(torch_functional.relu(1 + fake), reduction)


# ---------------------------------------------------------------------------------------- ranking


def _lambda_loss_as(select_pairs: bool) -> LossFunction:
    """LambdaLoss as allRank computes it, every step a tensor of all pairs.

    The pairs that count are picked out by a boolean mask, or, for the compiler, multiplied by it.
    """

    def lambda_loss(
        scores: Tensor,
        relevance: Tensor,
        *,
        scheme: str = "ndcg_loss2pp",
        k: int | None = None,
        sigma: float = 1.0,
        mu: float = 10.0,
        mask: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        floor = 1e-10
        length = scores.shape[1]
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
            relevance = relevance.masked_fill(~mask, -math.inf)
        by_score, order = scores.sort(dim=-1, descending=True)
        best = relevance.sort(dim=-1, descending=True).values
        achieved = torch.gather(relevance, 1, order)
        ahead = achieved[:, :, None] - achieved[:, None, :]
        counted = torch.isfinite(ahead)
        if scheme != "ndcg_loss1":
            counted = counted & (ahead > 0)
        counted = counted & _corner(length, k, scores.device)

        places = torch.arange(1, length + 1, device=scores.device)
        discount = torch.log2(1.0 + places)[None]
        best_dcg = ((2 ** best.clamp(min=0.0) - 1) / discount)[:, :k].sum(-1).clamp(min=floor)
        gain = (2 ** achieved.clamp(min=0.0) - 1) / best_dcg[:, None]
        weight = _pair_weight(scheme, gain, discount, places, mu)

        difference = (by_score[:, :, None] - by_score[:, None, :]).clamp(-1e8, 1e8)
        likelihood = (torch.sigmoid(sigma * difference).clamp(min=floor) ** weight).clamp(min=floor)
        loss = -torch.log2(likelihood)
        if select_pairs:
            return _reduce(loss[counted], reduction)
        total = torch.where(counted, loss, 0.0).sum()
        return total / counted.sum() if reduction == "mean" else total

    return lambda_loss


def _corner(length: int, k: int | None, device: torch.device) -> Tensor:
    corner = torch.zeros(length, length, dtype=torch.bool, device=device)
    corner[:k, :k] = True
    return corner


def _pair_weight(
    scheme: str, gain: Tensor, discount: Tensor, places: Tensor, mu: float
) -> Tensor | float:
    change = (gain[:, :, None] - gain[:, None, :]).abs()
    swapped = (1 / discount[:, :, None] - 1 / discount[:, None, :]).abs()
    apart = (places[:, None] - places[None, :]).abs()
    spacing = (1 / discount[0, apart - 1] - 1 / discount[0, apart.clamp(max=len(places) - 1)]).abs()
    spacing = spacing * (apart > 0)
    if scheme == "ndcg_loss1":
        return (gain / discount)[:, :, None]
    if scheme == "ndcg_loss2":
        return spacing * change
    if scheme == "ndcg_loss2pp":
        return mu * (spacing * change) + swapped * change
    return swapped * change if scheme == "lambda_rank" else 1.0


# -------------------------------------------------------------------------------- metric learning


def _batch_hard_triplet_loss(
    embeddings: Tensor, labels: Tensor, margin: float | None = 1.0, reduction: str = "mean"
) -> Tensor:
    """As code for re-identification has it: the extremes of the rows of a masked matrix."""
    distance = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    farthest = distance.masked_fill(~positive, -math.inf).amax(1)
    nearest = distance.masked_fill(same, math.inf).amin(1)
    is_anchor = positive.any(1) & ~same.all(1)
    behind = torch.where(is_anchor, farthest - nearest, 0.0)
    loss = torch_functional.softplus(behind) if margin is None else (behind + margin).relu()
    loss = torch.where(is_anchor, loss, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() / is_anchor.sum() if reduction == "mean" else loss.sum()


# ----------------------------------------------------------------------------------------- graphs


def _graph_reconstruction_loss(
    z: Tensor, pos_edge_index: Tensor, neg_edge_index: Tensor, reduction: str = "mean"
) -> Tensor:
    """PyTorch Geometric's, whose decoder stops before the sigmoid here: it saturates."""

    def decoded(edge_index: Tensor) -> Tensor:
        return (z[edge_index[0]] * z[edge_index[1]]).sum(dim=1)

    of_edges = -torch_functional.logsigmoid(decoded(pos_edge_index))
    of_others = -torch_functional.logsigmoid(-decoded(neg_edge_index))
    if reduction == "none":
        return torch.cat((of_edges, of_others))
    return _reduce(of_edges, reduction) + _reduce(of_others, reduction)


def _variational_graph_kl_loss(mu: Tensor, logstd: Tensor, reduction: str = "mean") -> Tensor:
    """PyTorch Geometric's."""
    logstd = logstd.clamp(max=10)
    loss = -0.5 * torch.sum(1 + 2 * logstd - mu**2 - logstd.exp() ** 2, dim=-1)
    return _reduce(loss, reduction)


def _deep_graph_infomax_loss(
    pos_logits: Tensor, neg_logits: Tensor, reduction: str = "mean"
) -> Tensor:
    of_true = -torch_functional.logsigmoid(pos_logits)
    return _reduce(of_true, reduction) + _reduce(
        -torch_functional.logsigmoid(-neg_logits), reduction
    )


def _scaled_cosine_error(
    x: Tensor, y: Tensor, alpha: float = 3.0, reduction: str = "mean"
) -> Tensor:
    """GraphMAE's."""
    x, y = (torch_functional.normalize(rows, dim=-1) for rows in (x, y))
    return _reduce((1 - (x * y).sum(dim=-1)).pow(alpha), reduction)


def _bootstrap_latent_loss(predictions: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """As the code of BYOL has it."""
    cosine = torch_functional.cosine_similarity(predictions, targets.detach(), dim=-1)
    return _reduce(2 - 2 * cosine, reduction)


# ---------------------------------------------------------------------------- contrastive learning


def _info_nce_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float = 0.5,
    *,
    mode: str = "nt_xent",
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """As code for SimCLR and open_clip has it: cross-entropy on a matrix of similarities."""
    if normalize:
        z1, z2 = torch_functional.normalize(z1, dim=-1), torch_functional.normalize(z2, dim=-1)
    labels = torch.arange(len(z1), device=z1.device)
    if mode != "nt_xent":
        logits = z1 @ z2.T / temperature
        loss = torch_functional.cross_entropy(logits, labels, reduction=reduction)
        if mode == "cross":
            return loss
        return (loss + torch_functional.cross_entropy(logits.T, labels, reduction=reduction)) / 2
    both = torch.cat((z1, z2))
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    logits = (both @ both.T / temperature).masked_fill(itself, -math.inf)
    labels = torch.cat((labels + len(z1), labels))
    return torch_functional.cross_entropy(logits, labels, reduction=reduction)


# -------------------------------------------------------------------------------------- the lists

_SAME_FOR_BOTH: dict[str, LossFunction] = {
    "hinge_loss": _hinge_loss,
    "quality_focal_loss": _quality_focal_loss,
    "varifocal_loss": _varifocal_loss,
    "asymmetric_loss": _asymmetric_loss,
    "rmse_loss": _rmse_loss,
    "log_cosh_loss": _log_cosh_loss,
    "quantile_loss": _quantile_loss,
    "lsgan_discriminator_loss": _lsgan_discriminator_loss,
    "lsgan_generator_loss": _lsgan_generator_loss,
    "wasserstein_discriminator_loss": _wasserstein_discriminator_loss,
    "wasserstein_generator_loss": _negative_score,
    "non_saturating_discriminator_loss": _non_saturating_discriminator_loss,
    "non_saturating_generator_loss": _non_saturating_generator_loss,
    "hinge_discriminator_loss": _hinge_discriminator_loss,
    "hinge_generator_loss": _negative_score,
    "batch_hard_triplet_loss": _batch_hard_triplet_loss,
    "policy_gradient_loss": _policy_gradient_loss,
    "graph_reconstruction_loss": _graph_reconstruction_loss,
    "variational_graph_kl_loss": _variational_graph_kl_loss,
    "deep_graph_infomax_loss": _deep_graph_infomax_loss,
    "scaled_cosine_error": _scaled_cosine_error,
    "bootstrap_latent_loss": _bootstrap_latent_loss,
    "info_nce_loss": _info_nce_loss,
}
# Run eagerly, and given to the compiler.
_FORMULAS: dict[str, tuple[LossFunction, LossFunction]] = {
    **{
        name: (eager, _box_losses(_intersection_by_clamp)[name])
        for name, eager in _box_losses(_intersection_by_mask).items()
    },
    "scylla_box_iou_loss": (_scylla_box_iou_loss, _scylla_box_iou_loss),
    "pairwise_box_iou": (_pairwise_box_iou, _pairwise_box_iou),
    "detr_matching_cost": (_detr_matching_cost, _detr_matching_cost),
    "sigmoid_focal_loss": (_sigmoid_focal_loss, _sigmoid_focal_loss_without_mask),
    **{name: (function, function) for name, function in _SAME_FOR_BOTH.items()},
    "distribution_focal_loss": (_distribution_focal_loss, _distribution_focal_loss),
    "linear_cross_entropy": (_linear_cross_entropy, reference.linear_cross_entropy),
    "dice_loss": (_dice_loss, _dice_loss),
    "tversky_loss": (_tversky_loss, _tversky_loss),
    # (The formula has no gradient where a class is absent.)
    "generalized_dice_loss": (_generalized_dice_loss, reference.generalized_dice_loss),
    "dice_cross_entropy_loss": (_dice_cross_entropy_loss, _dice_cross_entropy_loss),
    "dice_focal_loss": (_dice_focal_loss, _dice_focal_loss),
    "lovasz_softmax_loss": (_lovasz_softmax_loss, reference.lovasz_softmax_loss),
    "lambda_loss": (_lambda_loss_as(select_pairs=True), _lambda_loss_as(select_pairs=False)),
}
_CHAINS: dict[str, LossFunction] = {"crf_loss": _crf_loss, "crf_decode": _crf_decode}
_ULTRALYTICS: dict[str, LossFunction] = {
    "probabilistic_iou_loss": _probabilistic_iou_loss,
    "object_keypoint_similarity_loss": _object_keypoint_similarity_loss,
}
_MONAI = {
    "dice_loss": "DiceLoss",
    "tversky_loss": "TverskyLoss",
    "generalized_dice_loss": "GeneralizedDiceLoss",
    "dice_cross_entropy_loss": "DiceCELoss",
    "dice_focal_loss": "DiceFocalLoss",
}
_TORCHVISION = frozenset(_box_losses(_intersection_by_mask))
_TORCH = frozenset(
    {
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "huber_loss",
        "l1_loss",
        "margin_ranking_loss",
        "mse_loss",
        "multi_margin_loss",
        "nll_loss",
        "smooth_l1_loss",
        "triplet_margin_loss",
    }
)
