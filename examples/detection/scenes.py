# SPDX-License-Identifier: MIT
"""Scenes of handwritten digits with their ground-truth boxes, drawn on the fly.

The digits are scikit-learn's 8x8 scans of real handwriting. A scene is 128x128 pixels and holds
1 to 8 of them at random places, sizes and contrasts, on a shaded, noisy background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

SCENE_SIZE = 128
NUM_CLASSES = 10
MAX_DIGITS = 8
HELD_OUT_SHARE = 0.2

_SPLIT_SEED = 2024  # the split stays the same whatever the seed of a training
_HEIGHT_RANGE = (16, 46)  # pixels
_MAX_OVERLAP = 0.1  # intersection over the smaller of two boxes
_PLACEMENT_ATTEMPTS = 30

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Digit:
    """A handwritten digit, cropped to its ink."""

    ink: FloatArray  # (h, w), h and w <= 8, values in [0, 1]
    label: int


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes; images hold different numbers of digits, so targets are padded."""

    images: Tensor  # (B, 1, 128, 128) float32
    boxes: Tensor  # (B, G, 4) xyxy in pixels, zeros where padded
    labels: Tensor  # (B, G) int64, zeros where padded
    valid: Tensor  # (B, G) bool, False where padded

    def to(self, device: torch.device) -> Scenes:
        """Returns the batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def __getitem__(self, part: slice) -> Scenes:
        """Returns some scenes of the batch."""
        return self._map(lambda tensor: tensor[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Scenes:
        return Scenes(*(change(t) for t in (self.images, self.boxes, self.labels, self.valid)))


def load_digit_split() -> tuple[list[Digit], list[Digit]]:
    """Returns the training digits and the held-out digits; no image is in both."""
    data = load_digits()
    digits = [
        Digit(_crop_to_ink(image.astype(np.float32) / 16.0), int(label))
        for image, label in zip(data.images, data.target, strict=True)
    ]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits))
    num_held_out = round(HELD_OUT_SHARE * len(digits))
    held_out = [digits[i] for i in order[:num_held_out]]
    train = [digits[i] for i in order[num_held_out:]]
    return train, held_out


def draw_scenes(digits: list[Digit], count: int, rng: np.random.Generator) -> Scenes:
    """Draws `count` scenes of `digits`; the same generator state gives the same scenes."""
    images = np.empty((count, 1, SCENE_SIZE, SCENE_SIZE), dtype=np.float32)
    boxes = np.zeros((count, MAX_DIGITS, 4), dtype=np.float32)
    labels = np.zeros((count, MAX_DIGITS), dtype=np.int64)
    valid = np.zeros((count, MAX_DIGITS), dtype=bool)
    for scene in range(count):
        canvas = _background(rng)
        placed = 0
        for _ in range(rng.integers(1, MAX_DIGITS + 1)):
            digit = digits[rng.integers(len(digits))]
            ink = _resize(digit.ink, *_random_size(digit.ink.shape, rng))
            box = _free_place(ink.shape, boxes[scene, :placed], rng)
            if box is None:  # the scene is full
                continue
            _blend(canvas, ink, box, rng)
            boxes[scene, placed] = box
            labels[scene, placed] = digit.label
            valid[scene, placed] = True
            placed += 1
        canvas += rng.normal(0.0, rng.uniform(0.01, 0.05), canvas.shape)
        images[scene, 0] = canvas
    return Scenes(*(torch.from_numpy(array) for array in (images, boxes, labels, valid)))


def _crop_to_ink(image: FloatArray) -> FloatArray:
    rows = np.flatnonzero((image > 0.1).any(axis=1))
    columns = np.flatnonzero((image > 0.1).any(axis=0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _random_size(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
    height = rng.integers(_HEIGHT_RANGE[0], _HEIGHT_RANGE[1] + 1)
    width = round(height * shape[1] / shape[0] * rng.uniform(0.8, 1.25))
    return int(height), int(np.clip(width, 6, _HEIGHT_RANGE[1]))


@cache
def _interpolation_matrix(source: int, target: int) -> FloatArray:
    """Returns the (target, source) matrix of linear interpolation between pixel centres."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    distance = np.abs(position[:, None] - np.arange(source))
    matrix: FloatArray = np.maximum(1.0 - distance, 0.0).astype(np.float32)
    return matrix


def _resize(ink: NDArray[np.floating], height: int, width: int) -> FloatArray:
    rows = _interpolation_matrix(ink.shape[0], height)
    columns = _interpolation_matrix(ink.shape[1], width)
    return rows @ ink.astype(np.float32) @ columns.T


def _background(rng: np.random.Generator) -> FloatArray:
    """Returns a shaded background: a linear gradient under a coarse random texture."""
    ramp = np.linspace(-0.5, 0.5, SCENE_SIZE, dtype=np.float32)
    slope_y, slope_x = rng.uniform(-0.25, 0.25, 2)
    texture = _resize(rng.normal(0.0, 0.05, (6, 6)), SCENE_SIZE, SCENE_SIZE)
    gradient = slope_y * ramp[:, None] + slope_x * ramp[None, :]
    shade: FloatArray = (rng.uniform(0.15, 0.5) + gradient + texture).astype(np.float32)
    return shade


def _free_place(
    shape: tuple[int, ...], taken: FloatArray, rng: np.random.Generator
) -> FloatArray | None:
    """Returns a random box of `shape` that hardly overlaps those taken, or None."""
    height, width = shape
    for _ in range(_PLACEMENT_ATTEMPTS):
        x = rng.integers(0, SCENE_SIZE - width + 1)
        y = rng.integers(0, SCENE_SIZE - height + 1)
        box = np.array([x, y, x + width, y + height], dtype=np.float32)
        overlap = np.clip(
            np.minimum(box[2:], taken[:, 2:]) - np.maximum(box[:2], taken[:, :2]), 0, None
        ).prod(axis=1)
        smaller = np.minimum((taken[:, 2:] - taken[:, :2]).prod(axis=1), width * height)
        if (overlap <= _MAX_OVERLAP * smaller).all():
            return box
    return None


def _blend(canvas: FloatArray, ink: FloatArray, box: FloatArray, rng: np.random.Generator) -> None:
    """Draws a digit into the canvas: bright or dark ink of random strength."""
    x1, y1, x2, y2 = box.astype(int)
    contrast = rng.uniform(0.3, 0.7) * (1.0 if rng.random() < 0.7 else -1.0)
    canvas[y1:y2, x1:x2] += contrast * ink
