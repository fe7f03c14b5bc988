# SPDX-License-Identifier: MIT
"""fastloss.patch("monai"), against MONAI's own losses."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastloss
from fastloss.integrations import patching
from fastloss.integrations.monai import MONAI

CLASSES = 3
LOSSES = ("DiceLoss", "DiceCELoss", "TverskyLoss", "FocalLoss")


@pytest.fixture(scope="module")
def monai() -> ModuleType:
    pytest.importorskip("monai")
    if not MONAI.status().usable:
        pytest.skip(f"MONAI {MONAI.status().installed} is not one that can be patched")
    return pytest.importorskip("monai.losses")


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


def logits_and_labels(
    *spatial: int, classes: int = CLASSES, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, classes, *spatial, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (2, 1, *spatial), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


def one_hot(labels: Tensor, classes: int = CLASSES) -> Tensor:
    return nn.functional.one_hot(labels.squeeze(1), classes).movedim(-1, 1).float()


def is_ours(loss: Tensor) -> bool:
    """Whether a kernel of fastloss is behind it."""
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            if any(name in node.name() for name in ("Region", "PointwiseLoss", "SoftmaxLoss")):
                return True
            waiting.extend(parent for parent, _ in node.next_functions)
    return False


def outcome(loss: nn.Module, logits: Tensor, target: Tensor) -> list[Any]:
    """The loss and its gradient, or the error; and the warnings."""
    leaf = logits.detach().clone().requires_grad_(logits.is_floating_point())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = loss(leaf, target)
            upstream = torch.linspace(0.5, 2, found.numel()).view(found.shape).to(found.dtype)
            result: list[Any] = [found, *torch.autograd.grad(found, leaf, upstream)]
        except Exception as error:
            result = [type(error), str(error)]
    return [*result, *sorted(str(warning.message) for warning in caught)]


def assert_same(
    loss: nn.Module,
    logits: Tensor,
    target: Tensor,
    *,
    takes: bool | None = None,
    rtol: float = 2e-5,
    atol: float = 2e-6,
) -> None:
    expected = outcome(loss, logits, target)
    with fastloss.patch("monai"):
        found = outcome(loss, logits, target)
        if takes is not None and isinstance(found[0], Tensor):
            assert is_ours(found[0]) == takes
    assert len(found) == len(expected), (found, expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)
        else:
            assert one == other


def variants(**options: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Every combination."""
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))


def test_forwards_are_replaced_and_restored(monai: ModuleType) -> None:
    originals = {name: vars(getattr(monai, name))["forward"] for name in LOSSES}
    loss = monai.DiceLoss(softmax=True, to_onehot_y=True)  # there before the patch
    logits, labels = logits_and_labels(5, 4)
    with fastloss.patch("monai"):
        for name in LOSSES:
            assert vars(getattr(monai, name))["forward"].__wrapped__ is originals[name]
        assert is_ours(loss(logits, labels))
    assert {name: vars(getattr(monai, name))["forward"] for name in LOSSES} == originals
    assert not is_ours(loss(logits, labels))


