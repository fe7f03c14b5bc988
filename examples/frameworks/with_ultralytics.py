# SPDX-License-Identifier: MIT
"""ultralytics' smallest YOLO of the v8 kind, from its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detection.scenes import NUM_CLASSES, Scenes
from torch import Tensor, nn

from .trainee import relative_boxes


class WithUltralytics:
    """yolov8n: CIoU, distribution focal loss and cross-entropy after task-aligned assignment."""

    patch_options: ClassVar[Mapping[str, str]] = {"criterion": "fused"}

    def __init__(self) -> None:
        """Makes the model, with random weights."""
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel

        model: Any = DetectionModel("yolov8n.yaml", nc=NUM_CLASSES, verbose=False).train()
        model.args = get_cfg()
        self.model: nn.Module = model
        self._criterion = model.init_criterion()

    def predict(self, scenes: Scenes) -> Any:
        """What the head gives in training."""
        return self.model(scenes.images.expand(-1, 3, -1, -1))

    def criterion(self, predictions: Any, scenes: Scenes) -> Tensor:
        """The sum of the three losses."""
        images, _ = scenes.valid.nonzero(as_tuple=True)
        batch = {
            "batch_idx": images.float(),
            "cls": scenes.labels[scenes.valid].float(),
            "bboxes": relative_boxes(scenes.boxes[scenes.valid]),
        }
        loss, _ = self._criterion(predictions, batch)
        total: Tensor = loss.sum()
        return total
