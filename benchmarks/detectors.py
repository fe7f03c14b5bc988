# SPDX-License-Identifier: MIT
"""The whole loss of a detector, its matching included: torchvision's RetinaNet, stock and patched.

What is measured is the code of torchvision: its ``RetinaNet.compute_loss``, with everything below,
run as it is installed and under ``fastloss.patch("torchvision")``. The patch begins and ends within
the step.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Generator, Tensor, nn

import fastloss
from tests.cases import Case, Family, Shape

# torch's builds for CPUs have no matching torchvision. Its Python code works, once the operators
# that it asks for by name are declared. Dropping this would take them back.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")

# Heights and widths of the feature maps of an image of 800 × 1344, and the sides of the anchors.
_MAPS = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
_SIZES = tuple(tuple(2 ** (5 + level + third / 3) for third in range(3)) for level in range(5))
_ASPECTS = (0.5, 1.0, 2.0)
_IMAGE = (800, 1344)


def is_installed() -> bool:
    """Whether there is a torchvision to measure."""
    return importlib.util.find_spec("torchvision") is not None


@functools.cache
def _torchvision(name: str) -> Any:
    try:
        return importlib.import_module(f"torchvision.{name}")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            _OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou) -> Tensor")
        return importlib.import_module(f"torchvision.{name}")


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
        retinanet = _torchvision("models.detection.retinanet")
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
    retinanet = _torchvision("models.detection.retinanet")
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
    _torchvision("models.detection.retinanet")
    with fastloss.patch("torchvision"):
        return retinanet_loss(**arguments)


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
