# SPDX-License-Identifier: MIT
"""What the program asks of a framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from detection.scenes import SCENE_SIZE, Scenes
from torch import Tensor, nn


def relative_boxes(corners: Tensor) -> Tensor:
    """Boxes as centre and sides, in sides of the scene."""
    boxes = corners / SCENE_SIZE
    return torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)


class Trainee(Protocol):
    """A model and its criterion.

    Attributes:
        model: What is trained.
        patch_options: Of ``fastloss.patch``.
    """

    model: nn.Module
    patch_options: ClassVar[Mapping[str, str]]

    def __init__(self) -> None:
        """Makes the model, with random weights."""

    def predict(self, scenes: Scenes) -> Any:
        """Everything the criterion takes from the model, tensors in containers."""

    def criterion(self, predictions: Any, scenes: Scenes) -> Tensor:
        """The loss."""
