# SPDX-License-Identifier: MIT
"""Ranking losses as modules."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ._base import Loss

__all__ = [
    "ApproxNDCGLoss",
    "LambdaLoss",
    "ListMLELoss",
    "ListNetLoss",
    "NeuralNDCGLoss",
    "RankNetLoss",
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
