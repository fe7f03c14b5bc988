# SPDX-License-Identifier: MIT
"""Losses of generative adversarial networks in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid

from ._reduce import promote, reduce_both, reduce_loss, root

__all__ = [
    "gradient_penalty",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "lsgan_discriminator_loss",
    "lsgan_generator_loss",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "wasserstein_discriminator_loss",
    "wasserstein_generator_loss",
]


def lsgan_discriminator_loss(
    real: Tensor, fake: Tensor, a: float = 0.0, b: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """``½ (real - b)² + ½ (fake - a)²``."""
    real, fake = promote(real, fake)
    return reduce_both((real - b).square() / 2, (fake - a).square() / 2, reduction)


def lsgan_generator_loss(fake: Tensor, c: float = 1.0, reduction: str = "mean") -> Tensor:
    """``½ (fake - c)²``."""
    (fake,) = promote(fake)
    return reduce_loss((fake - c).square() / 2, None, reduction, None)


def wasserstein_discriminator_loss(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
    """``fake - real``."""
    real, fake = promote(real, fake)
    return reduce_both(-real, fake, reduction)


def wasserstein_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    """``-fake``."""
    (fake,) = promote(fake)
    return reduce_loss(-fake, None, reduction, None)


def non_saturating_discriminator_loss(
    real: Tensor, fake: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """``-(1 - s) ln σ(real) - s ln σ(-real) - ln σ(-fake)``."""
    real, fake = promote(real, fake)
    of_real = -(1 - label_smoothing) * logsigmoid(real) - label_smoothing * logsigmoid(-real)
    return reduce_both(of_real, -logsigmoid(-fake), reduction)


def non_saturating_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    """``-ln σ(fake)``."""
    (fake,) = promote(fake)
    return reduce_loss(-logsigmoid(fake), None, reduction, None)


def hinge_discriminator_loss(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
    """``max(0, 1 - real) + max(0, 1 + fake)``."""
    real, fake = promote(real, fake)
    return reduce_both(torch.relu(1 - real), torch.relu(1 + fake), reduction)


def hinge_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    """``-fake``."""
    return wasserstein_generator_loss(fake, reduction)


def _gradient_of(critic: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    """The gradient of each sample's score, which may be differentiated once more."""
    if torch.compiler.is_compiling():
        # It traces this, but not the graph of a gradient. (Eagerly it is the other way round that
        # takes any critic: not every autograd function knows transforms.)
        return torch.func.grad(lambda x: critic(x).sum())(samples)
    wants_graph = torch.is_grad_enabled()
    # The gradient is needed where nothing else is recorded, too.
    with torch.inference_mode(False), torch.enable_grad():
        leaf = samples.clone().requires_grad_()  # what inference made has no gradient
        (gradient,) = torch.autograd.grad(
            critic(leaf).sum(),
            leaf,
            create_graph=wants_graph,
            allow_unused=True,
            materialize_grads=True,  # a critic that ignores its samples has the slope 0
        )
    return gradient


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    weight: float = 10.0,
    reduction: str = "mean",
    *,
    generator: Generator | None = None,
) -> Tensor:
    """``weight (‖∇critic(x)‖ - 1)²`` at ``x = u real + (1 - u) fake``."""
    share = torch.rand(
        (len(real), *(1 for _ in real.shape[1:])),
        generator=generator,
        dtype=real.dtype,
        device=real.device,
    )
    between = torch.lerp(fake.detach(), real.detach(), share)
    (gradient,) = promote(_gradient_of(critic, between))
    norm = root(gradient.unsqueeze(-1).flatten(1).square().sum(1))
    return reduce_loss(weight * (norm - 1).square(), None, reduction, None)
