# SPDX-License-Identifier: MIT
"""What only the losses of generative networks have: two sides of different shapes, and a critic."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import CASES, REAL_AND_FAKE, Case
from support import as_float64, assert_close, gradients, tolerance_of, upstream_for
from torch import Tensor, nn

import fastloss
import fastloss.functional as F

PAIRS = [case for case in CASES if case.family is REAL_AND_FAKE]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.id)
def test_sides_of_different_shapes(case: Case, reduction: str, dtype: torch.dtype) -> None:
    """Each is reduced by itself: many fake samples do not outweigh the real ones."""
    for real_shape, fake_shape in (((5, 1), (5,)), ((7,), (3, 4)), ((), (2,)), ((0,), (3,))):
        arguments = {
            **case.arguments(),
            "real": torch.randn(real_shape).to(dtype).requires_grad_(),
            "fake": torch.randn(fake_shape, dtype=torch.float32).requires_grad_(),
        }
        wide = as_float64(arguments)
        loss = case.loss(arguments, reduction=reduction)
        expected = case.reference(wide, reduction=reduction)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(loss, expected, tolerance_of(case, torch.float32), "loss")
        expected_gradients = gradients(expected, wide, upstream_for(loss))
        for name, gradient in gradients(loss, arguments, upstream_for(loss)).items():
            assert gradient.dtype == arguments[name].dtype
            tolerance = tolerance_of(case, min(gradient.dtype, torch.float32, key=str))
            assert_close(gradient, expected_gradients[name], tolerance, f"gradient of {name}")


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.id)
def test_one_side_alone_gets_its_gradient(case: Case) -> None:
    """A generator's step does not ask for the gradient of the scores of real samples."""
    both = case.arguments(9, requires_grad=True)
    expected = gradients(case.loss(both), both)
    for name in ("real", "fake"):
        arguments = case.arguments(9, requires_grad=[name])
        (found,) = gradients(case.loss(arguments), arguments).values()
        assert torch.equal(found, expected[name])


def test_a_discriminators_loss_is_one_operation() -> None:
    """Where torch has one per term: these tensors are so small that nothing else counts."""
    for case in PAIRS:
        loss = case.loss(case.arguments(9, requires_grad=True))
        assert loss.grad_fn is not None
        assert "PointwiseLoss" in loss.grad_fn.name(), case.id


# --------------------------------------------------------------------------------- gradient penalty

Critic = Callable[[Tensor], Tensor]
SHAPES = [(4,), (4, 3), (4, 2, 5, 3)]


def quadratic(samples: Tensor) -> Tensor:
    """Its gradient at x is x."""
    return samples.square().unsqueeze(-1).flatten(1).sum(1) / 2


def network(features: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def samples(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    fake = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return real, fake


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_penalty_of_every_sample_by_hand(shape: tuple[int, ...], reduction: str) -> None:
    real, fake = samples(*shape)
    seed = torch.Generator().manual_seed(5)
    found = F.gradient_penalty(quadratic, real, fake, 3.0, reduction, generator=seed)
    shares = torch.rand(
        (shape[0], *(1 for _ in shape[1:])),
        generator=torch.Generator().manual_seed(5),
        dtype=torch.float64,
    ).flatten()
    penalties = []
    for share, one, other in zip(shares.tolist(), real, fake, strict=True):
        between = share * one + (1 - share) * other
        norm = math.sqrt(sum(number**2 for number in between.flatten().tolist()))
        penalties.append(3 * (norm - 1) ** 2)
    expected = torch.tensor(penalties, dtype=torch.float64)
    torch.testing.assert_close(
        found, expected if reduction == "none" else getattr(expected, reduction)()
    )
    assert found.dtype == torch.float64


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_penalty_trains_the_critic(reduction: str) -> None:
    """The gradient with respect to its parameters, against finite differences."""
    real, fake = samples(4, 2, 3)
    critic = network(6)
    # Through torch.func: a function of the parameters.
    names = [name for name, _ in critic.named_parameters()]

    def penalty(*parameters: Tensor) -> Tensor:
        def score(x: Tensor) -> Tensor:
            return torch.func.functional_call(critic, dict(zip(names, parameters, strict=True)), x)

        seed = torch.Generator().manual_seed(5)
        return F.gradient_penalty(score, real, fake, reduction=reduction, generator=seed)

    parameters = [parameter.detach().clone().requires_grad_() for parameter in critic.parameters()]
    assert torch.autograd.gradcheck(penalty, parameters)


def test_penalty_leaves_samples_and_generators_graph_alone() -> None:
    latent = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), 2 * latent
    critic = network(3)
    before = [tensor.detach().clone() for tensor in (real, fake)]
    F.gradient_penalty(critic, real, fake).backward()
    assert real.grad is None
    assert latent.grad is None
    assert all(parameter.grad is not None for parameter in list(critic.parameters())[:-1])
    assert all(torch.equal(*pair) for pair in zip((real, fake), before, strict=True))


def test_penalty_where_the_gradient_is_zero() -> None:
    """The norm has no slope there; the loss is finite, and so is its gradient."""
    slope = torch.zeros(3, requires_grad=True)
    real, fake = samples(4, 3, dtype=torch.float32)
    loss = F.gradient_penalty(lambda x: x @ slope, real, fake)
    assert loss.item() == 10
    (gradient,) = torch.autograd.grad(loss, slope)
    assert gradient.tolist() == [0, 0, 0]
    assert F.gradient_penalty(lambda x: torch.ones(len(x), requires_grad=True), real, fake) == 10


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 2, 5, 3)])
def test_penalty_of_no_samples(shape: tuple[int, ...]) -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    real, fake = samples(*shape)
    for reduction in ("mean", "sum"):
        loss = F.gradient_penalty(lambda x: scale * quadratic(x), real, fake, reduction=reduction)
        assert loss.item() == 0
        loss.backward()
        assert scale.grad == 0
    assert F.gradient_penalty(quadratic, real, fake, reduction="none").shape == (0,)


