# SPDX-License-Identifier: MIT
"""fastloss.patch("fvcore"), against fvcore itself and in a module laid out as detectron2's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastloss
from fastloss.integrations import patching
from fastloss.integrations.fvcore import FVCORE

LOSSES = ["giou_loss", "smooth_l1_loss", "sigmoid_focal_loss", "sigmoid_focal_loss_jit"]


@pytest.fixture
def nn() -> ModuleType:
    if not FVCORE.status().usable:
        pytest.skip(f"fvcore {FVCORE.status().installed} cannot be patched")
    return importlib.import_module("fvcore.nn")


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


def arguments_of(loss: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    torch.manual_seed(0)
    if loss == "giou_loss":
        corner, size = 9 * torch.rand(2, *shape, 2)
        other, more = 9 * torch.rand(2, *shape, 2)
        first, second = torch.cat((corner, corner + size), -1), torch.cat((other, other + more), -1)
        return first.to(dtype), second.to(dtype)
    logits = 3 * torch.randn(*shape, 4)
    if loss == "smooth_l1_loss":
        return logits.to(dtype), torch.randn(*shape, 4).to(dtype), 0.5
    return logits.to(dtype), torch.rand(*shape, 4).round().to(dtype)


def outcome(function: Any, first: Any, *arguments: Any, **options: Any) -> list[Any]:
    try:
        first = first.detach().clone().requires_grad_()
        loss = function(first, *arguments, **options)
        return [loss, *torch.autograd.grad(loss.sum(), first)]
    except Exception as error:
        return [type(error)]


CALLS: list[tuple[tuple[int, ...], torch.dtype, dict[str, Any]]] = [
    *(((7,), torch.float32, {"reduction": one}) for one in ("none", "mean", "sum", "average")),
    *(((2, 3), dtype, {}) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
    ((0,), torch.float32, {"reduction": "mean"}),
    ((), torch.float32, {}),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients(nn: ModuleType, loss: str) -> None:
    def everything() -> list[list[Any]]:
        function = getattr(nn, loss)
        found = [
            outcome(function, *arguments_of(loss, *shape, dtype=dtype), **options)
            for shape, dtype, options in CALLS
        ]
        given = arguments_of(loss, 5)
        if loss == "giou_loss":
            found.append(outcome(function, given[0].flip(-1), given[1]))  # inside out: an error
            found.append(outcome(function, *given, eps=1e-3))
        elif loss == "smooth_l1_loss":
            found.append(outcome(function, *given[:2], 0.0))
        else:
            found.append(outcome(function, *given, alpha=0.25, gamma=1.5))
        found.append(outcome(function, given[0], given[1][:2], *given[2:]))
        return found

    expected = everything()
    with fastloss.patch("fvcore"):
        found = everything()
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        for part, wanted in zip(one, other, strict=True):
            if isinstance(wanted, Tensor):
                half = wanted.dtype in (torch.float16, torch.bfloat16)
                rtol = 1e-2 if half else 2e-5
                torch.testing.assert_close(part, wanted, rtol=rtol, atol=1e-6, equal_nan=True)
            else:
                assert part == wanted


def test_detectron2_has_them_under_its_own_names(
    nn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``detectron2.modeling.box_regression`` and ``.meta_arch.retinanet`` import them."""
    module = ModuleType("detectron2.modeling.meta_arch.retinanet")
    for name in LOSSES:
        setattr(module, name, getattr(nn, name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = dict(vars(module))
    with fastloss.patch("fvcore"):
        with fastloss.patch("fvcore"):
            pass
        for name in LOSSES:
            assert getattr(module, name) is getattr(nn, name) is not before[name]
            given = arguments_of(name, 3)
            torch.testing.assert_close(getattr(module, name)(*given), before[name](*given))
    assert dict(vars(module)) == before
