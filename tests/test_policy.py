# SPDX-License-Identifier: MIT
"""Objectives for generated sequences: the formulas of the papers and of trainers, written out once
more; masks, forbidden actions, extreme ratios, normalisers, bad input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import INTEGER_DTYPES
from support import gradients
from torch import Tensor

import fastloss
import fastloss.functional as F

NAN = float("nan")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# -------------------------------------------------------------------------------------- on logits


def trainers_policy_gradient(
    logits: Tensor, actions: Tensor, advantages: Tensor, coefficient: float
) -> Tensor:
    distribution = torch.distributions.Categorical(logits=logits)
    return -advantages * distribution.log_prob(actions) - coefficient * distribution.entropy()


@pytest.mark.table
@pytest.mark.parametrize(
    ("shape", "transposed"), [((5, 3, 40), False), ((33, 9), True), ((3, 9001), False)]
)
@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_policy_gradient(shape: tuple[int, ...], transposed: bool, coefficient: float) -> None:
    """Narrow rows, strided classes and rows wider than a tile, whose largest logit comes late."""
    logits = 3 * normal(*shape)
    logits[..., -1:] += 9
    if transposed:
        logits = logits.mT.contiguous().mT
    actions = torch.arange(logits[..., 0].numel()).view(shape[:-1]) % shape[-1]
    advantages = normal(*shape[:-1], seed=1)
    expected_at = logits.clone().requires_grad_()
    expected = trainers_policy_gradient(expected_at, actions, advantages, coefficient)
    (expected_gradient,) = torch.autograd.grad(expected.mean(), expected_at)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        x = logits.to(dtype).requires_grad_()
        options: dict[str, Any] = {"entropy_coefficient": coefficient}
        worth = advantages.to(dtype)
        each = F.policy_gradient_loss(x, actions, worth, reduction="none", **options)
        torch.testing.assert_close(each.double(), expected, rtol=error, atol=error)
        mean = F.policy_gradient_loss(x, actions, worth, **options)
        (gradient,) = torch.autograd.grad(mean, x)
        assert gradient.stride() == x.stride()
        torch.testing.assert_close(
            gradient.double(), expected_gradient, rtol=error, atol=error / 30
        )


@pytest.mark.table
@pytest.mark.parametrize("classes", [6, 50])
def test_rows_that_a_mask_leaves_out_may_hold_anything(classes: int) -> None:
    logits, actions = normal(4, 5, classes), torch.arange(20).view(4, 5) % classes
    advantages, mask = normal(4, 5, seed=1), torch.arange(20).view(4, 5) % 3 != 0
    mask[2] = False
    x = logits.clone().requires_grad_()
    expected = trainers_policy_gradient(x, actions, advantages, 0.3)[mask].mean()
    (expected_gradient,) = torch.autograd.grad(expected, x)
    logits[~mask], advantages[~mask], actions[~mask] = NAN, NAN, -100
    for kind in (torch.bool, *INTEGER_DTYPES):
        y = logits.clone().requires_grad_()
        loss = F.policy_gradient_loss(y, actions, advantages, mask.to(kind), 0.3)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, y)[0], expected_gradient)
    nothing = torch.zeros_like(mask)
    loss = F.policy_gradient_loss(y, actions, advantages, nothing, 0.3)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, y)[0].any()


@pytest.mark.table
@pytest.mark.parametrize("classes", [7, 60, 5000])
def test_forbidden_actions(classes: int) -> None:
    """A logit of -inf is as good as none."""
    logits = normal(3, classes)
    advantages = normal(3, seed=1)
    forbidden = torch.arange(classes) % 3 == 1
    actions = torch.tensor([0, 2, 3])
    x = logits.clone().requires_grad_()
    few = x[:, ~forbidden]
    places = (~forbidden).cumsum(0)[actions] - 1
    expected = trainers_policy_gradient(few, places, advantages, 0.2).mean()
    (expected_gradient,) = torch.autograd.grad(expected, x)
    y = torch.where(forbidden, -math.inf, logits).requires_grad_()
    loss = F.policy_gradient_loss(y, actions, advantages, None, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, y)[0], expected_gradient)


@pytest.mark.table
def test_selective_log_softmax_has_the_gradient_of_log_softmax() -> None:
    for dtype, error in ((torch.float64, 1e-12), (torch.bfloat16, 2.0**-7)):
        logits = normal(6, 5, 33, dtype=dtype).requires_grad_()
        index = torch.arange(30).view(6, 5)
        found = F.selective_log_softmax(logits, index)
        wide = logits.detach().double().requires_grad_()
        expected = wide.log_softmax(-1).gather(-1, index[..., None])[..., 0]
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        upstream = normal(6, 5, seed=2)
        torch.testing.assert_close(
            torch.autograd.grad(found, logits, upstream.to(found))[0].double(),
            torch.autograd.grad(expected, wide, upstream)[0],
            rtol=error,
            atol=error / 30,
        )


def test_gradient_of_advantages_and_risks_comes_from_the_reference() -> None:
    logits, actions = normal(4, 6).requires_grad_(), torch.arange(4)
    advantages = normal(4, seed=1).requires_grad_()
    loss = F.policy_gradient_loss(logits, actions, advantages)
    found = gradients(loss, {"advantages": advantages}, torch.ones(()))["advantages"]
    torch.testing.assert_close(found, -logits.detach().log_softmax(-1).diagonal() / 4)
    log_probs, risks = normal(3, 5), normal(3, 5, seed=1).requires_grad_()
    F.minimum_risk_loss(log_probs, risks, 0.7, "sum").backward()
    torch.testing.assert_close(risks.grad, (0.7 * log_probs).softmax(1))


@pytest.mark.table
@pytest.mark.parametrize("candidates", [5, 70, 4200])
def test_minimum_risk(candidates: int) -> None:
    log_probs, risks = 30 * normal(3, candidates), 100 * normal(3, candidates, seed=1)
    log_probs[0, 1] = -math.inf
    for alpha in (5e-3, 2.0):
        x = log_probs.clone().requires_grad_()
        q = (alpha * x).exp()
        q = torch.exp(alpha * x - torch.logsumexp(alpha * x, 1, keepdim=True))
        expected = (q * risks).sum(1)
        (expected_gradient,) = torch.autograd.grad(expected.mean(), x)
        y = log_probs.clone().requires_grad_()
        each = F.minimum_risk_loss(y, risks, alpha, reduction="none")
        torch.testing.assert_close(each, expected)
        (gradient,) = torch.autograd.grad(F.minimum_risk_loss(y, risks, alpha), y)
        torch.testing.assert_close(gradient[1:], expected_gradient[1:])
        assert gradient[0, 1] == 0
        assert gradient.isfinite().all()


# ----------------------------------------------------------------------------------- on tokens


def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities now, then and by reference, advantages per sequence, a mask of prefixes."""
    now = -normal(4, 37).abs()
    then, reference = now + 0.3 * normal(4, 37, seed=1), now + 0.3 * normal(4, 37, seed=2)
    mask = torch.arange(37) < torch.tensor([37, 20, 1, 0])[:, None]
    return now, then, reference, normal(4, seed=3), mask


