# SPDX-License-Identifier: MIT
"""Ranking losses: lists of scored items, and a metric of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _ops
from ._shared import check_number, documented, option_error

__all__ = [
    "approx_ndcg_loss",
    "lambda_loss",
    "list_mle_loss",
    "list_net_loss",
    "ndcg",
    "neural_ndcg_loss",
    "ranknet_loss",
]

_SCHEMES = ("ndcg_loss1", "ndcg_loss2", "ndcg_loss2pp", "lambda_rank", "ranknet")


def _cut(function: str, k: int | None) -> float:
    """K as a kernel's parameter: NaN cuts nothing."""
    check_number(function, "k", k, "at least 1 or None")
    return math.nan if k is None else float(k)


@documented
def lambda_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    scheme: str = "ndcg_loss2pp",
    k: int | None = None,
    sigma: float = 1.0,
    mu: float = 10.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """LambdaLoss: pairs of a list's items, weighted by what their order means for NDCG.

    -w log₂ σ(σ₀ (s_i - s_j)), summed over the pairs in which i is more relevant than j, σ₀ being
    ``sigma``. G = (2^r - 1) / best DCG is an item's gain, D = log₂(1 + place) its discount in the
    order of the scores, Δ(d) = 1 / log₂(1 + d) - 1 / log₂(2 + d) for items d places apart:

    - ``"ndcg_loss1"``: G_i / D_i, over all pairs, each item with itself included
    - ``"ndcg_loss2"``: Δ(|i - j|) |G_i - G_j|
    - ``"lambda_rank"``: |1 / D_i - 1 / D_j| |G_i - G_j|
    - ``"ndcg_loss2pp"``: lambda_rank + ``mu`` ndcg_loss2
    - ``"ranknet"``: 1

    Weights and places have no gradient. The values are allRank's, but for its floor of 1e-10 under
    probabilities: here a badly ordered pair keeps its gradient. A negative relevance gains nothing;
    no relevance is too large.

    The LambdaLoss Framework for Ranking Metric Optimization, 2018, doi 10.1145/3269206.3271784.

    Args:
        {scores}
        {relevance}
        scheme: The weight of a pair.
        k: Only the k items of highest score form pairs, and only so many count in the best DCG.
            None: all of them.
        sigma: σ₀, above 0.
        mu: The share of ndcg_loss2 in ndcg_loss2pp, at least 0.
        {item_mask}
        {item_pair_reduction}

    {item_pair_returns}

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.lambda_loss(scores, relevance)
        tensor(2.3794)
        >>> F.lambda_loss(scores, relevance, scheme="lambda_rank", k=2, reduction="none")
        tensor([0.3852, 0.1548])
    """
    if scheme not in _SCHEMES:
        expected = "'ndcg_loss1', 'ndcg_loss2', 'ndcg_loss2pp', 'lambda_rank' or 'ranknet'"
        raise option_error("lambda_loss", "scheme", expected, scheme)
    check_number("lambda_loss", "sigma", sigma, "above 0 and finite")
    check_number("lambda_loss", "mu", mu, "at least 0 and finite")
    return _ops.pairs(
        f"lambda_loss/{scheme}",
        scores,
        relevance,
        (_cut("lambda_loss", k), sigma, mu),
        mask=mask,
        reduction=reduction,
    )


@documented
def ranknet_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """RankNet loss: cross-entropy of every pair's order.

    -ln σ(s_i - s_j), summed over the pairs in which i is more relevant than j.

    Learning to Rank using Gradient Descent, 2005, doi 10.1145/1102351.1102363.

    Args:
        {scores}
        {relevance}
        {item_mask}
        {item_pair_reduction}

    {item_pair_returns}

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.ranknet_loss(scores, relevance)
        tensor(0.7082)
    """
    return _ops.pairs("ranknet_loss", scores, relevance, mask=mask, reduction=reduction)


