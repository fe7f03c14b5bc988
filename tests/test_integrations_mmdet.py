# SPDX-License-Identifier: MIT
"""fastloss.patch("mmdet") and ("mmyolo"), against the losses of MMDetection and MMYOLO themselves.

Only their losses are imported: for the rest they need mmcv's compiled operators, which no wheel for
this torch has. What stands in for mmcv and the like here is never called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastloss
from fastloss.integrations import patching
from fastloss.integrations.mmdet import MMDET
from fastloss.integrations.mmyolo import MMYOLO


class _Anything(ModuleType):
    """A module that has every name."""

    __path__: Sequence[str] = ()
    __version__ = "2.0.1"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns:
    """Finds such a module for what is not to be imported."""

    roots = frozenset({"mmcv", "cv2", "pycocotools", "shapely", "terminaltables"})

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] not in self.roots:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@pytest.fixture(scope="module")
def models(torchvision: ModuleType) -> Iterator[None]:
    """Makes the losses of both importable without the models beside them."""
    for framework in (MMDET, MMYOLO):
        if not framework.status().usable:
            pytest.skip(f"{framework.name} {framework.installed()} cannot be patched")
    before = set(sys.modules)
    finder: Any = _StandIns()
    sys.meta_path.insert(0, finder)
    for name in ("mmdet", "mmyolo"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        models = ModuleType(f"{name}.models")
        models.__path__ = [f"{spec.submodule_search_locations[0]}/models"]
        sys.modules[models.__name__] = models
    yield
    sys.meta_path.remove(finder)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {*_StandIns.roots, "mmdet", "mmyolo", "mmengine"}:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


def make(name: str, **options: Any) -> torch.nn.Module:
    """A loss built by MMDetection's registry, as a config has it."""
    importlib.import_module("mmdet.models.losses")
    registry = importlib.import_module("mmdet.registry").MODELS
    module: torch.nn.Module = registry.build({"type": name, **options})
    return module


def boxes(*shape: int) -> Tensor:
    corner, size = 40 * torch.rand(2, *shape, 2)
    return torch.cat((corner, corner + 1 + size), -1)


N, C = 17, 5
BOX_LOSSES = [
    *(("IoULoss", {"mode": mode}) for mode in ("log", "linear", "square")),
    *((name, {}) for name in ("GIoULoss", "DIoULoss", "CIoULoss", "L1Loss")),
    ("SmoothL1Loss", {"beta": 3.0}),
    ("GIoULoss", {"loss_weight": 2.0, "reduction": "sum"}),
]
LOGIT_LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("FocalLoss", {}),
    ("FocalLoss", {"gamma": 1.5, "alpha": 0.6, "loss_weight": 2.0}),
    ("FocalLoss", {"one_hot": True}),
    ("VarifocalLoss", {}),
    ("QualityFocalLoss", {}),
    ("QualityFocalLoss", {"dense": True, "beta": 1.5}),
    ("DistributionFocalLoss", {"loss_weight": 0.25}),
]


def arguments_of(name: str, options: dict[str, Any]) -> tuple[Tensor, Any]:
    torch.manual_seed(0)
    if name in [box_loss for box_loss, _ in BOX_LOSSES]:
        target = boxes(N)
        return torch.where(torch.rand(N, 1) < 0.7, target + torch.rand(N, 4), boxes(N)), target
    logits, labels = 2 * torch.randn(N, C), torch.randint(C + 1, (N,))
    one_hot = torch.nn.functional.one_hot(labels, C + 1)[:, :C].float()
    if name == "DistributionFocalLoss":
        return logits, (C - 1.01) * torch.rand(N)
    if name == "FocalLoss":
        return logits, one_hot if options.get("one_hot") else labels
    if name == "QualityFocalLoss" and not options.get("dense"):
        return logits, (labels, torch.rand(N))
    return logits, one_hot * torch.rand(N, C)


