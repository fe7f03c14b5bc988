# SPDX-License-Identifier: MIT
"""Losses of which several processes each have a part: what their kernels leave to be put together.

Only numbers per row, or per class, are exchanged; the logits stay where they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from .. import _ops
from ._shared import option_error

__all__ = ["cross_entropy_of_shards", "dice_of_all_ranks"]

# Marks rows that do not count: no class of a shard.
_NO_LABEL = -100


# ------------------------------------------------------------------- classes over several processes


def cross_entropy_of_shards(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    z_loss: float,
    logit_softcap: float,
    group: distributed.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """The unreduced cross-entropy of logits whose classes are shared out, and what each row counts.

    Args:
        input: Logits of this process's classes.
        target: Class indices among the classes of all processes.
        weight: Of the classes of all processes.
        ignore_index: Rows with this label do not count.
        z_loss: Factor of the squared normaliser.
        logit_softcap: 0 for none.
        group: The classes of its processes follow one another, in the order of the ranks.
    """
    target = target.long()
    counts = target != ignore_index
    return _CrossEntropyOfShards.apply(input, target, counts, weight, z_loss, logit_softcap, group)


class _CrossEntropyOfShards(torch.autograd.Function):
    """-w_y ln p_y, from the logarithm of Σ exp of each process's classes and the label's logit."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        counts: Tensor,
        weight: Tensor | None,
        z_loss: float,
        cap: float,
        group: distributed.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        # The kernel and its own backward: of a loss whose gradient is the softmax of these classes.
        # It comes first: what it finds wrong is said before any process waits for another.
        own = input.detach().requires_grad_(input.requires_grad)
        labels = torch.where(counts, 0, _NO_LABEL)
        with torch.enable_grad():
            part = _ops.softmax(
                "cross_entropy/shard", own, labels, (_NO_LABEL, cap), reduction="none"
            )
        found = part.detach()
        dim = min(input.dim() - 1, 1)
        first, total = _place_of_classes(input.shape[dim], target, group)
        _check_labels(target, counts, weight, total)
        if weight is None:
            factor = counts.to(found.dtype)
        else:
            chosen = weight.to(found.dtype)[torch.where(counts, target, 0)]
            factor = torch.where(counts, chosen, 0.0)

        local = target - first
        here = counts & (local >= 0) & (local < input.shape[dim])
        index = torch.where(here, local, 0).unsqueeze(dim)
        picked = input.gather(dim, index).squeeze(dim).to(found.dtype)
        cap_slope = torch.ones_like(picked)
        if cap:
            picked = cap * torch.tanh(picked / cap)
            cap_slope = 1 - (picked / cap).square()
        highest = found.clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=group)
        sums = torch.stack((torch.exp(found - highest), torch.where(here, picked, 0.0)))
        distributed.all_reduce(sums, group=group)
        above, label = sums[0].log(), sums[1]
        normaliser = highest + above

        # In this order a small loss keeps its digits.
        loss = factor * (above + (highest - label))
        slope = factor
        if z_loss:
            loss = loss + z_loss * normaliser.square()
            slope = factor + 2 * z_loss * normaliser
        if input.requires_grad:
            ctx.own, ctx.part, ctx.dim = own, part, dim
            of_label = (slope * torch.exp(label - normaliser) - factor) * cap_slope
            ctx.save_for_backward(
                counts, here, index, slope * torch.exp(found - normaliser), of_label
            )
        ctx.mark_non_differentiable(factor)
        return torch.where(counts, loss, 0.0), factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        counts, here, index, slope, slope_of_label = ctx.saved_tensors
        of_rows = torch.where(counts, upstream * slope, 0.0)
        (gradient,) = torch.autograd.grad(ctx.part, ctx.own, of_rows, retain_graph=True)
        # Of the label's logit by itself: the p of p - 1 has been rounded to the logits' dtype.
        of_label = (upstream * slope_of_label).to(gradient.dtype).unsqueeze(ctx.dim)
        others = gradient.gather(ctx.dim, index)
        gradient.scatter_(ctx.dim, index, torch.where(here.unsqueeze(ctx.dim), of_label, others))
        return (gradient, *[None] * 6)


def _place_of_classes(
    classes: int, target: Tensor, group: distributed.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """How many classes lie before this process's, and how many there are in all."""
    numbers = [torch.full((), n, device=target.device) for n in (classes, target.numel())]
    own = torch.stack(numbers)
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, own, group=group)
    classes_of, rows_of = torch.stack(parts).unbind(1)
    if target.is_cpu and bool((rows_of != target.numel()).any()):
        raise ValueError(
            "cross_entropy: input must have the same rows in all processes of the process_group, "
            f"got {', '.join(str(n) for n in rows_of.tolist())}"
        )
    return classes_of[: distributed.get_rank(group)].sum(), classes_of.sum()