@documented
def approx_ndcg_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - NDCG with smooth places: what of its place an item owes to another is a sigmoid.

    1 - Σ_i G_i / log₂(1 + π_i), with π_i = 1 + Σ_j≠i σ(α (s_j - s_i)) for the place of an item and
    G = (2^r - 1) / best DCG for its gain.

    A General Approximation Framework for Direct Optimization of Information Retrieval Measures,
    2010, doi 10.1007/s10791-009-9124-x.

    Args:
        {scores}
        {relevance}
        alpha: α, how sharply a difference of scores tells the order, above 0.
        {item_mask}
        {ndcg_reduction}

    {list_returns}

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.approx_ndcg_loss(scores, relevance, alpha=10.0)
        tensor(0.1433)
    """
    check_number("approx_ndcg_loss", "alpha", alpha, "above 0 and finite")
    return _ops.pairs(
        "approx_ndcg_loss", scores, relevance, (alpha,), mask=mask, reduction=reduction
    )


@documented
def neural_ndcg_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - NDCG of a list that is sorted softly, by a doubly stochastic matrix.

    1 - Σ_i (M G)_i / log₂(1 + i), with the gains G = (2^r - 1) / best DCG and NeuralSort's matrix
    M: row i is the softmax over j of ((n + 1 - 2i) s_j - Σ_k |s_j - s_k|) / τ. Sinkhorn scaling
    divides its columns and rows by their sums in turn, up to 50 times or until a list's sums are
    within 1e-6 of 1; its gradient is that of the rounds it took.

    M is never in memory for all lists: a thread on a CPU keeps that of its own list in the cache,
    up to 1 MiB, or computes it anew in each round. Scores of any size keep their digits, and equal
    ones share their places.

    NeuralNDCG: Direct Optimisation of a Ranking Metric via Differentiable Relaxation of Sorting,
    2021, arXiv 2102.07831.

    Args:
        {scores}
        {relevance}
        temperature: τ, above 0; the lower, the closer to hard sorting.
        {item_mask}
        {ndcg_reduction}

    {list_returns}

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.neural_ndcg_loss(scores, relevance, temperature=0.1)
        tensor(0.1425)
    """
    check_number("neural_ndcg_loss", "temperature", temperature, "above 0 and finite")
    return _ops.pairs(
        "neural_ndcg_loss", scores, relevance, (temperature,), mask=mask, reduction=reduction
    )


@documented
def list_net_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ListNet loss: cross-entropy between the softmax of the relevance and that of the scores.

    -Σ softmax(r) ln softmax(s), each over the items of a list.

    Learning to Rank: From Pairwise Approach to Listwise Approach, 2007,
    doi 10.1145/1273496.1273513.

    Args:
        {scores}
        {relevance}
        {item_mask}
        {list_reduction}

    {list_returns}

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.list_net_loss(scores, relevance)
        tensor(1.2841)
    """
    return _ops.pairs("list_net_loss", scores, relevance, mask=mask, reduction=reduction)


@documented
def list_mle_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ListMLE loss: how unlikely the order of relevance is when items are drawn by their scores.

    Σ_i (ln Σ_j≥i e^s_j - s_i), over a list's items from the most relevant on. Equally relevant ones
    count in the order in which they stand; to break ties at random, as allRank does, shuffle the
    lists.

    Listwise Approach to Learning to Rank: Theory and Algorithm, 2008, doi 10.1145/1390156.1390306.

    Args:
        {scores}
        {relevance}
        {item_mask}
        {list_reduction}

    {list_returns}

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.list_mle_loss(scores, relevance)
        tensor(1.7260)
    """
    return _ops.pairs("list_mle_loss", scores, relevance, mask=mask, reduction=reduction)


@documented
def ndcg(
    scores: Tensor, relevance: Tensor, k: int | None = None, mask: Tensor | None = None
) -> Tensor:
    """Normalised discounted cumulative gain of every list: the metric, without a gradient.

    Σ (2^r - 1) / log₂(1 + place) over the first k items in the order of the scores, divided by the
    most that any order would give. Equal scores count in the order in which they stand.

    Cumulated Gain-based Evaluation of IR Techniques, 2002, doi 10.1145/582415.582418.

    Args:
        {scores}
        {relevance}
        k: How many items count. None: all of them.
        {item_mask}

    Returns:
        A number in [0, 1] per list, shape (B,), float32 (float64 if scores or relevance is); 1 for
        a list in which nothing is relevant, as XGBoost and LightGBM have it.

    {list_raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 1.0, 3.0], [0.5, -1.0, 0.0]])
        >>> relevance = torch.tensor([[2, 0, 1], [1, 1, 0]])
        >>> F.ndcg(scores, relevance)
        tensor([0.7967, 0.9197])
    """
    with torch.no_grad():
        return _ops.pairs(
            "ndcg", scores, relevance, (_cut("ndcg", k),), mask=mask, reduction="none"
        )
