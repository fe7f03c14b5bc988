# SPDX-License-Identifier: MIT
"""What docs/segmentation.md says of MONAI, segmentation-models-pytorch, kornia and nnU-Net: which
arguments give their values and gradients.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import fastloss.functional as F

SHAPE = (3, 4, 9, 11)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)


def voxels(shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Logits and labels; every class is there in every sample."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def multi_label() -> tuple[Tensor, Tensor]:
    logits, _ = voxels()
    target = torch.rand(SHAPE, generator=torch.Generator().manual_seed(4)) < 0.3
    return logits, target.double()


def check(mine: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Losses agree in value and gradient."""
    found, expected = at.clone().requires_grad_(), at.clone().requires_grad_()
    loss, wanted = mine(found), theirs(expected)
    torch.testing.assert_close(loss.flatten(), wanted.flatten(), rtol=1e-6, atol=1e-8)
    upstream = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype)
    loss.backward(upstream.view_as(loss))
    wanted.backward(upstream.to(wanted.dtype).view_as(wanted))
    assert expected.grad is not None
    scale = expected.grad.abs().max().item()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7 * scale)


# -------------------------------------------------------------------------------------------- MONAI


@pytest.fixture(scope="module")
def monai() -> ModuleType:
    return pytest.importorskip("monai.losses")


def monai_labels(labels: Tensor) -> Tensor:
    return labels.unsqueeze(1)


DICE_OPTIONS: list[dict[str, Any]] = [
    {},
    {"include_background": False},
    {"squared_pred": True},
    {"jaccard": True},
    {"jaccard": True, "squared_pred": True, "batch": True},
    {"batch": True},
    {"smooth_nr": 0.0, "smooth_dr": 1e-2},
    {"weight": WEIGHT},
    {"weight": WEIGHT[1:], "include_background": False},
    {"ignore_index": 2},
    {"ignore_index": 255, "include_background": False},
]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", DICE_OPTIONS, ids=str)
def test_monai_dice(monai: ModuleType, options: dict[str, Any], reduction: str) -> None:
    logits, labels = voxels()
    if options.get("ignore_index") == 255:
        labels[:, ::3] = 255
    loss = monai.DiceLoss(softmax=True, to_onehot_y=True, reduction=reduction, **options)
    check(
        lambda x: F.dice_loss(x, labels, reduction=reduction, **options),
        lambda x: loss(x, monai_labels(labels)),
        logits,
    )


@pytest.mark.parametrize("options", [{}, {"squared_pred": True}, {"ignore_index": 9}], ids=str)
def test_monai_dice_of_several_labels(monai: ModuleType, options: dict[str, Any]) -> None:
    logits, target = multi_label()
    loss = monai.DiceLoss(sigmoid=True, **options)
    check(
        lambda x: F.dice_loss(x, target, activation="sigmoid", **options),
        lambda x: loss(x, target),
        logits,
    )


