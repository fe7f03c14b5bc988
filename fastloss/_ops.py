# SPDX-License-Identifier: MIT
"""The one door to the extension: a function per engine, and the twins the extension calls back.

Eager calls go through pybind11, the shortest way; under ``torch.compile`` and ``torch.export`` they
go through ``torch.ops.fastloss``, which tracing understands. Both lead to the same operators.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    from fastloss import _C
except ImportError as error:
    raise ImportError(
        "fastloss's extension is not built for this Python and torch "
        f"(torch {torch.__version__}): {error}\n"
        "Build it from the project's folder with: pip install --no-build-isolation ."
    ) from error

Parameters = tuple[float, ...]


def pointwise(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: Parameters = (),
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss with one number per element."""
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.pointwise(
            loss, input, target, parameters, pos_weight, weight, reduction, *_split(avg_factor)
        )
    return _C.pointwise(loss, input, target, parameters, pos_weight, weight, reduction, avg_factor)


def softmax(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: Parameters = (),
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss with one number per row of logits.

    ``weight`` has a number per class (per row for positions between classes). It stands for the NaN
    among ``parameters``, where there is one.
    """
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.softmax(
            loss, input, target, parameters, None, weight, reduction, *_split(avg_factor)
        )
    return _C.softmax(loss, input, target, parameters, weight, reduction, avg_factor)


def linear_cross_entropy(
    loss: str,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    parameters: Parameters,
    *,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss of :func:`softmax` on the logits of a linear layer."""
    arguments = (loss, input, linear_weight, linear_bias, target, parameters, weight, reduction)
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.linear_cross_entropy(*arguments, *_split(avg_factor))
    return _C.linear_cross_entropy(*arguments, avg_factor)


def box_pair(
    loss: str,
    boxes1: Tensor,
    boxes2: Tensor,
    parameters: Parameters,
    *,
    device_parameter: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss with one number per pair of boxes.

    ``device_parameter`` stands for the NaN among ``parameters``: a number that lives on the device
    and is not to be brought to the host.
    """
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.box_pair(
            loss,
            boxes1,
            boxes2,
            parameters,
            device_parameter,
            weight,
            reduction,
            *_split(avg_factor),
        )
    return _C.box_pair(
        loss, boxes1, boxes2, parameters, device_parameter, weight, reduction, avg_factor
    )


# The parameters of a similarity besides eps: its loss's defaults.
_SIMILARITY_DEFAULTS: dict[str, Parameters] = {"ciou": (0.0,), "siou": (4.0,), "nwd": (12.8,)}


def box_matrix(kind: str, boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """A similarity of every box of one set with every box of another."""
    parameters = (eps, *_SIMILARITY_DEFAULTS.get(kind, ()))
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.box_matrix(kind, boxes1, boxes2, parameters)
    return _C.box_matrix(kind, boxes1, boxes2, parameters)


def box_crowd(
    loss: str,
    boxes: Tensor,
    target_boxes: Tensor,
    target_index: Tensor,
    parameters: Parameters,
    *,
    batch_index: Tensor | None = None,
    target_batch_index: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """A loss of each box among the targets and boxes around it."""
    call = torch.ops.fastloss.box_crowd if torch.compiler.is_compiling() else _C.box_crowd
    return call(
        loss,
        boxes,
        target_boxes,
        target_index,
        batch_index,
        target_batch_index,
        parameters,
        reduction,
    )


def region(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: Parameters,
    *,
    activation: str | None,
    squared_pred: bool = False,
    include_background: bool,
    batch: bool,
    weight: Tensor | None = None,
    ignore_index: int | None,
    reduction: str,
) -> Tensor:
    """A loss of the classes of samples, a function of sums over their voxels."""
    call = torch.ops.fastloss.region if torch.compiler.is_compiling() else _C.region
    return call(
        loss,
        input,
        target,
        parameters,
        "none" if activation is None else activation,
        squared_pred,
        include_background,
        batch,
        weight,
        ignore_index,
        reduction,
    )


def ranked_region(
    loss: str,
    input: Tensor,
    target: Tensor,
    *,
    present: bool,
    per_image: bool,
    ignore_index: int | None,
    reduction: str,
) -> Tensor:
    """A loss of the classes of samples, of their voxels in the order of their errors."""
    call = torch.ops.fastloss.ranked_region if torch.compiler.is_compiling() else _C.ranked_region
    return call(loss, input, target, present, per_image, ignore_index, reduction)


def _split(avg_factor: float | Tensor | None) -> tuple[Tensor | None, float | None]:
    """A schema has no "number or tensor": two arguments, one of which is None."""
    if isinstance(avg_factor, Tensor):
        return avg_factor, None
    return None, avg_factor


# ---------------------------------------------------------------------------------------- the twins


@functools.cache
def _twin(loss: str) -> tuple[Callable[..., Tensor], tuple[str, ...], dict[str, str]]:
    """A kernel's reference, its float parameters in order, the string option its name carries."""
    from fastloss import reference

    name, _, option = loss.partition("/")
    function = getattr(reference, name)
    floats, options = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in _NOT_NUMBERS:
            continue
        if parameter.name in ("mode", "kind", "w_type"):
            options[parameter.name] = option
        else:
            floats.append(parameter.name)
    return function, tuple(floats), options


def parameter_name(loss: str, index: int) -> str:
    """What the signature calls a float parameter; asked by the extension for its messages."""
    return _twin(loss)[1][index]


_NOT_NUMBERS = frozenset(
    {
        *("input", "inputs", "target", "targets", "weight", "pos_weight"),
        *("linear_weight", "linear_bias"),
        *("boxes1", "boxes2", "boxes", "target_boxes", "target_index"),
        *("batch_index", "target_batch_index", "reduction", "avg_factor"),
        *("activation", "squared_pred", "include_background", "batch"),
        *("classes", "per_image"),
    }
)


def _call_twin(
    loss: str, tensors: tuple[Tensor, ...], parameters: Parameters, **arguments: Any
) -> Tensor:
    function, names, options = _twin(loss)
    given = {name: value for name, value in arguments.items() if value is not None}
    floats = (name for name in names if name not in arguments)
    return function(*tensors, **dict(zip(floats, parameters, strict=True)), **options, **given)


def _pointwise_reference(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: list[float],
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    return _call_twin(
        loss,
        (input, target),
        tuple(parameters),
        pos_weight=extra,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_number if avg_factor is None else avg_factor,
    )


def _box_pair_reference(
    loss: str,
    boxes1: Tensor,
    boxes2: Tensor,
    parameters: list[float],
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    filled: Any = tuple(extra if math.isnan(value) else value for value in parameters)
    return _call_twin(
        loss,
        (boxes1, boxes2),
        filled,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_number if avg_factor is None else avg_factor,
    )


def _softmax_reference(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: list[float],
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    is_parameter = any(math.isnan(value) for value in parameters)
    filled: Any = tuple(weight if math.isnan(value) else value for value in parameters)
    return _call_twin(
        loss,
        (input, target),
        filled,
        weight=None if is_parameter else weight,
        reduction=reduction,
        avg_factor=avg_number if avg_factor is None else avg_factor,
    )


def _linear_cross_entropy_reference(
    loss: str,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    parameters: list[float],
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    return _call_twin(
        f"linear_{loss}",
        (input, linear_weight, target),
        tuple(parameters),
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_number if avg_factor is None else avg_factor,
    )


def _box_matrix_reference(
    kind: str, boxes1: Tensor, boxes2: Tensor, parameters: list[float]
) -> Tensor:
    from fastloss import reference

    return reference.pairwise_box_iou(boxes1, boxes2, kind, parameters[0])


def _box_crowd_reference(
    loss: str,
    boxes: Tensor,
    target_boxes: Tensor,
    target_index: Tensor,
    batch_index: Tensor | None,
    target_batch_index: Tensor | None,
    parameters: list[float],
    reduction: str,
) -> Tensor:
    return _call_twin(
        loss,
        (boxes, target_boxes, target_index),
        tuple(parameters),
        batch_index=batch_index,
        target_batch_index=target_batch_index,
        reduction=reduction,
    )


def _region_reference(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: list[float],
    activation: str,
    squared_pred: bool,
    include_background: bool,
    batch: bool,
    weight: Tensor | None,
    ignore_index: int | None,
    reduction: str,
) -> Tensor:
    return _call_twin(
        loss,
        (input, target),
        tuple(parameters),
        activation=activation,
        squared_pred=squared_pred or None,  # few functions have it
        include_background=include_background,
        batch=batch,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def _ranked_region_reference(
    loss: str,
    input: Tensor,
    target: Tensor,
    present: bool,
    per_image: bool,
    ignore_index: int | None,
    reduction: str,
) -> Tensor:
    return _call_twin(
        loss,
        (input, target),
        (),
        classes="present" if present else "all",
        per_image=per_image,
        ignore_index=ignore_index,
        reduction=reduction,
    )


_library = torch.library.Library("fastloss", "IMPL")
for _engine, _function in {
    "pointwise": _pointwise_reference,
    "softmax": _softmax_reference,
    "linear_cross_entropy": _linear_cross_entropy_reference,
    "box_pair": _box_pair_reference,
    "box_matrix": _box_matrix_reference,
    "box_crowd": _box_crowd_reference,
    "region": _region_reference,
    "ranked_region": _ranked_region_reference,
}.items():
    for _key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):
        _library.impl(f"{_engine}_reference", _function, _key)
