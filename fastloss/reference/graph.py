# SPDX-License-Identifier: MIT
"""Losses of graphs and of contrastive learning in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from ._reduce import promote, reduce_loss, root

__all__ = ["info_nce_loss"]

# What shorter rows are divided by, as torch's normalize does.
SHORTEST = 1e-12


def info_nce_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float = 0.5,
    *,
    mode: str = "nt_xent",
    normalize: bool = True,
    reduction: str = "mean",
    process_group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy of the similarities, of which a row's positive is the label."""
    z1, z2 = promote(z1, z2)
    if process_group is not None:
        z1, z2 = _of_all_ranks(z1, process_group), _of_all_ranks(z2, process_group)
    count = z1.shape[0]
    if mode == "cross":
        return _rows(z1, z2, temperature, normalize=normalize, reduction=reduction)
    if mode == "clip":
        forth = _rows(z1, z2, temperature, normalize=normalize, reduction=reduction)
        back = _rows(z2, z1, temperature, normalize=normalize, reduction=reduction)
        return (forth + back) / 2
    both = torch.cat((z1, z2))
    # In the order of the columns, a row's positive is `count` further: in the second half, the
    # columns begin with z2.
    first = _rows(z1, both, temperature, count, 0, normalize=normalize, reduction="none")
    second = _rows(
        z2, torch.cat((z2, z1)), temperature, count, 0, normalize=normalize, reduction="none"
    )
    return reduce_loss(torch.cat((first, second)), None, reduction, None)


def _rows(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float,
    positive: int = 0,
    itself: int | None = None,
    *,
    normalize: bool,
    reduction: str,
) -> Tensor:
    """Every row of z1 over the rows of z2.

    Row i's positive is row ``positive + i``; with row ``itself + i`` it is not compared.
    """
    z1, z2 = promote(z1, z2)
    if normalize:
        z1, z2 = _unit(z1), _unit(z2)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(z1.dtype)
    similarity = z1 @ z2.mT / temperature
    if itself is not None:
        is_self = torch.ones_like(similarity, dtype=torch.bool).triu(itself).tril(itself)
        similarity = torch.where(is_self, -torch.inf, similarity)
    of_positive = similarity.diagonal(positive, -2, -1)
    return reduce_loss(similarity.logsumexp(-1) - of_positive, None, reduction, None)


def _unit(rows: Tensor) -> Tensor:
    return rows / root(rows.square().sum(-1, keepdim=True)).clamp(min=SHORTEST)


def _of_all_ranks(rows: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """The rows of all ranks.

    This rank's have the gradient as many times as there are ranks, so that the average over the
    ranks is the gradient.
    """
    ranks = distributed.get_world_size(group)
    parts = [torch.empty_like(rows) for _ in range(ranks)]
    distributed.all_gather(parts, rows.detach().contiguous(), group=group)
    parts[distributed.get_rank(group)] = ranks * rows - (ranks - 1) * rows.detach()
    return torch.cat(parts)
