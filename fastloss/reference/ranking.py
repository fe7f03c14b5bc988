# SPDX-License-Identifier: MIT
"""Ranking and metric learning in plain PyTorch: the formulas, one operation after the other.

Pairs, of a list's items or of a batch's rows, are an axis of their own here: to be read, not to be
fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._reduce import power, promote, reduce_loss, root, safe_reciprocal

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

# Sinkhorn scaling ends after so many rounds, or when no sum differs from 1 by more than this.
SINKHORN_ROUNDS = 50
SINKHORN_TOLERANCE = 1e-6


@dataclass(frozen=True)
class _Lists:
    """Scores, relevance and what counts, (B, L) each. What does not count is 0 in both."""

    scores: Tensor
    relevance: Tensor
    counts: Tensor

    @classmethod
    def of(cls, scores: Tensor, relevance: Tensor, mask: Tensor | None) -> _Lists:
        """A NaN that counts makes all scores of its list NaN."""
        scores, relevance = promote(scores, relevance)
        counts = torch.ones_like(scores) if mask is None else mask
        counts = counts.to(torch.bool)
        scores = torch.where(counts, scores, 0.0)
        relevance = torch.where(counts, relevance, 0.0)
        broken = (scores.isnan() | relevance.isnan()).any(-1, keepdim=True)
        return cls(scores * torch.where(broken, torch.nan, 1.0), relevance, counts)

    def ordered_by(self, numbers: Tensor) -> _Lists:
        """The highest first, equal ones in their order, what does not count at the end."""
        order = torch.where(self.counts, numbers, -torch.inf).argsort(
            dim=-1, descending=True, stable=True
        )
        # By its key alone an item of -inf would not be told from one that does not count.
        order = order.gather(
            -1, (~self.counts.gather(-1, order)).long().argsort(dim=-1, stable=True)
        )
        return _Lists(*(field.gather(-1, order) for field in self._fields()))

    def _fields(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.scores, self.relevance, self.counts

    def gains(self, k: int | None) -> tuple[Tensor, Tensor]:
        """``2^r - 1`` over the best DCG, 0 where nothing is relevant; and whether anything is.

        A negative relevance gains nothing. Gains and DCG are scaled alike, so that neither
        overflows.
        """
        relevance = self.relevance.clamp(min=0)
        if relevance.shape[-1] == 0:
            return relevance, relevance.any(-1)
        shift = (relevance.amax(-1, keepdim=True) - 64).clamp(min=0)
        gain = torch.exp2(relevance - shift) - torch.exp2(-shift)
        best = gain.sort(-1, descending=True).values * _discounts(gain, k)
        best_dcg = best.sum(-1, keepdim=True)
        return gain * safe_reciprocal(best_dcg), (best_dcg != 0).squeeze(-1)


def _discounts(like: Tensor, k: int | None = None) -> Tensor:
    """``1 / log2(1 + position)`` for the positions 1 to L, 0 beyond k."""
    positions = torch.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=like.device)
    discounts = 1 / torch.log2(1 + positions)
    return discounts if k is None else torch.where(positions <= k, discounts, 0.0)


def _reduce(of_list: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """The mean divides the sum by everything that counts, pairs or lists."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if reduction == "none":
        return of_list
    total = of_list.sum()
    return total if reduction == "sum" else total * safe_reciprocal(counted.sum(dtype=total.dtype))


def _pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the first and of the second item of each pair."""
    return values.unsqueeze(-1), values.unsqueeze(-2)


# ----------------------------------------------------------------------------------------- pairwise


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
    """``-w log2 σ(sigma (s_i - s_j))`` over pairs, with w by scheme."""
    lists = _Lists.of(scores, relevance, mask)
    lists = lists.ordered_by(lists.scores)
    gain, _ = lists.gains(k)
    discount = _discounts(gain)
    gain_i, gain_j = _pairs(gain)
    discount_i, discount_j = _pairs(discount)
    positions = torch.arange(gain.shape[-1], device=gain.device)
    distance = (positions[:, None] - positions).abs().to(gain.dtype)
    near = torch.log2(1 + distance.clamp(min=1))
    spacing = torch.where(distance > 0, 1 / near - 1 / torch.log2(2 + distance), 0.0)
    change = (gain_i - gain_j).abs()
    weight = {
        "ndcg_loss1": (gain_i * discount_i).expand_as(change),
        "ndcg_loss2": spacing * change,
        "ndcg_loss2pp": (mu * spacing + (discount_i - discount_j).abs()) * change,
        "lambda_rank": (discount_i - discount_j).abs() * change,
        "ranknet": torch.ones_like(change),
    }[scheme]
    loss = -logsigmoid(sigma * _difference(lists)) * weight / math.log(2)
    return _sum_pairs(lists, loss, k, reduction, every_pair=scheme == "ndcg_loss1")


def ranknet_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``-ln σ(s_i - s_j)`` over pairs."""
    lists = _Lists.of(scores, relevance, mask)
    return _sum_pairs(lists, -logsigmoid(_difference(lists)), None, reduction)