def test_penalty_without_a_graph() -> None:
    real, fake = samples(4, 3)
    critic = network(3)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            loss = F.gradient_penalty(critic, real.clone(), fake.clone())
        assert not loss.requires_grad
        assert loss > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_penalty_in_other_dtypes(dtype: torch.dtype) -> None:
    real, fake = samples(5, 3, dtype=dtype)
    seen = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return quadratic(x)

    # Exact in every dtype: all samples are the same.
    real, fake = torch.full_like(real, 300.0), torch.full_like(fake, 300.0)
    loss = F.gradient_penalty(critic, real, fake)
    assert seen == [dtype]
    assert loss.dtype == torch.float32  # in float16 the square would be infinite
    assert loss.item() == pytest.approx(10 * (300 * math.sqrt(3) - 1) ** 2, rel=1e-5)


def test_penalty_module() -> None:
    real, fake = samples(4, 3)
    module = fastloss.GradientPenalty(weight=2.0, reduction="sum")
    assert repr(module) == "GradientPenalty(weight=2.0, reduction='sum')"
    found = module(quadratic, real, fake, generator=torch.Generator().manual_seed(1))
    seed = torch.Generator().manual_seed(1)
    assert torch.equal(found, F.gradient_penalty(quadratic, real, fake, 2.0, "sum", generator=seed))


def test_penalty_under_compile() -> None:
    torch._dynamo.reset()
    critic, (real, _) = network(3), samples(4, 3)

    def penalty(samples: Tensor) -> Tensor:
        return F.gradient_penalty(critic, samples, samples)  # nothing random is left

    results = []
    for function in (penalty, torch.compile(penalty, fullgraph=True, backend="aot_eager")):
        critic.zero_grad()
        loss = function(real)
        loss.backward()
        results.append([loss, *(weight.grad.clone() for weight in list(critic.parameters())[:-1])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    torch._dynamo.reset()


def test_penalty_errors() -> None:
    real, fake = samples(4, 3)
    for arguments, error, message in (
        ((1.0, real, fake), TypeError, "critic must be callable, got float"),
        ((quadratic, [1.0], fake), TypeError, "real must be a Tensor, got list"),
        ((quadratic, real, None), TypeError, "fake must be a Tensor, got NoneType"),
        ((quadratic, real.long(), fake), TypeError, "real must be floating-point, got torch.int64"),
        ((quadratic, real[0, 0], fake[0, 0]), ValueError, "real must have a batch dimension"),
        ((quadratic, real, fake[:3]), ValueError, "fake must have real's shape, .*4, 3.*3, 3"),
        ((quadratic, real, fake.float()), ValueError, "fake must have real's dtype, .*64, .*32"),
        ((quadratic, real, fake.to("meta")), ValueError, "fake must have real's device, cpu.*meta"),
        ((quadratic, real, fake, -1.0), ValueError, "weight must be at least 0, got -1.0"),
        ((quadratic, real, fake, "x"), TypeError, "weight must be a number at least 0, got str"),
        ((quadratic, real, fake, 1.0, "all"), ValueError, "reduction must be 'none', .*got 'all'"),
    ):
        with pytest.raises(error, match=f"gradient_penalty: {message}"):
            F.gradient_penalty(*arguments)