def trainers_token_loss(
    now: Tensor, then: Tensor, advantages: Tensor, low: float, high: float
) -> Tensor:
    ratio = torch.exp(now - then)
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    return -torch.min(ratio * advantages, clipped * advantages)


TRAINERS_MEANS: dict[str, Callable[[Tensor, Tensor, float | None], Tensor]] = {
    "grpo": lambda loss, mask, count: (
        ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / (count or len(loss))
    ),
    "bnpo": lambda loss, mask, count: (loss * mask).sum() / (count or mask.sum().clamp(min=1.0)),
    "dr_grpo": lambda loss, mask, count: (loss * mask).sum() / (count or loss.numel()),
    "dapo": lambda loss, mask, count: (loss * mask).sum() / (count or mask.sum()),
}


@pytest.mark.table
@pytest.mark.parametrize("normalizer", TRAINERS_MEANS)
@pytest.mark.parametrize("masked", [True, False])
def test_grpo(normalizer: str, masked: bool) -> None:
    now, then, reference, advantages, mask = tokens()
    counts = mask.double() if masked else torch.ones(4, 37, dtype=torch.float64)
    for beta, count, dtype in ((0.0, None, torch.float64), (0.1, 123.0, torch.float32)):
        x = now.clone().requires_grad_()
        each = trainers_token_loss(x, then, advantages.unsqueeze(1), 0.1, 0.3)
        difference = reference - x
        each = each + beta * (torch.exp(difference) - difference - 1)
        expected = TRAINERS_MEANS[normalizer](each, counts, count)
        (expected_gradient,) = torch.autograd.grad(expected, x)
        y = now.to(dtype).requires_grad_()
        loss = F.grpo_loss(
            y,
            then.to(dtype),
            advantages.to(dtype),
            mask if masked else None,
            ref_log_probs=reference.to(dtype),
            beta=beta,
            clip_low=0.1,
            clip_high=0.3,
            normalizer=normalizer,
            avg_factor=count,
        )
        error = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(loss.double(), expected, rtol=error, atol=error)
        (gradient,) = torch.autograd.grad(loss, y)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=error, atol=error)


