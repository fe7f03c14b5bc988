# SPDX-License-Identifier: MIT
"""Losses of generative adversarial networks: what a discriminator says of real and fake samples.

Which one? The hinge losses and the non-saturating ones are the usual pairs, the latter with a
penalty. LSGAN gives samples far from the boundary a gradient too. The Wasserstein losses need a
critic that is held to a slope, as by the gradient penalty. (MSE, for autoencoders and diffusion, is
among the regression losses.)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from .. import _ops, reference
from ._shared import against, are_separate, check_number, documented, option_error

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


@documented
def lsgan_discriminator_loss(
    real: Tensor, fake: Tensor, a: float = 0.0, b: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Least squares for a discriminator: real samples are drawn to b, fake ones to a.

    ½ (real - b)² + ½ (fake - a)².

    Least Squares Generative Adversarial Networks, 2016, arXiv 1611.04076.

    Args:
        {real}
        {fake}
        a: What fake samples are to be scored.
        b: What real samples are to be scored.
        {pair_reduction}

    {pair_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.lsgan_discriminator_loss(torch.tensor([0.8, 1.1]), torch.tensor([0.3, -0.2, 0.5]))
        tensor(0.0758)
    """
    name = "lsgan_discriminator_loss"
    if are_separate(name, real, fake, (a, b), reduction):
        formula = f"{name}:lsgan_generator_loss"
        of_real = _ops.pointwise(formula, real, None, (b,), reduction=reduction)
        return of_real + _ops.pointwise(formula, fake, None, (a,), reduction=reduction)
    return _ops.pointwise(name, real, fake, (a, b), reduction=reduction)


@documented
def lsgan_generator_loss(fake: Tensor, c: float = 1.0, reduction: str = "mean") -> Tensor:
    """Least squares for a generator: its samples are drawn to the score of real ones.

    ½ (fake - c)².

    Least Squares Generative Adversarial Networks, 2016, arXiv 1611.04076.

    Args:
        {fake}
        c: What the samples are to be scored.
        {reduction}

    {fake_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.lsgan_generator_loss(torch.tensor([0.3, -0.2, 0.5]))
        tensor(0.3633)
    """
    return _ops.pointwise("lsgan_generator_loss", fake, None, (c,), reduction=reduction)


