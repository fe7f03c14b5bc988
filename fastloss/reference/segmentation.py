# SPDX-License-Identifier: MIT
"""Segmentation losses in plain PyTorch: the formulas, one operation after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as torch_functional
from torch.nn.functional import logsigmoid

from ._reduce import power, promote, safe_reciprocal
from ._rows import of_all_ranks

__all__ = [
    "dice_cross_entropy_loss",
    "dice_focal_loss",
    "dice_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "lovasz_softmax_loss",
    "tversky_loss",
]


@dataclass
class _Voxels:
    """Logits and targets side by side. What is ignored is 0 in both and takes no part.

    Attributes:
        logits: (B, C, *spatial).
        targets: (B, C, *spatial), one-hot or dense.
        valid: (B, 1, *spatial), True where a voxel counts.
        labelled: Whether the targets came as class indices.
    """

    logits: Tensor
    targets: Tensor
    valid: Tensor
    labelled: bool

    @classmethod
    def of(cls, input: Tensor, target: Tensor, ignore_index: int | None) -> _Voxels:
        """Brings both to the compute dtype, expands labels, drops what is ignored."""
        classes = input.shape[1]
        labelled = target.dim() == input.dim() - 1
        if input.dim() == 2:  # a sample is a single voxel
            input, target = input.unsqueeze(-1), target.unsqueeze(-1)
        if labelled:
            (logits,) = promote(input)
            labels = target.unsqueeze(1)
            valid = torch.ones_like(labels, dtype=torch.bool)
            if ignore_index is not None:
                valid = labels != ignore_index
            index = torch.arange(classes, device=input.device)
            index = index.view(-1, *[1] * (input.dim() - 2))
            targets = (labels == index).to(logits.dtype)
        else:
            logits, targets = promote(input, target)
            valid = torch.ones_like(targets[:, :1], dtype=torch.bool)
            if ignore_index is None:
                pass
            elif classes == 1:
                valid = targets != ignore_index
            elif 0 <= ignore_index < classes:
                valid = ~(targets[:, ignore_index : ignore_index + 1] > 0.5)
            else:
                valid = ~(targets.sum(1, keepdim=True) <= 0)
        # Ignored voxels leave the graph here, whatever they hold.
        return cls(
            torch.where(valid, logits, 0.0), torch.where(valid, targets, 0.0), valid, labelled
        )

    def probabilities(self, activation: str | None) -> Tensor:
        """(B, C, *spatial)."""
        if activation == "softmax":
            return torch.where(self.valid, self.logits.softmax(1), 0.0)
        if activation == "sigmoid":
            return torch.where(self.valid, self.logits.sigmoid(), 0.0)
        return self.logits


@dataclass
class _Sums:
    """What an overlap loss is a function of, by region: (B, C), or (C,) over a whole batch."""

    intersection: Tensor  # Σ p g
    prediction: Tensor  # Σ p, or Σ p²
    target: Tensor  # Σ g, or Σ g²

    @classmethod
    def of(
        cls,
        voxels: _Voxels,
        activation: str | None,
        include_background: bool,
        batch: bool,
        squared_pred: bool = False,
    ) -> _Sums:
        """Sums over space, or over space and batch."""
        probabilities = voxels.probabilities(activation)
        first = 0 if include_background else 1
        p, g = probabilities[:, first:].flatten(2), voxels.targets[:, first:].flatten(2)
        over = (0, 2) if batch else (2,)
        if squared_pred:
            return cls((p * g).sum(over), p.square().sum(over), g.square().sum(over))
        return cls((p * g).sum(over), p.sum(over), g.sum(over))

    def one_minus(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """1 - numerator / denominator; 0 where there is nothing at all."""
        nothing = (self.prediction + self.target == 0) | (denominator == 0)
        ratio = numerator / torch.where(nothing, 1.0, denominator)
        return torch.where(nothing, 0.0, 1 - ratio)

    def dice(self, smooth_nr: float, smooth_dr: float, jaccard: bool = False) -> Tensor:
        """``1 - (2 I + smooth_nr) / (P + G + smooth_dr)``, or its Jaccard form."""
        denominator = self.prediction + self.target
        if jaccard:
            denominator = 2 * (denominator - self.intersection)
        return self.one_minus(2 * self.intersection + smooth_nr, denominator + smooth_dr)

    def tversky(self, alpha: float, beta: float, smooth_nr: float, smooth_dr: float) -> Tensor:
        """``1 - (I + smooth_nr) / (I + alpha FP + beta FN + smooth_dr)``."""
        false_positives = self.prediction - self.intersection
        false_negatives = self.target - self.intersection
        denominator = self.intersection + alpha * false_positives + beta * false_negatives
        return self.one_minus(self.intersection + smooth_nr, denominator + smooth_dr)


def _reduce_regions(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Class weights multiply; the mean divides by the number of regions."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if weight is not None:
        loss = loss * weight.to(loss.dtype)[-loss.shape[-1] :]
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / max(loss.numel(), 1)


def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    process_group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """``1 - (2 I + smooth_nr) / (P + G + smooth_dr)`` of every sample and class."""
    if process_group is not None:
        input, target = of_all_ranks(input, process_group), of_all_ranks(target, process_group)
    voxels = _Voxels.of(input, target, ignore_index)
    sums = _Sums.of(voxels, activation, include_background, batch, squared_pred)
    loss = _reduce_regions(sums.dice(smooth_nr, smooth_dr, jaccard), weight, reduction)
    if process_group is None:
        return loss
    # Of the gradients of all processes, training takes the mean.
    ranks = distributed.get_world_size(process_group)
    return ranks * loss - (ranks - 1) * loss.detach()


def tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``1 - (I + smooth_nr) / (I + alpha FP + beta FN + smooth_dr)`` of every sample and class."""
    voxels = _Voxels.of(input, target, ignore_index)
    sums = _Sums.of(voxels, activation, include_background, batch)
    return _reduce_regions(sums.tversky(alpha, beta, smooth_nr, smooth_dr), weight, reduction)


