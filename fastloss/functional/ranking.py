# SPDX-License-Identifier: MIT
"""Ranking and metric learning: lists of scored items, pairs of scores, distances of embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _ops
from ._shared import check_number, documented, option_error

__all__ = [
    "approx_ndcg_loss",
    "batch_hard_triplet_loss",
    "lambda_loss",
    "list_mle_loss",
    "list_net_loss",
    "margin_ranking_loss",
    "ndcg",
    "neural_ndcg_loss",
    "ranknet_loss",
    "triplet_margin_loss",
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


@documented
def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Margin ranking loss: max(0, margin - y (x1 - x2)), y telling which score is to be larger.

    As ``torch.nn.functional.margin_ranking_loss``, but that the inputs do not broadcast.

    Large Margin Rank Boundaries for Ordinal Regression, 2000.

    Args:
        input1: Scores x1, any shape, any floating dtype, any strides.
        input2: Scores x2 of the same shape. The dtype may be another one.
        target: y: 1 where x1 is to be larger, -1 where x2 is; broadcastable to the scores.
        margin: By how much, before a pair costs nothing.
        {reduction}

    Returns:
        The loss: the shape of the scores for ``"none"``, else a 0-d tensor; float32, or float64 if
        a score is. The mean over no pairs is 0, with a gradient of 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> first, second = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1.0, 1.0, -1.0])
        >>> F.margin_ranking_loss(first, second, torch.tensor([1.0, 1.0, -1.0]), margin=0.25)
        tensor(1.)
    """
    return _ops.pointwise(
        "margin_ranking_loss", input1, input2, (margin,), extra=target, reduction=reduction
    )


@documented
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Triplet margin loss: an anchor is to be nearer to its positive than to its negative.

    max(0, ‖a - p + eps‖ - ‖a - n + eps‖ + margin), in the p-norm over the last dimension: torch's
    values and gradients, from one pass over the rows. With ``swap`` the negative's distance to the
    positive counts instead, where that is smaller.

    Learning local feature descriptors with triplets and shallow convolutional neural networks,
    2016, doi 10.5244/C.30.119.

    Args:
        anchor: Embeddings a (..., features), any floating dtype, any strides.
        positive: Embeddings of the same shape, near which the anchors are to be.
        negative: Embeddings of the same shape, from which they are to be far.
        margin: By how much the negative is to be farther, above 0.
        p: The norm, above 0; ``math.inf`` is the largest difference.
        eps: Added to every difference, at least 0.
        swap: Whether the negative's distance to the positive may count.
        {reduction}

    Returns:
        The loss: the shape of the embeddings without the features for ``"none"``, else a 0-d
        tensor; float32, or float64 if an embedding is. The mean over no triplets is 0, with a
        gradient of 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> anchor = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> positive = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
        >>> negative = torch.tensor([[0.0, 5.5], [9.0, 1.0]])
        >>> F.triplet_margin_loss(anchor, positive, negative, reduction="none")
        tensor([0.5000, 0.0000])
    """
    check_number("triplet_margin_loss", "margin", margin, "above 0")
    check_number("triplet_margin_loss", "p", p, "above 0")
    check_number("triplet_margin_loss", "eps", eps, "at least 0")
    norm = {1.0: "1", 2.0: "2", math.inf: "inf"}.get(float(p), "p")
    return _ops.triplet(
        f"triplet_margin_loss/{norm}",
        anchor,
        positive,
        negative,
        (margin, p, eps, bool(swap)),
        reduction=reduction,
    )


@documented
def batch_hard_triplet_loss(
    embeddings: Tensor, labels: Tensor, margin: float | None = 1.0, reduction: str = "mean"
) -> Tensor:
    """Batch-hard triplet loss: every row with its farthest positive and its nearest negative.

    max(0, max ‖a - p‖ - min ‖a - n‖ + margin) over the other rows p of an anchor's label and the
    rows n of other labels, in the Euclidean norm; ln(1 + e^(max - min)) without a margin. Of equal
    distances that to the first row counts. Rows without a positive or a negative are no anchors.

    Distances are sums of squared differences, so that near rows keep their digits, and no matrix of
    them is in memory. A NaN among the embeddings makes every loss NaN.

    In Defense of the Triplet Loss for Person Re-Identification, 2017, arXiv 1703.07737.

    Args:
        embeddings: Rows (N, features), any floating dtype, any strides.
        labels: What each row shows (N,): uint8, int16, int32 or int64, any numbers.
        margin: By how much negatives are to be farther, at least 0. None: the soft margin.
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the anchors.

    Returns:
        The loss: shape (N,) for ``"none"``, 0 for a row that is no anchor, else a 0-d tensor;
        float32, or float64 if the embeddings are. Without an anchor it is 0, with a gradient of 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0], [9.0, 9.0]])
        >>> F.batch_hard_triplet_loss(embeddings, torch.tensor([7, 7, 1, 0]), reduction="none")
        tensor([4.0000, 2.3944, 0.0000, 0.0000])
    """
    check_number("batch_hard_triplet_loss", "margin", margin, "at least 0 or None")
    kind = "soft" if margin is None else "hinge"
    return _ops.batch_hard(
        f"batch_hard_triplet_loss/{kind}",
        embeddings,
        labels,
        (math.nan if margin is None else margin,),
        reduction=reduction,
    )
