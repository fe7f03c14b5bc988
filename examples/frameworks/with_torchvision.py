# SPDX-License-Identifier: MIT
"""torchvision's RetinaNet on a small backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detection.scenes import NUM_CLASSES, SCENE_SIZE, Scenes
from torch import Tensor
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator


class WithTorchvision:
    """RetinaNet: focal loss of classes, L1 of boxes."""

    patch_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        """Makes the model, with random weights."""
        backbone: Any = mobilenet_v3_small(weights=None).features[:4]  # 8 pixels a cell
        backbone.out_channels = 24
        anchors = AnchorGenerator(((16, 24, 40),), ((0.5, 1.0, 2.0),))
        self.model = RetinaNet(
            backbone,
            NUM_CLASSES,
            min_size=SCENE_SIZE,
            max_size=SCENE_SIZE,
            anchor_generator=anchors,
        ).train()

    def predict(self, scenes: Scenes) -> Any:
        """The outputs of the heads, and the anchors."""
        model: Any = self.model
        images, _ = model.transform(list(scenes.images.expand(-1, 3, -1, -1)), None)
        features = [model.backbone(images.tensors)]
        return model.head(features), model.anchor_generator(images, features)

    def criterion(self, predictions: Any, scenes: Scenes) -> Tensor:
        """The loss of classes and boxes."""
        outputs, anchors = predictions
        targets = [
            {"boxes": boxes[valid], "labels": labels[valid]}
            for boxes, labels, valid in zip(scenes.boxes, scenes.labels, scenes.valid, strict=True)
        ]
        model: Any = self.model
        total: Tensor = sum(model.compute_loss(targets, outputs, anchors).values())
        return total
