# SPDX-License-Identifier: MIT
"""The functions without a gradient: values, dtypes, layouts, NaN, errors and torch's machinery."""

from __future__ import annotations

import inspect

import pytest
import torch
from cases import DTYPES, METRICS, SIZES, TOLERANCES, Arguments, Case
from support import as_float64, assert_close
from test_dtypes_and_layouts import FLOAT_IDS, LAYOUTS, operands, with_layout
from torch import Tensor

import fastloss.functional as F

pytestmark = pytest.mark.table
each_metric = pytest.mark.parametrize("case", METRICS, ids=[case.id for case in METRICS])


def check(case: Case, arguments: Arguments, what: str = "") -> Tensor:
    """Compares with the oracle's numbers; nothing is connected to a graph, nothing is changed."""
    before = {k: (v.clone(), v._version) for k, v in arguments.items() if isinstance(v, Tensor)}
    found = case.loss(arguments)
    expected = case.reference(as_float64(arguments))
    assert_close(found, expected, TOLERANCES[found.dtype], f"{case.id} {what}")
    assert not found.requires_grad
    for name, (value, version) in before.items():
        assert torch.equal(arguments[name], value), name
        assert arguments[name]._version == version
    return found


@each_metric
@pytest.mark.parametrize("size", SIZES)
def test_values(case: Case, size: int, device: str) -> None:
    assert check(case, case.arguments(size, device=device)).dtype == torch.float32


@each_metric
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
def test_dtype(case: Case, dtype: torch.dtype, device: str) -> None:
    found = check(case, case.arguments(67, dtype, device=device))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    degenerate = check(case, case.arguments(dtype=dtype, device=device, degenerate=True))
    assert degenerate.isfinite().all()


@each_metric
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides(case: Case, layout: object, device: str) -> None:
    dense = case.arguments(37, device=device)
    for name in operands(dense):
        check(case, with_layout(dense, layout, {name}), name)


@each_metric
def test_a_prediction_that_requires_a_gradient_has_none(case: Case) -> None:
    arguments = case.arguments(9)
    arguments["scores"].requires_grad_()
    assert not case.loss(arguments).requires_grad
    assert not case.reference(arguments).requires_grad
    (slope,) = torch.func.grad(lambda scores: case.loss({**arguments, "scores": scores}).sum())(
        arguments["scores"].detach()
    )[:1]
    assert not slope.any()


@each_metric
def test_same_bits_with_any_number_of_threads(case: Case) -> None:
    before = torch.get_num_threads()
    arguments = case.arguments((300, 40))
    try:
        runs = []
        for threads in (2, 1, 3):
            torch.set_num_threads(threads)
            runs.append(case.loss(arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(run, runs[0]) for run in runs)


@each_metric
def test_compiled_mapped_exported_and_on_meta_tensors(case: Case) -> None:
    arguments = case.arguments(17)
    expected = case.loss(arguments)
    torch._dynamo.reset()
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(arguments), expected)
    scores = torch.stack((arguments["scores"], arguments["scores"].flip(1)))
    mapped = torch.func.vmap(lambda one: case.loss({**arguments, "scores": one}))(scores)
    assert_close(mapped[0], expected, TOLERANCES[torch.float32], "mapped")

    class AsModule(torch.nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return case.loss({**arguments, "scores": scores})

    program = torch.export.export(AsModule(), (arguments["scores"],))
    assert torch.equal(program.module()(arguments["scores"]), expected)
    on_meta = case.loss(case.arguments(17, device="meta"))
    assert on_meta.is_meta
    assert on_meta.shape == expected.shape


# --------------------------------------------------------------------------------------------- NDCG


def test_ndcg_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    relevance = torch.tensor([[3, 0, 1], [2, 1, 0], [0, 0, 0]])
    discount = 1 / torch.log2(torch.tensor([2.0, 3.0, 4.0]))
    first = (0 * discount[0] + 1 * discount[1] + 7 * discount[2]) / (
        7 * discount[0] + 1 * discount[1]
    )
    torch.testing.assert_close(F.ndcg(scores, relevance), torch.tensor([first, 1.0, 1.0]))
    of_two = discount[1] / (7 * discount[0] + discount[1])
    torch.testing.assert_close(F.ndcg(scores, relevance, k=2), torch.tensor([of_two, 1.0, 1.0]))
    assert torch.equal(F.ndcg(scores, relevance, 7), F.ndcg(scores, relevance))


def test_nothing_relevant_is_in_the_best_order() -> None:
    for shape in ((2, 0), (2, 5), (0, 3), (0, 0)):
        assert torch.equal(F.ndcg(torch.zeros(shape), torch.zeros(shape)), torch.ones(shape[0]))


def test_nan_stays_in_its_list() -> None:
    scores, relevance = torch.zeros(4, 5), torch.ones(4, 5)
    scores[1, 2] = relevance[3, 0] = torch.nan
    assert F.ndcg(scores, relevance).isnan().tolist() == [False, True, False, True]
    mask = ~(scores.isnan() | relevance.isnan())
    assert F.ndcg(scores, relevance, mask=mask).isfinite().all()


@each_metric
def test_errors(case: Case) -> None:
    names = [*inspect.signature(getattr(F, case.function)).parameters]
    arguments = case.arguments(5)
    assert names[:2] == ["scores", "relevance"]
    with pytest.raises(TypeError, match=rf"{case.function}: scores must be float16"):
        case.loss({**arguments, "scores": arguments["scores"].int()})
    with pytest.raises(ValueError, match=rf"{case.function}: relevance must have the shape"):
        case.loss({**arguments, "relevance": arguments["relevance"][:, 1:]})
    for k in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=rf"{case.function}: k must be at least 1 or None"):
            case.loss({**arguments, "k": k})
