# SPDX-License-Identifier: MIT
"""transformers' DETR, as small as it can be, on a ResNet of four blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from detection.scenes import NUM_CLASSES, Scenes
from torch import Tensor, nn

from .trainee import relative_boxes


class WithTransformers:
    """DETR: Hungarian matching, cross-entropy, L1 and GIoU, after every layer of the decoder."""

    patch_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        """Makes the model, with random weights."""
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

        of_backbone: dict[str, Any] = {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 64, 64],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage4"],
        }
        options: dict[str, Any] = {
            "backbone_config": ResNetConfig(**of_backbone),
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 3,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "dropout": 0.0,
            "num_queries": 60,
            "num_labels": NUM_CLASSES,
            "auxiliary_loss": True,
        }
        config: Any = DetrConfig(**options)
        model: Any = DetrForObjectDetection(config).train()
        self.model: nn.Module = model
        self._config = config
        self._loss = model.loss_function

    def predict(self, scenes: Scenes) -> Any:
        """Logits and boxes of the queries after each layer (layers, B, N, ...)."""
        model: Any = self.model
        found = model.model(scenes.images.expand(-1, 3, -1, -1), output_hidden_states=False)
        layers = found.intermediate_hidden_states
        return model.class_labels_classifier(layers), model.bbox_predictor(layers).sigmoid()

    def criterion(self, predictions: Any, scenes: Scenes) -> Tensor:
        """The weighted sum of all losses."""
        logits, boxes = predictions
        labels = []
        for corners, classes, valid in zip(scenes.boxes, scenes.labels, scenes.valid, strict=True):
            boxes_here = relative_boxes(corners[valid])
            labels.append({"class_labels": classes[valid], "boxes": boxes_here})
        total: Tensor = self._loss(
            logits[-1], labels, logits.device, boxes[-1], self._config, logits, boxes
        )[0]
        return total
