# SPDX-License-Identifier: MIT
"""Deterministic: the same bits from run to run and with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import Case
from support import as_float64, each_case, gradients, upstream_for
from torch import Tensor


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def large(case: Case) -> int | tuple[int, ...]:
    """Several chunks of work for every engine."""
    dims = len(case.family.shape_of(3))
    return {
        "linear_cross_entropy": (3_001, 7),
        "softmax": (30_011, 7) if dims == 2 else (7, 5, 9001),
        "pointwise": (30_011, 7) if dims > 1 else 200_003,
        "region": (3, 4, 9001),
        "ranked_region": (3, 4, 2001),
        "sequence": (301, 6, 9),
        "box_pair": 40_009,
        "box_matrix": (3, 150, 130),
        "box_crowd": (500, 60),
        "pairs": (70, 50),
        "triplet": (3001, 29),
        "batch_hard": (300, 21),
        "row_pair": (3001, 29),
        "edges": (40_001, 700, 20),
        "contrastive": (1100, 21),
        "detection": (9, 3, 501, 4, 5),
    }[case.family.engine]


def results(
    case: Case, reduction: dict[str, str], threads: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    torch.set_num_threads(threads)
    arguments = case.arguments(large(case), dtype, requires_grad=True)
    loss = case.loss(arguments, **reduction)
    return [loss.detach(), *gradients(loss, arguments, upstream_for(loss)).values()]


# Other threads add up in another order in torch's products of matrices.
BY_PRODUCTS = ("contrastive",)


@each_case()
def test_same_bits_from_run_to_run_and_with_any_number_of_threads(case: Case) -> None:
    for reduction in case.reductions[:2]:
        expected = results(case, reduction, threads=2)
        for threads in (2,) if case.family.engine in BY_PRODUCTS else (2, 1, 3):
            for found, wanted in zip(results(case, reduction, threads), expected, strict=True):
                assert torch.equal(found, wanted), f"{threads} threads, {reduction}"


@each_case(lambda case: case.family.element_wise)
def test_large_sums_are_accurate(case: Case) -> None:
    """Over all chunks, compared with the oracle's in float64."""
    arguments = case.arguments(large(case))
    for reduction in ("sum", "mean"):
        found = case.loss(arguments, reduction=reduction).double()
        expected = case.reference(as_float64(arguments), reduction=reduction)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)


@pytest.mark.gpu
@each_case()
def test_same_bits_from_run_to_run_on_a_gpu(case: Case, gpu: str) -> None:
    for reduction in case.reductions[:2]:
        runs = []
        for _ in range(3):
            arguments = case.arguments(large(case), device=gpu, requires_grad=True)
            loss = case.loss(arguments, **reduction)
            runs.append([loss.detach(), *gradients(loss, arguments, upstream_for(loss)).values()])
        for run in runs[1:]:
            assert all(
                torch.equal(found, expected) for found, expected in zip(run, runs[0], strict=True)
            )