def _difference(lists: _Lists) -> Tensor:
    score_i, score_j = _pairs(lists.scores)
    return score_i - score_j


def _sum_pairs(
    lists: _Lists, loss: Tensor, k: int | None, reduction: str, *, every_pair: bool = False
) -> Tensor:
    """Over the pairs in which i is more relevant than j, or all pairs; of the first k items."""
    counts = lists.counts
    if k is not None:
        counts = counts & (torch.arange(counts.shape[-1], device=counts.device) < k)
    counts_i, counts_j = _pairs(counts)
    counted = counts_i & counts_j
    if not every_pair:
        relevance_i, relevance_j = _pairs(lists.relevance)
        counted = counted & (relevance_i > relevance_j)
    loss = torch.where(counted, loss, 0.0).sum((-2, -1))
    # What is NaN shows, even where a list has no pair.
    loss = loss + lists.scores.detach().sum(-1) * 0
    return _reduce(loss, counted, reduction)


# --------------------------------------------------------------------------------------------- NDCG


def approx_ndcg_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - NDCG, with the position of an item as a sum of sigmoids."""
    lists = _Lists.of(scores, relevance, mask)
    gain, has_relevant = lists.gains(None)
    ahead = torch.sigmoid(-alpha * _difference(lists))  # how much j is ahead of i
    itself = torch.eye(gain.shape[-1], dtype=torch.bool, device=gain.device)
    counts_j = lists.counts.unsqueeze(-2)
    position = 1 + torch.where(counts_j & ~itself, ahead, 0.0).sum(-1)
    return _one_minus((gain / torch.log2(1 + position)).sum(-1), has_relevant, lists, reduction)


def neural_ndcg_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1 - NDCG of the list as sorted by a doubly stochastic matrix."""
    lists = _Lists.of(scores, relevance, mask)
    lists = lists.ordered_by(lists.scores)
    gain, has_relevant = lists.gains(None)
    sorting = _sinkhorn(_neural_sort(lists, temperature), lists.counts)
    sorted_gain = (sorting * gain.unsqueeze(-2)).sum(-1)
    return _one_minus((sorted_gain * _discounts(gain)).sum(-1), has_relevant, lists, reduction)


def _neural_sort(lists: _Lists, temperature: float) -> Tensor:
    """Softmax of ``((n - 1 - 2i) s_j - Σ_k |s_j - s_k|) / temperature`` over the items j.

    A row i is a place of the sorted list.
    """
    counts_i, counts_j = _pairs(lists.counts)
    both = counts_i & counts_j
    length = lists.counts.sum(-1, keepdim=True).to(lists.scores.dtype)
    place = torch.arange(lists.scores.shape[-1], device=length.device)
    slope = (length - 1 - 2 * place).unsqueeze(-1)
    spread = torch.where(both, _difference(lists).abs(), 0.0).sum(-1)
    logits = (slope * lists.scores.unsqueeze(-2) - spread.unsqueeze(-2)) / temperature
    logits = torch.where(counts_j, logits, torch.finfo(logits.dtype).min)
    return torch.where(both, logits.softmax(-1), 0.0)


def _sinkhorn(matrix: Tensor, counts: Tensor) -> Tensor:
    """Divides columns and rows by their sums in turn; each list stops when its sums are 1."""
    counts_i, counts_j = _pairs(counts)
    done = torch.zeros_like(counts[..., :1]).unsqueeze(-1)
    for _ in range(SINKHORN_ROUNDS):
        scaled = matrix * torch.where(counts_j, safe_reciprocal(matrix.sum(-2, keepdim=True)), 0.0)
        scaled = scaled * torch.where(counts_i, safe_reciprocal(scaled.sum(-1, keepdim=True)), 0.0)
        matrix = torch.where(done, matrix, scaled)
        off = torch.where(counts_j, matrix.detach().sum(-2, keepdim=True) - 1, 0.0).abs()
        done = done | (off < SINKHORN_TOLERANCE).all(-1, keepdim=True)
    return matrix


def _one_minus(found: Tensor, has_relevant: Tensor, lists: _Lists, reduction: str) -> Tensor:
    """1 - NDCG for lists with something relevant; the others are 0 and do not count."""
    loss = torch.where(has_relevant, 1 - found, found * 0)
    return _reduce(loss + lists.scores.detach().sum(-1) * 0, has_relevant, reduction)


def ndcg(
    scores: Tensor, relevance: Tensor, k: int | None = None, mask: Tensor | None = None
) -> Tensor:
    """``Σ gain / log2(1 + position)`` over its largest value; 1 where nothing is relevant."""
    lists = _Lists.of(scores.detach(), relevance.detach(), mask)
    lists = lists.ordered_by(lists.scores)
    gain, has_relevant = lists.gains(k)
    found = (gain * _discounts(gain, k)).sum(-1)
    return torch.where(has_relevant, found, 1.0) + lists.scores.sum(-1) * 0