@pytest.mark.table
def test_ppo_and_self_critical() -> None:
    now, then, _, per_sequence, mask = tokens()
    baseline = 0.2
    for advantages in (per_sequence, normal(4, 37, seed=5)):
        wide = advantages if advantages.dim() == 2 else advantages.unsqueeze(1)
        x = now.clone().requires_grad_()
        for expected, found in (
            (
                trainers_token_loss(x, then, wide, 0.2, 0.2)[mask].mean(),
                lambda y, a: F.ppo_loss(y, then, a, mask),
            ),
            (
                (-(wide - baseline) * x)[mask].mean(),
                lambda y, a: F.self_critical_loss(y, a, torch.full_like(a, baseline), mask),
            ),
        ):
            y = now.clone().requires_grad_()
            loss = found(y, advantages)
            torch.testing.assert_close(loss, expected)
            torch.testing.assert_close(
                torch.autograd.grad(loss, y)[0], torch.autograd.grad(expected, x)[0]
            )


OF_TOKENS: dict[str, Callable[..., Tensor]] = {
    "self_critical_loss": lambda x, old, a, ref, mask, **more: F.self_critical_loss(
        x, a, old, mask, **more
    ),
    "ppo_loss": lambda x, old, a, ref, mask, **more: F.ppo_loss(x, old, a, mask, **more),
    "grpo_loss": lambda x, old, a, ref, mask, **more: F.grpo_loss(
        x, old, a, mask, ref_log_probs=ref, beta=0.1, **more
    ),
}


@pytest.mark.table
@pytest.mark.parametrize("loss", OF_TOKENS)
def test_tokens_that_a_mask_leaves_out_may_hold_anything(loss: str) -> None:
    now, then, reference, advantages, mask = tokens()
    function = OF_TOKENS[loss]
    expected_at = now.clone().requires_grad_()
    expected = function(expected_at, then, advantages, reference, mask)
    (expected_gradient,) = torch.autograd.grad(expected, expected_at)
    assert not expected_gradient[~mask].any()
    for bad in (NAN, math.inf, -math.inf):
        x, old, ref = (torch.where(mask, t, bad) for t in (now, then, reference))
        a = torch.where(mask.any(1), advantages, bad)
        x.requires_grad_()
        found = function(x, old, a, ref, mask.long() * 3)
        assert torch.equal(found, expected)
        assert torch.equal(torch.autograd.grad(found, x)[0], expected_gradient)
        for reduction in ("none", "mean", "sum"):
            found = function(x, old, a, ref, torch.zeros_like(mask), reduction=reduction)
            assert not found.any()
            assert not torch.autograd.grad(found.sum(), x)[0].any()


