# SPDX-License-Identifier: MIT
"""What the public functions share: descriptions of common arguments, and checks of options."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _ops

__all__ = ["against", "are_separate", "check_number", "documented", "option_error"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SHARED = {
    "boxes1": """\
boxes1: Boxes (..., 4), usually the predictions: x1, y1, x2, y2 in any unit, of any floating
    dtype and any strides. Zero-area and inverted boxes are allowed.""",
    "boxes2": """\
boxes2: Boxes of the same shape, usually the ground truth. The dtype may be another one.""",
    "rotated_boxes1": """\
boxes1: Boxes (..., 5), usually the predictions: x and y of the centre, width, height, and the
    angle of the width's side in radians; any floating dtype, any strides. Boxes without an area
    are allowed.""",
    "input": """\
input: Predictions, any shape, any floating dtype, any strides.""",
    "element_logits": """\
input: Logits x, any shape, any floating dtype, any strides.""",
    "target": """\
target: Targets of the same shape. The dtype may be another one.""",
    "logits": """\
input: Logits (N, C), (C,) or (N, C, d1, ...), any floating dtype, any strides.""",
    "labels": """\
target: Class indices in [0, C): shape (N,), () or (N, d1, ...); uint8, int16, int32 or int64.""",
    "ignore_index": """\
ignore_index: Rows with this label do not count: no loss, no gradient, not part of the mean.""",
    "class_weight": """\
