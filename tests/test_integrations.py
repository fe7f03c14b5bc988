# SPDX-License-Identifier: MIT
"""fastloss.patch: the mechanism on a package laid out as torchvision, the values on torchvision."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import itertools
import re
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import without_places
from torch import Tensor, nn

import fastloss
from fastloss.integrations import patching

Function = Callable[..., Tensor]

BOX_LOSSES = ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"]
LOSSES = [*BOX_LOSSES, "sigmoid_focal_loss"]
FUNCTIONS = [*LOSSES, "box_iou"]


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges


# ---------------------------------------------------------------- a package laid out as torchvision

_BOX_LOSS = """
    from . import calls

    def {name}(boxes1, boxes2, reduction="none", eps=1e-7):
        '''The docstring of {name}.'''
        calls.append("{name}")
        boxes1, boxes2 = boxes1 + 0.0, boxes2 + 0.0
        if reduction not in ("none", "mean", "sum"):
            raise ValueError("Invalid reduction")
        loss = (boxes1 - boxes2).abs().sum(-1)
        return loss if reduction == "none" else getattr(loss, reduction)()
"""
_FOCAL_LOSS = """
    import torch
    from . import calls

    def sigmoid_focal_loss(
        inputs: torch.Tensor,
        targets: torch.Tensor,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: str = "none",
    ):
        if not torch.jit.is_scripting():
            calls.append("sigmoid_focal_loss")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError("Invalid reduction")
        return (inputs - targets).mean()