@pytest.mark.table
@pytest.mark.parametrize("loss", ["ppo_loss", "grpo_loss"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_ratios_never_overflow(loss: str, dtype: torch.dtype) -> None:
    """Up to e^20 they are what they are; beyond it there is no slope."""
    apart = torch.tensor([[0.0, 19.0, 21.0, 1e3, 6e4], [-19.0, -21.0, -1e3, -6e4, 1e4]])
    x = apart.to(dtype).requires_grad_()
    nothing = torch.zeros_like(x)
    for advantages in (torch.tensor([1.0, -1.0]), torch.tensor([-1e3, 1e3])):
        each = OF_TOKENS[loss](x, nothing, advantages, nothing, None, reduction="none")
        assert each.isfinite().all()
        (gradient,) = torch.autograd.grad(each.sum(), x)
        assert gradient.isfinite().all()
    surrogate = F.ppo_loss(x, nothing, -torch.ones(2), reduction="none")
    assert surrogate[0, 2] == surrogate[0, 4]
    torch.testing.assert_close(surrogate[0, 2].item(), math.exp(20), rtol=1e-5, atol=0.0)
    (slope,) = torch.autograd.grad(surrogate.sum(), x)
    assert slope[0, 1] > 0
    assert not slope[0, 2:].any()


def test_gradients_of_all_tensors_come_from_the_reference() -> None:
    now, then, reference, advantages, mask = tokens()
    given = [t.clone().requires_grad_() for t in (now, then, advantages, reference)]
    loss = F.grpo_loss(*given[:3], mask, ref_log_probs=given[3], beta=0.1)
    alone = given[0].detach().requires_grad_()
    twin = F.grpo_loss(alone, then, advantages, mask, ref_log_probs=reference, beta=0.1)
    torch.testing.assert_close(loss, twin)
    found = torch.autograd.grad(loss, given)
    torch.testing.assert_close(found[0], torch.autograd.grad(twin, alone)[0])
    assert all(gradient.any() for gradient in found)


def test_module_takes_the_reference_with_the_call() -> None:
    now, then, reference, advantages, mask = tokens()
    module = fastloss.GRPOLoss(beta=0.1, normalizer="dapo")
    found = module(now, then, advantages, mask, reference, avg_factor=50)
    expected = F.grpo_loss(
        now,
        then,
        advantages,
        mask,
        ref_log_probs=reference,
        beta=0.1,
        normalizer="dapo",
        avg_factor=50,
    )
    assert torch.equal(found, expected)


# -------------------------------------------------------------------------------------- bad input


def test_shapes_and_dtypes_of_tokens() -> None:
    now, then, reference, advantages, mask = tokens()
    for loss, function in OF_TOKENS.items():
        old = "baseline" if loss == "self_critical_loss" else "old_log_probs"
        good = "rewards" if loss == "self_critical_loss" else "advantages"
        for error, message, arguments in (
            (ValueError, "log_probs must have a dimension of", (now[0, 0], then, advantages)),
            (ValueError, f"{old} must have", (now, then[:, :5], advantages)),
            (ValueError, f"{good} must have one number per token or per", (now, then, now[:, 0:1])),
            (ValueError, f"{good} must have one number per token or per", (now, then, now[:3, 0])),
            (TypeError, f"{good} must be a Tensor", (now, then, 0.5)),
            (TypeError, "log_probs must be float", (now.long(), then, advantages)),
        ):
            with pytest.raises(error, match=f"^{loss}: {message}"):
                function(*arguments, reference, mask)
        with pytest.raises(ValueError, match=f"^{loss}: mask must have"):
            function(now, then, advantages, reference, mask[:, :3])
        with pytest.raises(TypeError, match=f"^{loss}: mask must be bool or integers"):
            function(now, then, advantages, reference, mask.double())
    with pytest.raises(ValueError, match=r"^grpo_loss: ref_log_probs must have"):
        OF_TOKENS["grpo_loss"](now, then, advantages, reference[:, 1:], mask)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, a: F.ppo_loss(x, x, a, clip=-0.1), "ppo_loss: clip must be at least 0"),
        (lambda x, a: F.grpo_loss(x, x, a, None, beta=-1), "grpo_loss: beta must be at least 0"),
        (lambda x, a: F.grpo_loss(x, x, a, None, beta=0.1), "beta=0.1 needs ref_log_probs"),
        (lambda x, a: F.grpo_loss(x, x, a, None, clip_low=NAN), "clip_low must be at least 0"),
        (lambda x, a: F.grpo_loss(x, x, a, None, clip_high=-1), "clip_high must be at least 0"),
        (
            lambda x, a: F.grpo_loss(x, x, a, None, normalizer="mean"),
            "normalizer must be 'grpo', 'bnpo', 'dr_grpo' or 'dapo', got 'mean'",
        ),
        (lambda x, a: F.minimum_risk_loss(x, x, 0.0), "minimum_risk_loss: alpha must be above 0"),
        (lambda x, a: F.minimum_risk_loss(x, x[:1]), "risks must have the shape of log_probs"),
        (
            lambda x, a: F.policy_gradient_loss(x, a.long(), a, None, -0.1),
            "policy_gradient_loss: entropy_coefficient must be at least 0",
        ),
        (
            lambda x, a: F.policy_gradient_loss(x, a.long(), a[:1]),
            "advantages must have the shape of actions",
        ),
        (
            lambda x, a: F.policy_gradient_loss(x, a.long(), a, a[:1].bool()),
            "mask must have the shape of actions",
        ),
        (
            lambda x, a: F.selective_log_softmax(x, a[:1].long()),
            "selective_log_softmax: index must have one class index per row of logits",
        ),
    ],
)
def test_options_and_shapes(call: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("dtype", INTEGER_DTYPES)
def test_actions_out_of_range(dtype: torch.dtype) -> None:
    logits, advantages = torch.zeros(2, 3), torch.zeros(2)
    actions, mask = torch.tensor([1, 7], dtype=dtype), torch.tensor([True, False])
    message = r"actions must be a class index in \[0, 2\], got 7 at position \[1\]"
    for more in ({}, {"reduction": "sum"}, {"mask": ~mask}):
        with pytest.raises(IndexError, match=f"^policy_gradient_loss: {message}$"):
            F.policy_gradient_loss(logits, actions, advantages, **more)
    assert F.policy_gradient_loss(logits, actions, advantages, mask).isfinite()
    with pytest.raises(IndexError, match=r"^selective_log_softmax: index must be a class index"):
        F.selective_log_softmax(logits, actions)
