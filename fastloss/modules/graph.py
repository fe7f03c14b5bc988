# SPDX-License-Identifier: MIT
"""Losses of graphs and of contrastive learning as modules."""

from __future__ import annotations

from torch import Generator, Tensor, distributed

from .. import functional
from ._base import Loss

__all__ = [
    "BootstrapLatentLoss",
    "DeepGraphInfomaxLoss",
    "GraphReconstructionLoss",
    "InfoNCELoss",
    "ScaledCosineError",
    "VariationalGraphKLLoss",
]


class GraphReconstructionLoss(Loss):
    """Inner-product decoder: :func:`fastloss.functional.graph_reconstruction_loss`."""

    function = staticmethod(functional.graph_reconstruction_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        z: Tensor,
        pos_edge_index: Tensor,
        neg_edge_index: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """The loss of the nodes' features (N, D) and their edges (2, E)."""
        return self.function(
            z, pos_edge_index, neg_edge_index, generator=generator, **self.options()
        )


class VariationalGraphKLLoss(Loss):
    """Distance from the prior: :func:`fastloss.functional.variational_graph_kl_loss`."""

    function = staticmethod(functional.variational_graph_kl_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, mu: Tensor, logstd: Tensor) -> Tensor:
        """The loss of the nodes' means and logarithmic deviations, both (..., D)."""
        return self.function(mu, logstd, **self.options())


class DeepGraphInfomaxLoss(Loss):
    """True against corrupted nodes: :func:`fastloss.functional.deep_graph_infomax_loss`."""

    function = staticmethod(functional.deep_graph_infomax_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, pos_logits: Tensor, neg_logits: Tensor) -> Tensor:
        """The loss of the logits of true nodes and of the logits of corrupted ones."""
        return self.function(pos_logits, neg_logits, **self.options())


class ScaledCosineError(Loss):
    """GraphMAE's reconstruction error: :func:`fastloss.functional.scaled_cosine_error`."""

    function = staticmethod(functional.scaled_cosine_error)
    alpha: float

    def __init__(self, alpha: float = 3.0, reduction: str = "mean") -> None:
        super().__init__(alpha=alpha, reduction=reduction)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of rows of features (..., D) and what they are to be."""
        return self.function(x, y, **self.options())


class BootstrapLatentLoss(Loss):
    """BGRL's and BYOL's: :func:`fastloss.functional.bootstrap_latent_loss`."""

    function = staticmethod(functional.bootstrap_latent_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The loss of predicted rows of features (..., D) and constant ones."""
        return self.function(predictions, targets, **self.options())


class InfoNCELoss(Loss):
    """InfoNCE of two views: :func:`fastloss.functional.info_nce_loss`.

    A temperature that is an ``nn.Parameter`` is one of the module's.
    """

    function = staticmethod(functional.info_nce_loss)
    temperature: Tensor | float
    mode: str
    normalize: bool
    process_group: distributed.ProcessGroup | None

    def __init__(
        self,
        temperature: Tensor | float = 0.5,
        *,
        mode: str = "nt_xent",
        normalize: bool = True,
        reduction: str = "mean",
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            mode=mode,
            normalize=normalize,
            reduction=reduction,
            process_group=process_group,
        )

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of embeddings (N, features) and of those of the other view."""
        return self.function(z1, z2, **self.options())