def _check_labels(target: Tensor, counts: Tensor, weight: Tensor | None, total: Tensor) -> None:
    wrong = counts & ((target < 0) | (target >= total))
    if not target.is_cpu:  # the host does not wait for a device
        torch._assert_async(~wrong.any())
        return
    classes = f"{int(total)}, the classes of all processes"
    if weight is not None and weight.shape != (int(total),):
        raise ValueError(
            "cross_entropy: weight must have one number per class, "
            f"({classes}), got shape {list(weight.shape)}"
        )
    if wrong.any():
        raise IndexError(
            f"cross_entropy: target must be a class index below {classes}, "
            f"got {int(target[wrong][0])}"
        )


# ------------------------------------------------------------------- samples in several processes


class _DiceOfAllRanks(torch.autograd.Function):
    """The Dice loss of every class, of sums over the samples of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        smooth_nr: float,
        smooth_dr: float,
        jaccard: bool,
        options: tuple[Any, ...],
        group: distributed.ProcessGroup,
    ) -> Tensor:
        ignore_index, *of_sums = options
        ctx.arguments = (*of_sums, True, None, ignore_index, "none")
        loss, slopes = torch.ops.fastloss.region_forward(
            "dice_loss", input.detach(), target, (0.0, 0.0, 0.0), *ctx.arguments
        )
        # Without smoothing the loss is (S - 2 I) / S, with S = P + G, and its slope by I -2 / S:
        # they give the sums back, and the difference S - 2 I with all its digits.
        counted, by_sums = loss.shape[0], slopes[: 2 * input.shape[1]].view(-1, 2).double()
        by_intersection = by_sums[input.shape[1] - counted :, 0]
        absent = by_intersection == 0
        total = torch.where(absent, 0.0, -2 / torch.where(absent, 1.0, by_intersection))
        sums = torch.stack((total, total * loss))
        distributed.all_reduce(sums, group=group)
        total, difference = sums

        share = 1 + int(jaccard)
        numerator = total - difference + smooth_nr
        denominator = total + (share - 1) * difference + smooth_dr
        nothing = (total == 0) | (denominator == 0)
        divisor = torch.where(nothing, 1.0, denominator)
        found = (share * difference + smooth_dr - smooth_nr) / divisor
        new = torch.stack(
            (
                -2 * (denominator + (share - 1) * numerator) / divisor.square(),
                share * numerator / divisor.square(),
            ),
            dim=1,
        )
        # Of the gradients of all processes, training takes the mean.
        new = distributed.get_world_size(group) * torch.where(nothing.unsqueeze(1), 0.0, new)
        new_slopes = torch.zeros_like(slopes)
        new_slopes[: 2 * input.shape[1]].view(-1, 2)[-counted:] = new.clamp(-1e30, 1e30)
        ctx.save_for_backward(input, target, new_slopes)
        return torch.where(nothing, 0.0, found).to(loss.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        input, target, slopes = ctx.saved_tensors
        gradient = torch.ops.fastloss.region_backward(
            upstream, slopes, "dice_loss", input, target, (0.0, 0.0, 0.0), *ctx.arguments
        )
        return (gradient, *[None] * 6)


def dice_of_all_ranks(
    input: Tensor,
    target: Tensor,
    smooth_nr: float,
    smooth_dr: float,
    jaccard: bool,
    weight: Tensor | None,
    reduction: str,
    options: tuple[Any, ...],
    group: distributed.ProcessGroup,
) -> Tensor:
    """The Dice loss of sums over the samples of all processes, the same number in each.

    Args:
        input: Logits of this process's samples.
        target: Their targets.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        jaccard: Whether it is the Jaccard loss.
        weight: Of every class that counts.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        options: ignore_index, activation, squared_pred and include_background.
        group: Whose samples.
    """
    if reduction not in ("none", "mean", "sum"):
        raise option_error("dice_loss", "reduction", "'none', 'mean' or 'sum'", reduction)
    loss = _DiceOfAllRanks.apply(input, target, smooth_nr, smooth_dr, jaccard, options, group)
    if weight is not None:
        if weight.shape != loss.shape:
            raise ValueError(
                "dice_loss: weight must have one number per class that counts, shape "
                f"{list(loss.shape)}, got {list(weight.shape)}"
            )
        loss = loss * weight.to(loss.dtype)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
