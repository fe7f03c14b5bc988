# SPDX-License-Identifier: MIT
"""What the program asks of a framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from detection.scenes import Scenes
from torch import Tensor, nn


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
