# SPDX-License-Identifier: MIT
"""What is particular to lists: order and ties, padding, lists without a pair, length, memory."""

from __future__ import annotations

import pytest
import torch
from cases import TOLERANCES, Case, find_case
from support import assert_close, check_against_oracle, each_case, gradients, upstream_for
from test_memory import allocations, step

import fastloss.functional as F

LISTS = each_case(lambda case: case.family.engine == "pairs")
# One row per way through the engine.
PATTERNS = (
    "lambda_loss",
    "lambda_loss-ndcg_loss1",
    "ranknet_loss",
    "approx_ndcg_loss",
    "neural_ndcg_loss",
    "list_net_loss",
    "list_mle_loss",
)
ONE_OF_EACH = each_case(lambda case: case.id in PATTERNS)


@LISTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_nan_stays_in_its_list(case: Case, dtype: torch.dtype, device: str) -> None:
    for name in ("scores", "relevance"):
        clean = case.arguments((6, 9), dtype, device=device, requires_grad=True)
        expected = case.loss(clean, reduction="none")
        (expected_gradient,) = gradients(expected, clean).values()
        arguments = case.arguments((6, 9), dtype, device=device, requires_grad=True)
        counts = arguments.get("mask", torch.ones(6, 9, dtype=torch.bool, device=device))
        with torch.no_grad():
            arguments[name][3, counts[3].nonzero()[1]] = torch.nan
        loss = case.loss(arguments, reduction="none")
        (gradient,) = gradients(loss, arguments).values()
        assert loss.isnan().nonzero().flatten().tolist() == [3]
        assert torch.equal(
            gradient.isnan(), counts & (torch.arange(6, device=device) == 3)[:, None]
        )
        others = torch.arange(6, device=device) != 3
        assert torch.equal(loss[others], expected[others])
        assert torch.equal(gradient[others], expected_gradient[others])
        assert case.reference(arguments, reduction="none").isnan().nonzero().flatten().tolist() == [
            3
        ]


