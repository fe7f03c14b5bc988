# SPDX-License-Identifier: MIT
"""Small detectors of the frameworks that fastloss patches, each as its users train it."""

from __future__ import annotations

import importlib
from typing import cast

import torch

from .trainee import Trainee

__all__ = ["FRAMEWORKS", "Trainee", "trainee_of"]

_CLASSES = {
    "torchvision": "WithTorchvision",
    "transformers": "WithTransformers",
    "ultralytics": "WithUltralytics",
}
FRAMEWORKS = tuple(_CLASSES)

# Dropping it would take the operators back.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def trainee_of(framework: str) -> type[Trainee]:
    """The trainee of a framework, which is imported only now.

    Raises:
        ImportError: Where the framework cannot be imported.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # not all need it
    except RuntimeError:
        # Built for another torch. Its Python code works, once operators have the names it asks for.
        for name in ("nms", "qnms"):
            _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    module = importlib.import_module(f"{__name__}.with_{framework}")
    return cast("type[Trainee]", getattr(module, _CLASSES[framework]))