def focal_tversky_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The Tversky loss to the power of gamma; without a slope where it is 0."""
    voxels = _Voxels.of(input, target, ignore_index)
    sums = _Sums.of(voxels, activation, include_background, batch)
    miss = sums.tversky(alpha, beta, smooth_nr, smooth_dr)
    nothing_missed = miss < torch.finfo(miss.dtype).eps
    loss = torch.where(nothing_missed, 0.0, power(torch.where(nothing_missed, 1.0, miss), gamma))
    return _reduce_regions(loss, weight, reduction)


def generalized_dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    w_type: str = "square",
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    include_background: bool = True,
    batch: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``1 - (2 Σ w I + smooth_nr) / (Σ w (P + G) + smooth_dr)``, sums over the classes."""
    voxels = _Voxels.of(input, target, ignore_index)
    sums = _Sums.of(voxels, activation, include_background, batch)
    if w_type == "square":
        weight = safe_reciprocal(sums.target.square())
    elif w_type == "simple":
        weight = safe_reciprocal(sums.target)
    elif w_type == "uniform":
        weight = torch.ones_like(sums.target)
    else:
        raise ValueError(f"generalized_dice_loss: unknown w_type {w_type!r}")
    # An absent class counts like the rarest one that is there.
    weight = torch.where(weight == 0, weight.amax(-1, keepdim=True), weight)
    pooled = _Sums(
        (weight * sums.intersection).sum(-1),
        (weight * sums.prediction).sum(-1),
        (weight * sums.target).sum(-1),
    )
    return _reduce_regions(pooled.dice(smooth_nr, smooth_dr), None, reduction)


def _reduce_both(
    regions: Tensor,
    weight: Tensor | None,
    reduction: str,
    voxel_loss: Tensor,
    divisor: Tensor | int,
    lambda_regions: float,
    lambda_voxels: float,
) -> Tensor:
    """A loss of regions and one of voxels, each with its own mean."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    divisor = torch.as_tensor(divisor, dtype=voxel_loss.dtype, device=voxel_loss.device)
    of_voxels = (voxel_loss * safe_reciprocal(divisor)).sum()
    return lambda_regions * _reduce_regions(regions, weight, reduction) + lambda_voxels * of_voxels


def dice_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    label_smoothing: float = 0.0,
    activation: str = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``lambda_dice`` times the Dice loss + ``lambda_ce`` times the cross-entropy."""
    voxels = _Voxels.of(input, target, ignore_index)
    sums = _Sums.of(voxels, activation, include_background, batch, squared_pred)
    classes = input.shape[1]
    targets = voxels.targets
    class_weight = torch.ones(classes, dtype=targets.dtype, device=targets.device)
    if weight is not None:
        class_weight = weight.to(targets.dtype)
    class_weight = class_weight.view(-1, *[1] * (voxels.logits.dim() - 2))
    divisor: Tensor | int = 1
    if activation == "softmax":
        smooth = targets * (1 - label_smoothing) + label_smoothing / classes
        cross_entropy = -class_weight * smooth * torch_functional.log_softmax(voxels.logits, 1)
        if reduction == "mean":
            divisor = (class_weight * targets).sum() if voxels.labelled else voxels.valid.sum()
    else:
        cross_entropy = -(
            class_weight * targets * logsigmoid(voxels.logits)
            + (1 - targets) * logsigmoid(-voxels.logits)
        )
        if reduction == "mean":
            divisor = voxels.valid.sum() * classes
    return _reduce_both(
        sums.dice(smooth_nr, smooth_dr, jaccard),
        weight,
        reduction,
        torch.where(voxels.valid, cross_entropy, 0.0),
        divisor,
        lambda_dice,
        lambda_ce,
    )


