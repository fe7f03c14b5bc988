# SPDX-License-Identifier: MIT
"""The whole loss of a detector, its matching included, stock and patched.

What is measured is the code of the frameworks: torchvision's ``RetinaNet.compute_loss`` and
ultralytics' ``v8DetectionLoss``, with everything below, run as they are installed and under
``fastloss.patch``.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor, nn

import fastloss
from benchmarks.baselines import Baseline
from tests.cases import Case, Family, Shape
from tests.peers import import_torchvision

# ------------------------------------------------------------------------------------- RetinaNet

# Heights and widths of the feature maps of an image of 800 × 1344, and the sides of the anchors.
_MAPS = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
_SIZES = tuple(tuple(2 ** (5 + level + third / 3) for third in range(3)) for level in range(5))
_ASPECTS = (0.5, 1.0, 2.0)
_IMAGE = (800, 1344)


def _anchors() -> Tensor:
    """All anchors of an image [201600, 4], those of a place one after the other."""
    levels = []
    for (height, width), sizes in zip(_MAPS, _SIZES, strict=True):
        sides = [(size / aspect**0.5, size * aspect**0.5) for aspect in _ASPECTS for size in sizes]
        half = torch.tensor([[-w, -h, w, h] for w, h in sides], dtype=torch.float64) / 2
        y, x = torch.meshgrid(
            torch.arange(height) * (_IMAGE[0] / height),
            torch.arange(width) * (_IMAGE[1] / width),
            indexing="ij",
        )
        centers = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
        levels.append((centers + half).view(-1, 4))
    return torch.cat(levels)


def _images(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """The outputs of a head, for (images, every how manieth anchor, classes, objects an image)."""
    images, step, classes, objects = shape
    anchors = _anchors()[::step]

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    image = torch.tensor([_IMAGE[1], _IMAGE[0]], dtype=torch.float64)
    sides = 32 * 12 ** draw(images, objects, 2)  # from 32 to 384 pixels
    corner = draw(images, objects, 2) * (image - sides).clamp(min=0)
    logits = torch.randn(images, len(anchors), classes, generator=generator, dtype=torch.float64)
    return {
        "logits": logits - 4,  # near the prior of 0.01
        "deltas": draw(images, len(anchors), 4) - 0.5,
        "anchors": anchors,
        "boxes": torch.cat((corner, corner + sides), -1),
        "labels": torch.randint(1, classes, (images, objects), generator=generator),
    }


class _Model(nn.Module):
    """What ``RetinaNet.compute_loss`` asks of its model, which is not the backbone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        retinanet = import_torchvision("models.detection.retinanet")
        self.head = retinanet.RetinaNetHead(1, 1, classes)
        self.proposal_matcher = retinanet.det_utils.Matcher(0.5, 0.4, True)


def retinanet_loss(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """The sum of RetinaNet's losses, by torchvision."""
    retinanet = import_torchvision("models.detection.retinanet")
    losses = retinanet.RetinaNet.compute_loss(
        _model(logits.shape[2]),
        [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)],
        {"cls_logits": logits, "bbox_regression": deltas},
        [anchors] * len(boxes),
    )
    return losses["classification"] + losses["bbox_regression"]


_model = functools.cache(_Model)


def patched_retinanet_loss(**arguments: Any) -> Tensor:
    """The same under the patch."""
    import_torchvision("models.detection.retinanet")
    with fastloss.patch("torchvision"):
        return retinanet_loss(**arguments)


STOCK_RETINANET = Baseline(retinanet_loss, None, "torchvision")
RETINANET = Case(
    "sigmoid_focal_loss",
    "RetinaNet",
    Family(
        engine="pointwise",
        build=_images,
        degenerate=lambda: {},
        differentiable=("logits", "deltas"),
        shape_of=lambda size: (2, 4800, 5, 3),
        integers=("labels",),
        trained=2,
    ),
    None,
    variant="retinanet",
)


# ------------------------------------------------------------------------------------ v8 detection

_V8_STRIDES = (8, 16, 32)


def _v8_predictions(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """What a detector of the v8 kind predicts of B images, and G objects in each.

    Of a shape (B, C, pixels, bins, G); the images are as many pixels wide as high.
    """
    batch, classes, pixels, bins, objects = shape
    anchors = sum((pixels // stride) ** 2 for stride in _V8_STRIDES)
    found = batch * objects

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    return {
        "logits": normal(batch, classes, anchors) - 4,
        "distances": normal(batch, 4 * bins, anchors),
        "batch_idx": torch.arange(batch).repeat_interleave(objects),
        "cls": torch.randint(classes, (found,), generator=generator),
        "bboxes": torch.cat((uniform(found, 2), 0.02 + 0.35 * uniform(found, 2)), dim=1),
    }


V8_CRITERION = Case(
    "task_aligned_detection_loss",
    "v8 detection criterion",
    Family(
        engine="detection",
        build=_v8_predictions,
        degenerate=dict,  # none: this is measured, not tested
        differentiable=("logits", "distances"),
        shape_of=lambda size: (2, 3, 64, 4, 3),
        integers=("batch_idx", "cls"),
        trained=2,
    ),
    None,
)


@functools.cache
def _v8_losses() -> tuple[Any, Any]:
    """The method of ultralytics' criterion, and what stands in for it."""
    from ultralytics.utils.loss import v8DetectionLoss

    name = "loss" if hasattr(v8DetectionLoss, "loss") else "__call__"
    stock = getattr(v8DetectionLoss, name)
    with fastloss.patch("ultralytics", criterion="fused"):
        return stock, getattr(v8DetectionLoss, name)


@functools.cache
def _v8_criterion(classes: int, bins: int, device: torch.device) -> Any:
    from ultralytics.utils.loss import v8DetectionLoss

    model = nn.Module()
    model.register_parameter("somewhere", nn.Parameter(torch.zeros(1, device=device)))
    stride = torch.tensor([float(stride) for stride in _V8_STRIDES], device=device)
    head = SimpleNamespace(stride=stride, nc=classes, reg_max=bins)
    parts: dict[str, Any] = {"args": SimpleNamespace(box=7.5, cls=0.5, dfl=1.5), "model": [head]}
    for name, value in parts.items():
        setattr(model, name, value)
    return v8DetectionLoss(model)


def _v8(index: int, logits: Tensor, distances: Tensor, reduction: str, **objects: Tensor) -> Tensor:
    batch, classes, anchors = logits.shape
    pixels = round(math.sqrt(anchors / sum(stride**-2 for stride in _V8_STRIDES)))
    sides = [pixels // stride for stride in _V8_STRIDES]
    maps = [logits.new_zeros(1).expand(batch, 1, side, side) for side in sides]
    predictions: Any = {"boxes": distances, "scores": logits, "feats": maps}
    loss, _ = _v8_losses()[index](
        _v8_criterion(classes, distances.shape[1] // 4, logits.device), predictions, objects
    )
    total: Tensor = loss.sum()
    return total


fused_v8_loss = functools.partial(_v8, 1)
STOCK_V8 = Baseline(functools.partial(_v8, 0), None, "ultralytics")
