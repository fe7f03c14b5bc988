# SPDX-License-Identifier: MIT
"""Two trainings side by side: the same start, the same scenes, two implementations of the loss."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from detection.assigner import TaskAlignedAssigner
from detection.evaluation import Objects, detect
from detection.losses import DetectionLoss
from detection.model import Detector
from detection.scenes import NUM_CLASSES, Digit, Scenes, draw_scenes

_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 0.02
_WARM_UP_STEPS = 200
_EVALUATION_BATCH = 32


@dataclass
class History:
    """What was measured in each step; times in milliseconds."""

    loss: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    loss_forward_ms: list[float] = field(default_factory=list)
    loss_backward_ms: list[float] = field(default_factory=list)

    @property
    def median_step_ms(self) -> float:
        """The median time of a whole step."""
        return statistics.median(self.step_ms)

    @property
    def median_loss_forward_ms(self) -> float:
        """The median time from the predictions to the loss."""
        return statistics.median(self.loss_forward_ms)

    @property
    def median_loss_backward_ms(self) -> float:
        """The median time from the loss to the gradient of the predictions."""
        return statistics.median(self.loss_backward_ms)

    @property
    def median_loss_ms(self) -> float:
        """The median time of the loss, forward and backward."""
        pairs = zip(self.loss_forward_ms, self.loss_backward_ms, strict=True)
        return statistics.median(forward + backward for forward, backward in pairs)

    @property
    def final_loss(self) -> float:
        """The mean loss of the last 20 steps; a single step depends on its scenes."""
        return statistics.fmean(self.loss[-20:])


class Trainer:
    """One detector in training with one implementation of the loss."""

    def __init__(self, model: Detector, loss: DetectionLoss, steps: int) -> None:
        self.model = model
        self.loss = loss
        self.history = History()
        self._device = next(model.parameters()).device
        self._assigner = TaskAlignedAssigner()
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, eps=1e-5, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _learning_rate_factor(step, steps)
        )

    def step(self, scenes: Scenes) -> None:
        """Trains on one batch.

        The backward is done in two pieces, loss to predictions and predictions to weights, so that
        the loss can be timed alone. The arithmetic is that of one `backward()`.
        """
        start = self._now()
        self.model.train()
        predictions = self.model(scenes.images)
        assignment = self._assigner(predictions, scenes)
        boxes = predictions.boxes.reshape(-1, 4)[assignment.positive]
        logits_leaf = predictions.logits.detach().requires_grad_()
        boxes_leaf = boxes.detach().requires_grad_()

        loss_start = self._now()
        loss = self.loss(logits_leaf, boxes_leaf, assignment)
        loss_middle = self._now()
        gradients = torch.autograd.grad(loss, (logits_leaf, boxes_leaf))
        loss_end = self._now()

        torch.autograd.backward((predictions.logits, boxes), gradients)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        end = self._now()

        self.history.loss.append(loss.item())
        self.history.step_ms.append(1e3 * (end - start))
        self.history.loss_forward_ms.append(1e3 * (loss_middle - loss_start))
        self.history.loss_backward_ms.append(1e3 * (loss_end - loss_middle))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _learning_rate_factor(step: int, steps: int) -> float:
    """Rises linearly, then falls along a cosine to zero at the last step."""
    warm_up = min((step + 1) / _WARM_UP_STEPS, 1.0)
    return warm_up * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def make_trainers(
    losses: tuple[DetectionLoss, DetectionLoss], steps: int, seed: int, device: torch.device
) -> tuple[Trainer, Trainer]:
    """Returns a trainer for each loss; both detectors have the same initial weights."""
    torch.manual_seed(seed)
    model = Detector(NUM_CLASSES).to(device)
    first, second = losses
    return Trainer(copy.deepcopy(model), first, steps), Trainer(model, second, steps)


def train_side_by_side(
    trainers: tuple[Trainer, Trainer],
    digits: list[Digit],
    *,
    steps: int,
    batch: int,
    seed: int,
    device: torch.device,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Trains both on the same scenes, step by step in turn, so that both see the same machine."""
    rng = np.random.default_rng([seed, 0])
    for step in range(steps):
        scenes = draw_scenes(digits, batch, rng).to(device)
        for trainer in trainers if step % 2 == 0 else trainers[::-1]:
            trainer.step(scenes)
        on_step()


def curve_difference(first: list[float], second: list[float]) -> list[float]:
    """Returns, step by step, how far the losses are apart, relative to the first."""
    return [abs(a - b) / abs(a) for a, b in zip(first, second, strict=True)]


@torch.no_grad()
def detect_objects(model: Detector, images: Tensor) -> list[Objects]:
    """Returns the objects that the model finds in images (B, 1, H, W), on the CPU."""
    model.eval()
    detections = []
    for start in range(0, len(images), _EVALUATION_BATCH):
        detections += detect(model(images[start : start + _EVALUATION_BATCH]))
    return detections


def ground_truths(scenes: Scenes) -> list[Objects]:
    """Returns the objects that are truly in each scene, on the CPU, without the padding."""
    return [
        Objects(boxes[valid], labels[valid], torch.ones(int(valid.sum())))
        for boxes, labels, valid in zip(
            scenes.boxes.cpu(), scenes.labels.cpu(), scenes.valid.cpu(), strict=True
        )
    ]