@pytest.mark.parametrize("spatial", [(7,), (5, 4), (3, 4, 5)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_dice(monai: ModuleType, reduction: str, spatial: tuple[int, ...]) -> None:
    logits, labels = logits_and_labels(*spatial)
    for options in variants(
        softmax=(True, False),
        squared_pred=(False, True),
        jaccard=(False, True),
        include_background=(True, False),
        batch=(False, True),
    ):
        sigmoid = not options["softmax"]
        weight = [0.5, 2.0, 1.0][: CLASSES - (not options["include_background"])]
        more = {"sigmoid": sigmoid, "reduction": reduction}
        for given in (None, weight):
            loss = monai.DiceLoss(to_onehot_y=True, weight=given, **options, **more)
            assert_same(loss, logits, labels, takes=True)
            loss = monai.DiceLoss(weight=given, **options, **more)
            assert_same(loss, logits, one_hot(labels), takes=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_tversky(monai: ModuleType, reduction: str) -> None:
    logits, labels = logits_and_labels(5, 4)
    for options in variants(
        softmax=(True, False), include_background=(True, False), batch=(False, True)
    ):
        more = {"sigmoid": not options["softmax"], "alpha": 0.3, "beta": 0.7}
        loss = monai.TverskyLoss(to_onehot_y=True, reduction=reduction, **options, **more)
        assert_same(loss, logits, labels, takes=True)
        loss = monai.TverskyLoss(reduction=reduction, **options, **more)
        assert_same(loss, logits, one_hot(labels), takes=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dice_and_cross_entropy(monai: ModuleType, reduction: str) -> None:
    logits, labels = logits_and_labels(5, 4)
    for options in variants(
        include_background=(True, False),
        batch=(False, True),
        label_smoothing=(0.0, 0.1),
        weight=(None, torch.tensor([0.5, 2.0, 1.0])),
    ):
        more = {"softmax": True, "lambda_dice": 0.7, "lambda_ce": 1.5, "reduction": reduction}
        loss = monai.DiceCELoss(to_onehot_y=True, **options, **more)
        assert_same(loss, logits, labels, takes=True)
        assert_same(monai.DiceCELoss(**options, **more), logits, one_hot(labels), takes=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_focal(monai: ModuleType, reduction: str) -> None:
    logits, labels = logits_and_labels(5, 4)
    for use_softmax, alpha in ((False, None), (False, 0.25), (True, None)):
        for gamma in (2.0, 1.5, 0.0):
            loss = monai.FocalLoss(
                to_onehot_y=True,
                use_softmax=use_softmax,
                alpha=alpha,
                gamma=gamma,
                reduction=reduction,
            )
            assert_same(loss, logits, labels, takes=True)


def test_a_single_channel(monai: ModuleType) -> None:
    logits, labels = logits_and_labels(5, 4, classes=1)
    target = (labels + torch.arange(4) % 2).float()
    for name in ("DiceLoss", "TverskyLoss", "DiceCELoss"):
        assert_same(getattr(monai, name)(sigmoid=True), logits, target, takes=True)
        assert_same(getattr(monai, name)(sigmoid=True), logits, target.int())
        for options in ({"softmax": True}, {"include_background": False}, {"to_onehot_y": True}):
            assert_same(getattr(monai, name)(**options), logits, target)
    assert_same(monai.FocalLoss(to_onehot_y=True), logits, target, takes=False)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32])
def test_labels_of_every_dtype(monai: ModuleType, name: str, dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(5, 4)
    options = {} if name == "FocalLoss" else {"softmax": True}
    loss = getattr(monai, name)(to_onehot_y=True, **options)
    assert_same(loss, logits, labels.to(dtype), takes=True)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_of_every_dtype(monai: ModuleType, name: str, dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels(5, 4, dtype=dtype)
    options = {} if name == "FocalLoss" else {"softmax": True}
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if dtype.itemsize < 4 else {}
    loss = getattr(monai, name)(to_onehot_y=True, **options)
    assert_same(loss, logits, labels, **tolerance)
    for target in (one_hot(labels), one_hot(labels).to(dtype)):
        assert_same(getattr(monai, name)(**options), logits, target, **tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_meta_tensors(monai: ModuleType, name: str) -> None:
    """What MONAI's pipelines yield, and what networks make of it."""
    from monai.data import MetaTensor

    logits, labels = logits_and_labels(5, 4)
    options = {} if name == "FocalLoss" else {"softmax": True}
    loss = getattr(monai, name)(to_onehot_y=True, **options)
    expected = torch.autograd.grad(loss(logits, labels), logits)
    with fastloss.patch("monai"):
        for x, t in (
            (MetaTensor(logits), labels),
            (logits, MetaTensor(labels)),
            (MetaTensor(logits), MetaTensor(labels)),
        ):
            found = loss(x, t)
            assert is_ours(found)
            assert type(found) is Tensor
            torch.testing.assert_close(torch.autograd.grad(found, logits), expected)


def calls_only_monai_takes(monai: ModuleType, name: str) -> Iterator[tuple[Any, Tensor, Tensor]]:
    make = getattr(monai, name)
    logits, labels = logits_and_labels(5, 4)
    softmax = {} if name == "FocalLoss" else {"softmax": True}
    usual = make(to_onehot_y=True, **softmax)
    for target in (labels[:1], labels[..., :2], labels.squeeze(1), labels - 1, labels + 1):
        yield usual, logits, target
    yield usual, logits, one_hot(labels)
    yield make(**softmax), logits, labels
    yield usual, logits[:0], labels[:0]
    yield usual, logits[..., 0, 0], labels[..., 0, 0]
    yield usual, logits.detach().int(), labels
    yield make(**softmax), logits, torch.rand(2, CLASSES, 5, 4)  # neither 0 nor 1
    changed = make(to_onehot_y=True, **softmax)
    changed.reduction = "average"
    yield changed, logits, labels
    if name != "FocalLoss":
        yield make(to_onehot_y=True, other_act=torch.tanh), logits, labels
        yield make(), logits.detach().softmax(1), one_hot(labels)
        yield make(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=1e-3), logits, labels
        yield make(to_onehot_y=True, softmax=True, smooth_nr=-1.0), logits, labels
    if name in ("DiceLoss", "TverskyLoss"):
        yield make(softmax=True, soft_label=True), logits, one_hot(labels)
        yield make(smooth_nr=0, smooth_dr=1e-3), torch.zeros(2, 2, 5, 4), torch.zeros(2, 2, 5, 4)
    if name == "DiceLoss":
        for weight in ([1.0, 2.0], [1.0, -2.0, 3.0], 0.5):
            yield make(to_onehot_y=True, softmax=True, weight=weight), logits, labels
    if name == "DiceCELoss":
        yield make(to_onehot_y=True, sigmoid=True), logits, labels
        changed = make(to_onehot_y=True, softmax=True)
        changed.cross_entropy = nn.CrossEntropyLoss(ignore_index=0)
        yield changed, logits, labels
    if name == "FocalLoss":
        for options in (
            {"reduction": "none"},
            {"alpha": 0.25, "use_softmax": True},
            {"weight": [1.0, 2.0, 3.0]},
            {"include_background": False},
            {"gamma": -1.0},
        ):
            yield make(to_onehot_y=True, **options), logits, labels


@pytest.mark.parametrize("name", LOSSES)
def test_calls_only_monai_takes(monai: ModuleType, name: str) -> None:
    for loss, logits, target in calls_only_monai_takes(monai, name):
        assert_same(loss, logits, target)


def test_ignored_labels_are_monais(monai: ModuleType) -> None:
    logits, labels = logits_and_labels(5, 4)
    for name in ("DiceLoss", "TverskyLoss", "FocalLoss"):
        options = {} if name == "FocalLoss" else {"softmax": True}
        loss = getattr(monai, name)(to_onehot_y=True, **options)
        if not hasattr(loss, "ignore_index"):
            pytest.skip("this MONAI ignores no labels")
        loss.ignore_index = 1
        assert_same(loss, logits, labels, takes=False)


def test_a_subclass_with_a_part_of_its_own(monai: ModuleType) -> None:
    class Other(monai.DiceCELoss):
        def ce(self, input: Tensor, target: Tensor) -> Tensor:
            return 2 * super().ce(input, target)

    logits, labels = logits_and_labels(5, 4)
    assert_same(Other(to_onehot_y=True, softmax=True), logits, labels)


@pytest.mark.parametrize("name", ["DiceLoss", "TverskyLoss", "DiceCELoss", "FocalLoss"])
def test_compile(monai: ModuleType, name: str) -> None:
    torch._dynamo.reset()
    logits, labels = logits_and_labels(5, 4)
    options = {} if name == "FocalLoss" else {"softmax": True}
    loss = getattr(monai, name)(to_onehot_y=True, **options)
    expected = outcome(loss, logits, labels)
    with fastloss.patch("monai"):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        found = outcome(compiled, logits, labels)
    torch.testing.assert_close(found[:2], expected[:2], rtol=2e-5, atol=2e-6)
    torch._dynamo.reset()
