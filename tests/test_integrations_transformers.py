# SPDX-License-Identifier: MIT
"""fastloss.patch("transformers"), against transformers' own criteria; no model is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastloss
from fastloss.integrations import patching
from fastloss.integrations.transformers import TRANSFORMERS

CLASSES = 6


@pytest.fixture(scope="module")
def losses(torchvision: ModuleType) -> Callable[[str], Any]:
    """A module of transformers' losses; it imports torchvision where that is installed."""
    if not TRANSFORMERS.status().usable:
        pytest.skip(f"transformers {TRANSFORMERS.status().installed} cannot be patched")
    return lambda name: importlib.import_module(f"transformers.loss.loss_{name}")


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


def boxes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    sides = 0.05 + 0.4 * torch.rand(*shape, 2, dtype=torch.float64)
    return torch.cat((0.1 + 0.8 * torch.rand(*shape, 2, dtype=torch.float64), sides), -1).to(dtype)


def outputs_and_targets(
    counts: tuple[int, ...] = (3, 0, 5),
    *,
    queries: int = 12,
    classes: int = CLASSES,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    outputs = {
        "logits": torch.randn(len(counts), queries, classes).to(dtype).requires_grad_(),
        "pred_boxes": boxes(len(counts), queries, dtype=dtype).requires_grad_(),
    }
    wide = torch.promote_types(dtype, torch.float32)
    targets = [
        {"class_labels": torch.randint(CLASSES, (count,)), "boxes": boxes(count, dtype=wide)}
        for count in counts
    ]
    return outputs, targets


CONFIG = SimpleNamespace(
    matcher_class_cost=2.0,
    matcher_bbox_cost=5.0,
    matcher_giou_cost=2.0,
    use_focal_loss=True,
    matcher_alpha=0.25,
    matcher_gamma=2.0,
    num_labels=CLASSES,
    weight_loss_vfl=1.0,
    weight_loss_bbox=5.0,
    weight_loss_giou=2.0,
    weight_loss_fgl=0.15,
    weight_loss_ddf=1.5,
    eos_coefficient=0.1,
    focal_loss_alpha=0.75,
    focal_loss_gamma=2.0,
    max_num_bins=8,
    reg_scale=4.0,
    up=0.5,
)


def criterion(losses: Callable[[str], Any], name: str) -> tuple[Any, int]:
    """The criterion of a model, and how many logits a query has."""
    if name == "detr":
        module = losses("for_object_detection")
        matcher = module.HungarianMatcher(1.0, 5.0, 2.0)
        names = ["labels", "boxes", "cardinality"]
        return module.ImageLoss(matcher, CLASSES, 0.1, names), CLASSES + 1
    if name == "deformable_detr":
        module = losses("deformable_detr")
        matcher = module.DeformableDetrHungarianMatcher(2.0, 5.0, 2.0)
        loss = module.DeformableDetrImageLoss(matcher, CLASSES, 0.25, ["labels", "boxes"])
        return loss, CLASSES
    if name == "lw_detr":
        module = losses("lw_detr")
        matcher = module.LwDetrHungarianMatcher(2.0, 5.0, 2.0)
        loss = module.LwDetrImageLoss(matcher, CLASSES, 0.25, ["labels", "boxes"], 3)
        return loss, CLASSES
    if name == "rt_detr":
        return losses("rt_detr").RTDetrLoss(CONFIG), CLASSES
    return losses("d_fine").DFineLoss(CONFIG), CLASSES


def result(loss: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> list[Tensor]:
    """The losses and the gradients."""
    found = loss(outputs, targets)
    total = sum(value for value in found.values() if value.requires_grad)
    wanted = [value for value in outputs.values() if isinstance(value, Tensor) and value.is_leaf]
    wanted = [value for value in wanted if value.requires_grad]
    return [*found.values(), *torch.autograd.grad(total, wanted)]


CRITERIA = ["detr", "deformable_detr", "lw_detr", "rt_detr", "d_fine"]
PRECISION = {torch.float32: (1e-5, 1e-6), torch.float64: (1e-11, 1e-12)}


@pytest.mark.parametrize("counts", [(3, 0, 5), (1,), (0, 0)], ids=str)
@pytest.mark.parametrize(
    ("name", "dtype"),
    # D-FINE's own bins are float32.
    [
        (name, dtype)
        for name in CRITERIA
        for dtype in PRECISION
        if name != "d_fine" or dtype.itemsize == 4
    ],
)
def test_criteria_agree(
    losses: Callable[[str], Any], name: str, counts: tuple[int, ...], dtype: torch.dtype
) -> None:
    loss, classes = criterion(losses, name)
    if name == "detr":
        loss.to(dtype)
    outputs, targets = outputs_and_targets(counts, classes=classes, dtype=dtype)
    if name == "d_fine":
        outputs["pred_corners"] = torch.randn(len(counts), 12, 4 * 9).requires_grad_()
        outputs["teacher_corners"] = outputs["pred_corners"].detach()
        outputs["ref_points"] = boxes(len(counts), 12)
        outputs["teacher_logits"] = None
    if sum(counts) > 0:
        auxiliary = outputs_and_targets(counts, classes=classes, dtype=dtype)[0]
        outputs["auxiliary_outputs"] = [{**outputs, **auxiliary}]
    expected = result(loss, outputs, targets)
    calls = []
    matching = fastloss.functional.detr_matching_cost
    with pytest.MonkeyPatch.context() as patched, fastloss.patch("transformers"):
        patched.setattr(
            fastloss.functional,
            "detr_matching_cost",
            lambda *given, **options: calls.append(1) or matching(*given, **options),
        )
        found = result(loss, outputs, targets)
    assert len(calls) == 1 + ("auxiliary_outputs" in outputs)
    rtol, atol = PRECISION[dtype]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_half_precision_predictions(losses: Callable[[str], Any]) -> None:
    """As they are under autocast; what is not in float32 by itself stays in half precision."""
    loss, classes = criterion(losses, "rt_detr")
    outputs, targets = outputs_and_targets(classes=classes, dtype=torch.bfloat16)
    indices = [
        (torch.tensor([1, 4, 7])[: len(t["boxes"])], torch.arange(3)[: len(t["boxes"])])
        for t in targets
    ]

    def parts() -> list[Tensor]:
        return [
            loss.loss_labels_vfl(outputs, targets, indices, 3.0)["loss_vfl"],
            *loss.loss_boxes(outputs, targets, indices, 3.0).values(),
        ]

    expected = parts()
    with fastloss.patch("transformers"):
        found = parts()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["for_object_detection", "grounding_dino"])
@pytest.mark.parametrize("alpha", [0.25, -1])
def test_focal_losses(losses: Callable[[str], Any], name: str, alpha: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9, 5, requires_grad=True)
    target = torch.rand(4, 9, 5).round()

    def values() -> list[Tensor]:
        function = losses(name).sigmoid_focal_loss
        loss = function(logits, target, 3.0, alpha=alpha)
        return [loss, *torch.autograd.grad(loss, logits)]

    expected = values()
    with fastloss.patch("transformers"):
        assert losses("lw_detr").sigmoid_focal_loss.__wrapped__
        found = values()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", ["negative side", "nan", "label"])
def test_odd_input_is_left_to_transformers(losses: Callable[[str], Any], bad: str) -> None:
    loss, classes = criterion(losses, "detr")
    outputs, targets = outputs_and_targets((2,), classes=classes)
    if bad == "label":
        targets[0]["class_labels"][1] = classes
    else:
        with torch.no_grad():
            outputs["pred_boxes"][0, 3, 2] = -0.5 if bad == "negative side" else torch.nan

    def error() -> str:
        with pytest.raises((ValueError, IndexError)) as raised:
            loss.matcher(outputs, targets)
        return f"{type(raised.value)} {raised.value}"

    expected = error()
    with fastloss.patch("transformers"):
        assert error() == expected


def test_what_is_infinite_is_matched_last(losses: Callable[[str], Any]) -> None:
    loss, classes = criterion(losses, "detr")
    outputs, targets = outputs_and_targets((4,), classes=classes)
    with torch.no_grad():
        outputs["logits"][0, :5] = torch.nan
    with fastloss.patch("transformers"):
        found = loss.matcher(outputs, targets)
    try:
        expected = loss.matcher(outputs, targets)
    except ValueError:  # of the older versions
        pass
    else:
        assert torch.equal(torch.stack(found[0]), torch.stack(expected[0]))
    assert (found[0][0] >= 5).all()
