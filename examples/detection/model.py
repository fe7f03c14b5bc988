# SPDX-License-Identifier: MIT
"""A small anchor-free detector: a convolutional backbone, two levels, decoupled heads."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

STRIDES = (8, 16)
_PRIOR_PROBABILITY = 0.01  # of every class at every location, before training
_PRIOR_DISTANCE = 1.5  # from a location to the sides of its box, in strides


class Predictions(NamedTuple):
    """What the detector says at each of the L locations of both levels."""

    logits: Tensor  # (B, L, C)
    boxes: Tensor  # (B, L, 4) xyxy in pixels
    centres: Tensor  # (L, 2) xy in pixels, where each location looks


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Returns a 3x3 convolution with normalisation and activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(inplace=True),
    )


class Head(nn.Module):
    """Predicts, at every location of one level, class logits and distances to the four sides."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Sequential(
            conv_block(channels, channels),
            conv_block(channels, channels),
            nn.Conv2d(channels, num_classes, 1),
        )
        self.distances = nn.Sequential(
            conv_block(channels, channels // 2),
            conv_block(channels // 2, channels // 2),
            nn.Conv2d(channels // 2, 4, 1),
        )
        class_bias = -math.log(1.0 / _PRIOR_PROBABILITY - 1.0)
        distance_bias = math.log(math.expm1(_PRIOR_DISTANCE))  # the inverse of softplus
        for branch, bias in ((self.classes, class_bias), (self.distances, distance_bias)):
            output = branch[-1]
            assert isinstance(output, nn.Conv2d)
            assert output.bias is not None
            nn.init.normal_(output.weight, std=0.01)
            nn.init.constant_(output.bias, bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (B, H*W, C) and distances (B, H*W, 4) in strides, ordered l, t, r, b."""
        logits = self.classes(features).flatten(2).transpose(1, 2)
        distances = nnf.softplus(self.distances(features)).flatten(2).transpose(1, 2)
        return logits, distances


class Detector(nn.Module):
    """Maps images (B, 1, H, W) to predictions; H and W are multiples of 16."""

    def __init__(self, num_classes: int, channels: int = 64) -> None:
        super().__init__()
        self.to_stride8 = nn.Sequential(
            conv_block(1, channels // 4, stride=2),
            conv_block(channels // 4, channels // 2, stride=2),
            conv_block(channels // 2, channels // 2),
            conv_block(channels // 2, channels, stride=2),
            conv_block(channels, channels),
        )
        self.to_stride16 = nn.Sequential(
            conv_block(channels, channels, stride=2),
            conv_block(channels, channels),
        )
        self.heads = nn.ModuleList(Head(channels, num_classes) for _ in STRIDES)

    def forward(self, images: Tensor) -> Predictions:
        """Returns the predictions of both levels, stride 8 first."""
        fine = self.to_stride8(images)
        coarse = self.to_stride16(fine)
        fine = fine + nnf.interpolate(coarse, scale_factor=2.0, mode="nearest")
        logits, boxes, centres = [], [], []
        for head, stride, features in zip(self.heads, STRIDES, (fine, coarse), strict=True):
            level_logits, distances = head(features)
            level_centres = grid_centres(features.shape[-2], features.shape[-1], stride, features)
            logits.append(level_logits)
            boxes.append(decode_boxes(level_centres, distances * stride))
            centres.append(level_centres)
        return Predictions(torch.cat(logits, dim=1), torch.cat(boxes, dim=1), torch.cat(centres))


def grid_centres(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """Returns the pixel centres xy of a grid of locations, row by row, (height*width, 2)."""
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * stride
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * stride
    return torch.cartesian_prod(y, x).flip(-1)


def decode_boxes(centres: Tensor, distances: Tensor) -> Tensor:
    """Turns distances (..., L, 4) left, top, right, bottom into boxes xyxy."""
    left_top, right_bottom = distances.chunk(2, dim=-1)
    return torch.cat((centres - left_top, centres + right_bottom), dim=-1)
