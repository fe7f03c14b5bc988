# SPDX-License-Identifier: MIT
"""Losses of graphs and of contrastive learning as modules."""

from __future__ import annotations

from torch import Tensor, distributed

from .. import functional
from ._base import Loss

__all__ = ["InfoNCELoss"]


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
