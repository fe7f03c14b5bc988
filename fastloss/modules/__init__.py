# SPDX-License-Identifier: MIT
"""The losses as modules: options in the constructor, tensors in the call."""

from .boxes import (
    BoxIoULoss,
    CompleteBoxIoULoss,
    DistanceBoxIoULoss,
    EfficientBoxIoULoss,
    GeneralizedBoxIoULoss,
    NormalizedWassersteinLoss,
    RepulsionLoss,
    ScyllaBoxIoULoss,
    SigmoidAspectBoxIoULoss,
    WiseBoxIoULoss,
)
from .classification import BCEWithLogitsLoss, SigmoidFocalLoss
from .regression import HuberLoss, L1Loss, MSELoss, SmoothL1Loss

__all__ = [
    "BCEWithLogitsLoss",
    "BoxIoULoss",
    "CompleteBoxIoULoss",
    "DistanceBoxIoULoss",
    "EfficientBoxIoULoss",
    "GeneralizedBoxIoULoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "NormalizedWassersteinLoss",
    "RepulsionLoss",
    "ScyllaBoxIoULoss",
    "SigmoidAspectBoxIoULoss",
    "SigmoidFocalLoss",
    "SmoothL1Loss",
    "WiseBoxIoULoss",
]
