# SPDX-License-Identifier: MIT
"""Rows of logits: wide rows, wide strides, torch's own numbers, precision in half, and the linear
layer in front of them.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import TOLERANCES, find_case
from support import assert_close, gradients
from torch import Tensor
from torch.nn import functional as torch_functional

import fastloss
import fastloss.functional as F
from fastloss import _ops, reference


def rows(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that require a gradient, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return logits.to(dtype).requires_grad_(), labels


@pytest.mark.table
@pytest.mark.parametrize("shape", [(3, 5), (2, 40), (2, 9, 3)])
@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_shard_is_the_normaliser_of_its_classes(
    shape: tuple[int, ...], cap: float, device: str
) -> None:
    logits, labels = rows(*shape)
    logits = logits.detach().to(device).requires_grad_()
    counts = torch.where(torch.arange(len(labels)).view(-1, *[1] * (labels.dim() - 1)) == 0, -1, 0)
    counts = counts.expand_as(labels).to(device)
    found = _ops.softmax("cross_entropy/shard", logits, counts, (-1.0, cap), reduction="none")
    wide = logits.detach().double().requires_grad_()
    capped = cap * torch.tanh(wide / cap) if cap else wide
    expected = torch.where(counts == 0, capped.logsumexp(1), 0.0)
    upstream = torch.linspace(1.0, 2.0, found.numel(), device=device).view(found.shape)
    assert_close(found, expected, TOLERANCES[torch.float32], "loss")
    (own,) = torch.autograd.grad(found, logits, upstream)
    (wanted,) = torch.autograd.grad(expected, wide, upstream.double())
    assert_close(own, wanted, TOLERANCES[torch.float32], "gradient")


# A tile of the CPU engine holds 4096 classes, a thread of the CUDA engine 4 packs of 4.
@pytest.mark.table
@pytest.mark.parametrize("classes", [1, 2, 511, 513, 2047, 4096, 4097, 8192, 10_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_width(classes: int, dtype: torch.dtype, device: str) -> None:
    logits, labels = rows(3, classes, dtype=dtype)
    logits = logits.detach().to(device).requires_grad_()
    labels = labels.to(device)
    probabilities = torch.rand(3, classes, device=device).softmax(1)
    calls: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "cross_entropy": (labels, {"label_smoothing": 0.1}),
        "nll_loss": (labels, {}),
        "softmax_focal_loss": (labels, {}),
        "poly_cross_entropy": (labels, {}),
        "multi_margin_loss": (labels, {"p": 2}),
        "crammer_singer_loss": (labels, {}),
    }
    everything = [(name, *call) for name, call in calls.items()]
    everything += [
        ("cross_entropy", labels, {}),
        ("cross_entropy", labels, {"logit_softcap": 5.0}),
        ("cross_entropy", probabilities, {}),
    ]
    if classes > 1:
        everything.append(("distribution_focal_loss", torch.rand(3, device=device) * classes, {}))
    for name, target, options in everything:
        loss = getattr(F, name)(logits, target, reduction="sum", **options)
        wide = logits.detach().double().requires_grad_()
        wide_target = target.double() if target.is_floating_point() else target
        expected = getattr(reference, name)(wide, wide_target, reduction="sum", **options)
        assert_close(loss, expected, TOLERANCES[torch.float32], name)
        (gradient,) = torch.autograd.grad(loss, logits)
        (expected_gradient,) = torch.autograd.grad(expected, wide)
        assert_close(gradient, expected_gradient, TOLERANCES[dtype], f"gradient of {name}")


@pytest.mark.table
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {}),
        ("cross_entropy", {"z_loss": 0.01}),
        ("softmax_focal_loss", {"gamma": 1.5}),
        ("distribution_focal_loss", {}),
        ("dice_loss", {"squared_pred": True}),
        ("dice_cross_entropy_loss", {}),
    ],
)
@pytest.mark.parametrize("bound", [39.9, 40.1, 90.0])
def test_exponentials_as_they_are_and_relative(
    bound: float, name: str, options: dict[str, Any], device: str
) -> None:
    """Exponentials of moderate logits are added up as they are, others relative to the largest.

    The losses are small and large ones, whose digits either way must keep.
    """
    classes, pixels = 5, 40
    logits = torch.full((2, classes, pixels), -bound, device=device)
    labels = (torch.arange(2 * pixels, device=device) % classes).reshape(2, pixels)
    level = torch.linspace(-bound, bound, pixels, device=device)
    logits.scatter_(1, labels[:, None], level.expand(2, 1, pixels))
    logits[:, 0, ::3], logits[1, 3] = bound, level.flip(0)
    target = labels
    if name == "distribution_focal_loss":
        logits, target = logits.transpose(1, 2), labels * 0.9
    logits.requires_grad_()
    wide = logits.detach().double().requires_grad_()
    loss = getattr(F, name)(logits, target, **options)
    expected = getattr(reference, name)(wide, target, **options)
    assert_close(loss, expected, TOLERANCES[torch.float32], name)
    if name.startswith("dice"):
        found, right = torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, wide)[0]
    else:
        loss = getattr(F, name)(logits, target, reduction="none", **options)
        expected = getattr(reference, name)(wide, target, reduction="none", **options)
        assert_close(loss, expected, TOLERANCES[torch.float32], f"{name} of each")
        found, right = (
            torch.autograd.grad(loss.sum(), logits)[0],
            torch.autograd.grad(expected.sum(), wide)[0],
        )
    assert_close(found, right, TOLERANCES[torch.float32], f"gradient of {name}")


@pytest.mark.table
@pytest.mark.parametrize("shape", [(2, 3, 700), (1, 200, 150), (2, 5000, 3), (3, 4, 17, 19)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_strided_classes(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """(N, C, d1, ...) in every order in memory: classes far apart, or together."""
    logits, labels = rows(*shape)
    labels[0].view(-1)[::3] = -100
    wide = logits.detach().to(dtype).double().requires_grad_()
    expected = reference.cross_entropy(wide, labels, reduction="none")
    upstream = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream)
    for order in (range(len(shape)), [0, *range(2, len(shape)), 1], reversed(range(len(shape)))):
        order = list(order)
        inverse = [order.index(d) for d in range(len(shape))]
        laid = logits.detach().to(device, dtype).permute(order).contiguous().permute(inverse)
        laid.requires_grad_()
        loss = F.cross_entropy(laid, labels.to(device), reduction="none")
        assert_close(loss.cpu(), expected, TOLERANCES[torch.float32], str(order))
        (gradient,) = torch.autograd.grad(loss, laid, upstream.to(loss))
        assert gradient.stride() == laid.stride()
        assert_close(gradient.cpu(), expected_gradient, TOLERANCES[dtype], str(order))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(40, 9), (5, 4, 6, 7), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.2}, {"weight": True}, {"weight": True, "label_smoothing": 0.2}],
)
def test_cross_entropy_is_torchs(
    shape: tuple[int, ...], options: dict[str, Any], reduction: str
) -> None:
    logits, labels = rows(*shape)
    labels.view(-1)[1::4] = -100
    given = dict(options)
    if "weight" in given:
        given["weight"] = torch.rand(shape[1])
    for target in (labels, torch.randn(shape).softmax(1)):
        loss = F.cross_entropy(logits, target, reduction=reduction, **given)
        expected = torch_functional.cross_entropy(logits, target, reduction=reduction, **given)
        torch.testing.assert_close(loss, expected)
        upstream = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits, upstream),
            torch.autograd.grad(expected, logits, upstream),
        )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_other_row_losses_are_torchs(reduction: str) -> None:
    logits, labels = rows(40, 9)
    weight = torch.rand(9)
    pairs = [
        (F.nll_loss, torch_functional.nll_loss, {"weight": weight, "ignore_index": 3}),
        (F.multi_margin_loss, torch_functional.multi_margin_loss, {}),
        (
            F.multi_margin_loss,
            torch_functional.multi_margin_loss,
            {"p": 2, "margin": 0.3, "weight": weight},
        ),
    ]
    for ours, theirs, options in pairs:
        loss = ours(logits, labels, reduction=reduction, **options)
        expected = theirs(logits, labels, reduction=reduction, **options)
        torch.testing.assert_close(loss, expected)
        upstream = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, logits, upstream),
            torch.autograd.grad(expected, logits, upstream),
        )


def test_formulas_by_hand() -> None:
    """The oracle itself, on one row, with numbers worked out one by one."""
    x, y = [2.0, -1.0, 0.5], 2
    exponentials = [math.exp(value) for value in x]
    p = [value / sum(exponentials) for value in exponentials]
    logits = torch.tensor([x], dtype=torch.float64)
    label = torch.tensor([y])
    expected = {
        "cross_entropy": -math.log(p[y]),
        "softmax_focal_loss": -((1 - p[y]) ** 2) * math.log(p[y]),
        "poly_cross_entropy": -math.log(p[y]) + (1 - p[y]),
        "nll_loss": -x[y],
        "multi_margin_loss": (max(0, 1 + x[0] - x[y]) + max(0, 1 + x[1] - x[y])) / 3,
        "crammer_singer_loss": max(0, 1 + max(x[0], x[1]) - x[y]),
    }
    for name, value in expected.items():
        for module in (reference, F):
            found = getattr(module, name)(logits, label)
            assert found.item() == pytest.approx(value, rel=1e-12), name
    between = 0.75 * -math.log(p[0]) + 0.25 * -math.log(p[1])
    total = math.log(sum(exponentials))
    for module in (reference, F):
        found = module.distribution_focal_loss(logits, torch.tensor([0.25], dtype=torch.float64))
        assert found.item() == pytest.approx(between, rel=1e-12)
        found = module.cross_entropy(logits, label, z_loss=0.1)
        assert found.item() == pytest.approx(total - x[y] + 0.1 * total**2, rel=1e-12)
        capped = [3 * math.tanh(value / 3) for value in x]
        found = module.cross_entropy(logits, label, logit_softcap=3.0)
        assert found.item() == pytest.approx(
            math.log(sum(map(math.exp, capped))) - capped[y], rel=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 1000), (8, 32_000), (2, 20, 24, 24)])
def test_half_logits_lose_nothing(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The loss of half-precision logits is that of the same numbers in float64."""
    logits, labels = rows(*shape, dtype=dtype)
    loss = F.cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    expected = torch_functional.cross_entropy(logits.detach().double(), labels)
    assert abs(loss.item() - expected.item()) < 1e-5 * expected.item()


