# SPDX-License-Identifier: MIT
"""Criteria of frameworks as people train with them: stock, and under :func:`fastloss.patch`."""

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

_STRIDES = (8, 16, 32)


def _v8_predictions(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """What a detector of the v8 kind predicts of B images, and G objects in each.

    Of a shape (B, C, pixels, bins, G); the images are as many pixels wide as high.
    """
    batch, classes, pixels, bins, objects = shape
    anchors = sum((pixels // stride) ** 2 for stride in _STRIDES)
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
    stride = torch.tensor([float(stride) for stride in _STRIDES], device=device)
    head = SimpleNamespace(stride=stride, nc=classes, reg_max=bins)
    parts: dict[str, Any] = {"args": SimpleNamespace(box=7.5, cls=0.5, dfl=1.5), "model": [head]}
    for name, value in parts.items():
        setattr(model, name, value)
    return v8DetectionLoss(model)


def _v8(index: int, logits: Tensor, distances: Tensor, reduction: str, **objects: Tensor) -> Tensor:
    batch, classes, anchors = logits.shape
    pixels = round(math.sqrt(anchors / sum(stride**-2 for stride in _STRIDES)))
    sides = [pixels // stride for stride in _STRIDES]
    maps = [logits.new_zeros(1).expand(batch, 1, side, side) for side in sides]
    predictions: Any = {"boxes": distances, "scores": logits, "feats": maps}
    loss, _ = _v8_losses()[index](
        _v8_criterion(classes, distances.shape[1] // 4, logits.device), predictions, objects
    )
    total: Tensor = loss.sum()
    return total


v8_fused = functools.partial(_v8, 1)
V8_STOCK = Baseline(functools.partial(_v8, 0), None, "ultralytics")