def test_monai_dice_of_probabilities_and_volumes(monai: ModuleType) -> None:
    logits, labels = voxels((2, 3, 5, 4, 6))
    check(
        lambda p: F.dice_loss(p, labels, activation=None),
        lambda p: monai.DiceLoss(to_onehot_y=True)(p, monai_labels(labels)),
        logits.softmax(1),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.3, "beta": 0.7}, {"batch": True, "ignore_index": 1}],
    ids=str,
)
def test_monai_tversky(monai: ModuleType, options: dict[str, Any]) -> None:
    logits, labels = voxels()
    loss = monai.TverskyLoss(softmax=True, to_onehot_y=True, reduction="none", **options)
    check(
        lambda x: F.tversky_loss(x, labels, reduction="none", **options),
        lambda x: loss(x, monai_labels(labels)),
        logits,
    )


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("w_type", ["square", "simple", "uniform"])
def test_monai_generalized_dice(monai: ModuleType, w_type: str, batch: bool, absent: bool) -> None:
    logits, labels = voxels()
    if absent:
        labels = labels.clamp(max=SHAPE[1] - 2)
    options = {"w_type": w_type, "batch": batch, "reduction": "none"}
    loss = monai.GeneralizedDiceLoss(softmax=True, to_onehot_y=True, **options)
    check(
        lambda x: F.generalized_dice_loss(x, labels, **options),
        # (It weighs in float32.)
        lambda x: loss(x, monai_labels(labels)),
        logits,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lambda_dice": 0.3, "lambda_ce": 2.0, "squared_pred": True},
        {"weight": WEIGHT},
        {"weight": WEIGHT, "include_background": False, "batch": True},
        {"label_smoothing": 0.1, "weight": WEIGHT},
    ],
    ids=str,
)
@pytest.mark.parametrize("dense", [False, True])
def test_monai_dice_cross_entropy(
    monai: ModuleType, options: dict[str, Any], reduction: str, dense: bool
) -> None:
    logits, labels = voxels()
    theirs, mine = monai_labels(labels), labels
    if dense:
        mine = theirs = torch.nn.functional.one_hot(labels, SHAPE[1]).movedim(-1, 1).double()
    loss = monai.DiceCELoss(softmax=True, to_onehot_y=not dense, reduction=reduction, **options)
    check(
        lambda x: F.dice_cross_entropy_loss(x, mine, reduction=reduction, **options),
        lambda x: loss(x, theirs),
        logits,
    )


def test_monai_dice_cross_entropy_of_one_class(monai: ModuleType) -> None:
    logits, target = multi_label()
    logits, target = logits[:, :1].contiguous(), target[:, :1].contiguous()
    check(
        lambda x: F.dice_cross_entropy_loss(x, target, activation="sigmoid"),
        lambda x: monai.DiceCELoss(sigmoid=True)(x, target),
        logits,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 1.5, "lambda_dice": 0.3, "lambda_focal": 2.0},
        {"alpha": 0.25, "include_background": False},
        {"weight": WEIGHT},
    ],
    ids=str,
)
def test_monai_dice_focal(
    monai: ModuleType, options: dict[str, Any], activation: str, reduction: str
) -> None:
    logits, labels = voxels()
    loss = monai.DiceFocalLoss(
        to_onehot_y=True, reduction=reduction, **{activation: True}, **options
    )
    # MONAI's focal loss is in float32.
    check_in_float32(
        lambda x: F.dice_focal_loss(
            x, labels, activation=activation, reduction=reduction, **options
        ),
        lambda x: loss(x, monai_labels(labels)),
        logits,
    )


def check_in_float32(
    mine: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], at: Tensor
) -> None:
    found, expected = at.float().requires_grad_(), at.float().requires_grad_()
    loss, wanted = mine(found), theirs(expected)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    loss.backward()
    wanted.backward()
    assert expected.grad is not None
    scale = expected.grad.abs().max().item()
    # Errors that differ by rounding may trade places in the order of Lovász.
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=2e-5 * scale)


# ---------------------------------------------------------------------- segmentation-models-pytorch


@pytest.fixture(scope="module")
def smp(torchvision: ModuleType) -> ModuleType:
    pytest.importorskip("segmentation_models_pytorch")
    return importlib.import_module("segmentation_models_pytorch.losses")


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_smp_dice(smp: ModuleType, smooth: float, ignore_index: int | None) -> None:
    logits, labels = voxels()
    if ignore_index is not None:
        labels[:, ::3] = ignore_index
    loss = smp.DiceLoss("multiclass", smooth=smooth, ignore_index=ignore_index)
    check(
        lambda x: F.dice_loss(
            x,
            labels,
            batch=True,
            smooth_nr=2 * smooth,
            smooth_dr=2 * smooth,
            ignore_index=ignore_index,
        ),
        lambda x: loss(x, labels),
        logits,
    )


def test_smp_dice_of_several_labels_and_of_one(smp: ModuleType) -> None:
    logits, target = multi_label()
    options: dict[str, Any] = {"activation": "sigmoid", "batch": True, "smooth_nr": 0.0}
    for mode, classes in (("multilabel", 4), ("binary", 1)):
        some = target[:, :classes].contiguous()
        check(
            lambda x, some=some: F.dice_loss(x, some, smooth_dr=0.0, **options),
            lambda x, some=some, mode=mode: smp.DiceLoss(mode)(x, some),
            logits[:, :classes].contiguous(),
        )


