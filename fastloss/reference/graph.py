# SPDX-License-Identifier: MIT
"""Losses of graphs and of contrastive learning in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, distributed
from torch.nn.functional import logsigmoid

from ._reduce import power, promote, reduce_both, reduce_loss, root
from ._sampling import negative_edges

__all__ = [
    "bootstrap_latent_loss",
    "deep_graph_infomax_loss",
    "graph_reconstruction_loss",
    "info_nce_loss",
    "scaled_cosine_error",
    "variational_graph_kl_loss",
]


def graph_reconstruction_loss(
    z: Tensor,
    pos_edge_index: Tensor,
    neg_edge_index: Tensor | None = None,
    reduction: str = "mean",
    *,
    generator: Generator | None = None,
) -> Tensor:
    """``-ln σ(z_i · z_j)`` of edges, ``-ln σ(-z_i · z_j)`` of pairs without one."""
    if neg_edge_index is None:
        neg_edge_index = negative_edges(pos_edge_index, z.shape[0], generator)
    (z,) = promote(z)

    def logits(edge_index: Tensor) -> Tensor:
        source, target = edge_index.long().unbind()
        return (z[source] * z[target]).sum(-1)

    of_edges, of_others = -logsigmoid(logits(pos_edge_index)), -logsigmoid(-logits(neg_edge_index))
    if reduction == "none":
        return torch.cat((of_edges, of_others))
    return reduce_both(of_edges, of_others, reduction)


def variational_graph_kl_loss(mu: Tensor, logstd: Tensor, reduction: str = "mean") -> Tensor:
    """``½ Σ (μ² + σ² - 1 - ln σ²)``, with ln σ at most 10."""
    mu, logstd = promote(mu, logstd)
    double_log = 2 * logstd.clamp(max=10)
    of_features = (mu.square() + double_log.expm1() - double_log) / 2
    return reduce_loss(of_features.sum(-1), None, reduction, None)


def deep_graph_infomax_loss(
    pos_logits: Tensor, neg_logits: Tensor, reduction: str = "mean"
) -> Tensor:
    """``-ln σ(pos) - ln σ(-neg)``."""
    pos_logits, neg_logits = promote(pos_logits, neg_logits)
    return reduce_both(-logsigmoid(pos_logits), -logsigmoid(-neg_logits), reduction)


def scaled_cosine_error(
    x: Tensor, y: Tensor, alpha: float = 3.0, reduction: str = "mean"
) -> Tensor:
    """``(1 - cos)^α``."""
    x, y = promote(x, y)
    return reduce_loss(power(1 - _cosine(x, y), alpha), None, reduction, None)


def bootstrap_latent_loss(predictions: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """``2 - 2 cos``, with constant targets."""
    predictions, targets = promote(predictions, targets.detach())
    return reduce_loss(2 - 2 * _cosine(predictions, targets), None, reduction, None)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return (_unit(x) * _unit(y)).sum(-1)


def _unit(rows: Tensor) -> Tensor:
    """As torch's ``normalize``, but with finite second derivatives at 0."""
    return rows / root(rows.square().sum(-1, keepdim=True)).clamp(min=1e-12)


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
