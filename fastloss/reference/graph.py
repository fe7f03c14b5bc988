# SPDX-License-Identifier: MIT
"""Losses of graphs in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from ._reduce import power, promote, reduce_both, reduce_loss, root
from ._sampling import negative_edges

__all__ = [
    "bootstrap_latent_loss",
    "deep_graph_infomax_loss",
    "graph_reconstruction_loss",
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