def test_smp_jaccard(smp: ModuleType) -> None:
    logits, labels = voxels()
    check(
        lambda x: F.dice_loss(x, labels, jaccard=True, batch=True, smooth_nr=1.0, smooth_dr=1.0),
        lambda x: smp.JaccardLoss("multiclass", smooth=0.5)(x, labels),
        logits,
    )


def test_smp_tversky(smp: ModuleType) -> None:
    logits, labels = voxels()
    check(
        lambda x: F.tversky_loss(
            x, labels, alpha=0.3, beta=0.7, batch=True, smooth_nr=0.5, smooth_dr=0.5
        ),
        lambda x: smp.TverskyLoss("multiclass", smooth=0.5, alpha=0.3, beta=0.7)(x, labels),
        logits,
    )


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 255])
def test_smp_lovasz(smp: ModuleType, per_image: bool, ignore_index: int | None) -> None:
    logits, labels = voxels()
    labels = labels.clamp(max=2)  # a class is absent
    if ignore_index is not None:
        labels[:, ::3] = ignore_index
    loss = smp.LovaszLoss("multiclass", per_image=per_image, ignore_index=ignore_index)
    check_in_float32(  # it mixes float32 in
        lambda x: F.lovasz_softmax_loss(x, labels, per_image=per_image, ignore_index=ignore_index),
        lambda x: loss(x, labels),
        logits,
    )


# ------------------------------------------------------------------------------------------- kornia


@pytest.fixture(scope="module")
def kornia() -> ModuleType:
    return pytest.importorskip("kornia.losses")


def test_kornia_dice(kornia: ModuleType) -> None:
    logits, labels = voxels()
    labels[:, ::4] = -100
    options: dict[str, Any] = {"smooth_nr": 0.0, "smooth_dr": 1e-8, "ignore_index": -100}
    check(
        lambda x: F.generalized_dice_loss(x, labels, w_type="uniform", **options),
        lambda x: kornia.dice_loss(x, labels),
        logits,
    )
    check(
        lambda x: F.dice_loss(x, labels, **options),
        lambda x: kornia.dice_loss(x, labels, average="macro"),
        logits,
    )


def test_kornia_tversky(kornia: ModuleType) -> None:
    logits, labels = voxels()
    check(
        lambda x: F.tversky_loss(x, labels, alpha=0.3, beta=0.7, smooth_nr=0.0, smooth_dr=1e-8),
        lambda x: kornia.tversky_loss(x, labels, 0.3, 0.7),
        logits,
    )


def test_kornia_lovasz(kornia: ModuleType) -> None:
    logits, labels = voxels()
    labels = labels.clamp(max=2)
    check(
        lambda x: F.lovasz_softmax_loss(x, labels, classes="all", per_image=True),
        lambda x: kornia.lovasz_softmax_loss(x, labels),
        logits,
    )


# ------------------------------------------------------------------------------------------ nnU-Net


def nnunet_dice(logits: Tensor, labels: Tensor, batch_dice: bool, do_bg: bool) -> Tensor:
    """By the definition in its documentation: minus the mean Dice coefficient, smoothed by 1e-5."""
    p = logits.softmax(1)
    g = torch.nn.functional.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(p)
    over = (0, 2, 3) if batch_dice else (2, 3)
    coefficient = (2 * (p * g).sum(over) + 1e-5) / (p.sum(over) + g.sum(over) + 1e-5).clip(1e-8)
    return -coefficient[..., (0 if do_bg else 1) :].mean()


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("do_bg", [False, True])
def test_nnunet_dice_and_cross_entropy(batch_dice: bool, do_bg: bool) -> None:
    logits, labels = voxels()
    check(
        lambda x: (
            F.dice_cross_entropy_loss(x, labels, batch=batch_dice, include_background=do_bg) - 1
        ),
        lambda x: nnunet_dice(x, labels, batch_dice, do_bg) + cross_entropy(x, labels),
        logits,
    )
