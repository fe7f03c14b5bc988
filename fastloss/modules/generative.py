# SPDX-License-Identifier: MIT
"""Losses of generative adversarial networks as modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from .. import functional
from ._base import Loss

__all__ = [
    "GradientPenalty",
    "HingeDiscriminatorLoss",
    "HingeGeneratorLoss",
    "LSGANDiscriminatorLoss",
    "LSGANGeneratorLoss",
    "NonSaturatingDiscriminatorLoss",
    "NonSaturatingGeneratorLoss",
    "WassersteinDiscriminatorLoss",
    "WassersteinGeneratorLoss",
]


class _DiscriminatorLoss(Loss):
    """A loss of the scores of real and of fake samples."""

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the scores of real samples and of the scores of fake ones."""
        return self.function(real, fake, **self.options())


class _GeneratorLoss(Loss):
    """A loss of the scores of fake samples."""

    def forward(self, fake: Tensor) -> Tensor:
        """The loss of the scores of a generator's samples."""
        return self.function(fake, **self.options())


class LSGANDiscriminatorLoss(_DiscriminatorLoss):
    """Least squares for a discriminator: :func:`fastloss.functional.lsgan_discriminator_loss`."""

    function = staticmethod(functional.lsgan_discriminator_loss)
    a: float
    b: float

    def __init__(self, a: float = 0.0, b: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(a=a, b=b, reduction=reduction)


class LSGANGeneratorLoss(_GeneratorLoss):
    """Least squares for a generator: :func:`fastloss.functional.lsgan_generator_loss`."""

    function = staticmethod(functional.lsgan_generator_loss)
    c: float

    def __init__(self, c: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(c=c, reduction=reduction)


class WassersteinDiscriminatorLoss(_DiscriminatorLoss):
    """For a critic: :func:`fastloss.functional.wasserstein_discriminator_loss`."""

    function = staticmethod(functional.wasserstein_discriminator_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class WassersteinGeneratorLoss(_GeneratorLoss):
    """For a critic's generator: :func:`fastloss.functional.wasserstein_generator_loss`."""

    function = staticmethod(functional.wasserstein_generator_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class NonSaturatingDiscriminatorLoss(_DiscriminatorLoss):
    """Cross-entropy: :func:`fastloss.functional.non_saturating_discriminator_loss`."""

    function = staticmethod(functional.non_saturating_discriminator_loss)
    label_smoothing: float

    def __init__(self, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(label_smoothing=label_smoothing, reduction=reduction)


class NonSaturatingGeneratorLoss(_GeneratorLoss):
    """Cross-entropy: :func:`fastloss.functional.non_saturating_generator_loss`."""

    function = staticmethod(functional.non_saturating_generator_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class HingeDiscriminatorLoss(_DiscriminatorLoss):
    """Hinge loss of a discriminator: :func:`fastloss.functional.hinge_discriminator_loss`."""

    function = staticmethod(functional.hinge_discriminator_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class HingeGeneratorLoss(_GeneratorLoss):
    """Of a hinge discriminator's generator: :func:`fastloss.functional.hinge_generator_loss`."""

    function = staticmethod(functional.hinge_generator_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


class GradientPenalty(Loss):
    """Gradient penalty of a critic: :func:`fastloss.functional.gradient_penalty`."""

    function = staticmethod(functional.gradient_penalty)
    weight: float

    def __init__(self, weight: float = 10.0, reduction: str = "mean") -> None:
        super().__init__(weight=weight, reduction=reduction)

    def forward(
        self,
        critic: Callable[[Tensor], Tensor],
        real: Tensor,
        fake: Tensor,
        generator: Generator | None = None,
    ) -> Tensor:
        """The penalty of the critic between real and fake samples (B, ...)."""
        return self.function(critic, real, fake, generator=generator, **self.options())