"""
_FILES = {
    "__init__.py": "",
    "ops/__init__.py": """
        calls = []
        from .boxes import box_iou
        from .ciou_loss import complete_box_iou_loss
        from .diou_loss import distance_box_iou_loss
        from .focal_loss import sigmoid_focal_loss
        from .giou_loss import generalized_box_iou_loss
    """,
    "ops/giou_loss.py": _BOX_LOSS.format(name="generalized_box_iou_loss"),
    "ops/diou_loss.py": _BOX_LOSS.format(name="distance_box_iou_loss"),
    "ops/ciou_loss.py": _BOX_LOSS.format(name="complete_box_iou_loss"),
    "ops/focal_loss.py": _FOCAL_LOSS,
    "ops/boxes.py": """
        from . import calls

        def box_iou(boxes1, boxes2):
            calls.append("box_iou")
            return (boxes1[:, None] - boxes2).sum(-1)
    """,
    "models/__init__.py": "",
    "models/detection/__init__.py": "",
    "models/detection/fcos.py": "class FCOSHead:\n    def compute_loss(self): ...",
    "models/detection/retinanet.py": """
        class RetinaNetClassificationHead:
            def compute_loss(self): ...
    """,
    "models/fcos.py": """
        from ..ops import generalized_box_iou_loss, sigmoid_focal_loss as focal
        from ..ops.giou_loss import generalized_box_iou_loss as same_again
    """,
    "models/retinanet.py": "from ..ops import sigmoid_focal_loss",
}


def _of_torchvision() -> dict[str, ModuleType]:
    return {
        name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"
    }


@pytest.fixture
def set_aside() -> Iterator[None]:
    """Makes room for another package of the name torchvision."""
    real = _of_torchvision()
    for name in real:
        del sys.modules[name]
    yield
    for name in _of_torchvision():
        del sys.modules[name]
    sys.modules.update(real)


@pytest.fixture
def make_package(
    set_aside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    def make(version: str) -> None:
        for name, text in _FILES.items():
            path = tmp_path / "torchvision" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        metadata = tmp_path / f"torchvision-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: torchvision\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return make


@pytest.fixture
def package(make_package: Callable[[str], None]) -> Callable[[str], ModuleType]:
    """Imports a module of the package."""
    make_package("0.28.0+cpu")
    return lambda name: importlib.import_module(f"torchvision.{name}")


def _references(package: Callable[[str], ModuleType]) -> dict[str, Function]:
    """Every name under which the package has one of the functions."""
    ops, fcos, retinanet = package("ops"), package("models.fcos"), package("models.retinanet")
    return {
        **{f"ops.{name}": getattr(ops, name) for name in FUNCTIONS},
        "ops.boxes": package("ops.boxes").box_iou,
        "ops.giou_loss": package("ops.giou_loss").generalized_box_iou_loss,
        "ops.diou_loss": package("ops.diou_loss").distance_box_iou_loss,
        "ops.ciou_loss": package("ops.ciou_loss").complete_box_iou_loss,
        "ops.focal_loss": package("ops.focal_loss").sigmoid_focal_loss,
        "fcos.generalized_box_iou_loss": fcos.generalized_box_iou_loss,
        "fcos.same_again": fcos.same_again,
        "fcos.focal": fcos.focal,
        "retinanet": retinanet.sigmoid_focal_loss,
    }


def test_every_reference_is_replaced_and_restored(package: Callable[[str], ModuleType]) -> None:
    before = _references(package)
    patch = fastloss.patch("torchvision")
    during = _references(package)
    assert all(during[name] is not before[name] for name in before)
    assert len(set(during.values())) == len(FUNCTIONS)  # one stand-in each, whatever the name
    patch.undo()
    assert _references(package) == before


def test_modules_imported_later_are_replaced_and_restored(
    package: Callable[[str], ModuleType],
) -> None:
    with fastloss.patch("torchvision"):
        assert "torchvision.models.fcos" not in sys.modules
        assert package("models.fcos").focal is package("ops").sigmoid_focal_loss
        assert package("ops").sigmoid_focal_loss.__wrapped__
    assert package("models.fcos").focal is package("ops.focal_loss").sigmoid_focal_loss
    assert not hasattr(package("models.fcos").focal, "__wrapped__")


def test_other_packages_are_left_alone(
    package: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ModuleType("torchvision_extras")
    mine.focal = package("ops").sigmoid_focal_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    with fastloss.patch("torchvision"):
        assert mine.focal is package("ops").sigmoid_focal_loss.__wrapped__


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_patches_nest_in_any_order(
    package: Callable[[str], ModuleType], order: tuple[int, ...]
) -> None:
    before = _references(package)
    patches = [fastloss.patch("torchvision") for _ in order]
    during = _references(package)
    for index in order:
        assert _references(package) == during != before
        for _ in range(2):  # undoing twice does nothing more
            patches[index].undo()
    assert _references(package) == before


def test_with_block(package: Callable[[str], ModuleType]) -> None:
    before = _references(package)
    with fastloss.patch("torchvision") as outer:
        during = _references(package)
        with fastloss.patch("torchvision"):
            assert _references(package) == during
        assert _references(package) == during != before
        assert "active" in repr(outer)
    assert "undone" in repr(outer)
    assert _references(package) == before
    with pytest.raises(RuntimeError, match=r"was undone: call fastloss\.patch again"), outer:
        pass
    with pytest.raises(ZeroDivisionError), fastloss.patch("torchvision"):
        raise ZeroDivisionError
    assert _references(package) == before


def test_nothing_is_patched_where_a_function_is_missing(
    package: Callable[[str], ModuleType],
) -> None:
    before = _references(package)
    focal = package("ops.focal_loss")
    function = focal.__dict__.pop("sigmoid_focal_loss")
    with pytest.raises(ImportError, match=r"sigmoid_focal_loss cannot be .*nothing was patched"):
        fastloss.patch("torchvision")
    focal.sigmoid_focal_loss = function  # type: ignore[attr-defined]
    assert _references(package) == before


@pytest.mark.parametrize("version", ["0.24.1", "0.30.0a0+git1234", "1.0"])
def test_untested_version(make_package: Callable[[str], None], version: str) -> None:
    make_package(version)
    status = fastloss.patch.available()["torchvision"]
    assert status == (version, "0.25 to 0.29", False)
    with pytest.raises(ImportError) as raised:
        fastloss.patch("torchvision")
    assert version in str(raised.value)
    assert status.supported in str(raised.value)
    assert not _of_torchvision()  # not even imported


def test_not_installed(set_aside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert fastloss.patch.available()["torchvision"].installed is None
    with pytest.raises(ImportError, match=r"torchvision is not installed.* 0\.25 to 0\.29"):
        fastloss.patch("torchvision")


def test_unknown_framework() -> None:
    known = [
        *("fvcore", "mmdet", "mmyolo", "monai", "torch", "torchcrf", "torchvision"),
        *("transformers", "ultralytics"),
    ]
    assert sorted(fastloss.patch.available()) == known
    with pytest.raises(ValueError, match=f"one of {re.escape(str(known))}, got 'tensorflow'"):
        fastloss.patch("tensorflow")


@pytest.mark.parametrize("name", sorted(fastloss.patch.available()))
def test_no_framework_is_patched_in_a_version_that_was_not_tested(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    supported = fastloss.patch.available()[name].supported
    monkeypatch.setattr(importlib.metadata, "version", lambda distribution: "99.1")
    assert fastloss.patch.available()[name] == ("99.1", supported, False)
    with pytest.raises(ImportError, match=rf"{name} 99\.1 is installed.* {re.escape(supported)}"):
        fastloss.patch(name)

    def missing(distribution: str) -> str:
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert fastloss.patch.available()[name] == (None, supported, False)
    with pytest.raises(ImportError, match=rf"{name} is not installed.* {re.escape(supported)}"):
        fastloss.patch(name)


def test_methods_are_replaced_in_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the one that has them: heirs that have their own, or other heirs, are left alone."""

    class Base:
        def forward(self) -> str:
            return "base"

    class Loss(Base):
        def forward(self) -> str:
            return "loss"

    class Heir(Loss):
        pass

    class Own(Loss):
        def forward(self) -> str:
            return "own, " + super().forward()

    module = ModuleType("some_losses")
    module.Loss, module.Heir = Loss, Heir  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def wrap(original: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(original)
        def forward(self: Loss) -> str:
            return "new " + original(self)

        return forward

    def framework(name: str) -> patching.Framework:
        replacement = patching.Replacement("some_losses", name, wrap)
        return patching.Framework("torch", (2, 10), (99, 0), (replacement,))

    objects = [Base(), Loss(), Heir(), Own()]
    with patching.Patch(framework("Loss.forward")):
        assert [one.forward() for one in objects] == [
            "base",
            "new loss",
            "new loss",
            "own, new loss",
        ]
    assert [one.forward() for one in objects] == ["base", "loss", "loss", "own, loss"]
    with pytest.raises(ImportError, match=r"some_losses\.Heir\.forward cannot be imported"):
        patching.Patch(framework("Heir.forward"))


def test_stand_ins_look_like_the_originals(package: Callable[[str], ModuleType]) -> None:
    ops = package("ops")
    signatures = {name: inspect.signature(getattr(ops, name)) for name in LOSSES}
    with fastloss.patch("torchvision"):
        for name in LOSSES:
            stand_in = getattr(ops, name)
            written = inspect.signature(stand_in, follow_wrapped=False)
            assert [(p.name, p.default, p.kind) for p in written.parameters.values()] == [
                (p.name, p.default, p.kind) for p in signatures[name].parameters.values()
            ]
            assert stand_in.__module__.startswith("torchvision.ops.")
            assert (stand_in.__name__, stand_in.__doc__) == (name, stand_in.__wrapped__.__doc__)


class _Subclass(Tensor):
    pass


_BOXES = torch.tensor([[0.0, 0.0, 4.0, 3.0], [1.0, 1.0, 2.0, 5.0]])
_LOGITS = torch.tensor([[1.0, -2.0, 0.5]])


@pytest.mark.parametrize("loss", BOX_LOSSES)
@pytest.mark.parametrize(
    ("takes", "arguments", "options"),
    [
        pytest.param(True, (_BOXES, _BOXES + 1), {}, id="plain"),
        pytest.param(True, (_BOXES.half(), _BOXES.double()), {}, id="mixed"),
        pytest.param(True, (_BOXES[0], _BOXES[1]), {}, id="one_box"),
        pytest.param(True, (_BOXES[:0], _BOXES[:0]), {"reduction": "mean"}, id="empty"),
        pytest.param(True, (nn.Parameter(_BOXES), _BOXES), {"reduction": "sum"}, id="parameter"),
        pytest.param(False, (_BOXES.int(), _BOXES.int()), {}, id="integers"),
        pytest.param(False, (_BOXES, _BOXES[0]), {}, id="broadcast"),
        pytest.param(False, (_BOXES[:, :3], _BOXES[:, :3]), {}, id="three_numbers"),
        pytest.param(False, (_BOXES.as_subclass(_Subclass), _BOXES), {}, id="subclass"),
        pytest.param(False, (_BOXES, _BOXES), {"eps": torch.tensor(0.1)}, id="tensor_eps"),
    ],
)
def test_who_computes_box_losses(
    package: Callable[[str], ModuleType],
    loss: str,
    takes: bool,
    arguments: tuple[Tensor, ...],
    options: dict[str, Any],
) -> None:
    ops = package("ops")
    with fastloss.patch("torchvision"):
        found = getattr(ops, loss)(*arguments, **options)
    assert ops.calls == ([] if takes else [loss])
    if takes:
        expected = getattr(fastloss.functional, loss)(*arguments, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_who_computes_complete_box_iou_loss_with_another_eps(
    package: Callable[[str], ModuleType],
) -> None:
    ops = package("ops")
    with fastloss.patch("torchvision"):
        for loss in BOX_LOSSES:
            getattr(ops, loss)(_BOXES, _BOXES, eps=1e-3)
    assert ops.calls == ["complete_box_iou_loss"]


@pytest.mark.parametrize(
    ("takes", "arguments", "options"),
    [
        pytest.param(True, (_LOGITS, _LOGITS.sigmoid()), {}, id="plain"),
        pytest.param(True, (_LOGITS, _LOGITS.sigmoid()), {"alpha": -1, "gamma": 1}, id="no_alpha"),
        pytest.param(True, (_LOGITS.half(), _LOGITS.sigmoid().double()), {}, id="mixed"),
        pytest.param(False, (_LOGITS[:0], _LOGITS[:0]), {}, id="empty"),
        pytest.param(False, (_LOGITS, torch.ones(1, 3, dtype=torch.int64)), {}, id="integers"),
        pytest.param(False, (_LOGITS, torch.ones(1, dtype=torch.int64)), {}, id="class_indices"),
        pytest.param(False, (_LOGITS, torch.ones(3)), {}, id="broadcast"),
        pytest.param(False, (_LOGITS, _LOGITS), {"alpha": 1.5}, id="alpha"),
        pytest.param(False, (_LOGITS, _LOGITS), {"gamma": -1.0}, id="gamma"),
        pytest.param(False, (_LOGITS, _LOGITS), {"gamma": 0}, id="no_gamma"),
        pytest.param(False, (_LOGITS, _LOGITS), {"gamma": torch.tensor(2.0)}, id="tensor_gamma"),
    ],
)
def test_who_computes_focal_losses(
    package: Callable[[str], ModuleType],
    takes: bool,
    arguments: tuple[Tensor, ...],
    options: dict[str, Any],
) -> None:
    ops = package("ops")
    with fastloss.patch("torchvision"):
        found = ops.sigmoid_focal_loss(*arguments, reduction="mean", **options)
    assert ops.calls == ([] if takes else ["sigmoid_focal_loss"])
    if takes:
        expected = fastloss.functional.sigmoid_focal_loss(*arguments, reduction="mean", **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_original_raises_for_an_unknown_reduction(
    package: Callable[[str], ModuleType], loss: str
) -> None:
    with (
        fastloss.patch("torchvision"),
        pytest.raises(ValueError, match="Invalid reduction"),
    ):
        getattr(package("ops"), loss)(_BOXES, _BOXES, reduction="average")


# ------------------------------------------------------------------------------ torchvision itself


@pytest.fixture
def originals(torchvision: ModuleType) -> dict[str, Function]:
    return {name: getattr(torchvision.ops, name) for name in LOSSES}


@pytest.fixture
def patched(
    torchvision: ModuleType, originals: dict[str, Function]
) -> Iterator[dict[str, Function]]:
    with fastloss.patch("torchvision"):
        yield {name: getattr(torchvision.ops, name) for name in LOSSES}


def _boxes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    corner, size = torch.rand(2, *shape, 2, dtype=torch.float64).unbind()
    return torch.cat([corner, corner + 0.1 + size], dim=-1).mul(32).to(dtype)


def _inputs(loss: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    if loss == "sigmoid_focal_loss":
        return torch.randn(*shape).mul(3).to(dtype), torch.rand(*shape).round().to(dtype)
    return _boxes(*shape, dtype=dtype), _boxes(*shape, dtype=dtype)


def _result(function: Function, first: Tensor, second: Tensor, **options: Any) -> list[Tensor]:
    """The loss and its gradients, upstream gradients not 1."""
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    loss = function(first, second, **options)
    upstream = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return [loss, *torch.autograd.grad(loss, (first, second), upstream)]


def _assert_same(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(
            one, other, equal_nan=True, **tolerance, msg=lambda text, n=number: f"{n}: {text}"
        )


_TOLERANCES = {
    torch.float16: {"rtol": 2e-2, "atol": 2e-3},  # torchvision's focal loss computes in it
    torch.bfloat16: {"rtol": 2e-1, "atol": 2e-2},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
}


@pytest.mark.parametrize("dtype", list(_TOLERANCES), ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients(
    loss: str,
    reduction: str,
    dtype: torch.dtype,
    originals: dict[str, Function],
    patched: dict[str, Function],
) -> None:
    torch.manual_seed(0)
    for shape in ((), (1,), (37,), (5, 7)):
        arguments = _inputs(loss, *(shape or (3,))) if loss == "sigmoid_focal_loss" else None
        first, second = arguments or _inputs(loss, *shape)
        first, second = first.to(dtype), second.to(dtype)
        _assert_same(
            _result(patched[loss], first, second, reduction=reduction),
            _result(originals[loss], first, second, reduction=reduction),
            **_TOLERANCES[dtype],
        )


@pytest.mark.parametrize("dtypes", itertools.permutations(_TOLERANCES, 2), ids=str)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_result_dtype(
    loss: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    autocast: torch.dtype | None,
    originals: dict[str, Function],
    patched: dict[str, Function],
) -> None:
    for first_dtype, second_dtype in (dtypes, (dtypes[0], dtypes[0])):
        first, second = _inputs(loss, 3)
        first, second = first.to(first_dtype), second.to(second_dtype)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            expected = _outcome(originals[loss], first, second)
            # torchvision's box losses refuse to write float64 overlaps into float32.
            if isinstance(expected, Tensor) or loss == "sigmoid_focal_loss":
                assert patched[loss](first, second).dtype == expected.dtype


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_empty(
    loss: str,
    reduction: str,
    originals: dict[str, Function],
    patched: dict[str, Function],
) -> None:
    first, second = torch.rand(2, 0, 4).unbind()
    found = _result(patched[loss], first, second, reduction=reduction)
    _assert_same(found, _result(originals[loss], first, second, reduction=reduction))
    if reduction == "mean":
        assert found[0].isnan() == (loss == "sigmoid_focal_loss")


@pytest.mark.parametrize("loss", LOSSES)
def test_calls_only_torchvision_takes(
    loss: str, originals: dict[str, Function], patched: dict[str, Function]
) -> None:
    first, second = _inputs(loss, 6, 4) if loss == "sigmoid_focal_loss" else _inputs(loss, 6)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((first, second), {"reduction": "average"}),
        ((first, second[:2]), {}),
        ((first, second[0]), {}),
        ((first[0], second), {}),
        ((first.int(), second.int()), {}),
        ((first, second.int()), {}),
        ((first[:, :3], second[:, :3]), {}),
        ((first.tolist(), second), {}),
    ]
    if loss == "sigmoid_focal_loss":
        calls.append(((first, second), {"alpha": 1.5}))
        calls.append(((first, second), {"gamma": -0.5}))
        calls.append(((first, second[:, 0].long()), {}))
    else:
        calls.append(((first, second), {"eps": 0.1}))
        calls.append(((first, second), {"eps": 1}))
    for arguments, options in calls:
        expected = _outcome(originals[loss], *arguments, **options)
        found = _outcome(patched[loss], *arguments, **options)
        assert type(found) is type(expected)
        if isinstance(expected, Tensor):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        else:
            assert str(found) == str(expected)


def _outcome(function: Function, *arguments: Any, **options: Any) -> Tensor | Exception:
    try:
        return function(*arguments, **options)
    except Exception as error:
        return error


def test_the_numbers_of_torchvisions_tests(patched: dict[str, Function]) -> None:
    boxes = torch.tensor([[-1, -1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 2], [1, 1, 2, 2]])
    for dtype in (torch.float16, torch.float32):
        one, two, three, four = boxes.to(dtype)
        for loss, pairs in {
            "generalized_box_iou_loss": [
                (one, one, 0.0),
                (one, two, 0.75),
                (two, three, 1.0),
                (two, four, 1.5),
            ],
            "distance_box_iou_loss": [
                (one, one, 0.0),
                (one, two, 0.8125),
                (one, three, 1.1923),
                (one, four, 1.25),
            ],
        }.items():
            for first, second, expected in pairs:
                found = patched[loss](first, second)
                assert found.dtype == torch.float32
                assert found.item() == pytest.approx(expected, abs=1e-4)
                if loss == "distance_box_iou_loss":  # these boxes are squares
                    found = patched["complete_box_iou_loss"](first, second)
                    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_boxes_of_zero_area_have_a_gradient(
    originals: dict[str, Function], patched: dict[str, Function]
) -> None:
    point, box = torch.tensor([[2.0, 2.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 4.0, 3.0]])
    loss = "complete_box_iou_loss"
    assert any(tensor.isnan().any() for tensor in _result(originals[loss], point, box))
    assert all(tensor.isfinite().all() for tensor in _result(patched[loss], point, box))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("loss", LOSSES)
def test_torchscript(
    loss: str, originals: dict[str, Function], patched: dict[str, Function]
) -> None:
    arguments = _inputs(loss, 6)
    found = torch.jit.script(patched[loss])(*arguments)
    torch.testing.assert_close(found, originals[loss](*arguments), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
def test_trace(originals: dict[str, Function], patched: dict[str, Function]) -> None:
    logits, targets = _inputs("sigmoid_focal_loss", 6)
    traced = torch.jit.trace(patched["sigmoid_focal_loss"], (logits, targets))
    assert "fastloss" not in without_places(traced.graph)
    expected = originals["sigmoid_focal_loss"](logits, targets)
    torch.testing.assert_close(traced(logits, targets), expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_compile(loss: str, originals: dict[str, Function], patched: dict[str, Function]) -> None:
    function = torch.compile(patched[loss], fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (6, 9):
        first, second = _inputs(loss, size)
        _assert_same(
            _result(function, first, second, reduction="sum"),
            _result(originals[loss], first, second, reduction="sum"),
            **_TOLERANCES[torch.float32],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_overlaps_are_the_same_to_the_last_bit(torchvision: ModuleType, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    boxes = _boxes(40, dtype=dtype)
    boxes[3, 2:] = boxes[3, :2]  # a point
    others = torch.cat([boxes[:3], _boxes(60, dtype=dtype) / 100])
    overlaps = torchvision.ops.box_iou
    with fastloss.patch("torchvision"):
        patched = torchvision.ops.box_iou
    assert torch.equal(patched(boxes, others), overlaps(boxes, others))
    assert torch.equal(patched(boxes[:0], others), overlaps(boxes[:0], others))
    whole = boxes.mul(10).int()
    assert torch.equal(patched(whole[:3], whole[:3]), overlaps(whole[:3], whole[:3]))
    boxes.requires_grad_()
    assert patched(boxes, others).grad_fn.name() == overlaps(boxes, others).grad_fn.name()


class _Backbone(nn.Module):
    out_channels: Any = 32  # what the group norms of FCOS want

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, self.out_channels, 3, stride=8, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict(p0=self.convolution(images))


def _detector(torchvision: ModuleType, name: str) -> nn.Module:
    detection = torchvision.models.detection
    anchors = detection.anchor_utils.AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
    if name == "SSD":
        boxes = detection.anchor_utils.DefaultBoxGenerator([[2]], scales=[0.2, 0.4])
        backbone = _Backbone()
        backbone.out_channels = [backbone.out_channels]
        return detection.ssd.SSD(backbone, boxes, (64, 64), num_classes=4)
    if name == "FasterRCNN":
        pooler = torchvision.ops.MultiScaleRoIAlign(["p0"], output_size=2, sampling_ratio=1)
        pooler.forward = (
            lambda features, boxes, shapes: torch.stack(  # its kernel is in no wheel
                [features["p0"][0, :, :2, :2] * box.mean() / 64 for each in boxes for box in each]
            )
        )
        return detection.FasterRCNN(
            _Backbone(),
            num_classes=4,
            rpn_anchor_generator=anchors,
            box_roi_pool=pooler,
            min_size=64,
            max_size=64,
        )
    return getattr(detection, name)(
        _Backbone(), num_classes=4, anchor_generator=anchors, min_size=64, max_size=64
    )


@pytest.mark.parametrize("name", ["FCOS", "RetinaNet", "SSD", "FasterRCNN"])
@pytest.mark.parametrize("objects", [True, False])
def test_detectors_train_alike(
    torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, objects: bool
) -> None:
    torch.manual_seed(0)
    model = _detector(torchvision, name)
    if name == "RetinaNet":
        model.head.regression_head._loss_type = "ciou"
    # The kernel may be missing; which proposals are kept is not what is tested.
    monkeypatch.setattr(
        torchvision.ops.boxes, "batched_nms", lambda boxes, *_: torch.arange(min(len(boxes), 20))
    )
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    boxes = torch.tensor([[4.0, 5.0, 25.0, 28.0], [30.0, 20.0, 61.0, 50.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 2])},
        {"boxes": boxes, "labels": torch.tensor([3, 1])}
        if objects
        else {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.int64)},
    ]

    def train() -> list[Tensor]:
        torch.manual_seed(1)  # Faster R-CNN draws samples
        losses = model(images, targets)
        gradients = torch.autograd.grad(
            sum(losses.values()), list(model.parameters()), allow_unused=True
        )
        return [*losses.values(), *(each for each in gradients if each is not None)]

    plain = train()
    with fastloss.patch("torchvision"):
        fused = train()
    _assert_same(fused, plain, rtol=1e-4, atol=1e-6)


def _head_arguments(
    labels: list[int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[dict[str, Tensor]], list[Tensor]]:
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 5, dtype=torch.float64).to(dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    targets = [
        {"labels": torch.tensor(labels), "boxes": _boxes(len(labels), dtype=wide)} for _ in range(2)
    ]
    matched = torch.randint(-2, len(labels), (2, 50))
    return logits, targets, list(matched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("RetinaNet", [1, 4, 0]),
        ("RetinaNet", [1, -1]),  # from the end
        ("FCOS", [1, 4, 0]),
        ("FCOS", [1, -1]),  # background
    ],
)
def test_heads_compute_the_same(
    torchvision: ModuleType, head: str, labels: list[int], dtype: torch.dtype
) -> None:
    detection = torchvision.models.detection
    logits, targets, matched = _head_arguments(labels, dtype)
    more = torch.randn(2, 50, 5).to(dtype).requires_grad_()

    def losses() -> list[Tensor]:
        if head == "RetinaNet":
            module = detection.retinanet.RetinaNetClassificationHead(8, 1, 5)
            loss = module.compute_loss(targets, {"cls_logits": logits}, matched)
            return [loss, *torch.autograd.grad(loss, logits)]
        outputs = {
            "cls_logits": logits,
            "bbox_regression": more[..., :4].exp(),
            "bbox_ctrness": more[..., 4:],
        }
        # The points lie in their boxes.
        anchors = [
            target["boxes"][match.clamp(min=0)].unflatten(1, (2, 2)).mean(1).repeat(1, 2)
            + torch.tensor([-8.0, -7.0, 8.0, 7.0], dtype=target["boxes"].dtype)
            for target, match in zip(targets, matched, strict=True)
        ]
        of_head = detection.fcos.FCOSHead(32, 1, 5).compute_loss(targets, outputs, anchors, matched)
        return [*of_head.values(), *torch.autograd.grad(sum(of_head.values()), (logits, more))]

    plain = losses()
    with fastloss.patch("torchvision"):
        fused = losses()
    assert all(tensor.isfinite().all() for tensor in plain)
    _assert_same(fused, plain, **_TOLERANCES[dtype])


@pytest.mark.parametrize("labels", [[5], [-6]])
def test_heads_leave_bad_labels_to_torchvision(torchvision: ModuleType, labels: list[int]) -> None:
    logits, targets, matched = _head_arguments(labels)
    head = torchvision.models.detection.retinanet.RetinaNetClassificationHead(8, 1, 5)
    plain = _outcome(head.compute_loss, targets, {"cls_logits": logits}, matched)
    assert isinstance(plain, IndexError)
    with fastloss.patch("torchvision"):
        fused = _outcome(head.compute_loss, targets, {"cls_logits": logits}, matched)
    assert str(fused) == str(plain)
