# SPDX-License-Identifier: MIT
"""Small detectors of the frameworks that fastloss patches, each as its users train it."""

from .trainee import Trainee
from .with_torchvision import WithTorchvision
from .with_ultralytics import WithUltralytics

__all__ = ["TRAINEES", "Trainee"]

TRAINEES: dict[str, type[Trainee]] = {
    "torchvision": WithTorchvision,
    "ultralytics": WithUltralytics,
}
