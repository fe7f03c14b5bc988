# SPDX-License-Identifier: MIT
"""fastloss.patch("ultralytics"), against ultralytics' own results."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastloss
from fastloss import functional
from fastloss.integrations import patching
from fastloss.integrations.ultralytics import ULTRALYTICS

SIZE = 160
LEVELS = (8, 16, 32)


@pytest.fixture(scope="module", autouse=True)
def ultralytics(tmp_path_factory: pytest.TempPathFactory) -> Any:
    # Importing it writes its settings.
    os.environ.setdefault("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
    pytest.importorskip("cv2")
    module = pytest.importorskip("ultralytics")
    if not ULTRALYTICS.status().usable:
        pytest.skip(f"ultralytics {ULTRALYTICS.status().installed} is not one that can be patched")
    return module


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of fastloss's functions as they are called."""
    calls: list[str] = []
    for name in functional.__all__:
        function = getattr(functional, name)

        def count(*arguments: Any, function: Any = function, name: str = name, **more: Any) -> Any:
            calls.append(name)
            return function(*arguments, **more)

        monkeypatch.setattr(functional, name, count)
    return calls


def results(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """What is computed, and the gradients of the inputs that can have one."""
    inputs = tuple(
        tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in inputs
    )
    found = compute(*inputs)
    floating = [tensor for tensor in inputs if tensor.is_floating_point()]
    gradients = torch.autograd.grad(found.float().sum(), floating, allow_unused=True)
    return [found.detach(), *(gradient for gradient in gradients if gradient is not None)]


def check_same(
    compute: Callable[..., Tensor], *inputs: Tensor, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    expected = results(compute, *inputs)
    with fastloss.patch("ultralytics"):
        found = results(compute, *inputs)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# -------------------------------------------------------------------------------- single functions


def boxes(*shape: int, seed: int = 0) -> Tensor:
    """Boxes as corners, of 10 to 60 pixels."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(*shape, 2, generator=generator) * 60
    half = 5 + 25 * torch.rand(*shape, 2, generator=generator)
    return torch.cat((center - half, center + half), dim=-1)


@pytest.mark.parametrize("flag", [{}, {"GIoU": True}, {"DIoU": True}, {"CIoU": True}], ids=str)
@pytest.mark.parametrize("xywh", [True, False])
@pytest.mark.parametrize(
    "shapes", [((7,), (7,)), ((), (7,)), ((2, 7), (2, 7)), ((2, 7, 1), (2, 1, 5))], ids=str
)
def test_bbox_iou(flag: dict[str, bool], xywh: bool, shapes: Any, called: list[str]) -> None:
    from ultralytics.utils import metrics

    first, second = boxes(*shapes[0]), boxes(*shapes[1], seed=1)
    check_same(lambda a, b: metrics.bbox_iou(a, b, xywh=xywh, **flag), first, second)
    assert len(called) == 1


def test_bbox_iou_of_half_predictions_and_float_targets() -> None:
    from ultralytics.utils import metrics

    first, second = boxes(50).half(), boxes(50, seed=1)
    expected = metrics.bbox_iou(first.float(), second, xywh=False, CIoU=True)
    with fastloss.patch("ultralytics"):
        found = metrics.bbox_iou(first, second, xywh=False, CIoU=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_probiou(floor: float, called: list[str]) -> None:
    from ultralytics.utils import metrics

    more = {"floor": floor} if floor else {}
    if not more.keys() <= inspect.signature(metrics.probiou).parameters.keys():
        pytest.skip("this version has no floor")
    first, second = (
        torch.cat((boxes(9, seed=seed).abs() + 3, torch.rand(9, 1)), dim=1) for seed in (0, 1)
    )
    check_same(lambda a, b: metrics.probiou(a, b, **more), first, second, rtol=1e-3, atol=1e-4)
    assert called == ["probabilistic_iou_loss"]
    with fastloss.patch("ultralytics"):
        assert metrics.probiou(first, second, CIoU=True).shape == (9, 1)
    assert len(called) == 1


def test_keypoint_loss(called: list[str]) -> None:
    from ultralytics.utils.loss import KeypointLoss

    loss = KeypointLoss(torch.rand(5) / 10 + 0.05)
    there, area = torch.rand(7, 5, 2) * 40, torch.rand(7, 1) * 900 + 50
    visible = torch.rand(7, 5) < 0.7
    check_same(lambda x: loss(x, there, visible, area), there + 3 * torch.randn(7, 5, 2))
    check_same(lambda x: loss(x, there, visible.float(), area), torch.rand(7, 5, 3) * 40)
    assert set(called) == {"object_keypoint_similarity_loss"}


def test_every_module_has_the_stand_in() -> None:
    from ultralytics.models.utils import loss as of_transformers
    from ultralytics.models.utils import ops
    from ultralytics.utils import loss, metrics, tal

    stock = metrics.bbox_iou
    modules = (metrics, loss, tal, ops, of_transformers)
    with fastloss.patch("ultralytics"):
        assert metrics.bbox_iou is not stock
        assert all(module.bbox_iou is metrics.bbox_iou for module in modules)
    assert all(module.bbox_iou is stock for module in modules)


def test_distribution_focal_loss(called: list[str]) -> None:
    from ultralytics.utils.loss import DFLoss

    loss = DFLoss(16)
    logits, target = torch.randn(4 * 9, 16), 18 * torch.rand(9, 4) - 1
    expected = results(lambda x: loss(x, target.clone()), logits)
    before = target.clone()
    with fastloss.patch("ultralytics"):
        found = results(lambda x: loss(x, target), logits)
    assert torch.equal(target, before)
    assert called == ["distribution_focal_loss"]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{}, {"gamma": 2.0, "alpha": 0.6}, {"alpha": 0.0}], ids=str)
def test_focal_loss(options: dict[str, float], called: list[str]) -> None:
    from ultralytics.utils.loss import FocalLoss

    if "alpha" not in inspect.signature(FocalLoss).parameters:
        pytest.skip("this version takes the options with the call")
    label = (torch.rand(9, 5) < 0.3).float()
    check_same(lambda x: FocalLoss(**options)(x, label), torch.randn(9, 5))
    assert called == ["sigmoid_focal_loss"]


def test_varifocal_loss(called: list[str]) -> None:
    from ultralytics.utils.loss import VarifocalLoss

    label = (torch.rand(2, 9, 5) < 0.3).float()
    score = torch.rand(2, 9, 5) * label
    score[0, :3] = 0.0  # positives that overlap nothing among them
    check_same(lambda x: VarifocalLoss()(x, score, label), torch.randn(2, 9, 5))
    assert called == ["varifocal_loss"]


def test_what_the_kernels_do_not_take_is_ultralytics_own() -> None:
    from ultralytics.utils import metrics

    with fastloss.patch("ultralytics"):
        whole = boxes(3).int()
        assert metrics.bbox_iou(whole, whole, xywh=False).shape == (3, 1)
        with pytest.raises(Exception, match=r".+"):
            metrics.bbox_iou(torch.zeros(3, 5), torch.zeros(3, 4))


# ------------------------------------------------------------------------------------ the criterion


def criterion(classes: int = 6, bins: int = 16, **options: Any) -> Any:
    from ultralytics.utils.loss import v8DetectionLoss

    model: Any = nn.Module()
    model.somewhere = nn.Parameter(torch.zeros(1))
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    stride = torch.tensor([float(level) for level in LEVELS])
    model.model = [SimpleNamespace(stride=stride, nc=classes, reg_max=bins)]
    if (weights := options.pop("class_weights", None)) is not None:
        model.class_weights = weights
    return v8DetectionLoss(model, **options)


def batch(
    images: int = 3, classes: int = 6, bins: int = 16, objects: int = 9, seed: int = 0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What is predicted, and what is there; the second image is empty."""
    generator = torch.Generator().manual_seed(seed)
    anchors = sum((SIZE // level) ** 2 for level in LEVELS)
    scores = torch.randn(images, classes, anchors, generator=generator) - 3
    distances = torch.randn(images, 4 * bins, anchors, generator=generator)
    index = torch.randint(images - 1, (objects,), generator=generator).mul(2).remainder(images)
    sides = 0.02 + 0.4 * torch.rand(objects, 2, generator=generator)
    return (
        scores,
        distances,
        {
            "batch_idx": index.sort().values.float(),
            "cls": torch.randint(classes, (objects, 1), generator=generator).float(),
            "bboxes": torch.cat((torch.rand(objects, 2, generator=generator), sides), dim=1),
        },
    )


def step(loss: Any, scores: Tensor, distances: Tensor, there: dict[str, Tensor]) -> list[Any]:
    """The losses, what is shown of them, and the gradients."""
    scores, distances = scores.clone().requires_grad_(), distances.clone().requires_grad_()
    sides = [SIZE // level for level in LEVELS]
    maps = [scores.new_zeros(len(scores), 1, side, side) for side in sides]
    predictions: Any = {"boxes": distances, "scores": scores, "feats": maps}
    if not hasattr(type(loss), "loss"):  # before 8.4
        joined = torch.cat((distances, scores), 1).split([side * side for side in sides], 2)
        predictions = [
            part.unflatten(2, (side, side)) for part, side in zip(joined, sides, strict=True)
        ]
    losses, shown = loss(predictions, there)
    losses.sum().backward()
    if isinstance(shown, dict):
        assert list(shown) == list(loss.loss_names)
        shown = torch.stack(list(shown.values()))
    zeros = torch.zeros_like(distances)
    gradient = zeros if distances.grad is None else distances.grad
    return [losses.detach(), shown, scores.grad, gradient]


def check_criterion(loss: Any, inputs: Any, *, is_fused: bool, called: list[str]) -> None:
    expected = step(loss, *inputs)
    with fastloss.patch("ultralytics", criterion="fused"):
        found = step(loss, *inputs)
    assert ("task_aligned_detection_loss" in called) == is_fused
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        # 1e-4 relative is what is promised of losses.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"objects": 40},
        {"objects": 0},
        {"images": 1, "objects": 3},
        {"bins": 8},
    ],
    ids=str,
)
def test_criterion(case: dict[str, int], called: list[str]) -> None:
    if case == {"images": 1, "objects": 3}:
        scores, distances, there = batch(images=2, objects=3)
        inputs: Any = (scores[:1], distances[:1], there)
    else:
        inputs = batch(**case)
    check_criterion(criterion(bins=case.get("bins", 16)), inputs, is_fused=True, called=called)


def test_criterion_with_class_weights(called: list[str]) -> None:
    loss = criterion(class_weights=torch.rand(6))
    if not hasattr(loss, "class_weights"):
        pytest.skip("this version has no class weights")
    check_criterion(loss, batch(), is_fused=True, called=called)


def test_criterion_that_keeps_one_anchor_per_box(called: list[str]) -> None:
    if not hasattr(criterion().assigner, "topk2"):
        pytest.skip("this version keeps all anchors")
    loss = criterion(tal_topk=7, tal_topk2=1)
    check_criterion(loss, batch(objects=20), is_fused=True, called=called)


def test_without_distributions_it_is_ultralytics_own(called: list[str]) -> None:
    if not hasattr(type(criterion()), "loss"):
        pytest.skip("this version has no loss of plain distances")
    check_criterion(criterion(bins=1), batch(bins=1), is_fused=False, called=called)


def test_a_changed_step_is_ultralytics_own(called: list[str]) -> None:
    loss = criterion()

    class Assigner(type(loss.assigner)):  # type: ignore[misc]
        pass

    loss.assigner.__class__ = Assigner
    check_criterion(loss, batch(), is_fused=False, called=called)


def test_loss_curves_agree() -> None:
    """A small network, twenty steps of each."""

    def curve() -> list[float]:
        torch.manual_seed(0)
        scores, _, there = batch(images=2, objects=8)
        features = torch.randn(2, 8, scores.shape[2])
        heads = nn.ModuleList([nn.Conv1d(8, size, 1) for size in (6, 64)])
        optimizer = torch.optim.SGD(heads.parameters(), lr=0.02)
        loss, losses = criterion(), []
        sides = [SIZE // level for level in LEVELS]
        maps = [torch.zeros(2, 1, side, side) for side in sides]
        for _ in range(20):
            of_scores, of_distances = (head(features) for head in heads)
            predictions: Any = {"boxes": of_distances, "scores": of_scores - 3, "feats": maps}
            if not hasattr(type(loss), "loss"):
                joined = torch.cat((of_distances, of_scores - 3), 1)
                parts = joined.split([side * side for side in sides], 2)
                predictions = [
                    part.unflatten(2, (side, side)) for part, side in zip(parts, sides, strict=True)
                ]
            total = loss(predictions, there)[0].sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
        return losses

    expected = curve()
    with fastloss.patch("ultralytics", criterion="fused"):
        found = curve()
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=1e-4)


def test_options_of_the_patch() -> None:
    from ultralytics.utils.loss import DFLoss, v8DetectionLoss

    name = "loss" if hasattr(v8DetectionLoss, "loss") else "__call__"
    stock, single = getattr(v8DetectionLoss, name), DFLoss.__call__
    with fastloss.patch("ultralytics"):
        assert getattr(v8DetectionLoss, name) is stock
        with fastloss.patch("ultralytics", criterion="fused"):
            assert getattr(v8DetectionLoss, name) is not stock
        assert getattr(v8DetectionLoss, name) is stock
        assert DFLoss.__call__ is not single
    assert DFLoss.__call__ is single
    with pytest.raises(ValueError, match="of 'ultralytics' must be among criterion='fused'"):
        fastloss.patch("ultralytics", criterion="fast")
    with pytest.raises(ValueError, match="options of 'torch' must be among none; got criterion"):
        fastloss.patch("torch", criterion="fused")