def test_gradient_of_target_probabilities_comes_from_the_reference() -> None:
    logits, _ = rows(5, 4)
    target = torch.rand(5, 4).softmax(1).requires_grad_()
    found = torch.autograd.grad(F.cross_entropy(logits, target), [logits, target])
    expected = torch.autograd.grad(torch_functional.cross_entropy(logits, target), [logits, target])
    torch.testing.assert_close(found, expected)


def test_masked_classes() -> None:
    """Logits of -inf have no probability and no gradient, in whole tiles of them too."""
    logits, labels = rows(3, 9000)
    with torch.no_grad():
        logits[:, :5000] = -torch.inf
    labels = 5000 + labels % 4000
    loss = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, torch_functional.cross_entropy(logits, labels))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert not gradient[:, :5000].any()


def test_mean_over_ignored_rows_is_zero() -> None:
    logits, labels = rows(4, 3)
    for target in (torch.full_like(labels, -100), labels[:0]):
        loss = F.cross_entropy(logits[: len(target)], target)
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits, allow_unused=True)
        assert gradient is None or not gradient.any()


@pytest.mark.slow
def test_more_than_two_to_the_31_elements() -> None:
    """Offsets of 64 bits, and the gradient of the last row in its place."""
    size, classes = 2**31 // 65536 + 2, 65536
    logits = torch.zeros(size, classes, dtype=torch.bfloat16)
    logits[-1, 7] = 5.0
    logits.requires_grad_()
    labels = torch.zeros(size, dtype=torch.int32)
    loss = F.cross_entropy(logits, labels, reduction="none")
    assert loss[0].item() == pytest.approx(math.log(classes), rel=1e-6)
    last = math.log(classes - 1 + math.exp(5.0))
    assert loss[-1].item() == pytest.approx(last, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    assert gradient[-1, 7].item() == pytest.approx(math.exp(5.0 - last), rel=1e-2)
    assert gradient[-1, 0].item() == pytest.approx(-1.0, rel=1e-2)


# ------------------------------------------------------------------------- linear + cross-entropy


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("leading", [(600,), (2, 3, 100), ()])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"weight": True},
        {"ignore_index": 5, "weight": True, "label_smoothing": 0.1},
    ],
)
def test_linear_cross_entropy_is_the_two_steps(
    leading: tuple[int, ...],
    options: dict[str, Any],
    reduction: str,
) -> None:
    classes, features = 9000, 8  # several chunks of rows
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*leading, features, generator=generator, dtype=torch.float64).requires_grad_()
    w = torch.randn(classes, features, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(classes, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(classes, leading, generator=generator)
    if target.dim():
        target.view(-1)[:20] = 5
    given = dict(options)
    if "weight" in given:
        given["weight"] = torch.rand(classes, generator=generator, dtype=torch.float64)
    loss = F.linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **given)
    logits = torch_functional.linear(x, w, b).view(-1, classes)
    expected = torch_functional.cross_entropy(logits, target.view(-1), reduction=reduction, **given)
    expected = expected.view(leading) if reduction == "none" else expected
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn_like(expected)
    found = torch.autograd.grad(loss, [x, w, b], upstream, retain_graph=True)
    wanted = torch.autograd.grad(expected, [x, w, b], upstream)
    for gradient, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, right)
    again = torch.autograd.grad(loss, [x, w, b], upstream)
    for gradient, first in zip(again, found, strict=True):
        torch.testing.assert_close(gradient, first)