# ----------------------------------------------------------------------------------------- listwise


def list_net_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``-Σ softmax(relevance) ln softmax(scores)``."""
    lists = _Lists.of(scores, relevance, mask)
    lowest = torch.finfo(lists.scores.dtype).min
    wanted = torch.where(lists.counts, lists.relevance, lowest).softmax(-1)
    found = torch.where(lists.counts, lists.scores, lowest).log_softmax(-1)
    loss = -torch.where(lists.counts, wanted * found, 0.0).sum(-1)
    return _reduce(loss, lists.counts.any(-1), reduction)


def list_mle_loss(
    scores: Tensor,
    relevance: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``Σ_i (ln Σ_{j ≥ i} e^s_j - s_i)`` in the order of relevance."""
    lists = _Lists.of(scores, relevance, mask)
    lists = lists.ordered_by(lists.relevance)
    place = torch.arange(lists.scores.shape[-1], device=lists.scores.device)
    left = (place[:, None] <= place) & lists.counts.unsqueeze(-2)  # what is left to choose from
    lowest = torch.finfo(lists.scores.dtype).min
    drawn = torch.where(left, lists.scores.unsqueeze(-2), lowest).logsumexp(-1) - lists.scores
    loss = torch.where(lists.counts, drawn, 0.0).sum(-1)
    return _reduce(loss, lists.counts.any(-1), reduction)


# ---------------------------------------------------------------------------------- metric learning


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """``max(0, margin - y (x1 - x2))``."""
    input1, input2 = promote(input1, input2)
    loss = (margin - target.to(input1.dtype) * (input1 - input2)).clamp(min=0)
    return reduce_loss(loss, None, reduction, None)


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
    """``max(0, ‖a - p + eps‖ - ‖a - n + eps‖ + margin)``."""
    anchor, positive, negative = promote(anchor, positive, negative)
    to_positive = _norm(anchor - positive + eps, p)
    to_negative = _norm(anchor - negative + eps, p)
    if swap:
        to_negative = torch.minimum(to_negative, _norm(positive - negative + eps, p))
    loss = (to_positive - to_negative + margin).clamp(min=0)
    return reduce_loss(loss, None, reduction, None)


def _norm(difference: Tensor, p: float) -> Tensor:
    """The p-norm over the last dimension, with a slope of 0 at 0."""
    magnitude = difference.abs()
    if p == 1 or difference.shape[-1] == 0:
        return magnitude.sum(-1)
    if p == 2:
        return root(difference.square().sum(-1))
    largest = magnitude.detach().amax(-1, keepdim=True)
    if p == math.inf:  # equal largest ones share the slope
        is_largest = (magnitude.detach() == largest) | magnitude.isnan()
        return torch.where(is_largest, magnitude, 0.0).sum(-1) / is_largest.sum(-1).clamp(min=1)
    # Relative to the largest, of which the power could overflow.
    zero = magnitude == 0
    relative = torch.where(zero, 1.0, magnitude * safe_reciprocal(largest))
    total = torch.where(zero, 0.0, power(relative, p)).sum(-1)
    nothing = total == 0
    norm = torch.where(nothing, 1.0, total).pow(1.0 / p) * largest.squeeze(-1)
    return torch.where(nothing, total * largest.squeeze(-1), norm)


def batch_hard_triplet_loss(
    embeddings: Tensor, labels: Tensor, margin: float | None = 1.0, reduction: str = "mean"
) -> Tensor:
    """The loss of every row with its farthest positive and its nearest negative."""
    (embeddings,) = promote(embeddings)
    count = embeddings.shape[0]
    if count == 0:
        return reduce_loss(embeddings.sum(-1), None, reduction, None)
    fixed = embeddings.detach()
    distance = (fixed.unsqueeze(-2) - fixed.unsqueeze(-3)).square().sum(-1)
    same = labels.unsqueeze(-1) == labels.unsqueeze(-2)
    positive = same & ~torch.eye(count, dtype=torch.bool, device=same.device)
    # Of equal distances the first one's index.
    farthest = torch.where(positive, distance, -torch.inf).argmax(-1)
    nearest = torch.where(same, torch.inf, distance).argmin(-1)
    to_positive = _norm(embeddings - embeddings[farthest], 2)
    to_negative = _norm(embeddings - embeddings[nearest], 2)
    if margin is None:
        loss = -logsigmoid(to_negative - to_positive)
    else:
        loss = (to_positive - to_negative + margin).clamp(min=0)
    counted = positive.any(-1) & ~same.all(-1)
    return _reduce(torch.where(counted, loss, 0.0), counted, reduction)