@LISTS
@pytest.mark.parametrize("filler", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_what_is_masked_may_hold_anything(case: Case, filler: float, device: str) -> None:
    arguments = case.arguments((5, 21), device=device)
    mask = torch.rand(5, 21, generator=torch.Generator().manual_seed(3)) < 0.6
    arguments["mask"] = mask = mask.to(device)
    filled = dict(arguments)
    for name in ("scores", "relevance"):
        filled[name] = torch.where(mask, arguments[name], filler)
    for variant in (arguments, filled):
        variant["scores"] = variant["scores"].clone().requires_grad_()
    loss, expected = case.loss(filled, reduction="none"), case.loss(arguments, reduction="none")
    assert torch.equal(loss, expected)
    (gradient,) = gradients(loss, filled).values()
    assert torch.equal(gradient, *gradients(expected, arguments).values())
    assert not gradient[~mask].any()
    check_against_oracle(case, filled, reduction="mean")


@LISTS
def test_masked_items_are_as_good_as_absent(case: Case, device: str) -> None:
    arguments = case.arguments((4, 17), device=device, requires_grad=True)
    arguments.pop("mask", None)
    mask = torch.arange(17, device=device) < 11
    short = {
        name: value[:, :11].detach().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }
    for reduction in case.reductions:
        loss = case.loss({**arguments, "mask": mask.expand(4, 17)}, **reduction)
        expected = case.loss(short, **reduction)
        assert_close(loss, expected, case.float32, "loss")


@LISTS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_mask_of_integers(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments((4, 17), device=device)
    mask = torch.arange(68, device=device).view(4, 17) % 3
    expected = case.loss({**arguments, "mask": mask != 0}, reduction="none")
    assert torch.equal(case.loss({**arguments, "mask": mask.to(dtype)}, reduction="none"), expected)


@LISTS
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
def test_relevance_of_integers(case: Case, dtype: torch.dtype, device: str) -> None:
    arguments = case.arguments((4, 17), device=device)
    integers = arguments["relevance"].to(dtype)
    found = case.loss({**arguments, "relevance": integers}, reduction="none")
    expected = case.loss({**arguments, "relevance": integers.float()}, reduction="none")
    assert torch.equal(found, expected)


# ----------------------------------------------------------------------------- no pair, no gradient


@each_case(
    lambda case: (
        case.function in ("lambda_loss", "ranknet_loss")
        and case.options.get("scheme") != "ndcg_loss1"
    )  # there, any two items are a pair
)
def test_lists_without_a_pair_give_zero(case: Case, device: str) -> None:
    """Equally relevant items, a single item, none: 0 with a gradient of 0. They do not count."""
    arguments = case.arguments((4, 8), device=device, requires_grad=True)
    mask = torch.ones(4, 8, dtype=torch.bool, device=device)
    mask[1, 1:] = False
    mask[2] = False
    with torch.no_grad():
        arguments["relevance"][0] = 3
        arguments["relevance"][3] = torch.arange(8.0, device=device)
    arguments["mask"] = mask
    each = case.loss(arguments, reduction="none")
    assert each[:3].tolist() == [0, 0, 0]
    assert each[3] > 0
    (gradient,) = gradients(each, arguments, torch.ones_like(each)).values()
    assert not gradient[:3].any()
    alone = {**arguments, "mask": mask & (torch.arange(4, device=device) == 3)[:, None]}
    assert torch.equal(case.loss(arguments, reduction="mean"), case.loss(alone, reduction="mean"))
    nothing = {**arguments, "mask": torch.zeros_like(mask)}
    for reduction in ("mean", "sum"):
        loss = case.loss(nothing, reduction=reduction)
        assert loss.item() == 0
        assert not next(iter(gradients(loss, nothing).values())).any()


@each_case(lambda case: "ndcg_loss" in case.function)
def test_lists_without_anything_relevant_give_zero(case: Case, device: str) -> None:
    arguments = case.arguments((4, 8), device=device, requires_grad=True)
    arguments.pop("mask", None)
    with torch.no_grad():
        arguments["relevance"][:3] = torch.tensor([[0.0], [-2.0], [0.0]], device=device)
        arguments["relevance"][3] = torch.arange(8.0, device=device)
    each = case.loss(arguments, reduction="none")
    assert each[:3].tolist() == [0, 0, 0]
    (gradient,) = gradients(each, arguments, torch.ones_like(each)).values()
    assert not gradient[:3].any()
    assert_close(case.loss(arguments, reduction="mean"), each[3], case.float32, "mean of one")


def test_mean_divides_by_the_pairs() -> None:
    arguments = find_case("lambda_loss-k").arguments((5, 30))
    relevance, mask = arguments["relevance"], arguments["mask"]
    order = arguments["scores"].masked_fill(~mask, -torch.inf).argsort(descending=True, stable=True)
    top = torch.zeros_like(mask).scatter(1, order[:, :6], True) & mask
    pairs = (relevance[:, :, None] > relevance[:, None]) & top[:, :, None] & top[:, None]
    total = F.lambda_loss(**arguments, reduction="sum")
    torch.testing.assert_close(F.lambda_loss(**arguments), total / pairs.sum())
    assert pairs.sum() > 5


# ----------------------------------------------------------------------------------- order and ties


@ONE_OF_EACH
def test_equal_scores_and_relevance_count_in_their_order(case: Case, device: str) -> None:
    generator = torch.Generator().manual_seed(5)
    for length in (7, 70):
        scores = torch.randint(-2, 3, (4, length), generator=generator).to(device, torch.float32)
        scores[scores == 0] = torch.tensor([0.0, -0.0], device=device).repeat(length * 4)[
            : int((scores == 0).sum())
        ]
        relevance = torch.randint(3, (4, length), generator=generator).to(device)
        arguments = {**case.options, "scores": scores.requires_grad_(), "relevance": relevance}
        for reduction in case.reductions:
            check_against_oracle(case, arguments, f"{length} {reduction}", **reduction)


@each_case(lambda case: case.function in ("lambda_loss", "ranknet_loss", "list_net_loss"))
def test_a_list_has_no_direction(case: Case) -> None:
    """With distinct scores and relevance, the items may stand in any order."""
    arguments = case.arguments((4, 23))
    arguments.pop("mask", None)
    arguments["relevance"] = torch.rand(4, 23, generator=torch.Generator().manual_seed(1)) * 4
    permutation = torch.randperm(23, generator=torch.Generator().manual_seed(2))
    shuffled = {
        **arguments,
        "scores": arguments["scores"][:, permutation],
        "relevance": arguments["relevance"][:, permutation],
    }
    assert_close(case.loss(shuffled), case.loss(arguments), case.float32, "shuffled")


def test_better_order_lower_loss() -> None:
    relevance = torch.tensor([[4.0, 2.0, 1.0, 0.0, 0.0]])
    good = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    for function in (
        F.lambda_loss,
        F.ranknet_loss,
        F.approx_ndcg_loss,
        F.neural_ndcg_loss,
        F.list_net_loss,
        F.list_mle_loss,
    ):
        assert function(good, relevance) < function(good.flip(1), relevance)
        assert function(10 * good, relevance) > -1e-6


def test_sharp_approximations_are_the_metric() -> None:
    arguments = find_case("ndcg").arguments((6, 25), torch.float64)
    expected = 1 - F.ndcg(**arguments)
    has_relevant = (arguments["relevance"] > 0).any(1)
    assert has_relevant.sum() > 3
    for loss in (
        F.approx_ndcg_loss(**arguments, alpha=1e5, reduction="none"),
        F.neural_ndcg_loss(**arguments, temperature=1e-5, reduction="none"),
    ):
        torch.testing.assert_close(loss[has_relevant], expected[has_relevant])


# ------------------------------------------------------------------------------------------ lengths


@ONE_OF_EACH
@pytest.mark.parametrize("length", [300, 1025, 1300])
def test_long_lists(case: Case, length: int) -> None:
    """Beyond what is ordered by counting, and what is kept of the sorting matrix."""
    if case.function == "neural_ndcg_loss":
        length = min(length, 370)  # 1.1 MB in float64
    arguments = case.arguments((1, length), torch.float64, requires_grad=True)
    loss, expected = case.loss(arguments), case.reference(arguments)
    assert_close(loss, expected, TOLERANCES[torch.float64], "loss")
    assert_close(
        *gradients(loss, arguments).values(),
        *gradients(expected, arguments).values(),
        TOLERANCES[torch.float64],
        "gradient",
    )


@ONE_OF_EACH
def test_extra_memory_is_that_of_lists_not_of_pairs(case: Case) -> None:
    """The gradient and a sum per list; twice as long lists take twice as much."""
    for length in (100, 200):
        arguments = case.arguments((64, length), requires_grad=True)
        step(case, arguments)
        arguments["scores"].grad = None
        allocated = allocations(step, case, arguments)
        assert allocated <= arguments["scores"].nbytes + 16 * 64 + 4096


def test_unreduced_gradient_is_weighted_by_list() -> None:
    arguments = find_case("lambda_loss").arguments((5, 20), requires_grad=True)
    each = F.lambda_loss(**arguments, reduction="none")
    upstream = upstream_for(each)
    (gradient,) = torch.autograd.grad(each, arguments["scores"], upstream)
    total = F.lambda_loss(**arguments, reduction="sum")
    (plain,) = torch.autograd.grad(total, arguments["scores"])
    torch.testing.assert_close(gradient, plain * upstream[:, None])


def test_gradient_of_relevance_comes_from_the_reference() -> None:
    """Distillation: the softmax of a teacher's scores as targets."""
    arguments = find_case("list_net_loss").arguments((3, 8), torch.float64, requires_grad=True)
    arguments["relevance"].requires_grad_()
    (found,) = torch.autograd.grad(F.list_net_loss(**arguments), arguments["relevance"])
    assert found.any()