weight: Factor of every class (C,). The mean divides by the sum of the labels' factors.""",
    "row_returns": """\
Returns:
    The loss: one number per row, the shape of the labels, for ``"none"``, else a 0-d tensor;
    float32, or float64 if the input is. The mean over no rows is 0, with a gradient of 0.""",
    "raises_index": """\
    IndexError: On CPU, for a label outside [0, C). On CUDA that is a device-side assertion.""",
    "real": """\
real: The discriminator's scores (logits) of real samples, any shape, any floating dtype, any
    strides.""",
    "fake": """\
fake: The discriminator's scores (logits) of fake samples, any shape, any floating dtype, any
    strides.""",
    "pair_reduction": """\
reduction: ``"mean"`` and ``"sum"`` reduce each side by itself and add the two; ``"none"``
    adds them element by element, for which the shapes must be the same.""",
    "reduction": """\
reduction: ``"none"``, ``"mean"`` or ``"sum"``.""",
    "eps": """\
eps: Added to denominators. Degenerate boxes have a finite loss and gradient while it is
    above 0.""",
    "box_weight": """\
weight: Factor of every box pair, shape ``boxes1.shape[:-1]``. The mean divides by its sum.""",
    "element_weight": """\
weight: Factor of every element, the shape of the input. The mean divides by its sum.""",
    "broadcast_weight": """\
weight: Factor of every element, broadcastable to the input. The mean divides by its sum.""",
    "uncounted_weight": """\
weight: Factor of every element, broadcastable to the input. The mean still divides by the
    number of elements, as torch's does.""",
    "avg_factor": """\
avg_factor: Number or 0-d tensor that ``"mean"`` divides the sum by, in place of what it
    would count. It is never read by the host.""",
    "box_returns": """\
Returns:
    The loss: shape ``boxes1.shape[:-1]`` for ``"none"``, else a 0-d tensor; float32, or float64
    if one of the boxes is. The mean over no boxes is 0, with a gradient of 0.""",
    "element_returns": """\
Returns:
    The loss: the shape of the input for ``"none"``, else a 0-d tensor; float32, or float64 if
    input or target is. The mean over no elements is 0, with a gradient of 0.""",
    "voxel_input": """\
input: Logits (B, C, *spatial), of any floating dtype and any strides.""",
    "voxel_target": """\
target: Either class indices (B, *spatial) of any integer dtype, in [0, C); or the shape of the
    input, one-hot, multi-hot or soft.""",
    "activation": """\
activation: What makes probabilities of the logits: ``"softmax"`` over the classes,
    ``"sigmoid"``, or None: the input holds probabilities.""",
    "smooth_nr": """\
smooth_nr: Added to the numerator, at least 0.""",
    "smooth_dr": """\
smooth_dr: Added to the denominator, at least 0.""",
    "include_background": """\
include_background: Whether class 0 counts. The softmax is over all classes either way.""",
    "batch": """\
batch: Whether the sums run over all samples, so that there is one loss per class, not one per
    sample and class.""",
    "region_weight": """\
weight: Factor of every class that counts, (C,) or without background (C - 1,). The mean still
    divides by the number of regions.""",
    "voxel_ignore_index": """\
ignore_index: A label whose voxels are left out of all sums. Of dense targets, the voxels of
    that class are left out, or those of no class if there is none of that index; with a
    single class, the voxels that hold the index.""",
    "region_reduction": """\
reduction: ``"none"``, ``"mean"`` or ``"sum"``, over samples and classes.""",
    "region_returns": """\
Returns:
    The loss: shape (B, C), or (C,) with ``batch``, for ``"none"``, one class less without
    background; else a 0-d tensor; float32, or float64 if input or target is. The mean over
    nothing is 0, with a gradient of 0.""",
    "both_returns": """\
Returns:
    The loss, a 0-d tensor; float32, or float64 if input or target is. The mean over nothing is
    0, with a gradient of 0.""",
    "voxel_raises": """\
Raises:
    ValueError: For shapes, devices or options that do not fit.
    TypeError: For dtypes that do not fit.
    IndexError: On CPU, for a class index out of range.""",
    "pair_returns": """\
Returns:
    The loss: the shape of the scores for ``"none"``, else a 0-d tensor; float32, or float64 if
    one side is. The mean over no scores is 0, with a gradient of 0.""",
    "fake_returns": """\
Returns:
    The loss: the shape of the scores for ``"none"``, else a 0-d tensor; float32, or float64 for
    such scores. The mean over no scores is 0, with a gradient of 0.""",
    "scores": """\
scores: Predicted scores (B, L), a list of items per row, any floating dtype, any strides.""",
    "relevance": """\
relevance: How relevant each item is, of the same shape, any integer or floating dtype.""",
    "item_mask": """\
mask: True, or not 0, where an item counts; the shape of the scores, bool or any integer dtype.
    The others may hold anything, and are as good as absent. None: all items count.""",
    "item_pair_reduction": """\
reduction: ``"none"`` sums the pairs of each list, ``"sum"`` those of all lists, ``"mean"``
    divides that by the number of pairs.""",
    "item_pair_returns": """\
Returns:
    The loss: shape (B,) for ``"none"``, else a 0-d tensor; float32, or float64 if scores or
    relevance is. Without any pair it is 0, with a gradient of 0. A NaN among its items makes a
    list's loss and gradient NaN, and no other's.""",
    "node_reduction": """\
reduction: ``"none"``, ``"mean"`` or ``"sum"``, over the rows.""",
    "node_returns": """\
Returns:
    The loss: a number per row, of shape (...), for ``"none"``, else a 0-d tensor; float32, or
    float64 if one of the two is. The mean over no rows is 0, with a gradient of 0.""",
    "list_reduction": """\
reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the lists with an item.""",
    "ndcg_reduction": """\
reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the lists with a relevance above 0.""",
    "list_returns": """\
Returns:
    The loss: shape (B,) for ``"none"``, else a 0-d tensor; float32, or float64 if scores or
    relevance is. A list that does not count has a loss and a gradient of 0. A NaN among its
    items makes a list's loss and gradient NaN, and no other's.""",
    "list_raises": """\
Raises:
    ValueError: For shapes, devices or options that do not fit.
    TypeError: For dtypes that do not fit, such as a floating mask.""",
    "emissions": """\
emissions: Score of every tag at every step (B, T, K), any floating dtype, any strides.""",
    "transitions": """\
transitions: Score of every tag (K, K) after another: ``transitions[before, after]``. Each of
    the scores may have a dtype of its own.""",
    "start_transitions": """\
start_transitions: Score of every tag (K,) as the first one. None: 0.""",
    "end_transitions": """\
end_transitions: Score of every tag (K,) as the last one. None: 0.""",
    "sequence_mask": """\
mask: Not 0 (or True) in the steps that count (B, T): the first one of every sequence, and the
    next ones up to its end. What stands in the others has no meaning. None: all count.""",
    "token_log_probs": """\
log_probs: Log-probability of every token of every sequence (B, T) under the policy that is
    trained, any floating dtype, any strides. There may be any number of leading dimensions.""",
    "old_log_probs": """\
old_log_probs: The same under the policy the tokens were drawn from, of the same shape.""",
    "token_advantages": """\
advantages: How much better than expected each token (B, T) or each sequence (B,) turned out to
    be, any integer or floating dtype.""",
    "token_mask": """\
mask: True, or not 0, where a token counts; the shape of the log-probabilities, bool or any
    integer dtype. What stands elsewhere has no meaning, even if it is NaN. None: all count.""",
    "token_reduction": """\
reduction: ``"none"``, ``"mean"`` over the tokens that count, or ``"sum"``.""",
    "token_returns": """\
Returns:
    The loss: shape (B, T), 0 where the mask is, for ``"none"``, else a 0-d tensor; float32, or
    float64 if one of the tensors is. The mean over no tokens is 0, with a gradient of 0. Only
    the log-probabilities get their gradient from a kernel, other tensors from plain PyTorch.""",
    "detection_logits": """\
logits: Logits of the classes at every anchor (B, C, A), any floating dtype, any strides.""",
    "detection_distances": """\
distances: Logits (B, 4 · bins, A) of where the sides of a box are: left, top, right, bottom, each
    a distribution over the distances 0, 1, ... bins - 1 from the anchor, in its cells. At least
    two bins; any floating dtype, any strides.""",
    "anchors": """\
anchors: Position of every anchor (A, 2), x and y in cells.""",
    "anchor_strides": """\
strides: Side of every anchor's cell (A,), in pixels.""",
    "detection_labels": """\
target_labels: Class of every box that is there (B, G), in [0, C), of any integer dtype; negative
    where a row has fewer boxes than G.""",
    "detection_boxes": """\
target_boxes: Those boxes (B, G, 4): x1, y1, x2, y2 in pixels.""",
    "raises": """\
Raises:
    ValueError: For shapes, devices or options that do not fit.
    TypeError: For dtypes that do not fit.""",
}