def test_linear_cross_entropy_of_probabilities() -> None:
    x, w = torch.randn(7, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    target = torch.randn(7, 11).softmax(1)
    loss = F.linear_cross_entropy(x, w, target)
    expected = torch_functional.cross_entropy(x @ w.t(), target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [x, w]), torch.autograd.grad(expected, [x, w])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_cross_entropy_in_half_precision(dtype: torch.dtype) -> None:
    """As exact as the matrix products of the dtype, gradients in that dtype."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=generator).to(dtype).requires_grad_()
    w = torch.randn(500, 16, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(500, (300,), generator=generator)
    loss = F.linear_cross_entropy(x, w, target)
    assert loss.dtype == torch.float32
    wide_x, wide_w = (tensor.detach().double().requires_grad_() for tensor in (x, w))
    expected = torch_functional.cross_entropy(wide_x @ wide_w.t(), target)
    assert loss.item() == pytest.approx(expected.item(), rel=torch.finfo(dtype).eps)
    scale = torch.tensor(65536.0) if dtype == torch.float16 else torch.tensor(1.0)
    found = torch.autograd.grad(loss, [x, w], scale)
    for gradient, right in zip(
        found, torch.autograd.grad(expected, [wide_x, wide_w], scale.double()), strict=True
    ):
        assert gradient.dtype == dtype
        error = (gradient.double() - right).norm() / right.norm()
        assert error < 2 * torch.finfo(dtype).eps


def test_linear_cross_entropy_never_holds_the_logits() -> None:
    from test_memory import allocations

    x, w = torch.randn(4096, 16, requires_grad=True), torch.randn(8192, 16, requires_grad=True)
    target = torch.randint(8192, (4096,))
    logits = 4096 * 8192 * 4
    allocated = allocations(lambda: F.linear_cross_entropy(x, w, target).backward())
    assert allocated < logits / 4


def test_linear_cross_entropy_differentiates_what_is_asked() -> None:
    case = find_case("linear_cross_entropy")
    everything = case.arguments(40, requires_grad=True)
    expected = gradients(case.loss(everything), everything)
    for name in case.family.differentiable:
        arguments = case.arguments(40, requires_grad=[name])
        found = gradients(case.loss(arguments), arguments)
        assert found.keys() == {name}
        torch.testing.assert_close(found[name], expected[name])


def test_linear_cross_entropy_module_has_torchs_state() -> None:
    ours = fastloss.LinearCrossEntropyLoss(4, 7, bias=True, label_smoothing=0.1)
    theirs = torch.nn.LinearCrossEntropyLoss(4, 7, bias=True, label_smoothing=0.1)
    ours.load_state_dict(theirs.state_dict())
    x, target = torch.randn(5, 4), torch.tensor([0, 6, 3, 3, 1])
    torch.testing.assert_close(ours(x, target), theirs(x, target))
