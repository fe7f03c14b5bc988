# SPDX-License-Identifier: MIT
"""Small detectors of the frameworks that fastloss patches, each as its users train it."""

from __future__ import annotations

import importlib
from typing import cast

from .trainee import Trainee

__all__ = ["FRAMEWORKS", "Trainee", "trainee_of"]

_CLASSES = {"torchvision": "WithTorchvision", "ultralytics": "WithUltralytics"}
FRAMEWORKS = tuple(_CLASSES)


def trainee_of(framework: str) -> type[Trainee]:
    """The trainee of a framework, which is imported only now.

    Raises:
        ImportError: Where the framework cannot be imported.
    """
    try:
        module = importlib.import_module(f"{__name__}.with_{framework}")
    except RuntimeError as error:  # torchvision's for a torch it was not built for
        raise ImportError(f"{framework} cannot be imported: {error}") from error
    return cast("type[Trainee]", getattr(module, _CLASSES[framework]))