def dice_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = -1.0,
    gamma: float = 2.0,
    lambda_dice: float = 1.0,
    lambda_focal: float = 1.0,
    activation: str | None = "softmax",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    squared_pred: bool = False,
    jaccard: bool = False,
    include_background: bool = True,
    batch: bool = False,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``lambda_dice`` times the Dice loss + ``lambda_focal`` times the sigmoid focal loss."""
    voxels = _Voxels.of(input, target, ignore_index)
    sums = _Sums.of(voxels, activation, include_background, batch, squared_pred)
    first = 0 if include_background else 1
    x, t = voxels.logits[:, first:], voxels.targets[:, first:]
    miss = torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t  # 1 - p_t
    focal = -(t * logsigmoid(x) + (1 - t) * logsigmoid(-x)) * power(miss, gamma)
    if alpha >= 0:
        focal = (alpha * t + (1 - alpha) * (1 - t)) * focal
    if weight is not None:
        focal = focal * weight.to(focal.dtype).view(-1, *[1] * (voxels.logits.dim() - 2))
    # The sum is one over samples and classes; space is averaged.
    counted = voxels.valid.flatten(1)
    divisor = counted.sum(1).view(-1, *[1] * (voxels.logits.dim() - 1))
    if reduction == "mean":
        divisor = counted.sum() * x.shape[1]
    return _reduce_both(
        sums.dice(smooth_nr, smooth_dr, jaccard),
        weight,
        reduction,
        torch.where(voxels.valid, focal, 0.0),
        divisor,
        lambda_dice,
        lambda_focal,
    )


def lovasz_softmax_loss(
    input: Tensor,
    target: Tensor,
    *,
    classes: str = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The Lovász extension of the Jaccard loss of each class, at the errors of its voxels."""
    if classes not in ("present", "all"):
        raise ValueError(f"lovasz_softmax_loss: unknown classes {classes!r}")
    voxels = _Voxels.of(input, target, ignore_index)
    errors = (voxels.targets - voxels.probabilities("softmax")).abs().flatten(2)  # [B, C, N]
    valid = voxels.valid.flatten(2).expand_as(errors)
    foreground = voxels.targets.flatten(2) > 0
    if not per_image:
        errors, valid, foreground = (
            tensor.transpose(0, 1).flatten(1) for tensor in (errors, valid, foreground)
        )
    # What is ignored comes last, behind errors of 0.
    order = torch.where(valid, errors, -1.0).detach()
    order = order.sort(dim=-1, descending=True, stable=True).indices
    errors, valid, foreground = (tensor.gather(-1, order) for tensor in (errors, valid, foreground))
    count = foreground.sum(-1, keepdim=True)
    still_right = (count - foreground.cumsum(-1)).to(errors.dtype)
    union = (count + (valid & ~foreground).cumsum(-1)).to(errors.dtype)
    # The Jaccard loss grows by so much when the next worst voxel counts as wrong too.
    grown = torch.where(union > 1, still_right / (union * (union - 1)).clamp(min=1), 1.0)
    growth = torch.where(foreground, 1 / union.clamp(min=1), torch.where(count > 0, grown, 0.0))
    if errors.shape[-1] > 0:
        alone = torch.zeros_like(growth)
        alone[..., 0] = 1.0  # without foreground, any error is all of it
        growth = torch.where((count == 0) & valid, alone, growth)
    growth = torch.where(valid, growth, 0.0)
    loss = (errors * growth).sum(-1)  # [B, C] or [C]
    counted = torch.ones_like(loss)
    if classes == "present":
        counted = (count.squeeze(-1) > 0).to(loss.dtype)
    loss = loss * counted
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction != "mean":
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    of_image = loss.sum(-1) * safe_reciprocal(counted.sum(-1))
    return of_image.sum() / max(of_image.numel(), 1)