_PLACEHOLDER = re.compile(r"^( *)\{(\w+)\}$", re.MULTILINE)


def documented(function: _Function) -> _Function:
    """Fills every ``{name}`` that has a line of the docstring to itself with the shared text."""

    def fill(match: re.Match[str]) -> str:
        indent, name = match.groups()
        return "\n".join(indent + line for line in _SHARED[name].split("\n"))

    if function.__doc__ is not None:  # python -OO strips docstrings
        function.__doc__ = _PLACEHOLDER.sub(fill, function.__doc__)
    return function


# What an option may be asked to be, in the words of the message.
_RANGES: dict[str, Callable[[Any], bool]] = {
    "at least 0": lambda value: value >= 0,
    "at least 0 or None": lambda value: value is None or value >= 0,
    "at least -1": lambda value: value >= -1,
    "at least 1": lambda value: value >= 1,
    "at least 1 or None": lambda value: value is None or value >= 1,
    "above 0": lambda value: value > 0,
    "finite": lambda value: -math.inf < value < math.inf,
    "at least 0 and finite": lambda value: 0 <= value < math.inf,
    "above 0 and finite": lambda value: 0 < value < math.inf,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in [0, 1] or -1": lambda value: 0 <= value <= 1 or value == -1,
    "above 0 or None": lambda value: value is None or value > 0,
    "in [0, 1], a Tensor or None": lambda value: (
        value is None or isinstance(value, Tensor) or 0 <= value <= 1
    ),
}


def check_number(function: str, argument: str, value: object, expected: str) -> None:
    """Raises for an option that is no number (TypeError), or not ``expected`` (ValueError)."""
    try:
        fits = bool(_RANGES[expected](value))
    except (TypeError, ValueError, RuntimeError):  # of a str, of an array, of a tensor
        raise TypeError(
            f"{function}: {argument} must be a number {expected}, got {type(value).__name__}"
        ) from None
    if not fits:
        raise option_error(function, argument, expected, value)


def option_error(function: str, argument: str, expected: str, value: object) -> ValueError:
    """The error of an option whose value is not among those a function takes."""
    return ValueError(f"{function}: {argument} must be {expected}, got {value!r}")


# ------------------------------------------------------------ two sides that may differ in shape


def are_separate(
    loss: str, first: Tensor, second: Tensor, parameters: tuple[float, ...], reduction: str
) -> bool:
    """Whether each side has to be reduced by itself, since the shapes differ."""
    if (
        not isinstance(first, Tensor)
        or not isinstance(second, Tensor)
        or first.shape == second.shape
    ):
        return False
    if reduction not in ("mean", "sum"):
        return False  # there is no such loss: the operator says so
    # The operator's checks of everything but the shapes.
    _ops.pointwise(loss, first.new_empty(0), second.new_empty(0), parameters, reduction=reduction)
    return True


def against(
    formula: str, input: Tensor, target: float, parameters: tuple[float, ...], reduction: str
) -> Tensor:
    """A loss against the same number everywhere."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    targets = input.new_full((), target, dtype=dtype).expand_as(input)
    return _ops.pointwise(formula, input, targets, parameters, reduction=reduction)