def result(module: torch.nn.Module, pred: Tensor, *arguments: Any, **more: Any) -> list[Tensor]:
    pred = pred.detach().clone().requires_grad_()
    loss = module(pred, *arguments, **more)
    return [
        loss,
        *torch.autograd.grad(
            (loss * torch.linspace(0.5, 2, loss.numel()).view(loss.shape)).sum(), pred
        ),
    ]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        # An avg_factor of 0 makes everything large.
        largest = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6 * largest)


@pytest.mark.parametrize(("name", "options"), [*BOX_LOSSES, *LOGIT_LOSSES], ids=str)
def test_losses_agree(
    models: None, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    own = {key: value for key, value in options.items() if key not in ("one_hot", "dense")}
    module = make(name, **own)
    pred, target = arguments_of(name, options)
    row = torch.rand(N).round(decimals=1)
    element = row.unsqueeze(1).expand_as(pred).contiguous()
    weights: list[Tensor | None] = [None, row, element]
    if name in ("L1Loss", "SmoothL1Loss", "VarifocalLoss"):
        weights = [None, element]
    elif name in ("QualityFocalLoss", "DistributionFocalLoss"):
        weights = [None, row]
    calls = [
        (target, weight, avg_factor, reduction)
        for weight in weights
        for avg_factor, reduction in [
            *((None, one) for one in (None, "mean", "sum", "none")),
            *((7.5, one) for one in ("mean", "none")),
            *((torch.tensor(7.5), "mean"), (0.0, "mean")),
        ]
        if avg_factor is None or (reduction or own.get("reduction")) != "sum"
    ]
    expected = [result(module, pred, *call) for call in calls]
    computed = []
    for kernel in fastloss.functional.__all__:
        function = getattr(fastloss.functional, kernel)
        monkeypatch.setattr(
            fastloss.functional,
            kernel,
            lambda *given, _function=function, **more: (
                computed.append(1) or _function(*given, **more)
            ),
        )
    with fastloss.patch("mmdet"):
        for call, one in zip(calls, expected, strict=True):
            assert_same(result(module, pred, *call), one)
    assert len(computed) > len(calls) / 2


@pytest.mark.parametrize("name", ["GIoULoss", "FocalLoss", "L1Loss"])
def test_odd_calls_are_left_to_mmdet(models: None, name: str) -> None:
    module = make(name)
    pred, target = arguments_of(name, {})
    nothing = torch.zeros(N)
    calls: list[tuple[Any, ...]] = [
        (pred, target, None, 3.0, "sum"),
        (pred, target, None, None, "average"),
        (pred[:0], target[:0]),
        (pred.half(), target if name == "FocalLoss" else target.half()),
        (pred, target, nothing if name == "GIoULoss" else nothing.unsqueeze(1).expand_as(pred)),
        (pred, target[:3]),
    ]
    if name == "FocalLoss":
        calls.append((pred, target - 1))

    def outcome(call: tuple[Any, ...]) -> Any:
        try:
            return module(*call)
        except Exception as error:
            return f"{type(error)} {error}"

    expected = list(map(outcome, calls))
    with fastloss.patch("mmdet"):
        found = list(map(outcome, calls))
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, str):
            assert one == other
        else:
            torch.testing.assert_close(one, other, equal_nan=True, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("bbox_format", ["xyxy", "xywh"])
@pytest.mark.parametrize("mode", ["ciou", "giou", "siou"])
def test_mmyolo(models: None, mode: str, bbox_format: str) -> None:
    losses = importlib.import_module("mmyolo.models.losses")
    pred, target = arguments_of("CIoULoss", {})
    module = losses.IoULoss(iou_mode=mode, bbox_format=bbox_format, loss_weight=2.0)
    plain = losses.IoULoss(iou_mode=mode, bbox_format=bbox_format, return_iou=False)
    row = torch.rand(N)

    def everything() -> list[Tensor]:
        loss, iou = module(pred, target, weight=row, avg_factor=3.0)
        return [
            loss,
            iou,
            *result(plain, pred, target),
            *result(plain, pred, target, row.unsqueeze(1).expand(N, 4), reduction_override="none"),
        ]

    expected = everything()
    with fastloss.patch("mmyolo"):
        found = everything()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