@documented
def wasserstein_discriminator_loss(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
    """Wasserstein loss for a critic: real samples are scored high, fake ones low.

    fake - real. The critic must be held to a Lipschitz constant: :func:`gradient_penalty`.

    Wasserstein GAN, 2017, arXiv 1701.07875.

    Args:
        {real}
        {fake}
        {pair_reduction}

    {pair_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> real, fake = torch.tensor([0.8, 1.1]), torch.tensor([0.3, -0.2, 0.5])
        >>> F.wasserstein_discriminator_loss(real, fake)
        tensor(-0.7500)
    """
    name = "wasserstein_discriminator_loss"
    if are_separate(name, real, fake, (), reduction):
        formula = f"{name}:wasserstein_generator_loss"  # the negative score
        of_real = _ops.pointwise(formula, real, reduction=reduction)
        return of_real - _ops.pointwise(formula, fake, reduction=reduction)
    return _ops.pointwise(name, real, fake, reduction=reduction)


@documented
def wasserstein_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    """Wasserstein loss for a generator: its samples are to be scored high.

    -fake.

    Wasserstein GAN, 2017, arXiv 1701.07875.

    Args:
        {fake}
        {reduction}

    {fake_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.wasserstein_generator_loss(torch.tensor([0.3, -0.2, 0.5]))
        tensor(-0.2000)
    """
    return _ops.pointwise("wasserstein_generator_loss", fake, reduction=reduction)


@documented
def non_saturating_discriminator_loss(
    real: Tensor, fake: Tensor, label_smoothing: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy for a discriminator: real samples are labelled 1, fake ones 0.

    -(1 - s) ln σ(real) - s ln σ(-real) - ln σ(-fake).

    Generative Adversarial Networks, 2014, arXiv 1406.2661; the one-sided label smoothing is from
    Improved Techniques for Training GANs, 2016, arXiv 1606.03498.

    Args:
        {real}
        {fake}
        label_smoothing: s in [0, 1]: real samples are labelled 1 - s.
        {pair_reduction}

    {pair_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> real, fake = torch.tensor([0.8, 1.1]), torch.tensor([0.3, -0.2, 0.5])
        >>> F.non_saturating_discriminator_loss(real, fake)
        tensor(1.1381)
    """
    name = "non_saturating_discriminator_loss"
    check_number(name, "label_smoothing", label_smoothing, "in [0, 1]")
    if are_separate(name, real, fake, (label_smoothing,), reduction):
        formula = f"{name}:binary_cross_entropy_with_logits"
        of_real = against(formula, real, 1.0 - label_smoothing, (), reduction)
        return of_real + against(formula, fake, 0.0, (), reduction)
    return _ops.pointwise(name, real, fake, (label_smoothing,), reduction=reduction)


@documented
def non_saturating_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy for a generator: its samples are labelled 1, which does not saturate.

    -ln σ(fake).

    Generative Adversarial Networks, 2014, arXiv 1406.2661.

    Args:
        {fake}
        {reduction}

    {fake_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.non_saturating_generator_loss(torch.tensor([0.3, -0.2, 0.5]))
        tensor(0.6089)
    """
    return _ops.pointwise("non_saturating_generator_loss", fake, reduction=reduction)


@documented
def hinge_discriminator_loss(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
    """Hinge loss for a discriminator: real samples are scored 1 or more, fake ones -1 or less.

    max(0, 1 - real) + max(0, 1 + fake).

    Geometric GAN, 2017, arXiv 1705.02894.

    Args:
        {real}
        {fake}
        {pair_reduction}

    {pair_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.hinge_discriminator_loss(torch.tensor([0.8, 1.1]), torch.tensor([0.3, -0.2, 0.5]))
        tensor(1.3000)
    """
    name = "hinge_discriminator_loss"
    if are_separate(name, real, fake, (), reduction):
        formula, unsquared = f"{name}:hinge_loss", (1.0, 0.0)
        of_real = against(formula, real, 1.0, unsquared, reduction)
        return of_real + against(formula, fake, -1.0, unsquared, reduction)
    return _ops.pointwise(name, real, fake, reduction=reduction)


@documented
def hinge_generator_loss(fake: Tensor, reduction: str = "mean") -> Tensor:
    """Loss for a generator against a hinge discriminator: its samples are to be scored high.

    -fake: there is no margin for the generator.

    Geometric GAN, 2017, arXiv 1705.02894.

    Args:
        {fake}
        {reduction}

    {fake_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.hinge_generator_loss(torch.tensor([0.3, -0.2, 0.5]))
        tensor(-0.2000)
    """
    formula = "hinge_generator_loss:wasserstein_generator_loss"
    return _ops.pointwise(formula, fake, reduction=reduction)


@documented
def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    weight: float = 10.0,
    reduction: str = "mean",
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Gradient penalty: holds a critic's slope near 1 between real and fake samples.

    λ (‖∇critic(x)‖ - 1)², at x = u real + (1 - u) fake with a random u in [0, 1) for each sample,
    and with the Euclidean norm of each sample's own gradient. It is differentiable with respect to
    the critic's parameters; where a gradient is 0, that derivative is finite.

    It is computed by torch: the work is the critic's.

    Improved Training of Wasserstein GANs, 2017, arXiv 1704.00028.

    Args:
        critic: Scores a batch of samples; each score depends on its own sample alone (no batch
            normalisation). The scores may have any shape.
        real: Samples (B, ...), of any shape and floating dtype.
        fake: Samples of the same shape, dtype and device. Neither gets a gradient.
        weight: λ, at least 0.
        {reduction}
        generator: Source of the random numbers.

    Returns:
        The penalty: (B,) for ``"none"``, else a 0-d tensor; float32, or float64 for such samples.
        The mean over no samples is 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> slope = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> penalty = F.gradient_penalty(lambda x: x @ slope, torch.rand(8, 2), torch.rand(8, 2))
        >>> penalty
        tensor(160., grad_fn=<DivBackward0>)
        >>> penalty.backward()
        >>> slope.grad
        tensor([48., 64.])
    """
    name = "gradient_penalty"
    if not callable(critic):
        raise TypeError(f"{name}: critic must be callable, got {type(critic).__name__}")
    for argument, samples in (("real", real), ("fake", fake)):
        if not isinstance(samples, Tensor):
            raise TypeError(f"{name}: {argument} must be a Tensor, got {type(samples).__name__}")
        if not samples.is_floating_point():
            raise TypeError(f"{name}: {argument} must be floating-point, got {samples.dtype}")
    if real.dim() == 0:
        raise ValueError(f"{name}: real must have a batch dimension, got shape ()")
    for attribute in ("shape", "dtype", "device"):
        found, expected = getattr(fake, attribute), getattr(real, attribute)
        if found != expected:
            raise ValueError(f"{name}: fake must have real's {attribute}, {expected}, got {found}")
    check_number(name, "weight", weight, "at least 0")
    if reduction not in ("none", "mean", "sum"):
        raise option_error(name, "reduction", "'none', 'mean' or 'sum'", reduction)
    return reference.gradient_penalty(critic, real, fake, weight, reduction, generator=generator)
