# SPDX-License-Identifier: MIT
"""Ranking and metric learning as modules."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ._base import Loss

__all__ = [
    "ApproxNDCGLoss",
    "BatchHardTripletLoss",
    "LambdaLoss",
    "ListMLELoss",
    "ListNetLoss",
    "MarginRankingLoss",
    "NeuralNDCGLoss",
    "RankNetLoss",
    "TripletMarginLoss",
]


class _ListLoss(Loss):
    """A loss of lists of scored items."""

    def forward(self, scores: Tensor, relevance: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of scores (B, L) for items this relevant; the mask tells which ones count."""
        return self.function(scores, relevance, mask=mask, **self.options())


class LambdaLoss(_ListLoss):
    """LambdaLoss: :func:`fastloss.functional.lambda_loss`."""

    function = staticmethod(functional.lambda_loss)
    scheme: str
    k: int | None
    sigma: float
    mu: float

    def __init__(
        self,
        scheme: str = "ndcg_loss2pp",
        k: int | None = None,
        sigma: float = 1.0,
        mu: float = 10.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(scheme=scheme, k=k, sigma=sigma, mu=mu, reduction=reduction)


class RankNetLoss(_ListLoss):
    """RankNet loss: :func:`fastloss.functional.ranknet_loss`."""

    function = staticmethod(functional.ranknet_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class ApproxNDCGLoss(_ListLoss):
    """1 - NDCG with smooth places: :func:`fastloss.functional.approx_ndcg_loss`."""

    function = staticmethod(functional.approx_ndcg_loss)
    alpha: float

    def __init__(self, alpha: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(alpha=alpha, reduction=reduction)


class NeuralNDCGLoss(_ListLoss):
    """1 - NDCG of a softly sorted list: :func:`fastloss.functional.neural_ndcg_loss`."""

    function = staticmethod(functional.neural_ndcg_loss)
    temperature: float

    def __init__(self, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(temperature=temperature, reduction=reduction)


class ListNetLoss(_ListLoss):
    """ListNet loss: :func:`fastloss.functional.list_net_loss`."""

    function = staticmethod(functional.list_net_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class ListMLELoss(_ListLoss):
    """ListMLE loss: :func:`fastloss.functional.list_mle_loss`."""

    function = staticmethod(functional.list_mle_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class MarginRankingLoss(Loss):
    """Margin ranking loss: :func:`fastloss.functional.margin_ranking_loss`."""

    function = staticmethod(functional.margin_ranking_loss)
    margin: float

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(margin=margin, reduction=reduction)

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        """The loss of two scores; the target is 1 where the first is to be larger, else -1."""
        return self.function(input1, input2, target, **self.options())


class TripletMarginLoss(Loss):
    """Triplet margin loss: :func:`fastloss.functional.triplet_margin_loss`."""

    function = staticmethod(functional.triplet_margin_loss)
    margin: float
    p: float
    eps: float
    swap: bool

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(margin=margin, p=p, eps=eps, swap=swap, reduction=reduction)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of anchors (..., features) with a positive and a negative each."""
        return self.function(anchor, positive, negative, **self.options())


class BatchHardTripletLoss(Loss):
    """Batch-hard triplet loss: :func:`fastloss.functional.batch_hard_triplet_loss`."""

    function = staticmethod(functional.batch_hard_triplet_loss)
    margin: float | None

    def __init__(self, margin: float | None = 1.0, reduction: str = "mean") -> None:
        super().__init__(margin=margin, reduction=reduction)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of rows (N, features) that show what their labels (N,) say."""
        return self.function(embeddings, labels, **self.options())
