# SPDX-License-Identifier: MIT
"""fastloss.patch("torchcrf"), against pytorch-crf's own results."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastloss
from fastloss import functional
from fastloss.integrations import patching
from fastloss.integrations.torchcrf import TORCHCRF

TAGS = 4


@pytest.fixture(scope="module")
def torchcrf() -> ModuleType:
    module = pytest.importorskip("torchcrf")
    if not TORCHCRF.status().usable:
        pytest.skip(f"pytorch-crf {TORCHCRF.status().installed} is not one that can be patched")
    return module


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


def batch(batch_first: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Emissions, tags and a mask."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(5, 6, TAGS, generator=generator, dtype=torch.float64).to(dtype)
    tags = torch.randint(TAGS, (5, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [1], [4], [3], [6]])
    tensors = (emissions, tags, mask)
    return tensors if batch_first else tuple(tensor.transpose(0, 1) for tensor in tensors)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of fastloss's functions as they are called and compute."""
    calls: list[str] = []
    for name in ("crf_loss", "crf_decode"):
        function = getattr(functional, name)

        def count(*arguments: Any, function: Any = function, name: str = name) -> Any:
            result = function(*arguments)
            calls.append(name)
            return result

        monkeypatch.setattr(functional, name, count)
    return calls


def outcome(crf: torch.nn.Module, *arguments: Any) -> list[Any]:
    """Likelihood, gradients and tags, or the errors."""
    emissions, tags, mask, *reduction = arguments
    leaf = emissions.detach().clone().requires_grad_()
    results: list[Any] = []
    try:
        found = crf(leaf, tags, mask, *reduction)
        upstream = torch.linspace(0.5, 2, found.numel()).view(found.shape).to(found.dtype)
        results += [found, *torch.autograd.grad(found, [leaf, *crf.parameters()], upstream)]
    except Exception as error:
        results += [type(error), str(error)]
    try:
        results.append(crf.decode(emissions, mask))
    except Exception as error:
        results += [type(error), str(error)]
    return results


def assert_same(crf: torch.nn.Module, *arguments: Any) -> None:
    expected = outcome(crf, *arguments)
    with fastloss.patch("torchcrf"):
        found = outcome(crf, *arguments)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, Tensor):
            assert mine.dtype == theirs.dtype
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert mine == theirs


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "token_mean"])
def test_results_are_pytorch_crfs(
    torchcrf: ModuleType,
    batch_first: bool,
    dtype: torch.dtype,
    reduction: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    crf = torchcrf.CRF(TAGS, batch_first=batch_first).to(dtype)
    calls = counted(monkeypatch)
    assert_same(crf, *batch(batch_first, dtype), reduction)
    assert calls == ["crf_loss", "crf_decode"]


@pytest.mark.filterwarnings("ignore:where received a uint8 condition")
def test_no_mask_and_masks_of_bytes(torchcrf: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    crf = torchcrf.CRF(TAGS)
    emissions, tags, mask = batch(False)
    calls = counted(monkeypatch)
    assert_same(crf, emissions, tags, None)
    assert_same(crf, emissions, tags, mask.to(torch.uint8))
    assert len(calls) == 4


@pytest.mark.filterwarnings("ignore:where received a uint8 condition")
def test_what_pytorch_crf_computes_itself(
    torchcrf: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says itself, where something is wrong."""
    crf = torchcrf.CRF(TAGS, batch_first=True)
    emissions, tags, mask = batch(True)
    holes, late = mask.clone(), mask.clone()
    holes[0, 2] = False
    late[1, 0] = False
    from_the_end = tags.clone()
    from_the_end[0, 0] = -1
    too_large = tags.clone()
    too_large[0, 0] = TAGS
    calls = counted(monkeypatch)
    assert_same(crf, emissions, tags, holes)
    assert_same(crf, emissions, tags, late)
    assert_same(crf, emissions[..., 1:], tags, mask)
    assert_same(crf, emissions[:, 1:], tags, mask)
    assert_same(crf, emissions[0], tags, mask)
    assert_same(crf, emissions[:0], tags[:0], mask[:0])
    assert_same(crf.half(), emissions.half(), tags, mask)
    assert calls == []
    crf.float()
    assert_same(crf, emissions, tags, mask, "all")
    assert_same(crf, emissions, from_the_end, mask)
    assert_same(crf, emissions, too_large, mask)
    assert set(calls) == {"crf_decode"}


def test_a_subclass_keeps_its_own_steps(torchcrf: ModuleType) -> None:
    class Halved(torchcrf.CRF):  # type: ignore[name-defined]
        def _compute_score(self, *arguments: Tensor) -> Tensor:
            return super()._compute_score(*arguments) / 2

    class Named(torchcrf.CRF):  # type: ignore[name-defined]
        pass

    for kind in (Halved, Named):
        torch.manual_seed(0)
        assert_same(kind(TAGS), *batch(False))


def test_masked_tags_may_hold_any_number(torchcrf: ModuleType) -> None:
    """Where pytorch-crf stops."""
    crf = torchcrf.CRF(TAGS)
    emissions, tags, mask = batch(False)
    expected = crf(emissions, tags, mask)
    unknown = torch.where(mask, tags, -100)
    with pytest.raises(IndexError):
        crf(emissions, unknown, mask)
    with fastloss.patch("torchcrf"):
        torch.testing.assert_close(crf(emissions, unknown, mask), expected)


def test_compiled_while_patched(torchcrf: ModuleType) -> None:
    torch._dynamo.reset()
    crf = torchcrf.CRF(TAGS)
    arguments = batch(False)
    expected = crf(*arguments)
    with fastloss.patch("torchcrf"):
        compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, expected)
    torch._dynamo.reset()


def test_undone(torchcrf: ModuleType) -> None:
    forward, decode = torchcrf.CRF.forward, torchcrf.CRF.decode
    with fastloss.patch("torchcrf"):
        assert torchcrf.CRF.forward is not forward
        assert torchcrf.CRF.forward.__wrapped__ is forward
    assert (torchcrf.CRF.forward, torchcrf.CRF.decode) == (forward, decode)
    assert fastloss.patch.available()["torchcrf"].supported == "0.7 to 0.7"
