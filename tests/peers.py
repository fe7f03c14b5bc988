# SPDX-License-Identifier: MIT
"""Peers that do not come as they are."""

from __future__ import annotations

import importlib
from typing import Any

import torch

# Dropping it would take the operators back.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def import_torchvision(module: str = "") -> Any:
    """A module of torchvision, also of one that was built for another torch.

    torch's builds for CPUs have no matching torchvision everywhere. Its extension cannot be loaded
    then, but its Python code works, once the two operators it asks for by name are declared.

    Raises:
        ImportError: Where there is no torchvision.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(f"torchvision.{module}" if module else "torchvision")
