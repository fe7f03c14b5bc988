# SPDX-License-Identifier: MIT
"""Losses of sequences as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ._base import Loss

__all__ = [
    "CRF",
    "GRPOLoss",
    "MinimumRiskLoss",
    "PPOLoss",
    "PolicyGradientLoss",
    "SelfCriticalLoss",
]


class CRF(nn.Module):
    """A linear-chain conditional random field: :func:`fastloss.functional.crf_loss`.

    Constructor, methods and parameters are those of pytorch-crf's module of this name, so that its
    users change the import and nothing else: the call gives the log-*likelihood*, which training
    maximises, and its sum by default.

    Args:
        num_tags: Number of tags.
        batch_first: Whether emissions, tags and masks are (B, T, ...), not (T, B, ...).

    Attributes:
        start_transitions: Score of every tag as the first one (num_tags,).
        end_transitions: Score of every tag as the last one (num_tags,).
        transitions: Score of every tag after another (num_tags, num_tags), by the tag before.

    Raises:
        ValueError: If there is no tag.

    Example:
        >>> import torch
        >>> import fastloss
        >>> crf = fastloss.CRF(3, batch_first=True)
        >>> emissions = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
        >>> loss = -crf(emissions, torch.tensor([[0, 2]]), reduction="mean")
        >>> crf.decode(emissions)
        [[0, 2]]
    """

    function = staticmethod(functional.crf_loss)

    def __init__(self, num_tags: int, batch_first: bool = False) -> None:
        if num_tags <= 0:
            raise ValueError(f"CRF: num_tags must be above 0, got {num_tags}")
        super().__init__()
        self.num_tags = num_tags
        self.batch_first = batch_first
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all scores from [-0.1, 0.1]."""
        for scores in (self.start_transitions, self.end_transitions, self.transitions):
            nn.init.uniform_(scores, -0.1, 0.1)

    def forward(
        self,
        emissions: Tensor,
        tags: Tensor,
        mask: Tensor | None = None,
        reduction: str = "sum",
    ) -> Tensor:
        """The log-likelihood of tags; ``reduction`` may be ``"token_mean"`` as well."""
        return -self.function(
            self._batch_first(emissions),
            self._batch_first(tags),
            *self._scores(),
            self._batch_first(mask),
            reduction,
        )

    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> list[list[int]]:
        """The best tags of every sequence, without those of masked steps.

        As a list it is on the host: on a GPU, :func:`fastloss.functional.crf_decode` waits for
        nothing.
        """
        tags, _ = functional.crf_decode(
            self._batch_first(emissions), *self._scores(), self._batch_first(mask)
        )
        return [[tag for tag in row if tag >= 0] for row in tags.tolist()]

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The probability of every tag at every step, in the layout of the emissions."""
        probabilities = functional.crf_marginals(
            self._batch_first(emissions), *self._scores(), self._batch_first(mask)
        )
        return probabilities if self.batch_first else probabilities.transpose(0, 1)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"num_tags={self.num_tags}" + (", batch_first=True" if self.batch_first else "")

    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.transitions, self.start_transitions, self.end_transitions

    def _batch_first(self, tensor: Any) -> Any:
        """A tensor as the functions take it; they refuse what is no batch of sequences."""
        if self.batch_first or not isinstance(tensor, Tensor) or tensor.dim() < 2:
            return tensor
        return tensor.transpose(0, 1)


class MinimumRiskLoss(Loss):
    """Minimum risk training: :func:`fastloss.functional.minimum_risk_loss`."""

    function = staticmethod(functional.minimum_risk_loss)
    alpha: float

    def __init__(self, alpha: float = 5e-3, reduction: str = "mean") -> None:
        super().__init__(alpha=alpha, reduction=reduction)

    def forward(
        self, log_probs: Tensor, risks: Tensor, avg_factor: Tensor | float | None = None
    ) -> Tensor:
        """The loss of candidates with these log-probabilities and risks, both (B, K)."""
        return self.function(log_probs, risks, avg_factor=avg_factor, **self.options())


class PolicyGradientLoss(Loss):
    """REINFORCE on logits: :func:`fastloss.functional.policy_gradient_loss`."""

    function = staticmethod(functional.policy_gradient_loss)
    entropy_coefficient: float

    def __init__(self, entropy_coefficient: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(entropy_coefficient=entropy_coefficient, reduction=reduction)

    def forward(
        self,
        logits: Tensor,
        actions: Tensor,
        advantages: Tensor,
        mask: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of the actions taken at logits (..., V), and of what they were worth."""
        return self.function(
            logits, actions, advantages, mask, avg_factor=avg_factor, **self.options()
        )


class SelfCriticalLoss(Loss):
    """Self-critical sequence training: :func:`fastloss.functional.self_critical_loss`."""

    function = staticmethod(functional.self_critical_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        log_probs: Tensor,
        rewards: Tensor,
        baseline: Tensor,
        mask: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of tokens with these log-probabilities (B, T) and rewards."""
        return self.function(
            log_probs, rewards, baseline, mask, avg_factor=avg_factor, **self.options()
        )


class PPOLoss(Loss):
    """Proximal policy optimisation: :func:`fastloss.functional.ppo_loss`."""

    function = staticmethod(functional.ppo_loss)
    clip: float

    def __init__(self, clip: float = 0.2, reduction: str = "mean") -> None:
        super().__init__(clip=clip, reduction=reduction)

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        mask: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of tokens with these log-probabilities (B, T), now and when they were drawn."""
        return self.function(
            log_probs, old_log_probs, advantages, mask, avg_factor=avg_factor, **self.options()
        )


class GRPOLoss(Loss):
    """Group relative policy optimisation: :func:`fastloss.functional.grpo_loss`."""

    function = staticmethod(functional.grpo_loss)
    beta: float
    clip_low: float
    clip_high: float
    normalizer: str

    def __init__(
        self,
        beta: float = 0.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        normalizer: str = "grpo",
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            beta=beta,
            clip_low=clip_low,
            clip_high=clip_high,
            normalizer=normalizer,
            reduction=reduction,
        )

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        mask: Tensor | None,
        ref_log_probs: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of tokens with these log-probabilities (B, T), now and when they were drawn."""
        return self.function(
            log_probs,
            old_log_probs,
            advantages,
            mask,
            ref_log_probs=ref_log_probs,
            avg_factor=avg_factor,
            **self.options(),
        )
