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
from typing import Any, NamedTuple

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
    target: Tensor | None = None,
    parameters: Parameters = (),
    *,
    weight: Tensor | None = None,
    extra: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss with one number per element.

    ``target`` is None for a loss of the input alone. ``extra`` is the one more operand that some
    losses have; where it takes the place of a float parameter, that parameter is NaN.
    """
    if torch.compiler.is_compiling():
        if target is None:
            target = input.detach()  # the operator has a place for it, and does not look at it
        return torch.ops.fastloss.pointwise(
            loss, input, target, parameters, extra, weight, reduction, *_split(avg_factor)
        )
    return _C.pointwise(loss, input, target, parameters, extra, weight, reduction, avg_factor)


def softmax(
    loss: str,
    input: Tensor,
    target: Tensor,
    parameters: Parameters = (),
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss with one number per row of logits.

    ``weight`` has a number per class, or per row for the losses that say so. It stands for the NaN
    among ``parameters``, where there is one. ``mask`` tells which rows count, for the losses that
    have one.
    """
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.softmax(
            loss, input, target, parameters, mask, weight, reduction, *_split(avg_factor)
        )
    return _C.softmax(loss, input, target, parameters, mask, weight, reduction, avg_factor)


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
    extra: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss with one number per pair of boxes, or of points.

    ``extra`` is the number per pair that some losses have. Elsewhere it stands for the NaN among
    ``parameters``: a number that lives on the device and is not to be brought to the host.
    """
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.box_pair(
            loss,
            boxes1,
            boxes2,
            parameters,
            extra,
            weight,
            reduction,
            *_split(avg_factor),
        )
    return _C.box_pair(loss, boxes1, boxes2, parameters, extra, weight, reduction, avg_factor)


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


def pairs(
    loss: str,
    scores: Tensor,
    relevance: Tensor,
    parameters: Parameters = (),
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """A loss of lists of scored items."""
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.pairs(
            loss, scores, relevance, parameters, mask, None, reduction, None, None
        )
    return _C.pairs(loss, scores, relevance, parameters, mask, reduction)


def policy(
    loss: str,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    parameters: Parameters = (),
    *,
    mask: Tensor | None,
    ref_log_probs: Tensor | None = None,
    normalizer: str = "bnpo",
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """A loss of the log-probabilities of tokens.

    What stands in the place of ``old_log_probs`` and ``advantages`` has other names in some losses.
    """
    arguments = (loss, log_probs, old_log_probs, advantages, ref_log_probs, mask, parameters)
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.policy(*arguments, normalizer, reduction, *_split(avg_factor))
    return _C.policy(*arguments, normalizer, reduction, avg_factor)


def triplet(
    loss: str,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    parameters: Parameters,
    *,
    reduction: str,
) -> Tensor:
    """A loss of anchors with a positive and a negative each."""
    call = torch.ops.fastloss.triplet if torch.compiler.is_compiling() else _C.triplet
    return call(loss, anchor, positive, negative, parameters, reduction)


def batch_hard(
    loss: str, embeddings: Tensor, labels: Tensor, parameters: Parameters, *, reduction: str
) -> Tensor:
    """A loss of every row of a batch as an anchor among the others."""
    call = torch.ops.fastloss.batch_hard if torch.compiler.is_compiling() else _C.batch_hard
    return call(loss, embeddings, labels, parameters, reduction)


def row_pair(
    loss: str, first: Tensor, second: Tensor, parameters: Parameters, *, reduction: str
) -> Tensor:
    """A loss with one number per two rows of features."""
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.row_pair(
            loss, first, second, parameters, None, None, reduction, None, None
        )
    return _C.row_pair(loss, first, second, parameters, reduction)


def edges(
    loss: str, z: Tensor, pos_edge_index: Tensor, neg_edge_index: Tensor, *, reduction: str
) -> Tensor:
    """A loss of the edges of a graph, and of pairs of nodes that are none."""
    call = torch.ops.fastloss.edges if torch.compiler.is_compiling() else _C.edges
    return call(loss, z, pos_edge_index, neg_edge_index, reduction)


def contrastive(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float,
    *,
    mode: str,
    normalize: bool,
    positive: int = 0,
    itself: int | None = None,
    reduction: str,
) -> Tensor:
    """A loss of embeddings that are compared with many others.

    ``positive`` is the row of ``z2`` that belongs to the first of ``z1``, and ``itself`` the one
    that this one is not compared with; both count for the mode ``"rows"`` alone, in which ``z2``
    may have more rows.
    """
    rest = (mode, normalize, positive, itself, reduction)
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.contrastive(z1, z2, *_split_temperature(temperature), *rest)
    return _C.contrastive(z1, z2, temperature, *rest)


def _split_temperature(temperature: Tensor | float) -> tuple[Tensor | None, float]:
    """A schema has no "number or tensor"."""
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


# logits, distances, anchors, strides, target_labels, target_boxes
Detections = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def task_aligned_assignment(
    detections: Detections,
    topk: int,
    topk2: int | None,
    alpha: float,
    beta: float,
    candidate_boxes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The target of every anchor, and how well it suits."""
    options = (topk, topk2, alpha, beta, candidate_boxes)
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.task_aligned_assignment(*detections, *options)
    return _C.task_aligned_assignment(detections, *options)


def task_aligned_detection_loss(
    detections: Detections, target_indices: Tensor, target_scores: Tensor, weight: Tensor | None
) -> Tensor:
    """The losses of boxes, classes and distances."""
    assigned = (target_indices, target_scores, weight)
    if torch.compiler.is_compiling():
        return torch.ops.fastloss.task_aligned_detection_loss(*detections, *assigned)
    return _C.task_aligned_detection_loss(detections, *assigned)


def crf(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    mask: Tensor | None,
    reduction: str,
) -> Tensor:
    """The negative log-likelihood of tags in a linear chain."""
    call = torch.ops.fastloss.crf if torch.compiler.is_compiling() else _C.crf
    return call(emissions, tags, transitions, start_transitions, end_transitions, mask, reduction)


def crf_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """The probability of every tag at every step of a linear chain."""
    call = torch.ops.fastloss.crf_marginals if torch.compiler.is_compiling() else _C.crf_marginals
    return call(emissions, transitions, start_transitions, end_transitions, mask)


def crf_decode(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The best tags of a linear chain and their score."""
    call = torch.ops.fastloss.crf_decode if torch.compiler.is_compiling() else _C.crf_decode
    return call(emissions, transitions, start_transitions, end_transitions, mask)


def detr_matching_cost(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    numbers: tuple[float, float, float, float, float],
    kind: str,
) -> Tensor:
    """What it costs to match every prediction with every target."""
    compiling = torch.compiler.is_compiling()
    call = torch.ops.fastloss.detr_matching_cost if compiling else _C.detr_matching_cost
    return call(logits, boxes, target_labels, target_boxes, *numbers, kind)


def sentence_bleu(
    candidates: Tensor,
    references: Tensor,
    max_order: int,
    smoothing: str,
    smoothing_value: float | None,
    pad_index: int,
) -> Tensor:
    """BLEU of every sentence."""
    call = torch.ops.fastloss.sentence_bleu if torch.compiler.is_compiling() else _C.sentence_bleu
    return call(candidates, references, max_order, smoothing, smoothing_value, pad_index)


def _split(avg_factor: float | Tensor | None) -> tuple[Tensor | None, float | None]:
    """A schema has no "number or tensor": two arguments, one of which is None."""
    if isinstance(avg_factor, Tensor):
        return avg_factor, None
    return None, avg_factor


# ---------------------------------------------------------------------------------------- the twins


class _Twin(NamedTuple):
    """A kernel's reference.

    Attributes:
        function: The reference.
        tensors: The names of the tensors it begins with.
        floats: Its float parameters, in order.
        options: The string option that the kernel's name carries.
        has_pos_weight: Whether the extra tensor is an argument of its own.
    """

    function: Callable[..., Tensor]
    tensors: tuple[str, ...]
    floats: tuple[str, ...]
    options: dict[str, str]
    has_pos_weight: bool


@functools.cache
def _twin(loss: str) -> _Twin:
    from fastloss import reference

    name, _, option = loss.rpartition(":")[2].partition("/")
    function = getattr(reference, name)
    tensors, floats, options = [], [], {}
    parameters = inspect.signature(function).parameters
    for parameter, described in parameters.items():
        if parameter in _TENSORS and "Tensor" in described.annotation:  # mu is a number elsewhere
            tensors.append(parameter)
        elif parameter in ("mode", "kind", "w_type", "scheme"):
            options[parameter] = option
        elif parameter not in _NAMED:
            floats.append(parameter)
    return _Twin(function, tuple(tensors), tuple(floats), options, "pos_weight" in parameters)


def parameter_name(loss: str, index: int) -> str:
    """What the signature calls a float parameter; asked by the extension for its messages."""
    return _twin(loss).floats[index]


_TENSORS = frozenset(
    {
        *("input", "inputs", "target", "targets", "real", "fake"),
        "linear_weight",
        *("boxes1", "boxes2", "boxes", "target_boxes", "target_index"),
        *("scores", "relevance", "log_probs", "risks", "logits", "actions", "index"),
        *("rewards", "baseline", "old_log_probs"),
        *("input1", "input2", "anchor", "positive", "negative", "embeddings", "labels"),
        *("z", "pos_edge_index", "neg_edge_index", "mu", "logstd", "pos_logits", "neg_logits"),
        *("x", "y", "predictions"),
    }
)
# Given by name.
_NAMED = frozenset(
    {
        *("weight", "pos_weight", "linear_bias", "reduction", "avg_factor"),
        *("batch_index", "target_batch_index", "mask"),
        *("activation", "squared_pred", "include_background", "batch", "process_group"),
        *("classes", "per_image", "generator"),
        *("advantages", "ref_log_probs", "normalizer"),
    }
)


def _call_twin(
    loss: str,
    tensors: tuple[Tensor, ...],
    parameters: list[float],
    extra: Tensor | None = None,
    **arguments: Any,
) -> Tensor:
    twin = _twin(loss)
    if len(twin.tensors) > len(tensors):  # the extra one is a tensor of its own
        assert extra is not None
        tensors, extra = (*tensors, extra), None
    filled: list[Any] = parameters
    if twin.has_pos_weight:
        arguments["pos_weight"] = extra
    elif extra is not None:
        filled = [extra if math.isnan(value) else value for value in parameters]
    given = {name: value for name, value in arguments.items() if value is not None}
    names = (name for name in twin.floats if name not in arguments)
    floats = dict(zip(names, filled, strict=True))
    # A loss of the input alone gets no second tensor.
    return twin.function(*tensors[: len(twin.tensors)], **floats, **twin.options, **given)


def _two_tensors_reference(
    loss: str,
    first: Tensor,
    second: Tensor,
    parameters: list[float],
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    return _call_twin(
        loss,
        (first, second),
        parameters,
        extra,
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
    if loss == "policy_gradient_loss":
        return _call_twin(
            loss,
            (input, target),
            parameters,
            advantages=weight,
            mask=extra,
            reduction=reduction,
            avg_factor=avg_number if avg_factor is None else avg_factor,
        )
    if loss == "selective_log_softmax":
        return _call_twin(loss, (input, target), parameters)
    is_parameter = any(math.isnan(value) for value in parameters)
    return _call_twin(
        loss,
        (input, target),
        parameters,
        weight if is_parameter else extra,
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
        parameters,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_number if avg_factor is None else avg_factor,
    )


def _box_pair_reference(
    loss: str,
    first: Tensor,
    second: Tensor,
    parameters: list[float],
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    if loss == "object_keypoint_similarity_loss":  # the operator's tensors are made of its own
        from fastloss.reference import boxes

        assert extra is not None
        assert weight is not None
        return boxes._keypoint_loss(first, second, extra, weight, reduction)
    return _two_tensors_reference(
        loss, first, second, parameters, extra, weight, reduction, avg_factor, avg_number
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
        parameters,
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
        parameters,
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
        [],
        classes="present" if present else "all",
        per_image=per_image,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def _pairs_reference(
    loss: str,
    scores: Tensor,
    relevance: Tensor,
    parameters: list[float],
    extra: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    # The one number that may be None, and is an integer, is k.
    given: list[Any] = [
        (int(value) if math.isfinite(value) else None) if name == "k" else value
        for name, value in zip(_twin(loss).floats, parameters, strict=True)
    ]
    reduces: dict[str, Any] = {} if loss == "ndcg" else {"reduction": reduction}
    return _call_twin(loss, (scores, relevance), given, mask=extra, **reduces)


def _policy_reference(
    loss: str,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    ref_log_probs: Tensor | None,
    mask: Tensor | None,
    parameters: list[float],
    normalizer: str,
    reduction: str,
    avg_factor: Tensor | None,
    avg_number: float | None,
) -> Tensor:
    from fastloss import reference

    floats = dict(zip(_twin(loss).floats, parameters, strict=True))
    avg = avg_number if avg_factor is None else avg_factor
    if loss == "self_critical_loss":
        return reference.self_critical_loss(
            log_probs, advantages, old_log_probs, mask, reduction, avg_factor=avg
        )
    if loss == "ppo_loss":
        return reference.ppo_loss(
            log_probs,
            old_log_probs,
            advantages,
            mask,
            reduction=reduction,
            avg_factor=avg,
            **floats,
        )
    return reference.grpo_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        ref_log_probs=ref_log_probs,
        normalizer=normalizer,
        reduction=reduction,
        avg_factor=avg,
        **floats,
    )


def _triplet_reference(
    loss: str,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    parameters: list[float],
    reduction: str,
) -> Tensor:
    return _call_twin(loss, (anchor, positive, negative), parameters, reduction=reduction)


def _batch_hard_reference(
    loss: str, embeddings: Tensor, labels: Tensor, parameters: list[float], reduction: str
) -> Tensor:
    margin: list[Any] = [None if math.isnan(value) else value for value in parameters]
    return _call_twin(loss, (embeddings, labels), margin, reduction=reduction)


def _edges_reference(
    loss: str, z: Tensor, pos_edge_index: Tensor, neg_edge_index: Tensor, reduction: str
) -> Tensor:
    return _call_twin(loss, (z, pos_edge_index, neg_edge_index), [], reduction=reduction)


def _contrastive_reference(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | None,
    temperature_number: float,
    mode: str,
    normalize: bool,
    positive: int,
    itself: int | None,
    reduction: str,
) -> Tensor:
    from fastloss.reference import graph

    tau = temperature_number if temperature is None else temperature
    options: dict[str, Any] = {"normalize": normalize, "reduction": reduction}
    if mode == "rows":
        return graph._rows(z1, z2, tau, positive, itself, **options)
    return graph.info_nce_loss(z1, z2, tau, mode=mode, **options)


def _task_aligned_assignment_reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastloss import reference

    names = ("topk", "topk2", "alpha", "beta", "candidate_boxes")
    detections, options = arguments[: -len(names)], arguments[-len(names) :]
    return reference.task_aligned_assignment(*detections, **dict(zip(names, options, strict=True)))


def _task_aligned_detection_loss_reference(*arguments: Any) -> Tensor:
    from fastloss import reference

    *tensors, weight = arguments
    return reference.task_aligned_detection_loss(*tensors, weight=weight)


def _detr_matching_cost_reference(
    logits: Tensor,
    boxes: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    class_cost: float,
    bbox_cost: float,
    giou_cost: float,
    alpha: float,
    gamma: float,
    kind: str,
) -> Tensor:
    from fastloss import reference

    return reference.detr_matching_cost(
        logits,
        boxes,
        target_labels,
        target_boxes,
        class_cost=class_cost,
        bbox_cost=bbox_cost,
        giou_cost=giou_cost,
        alpha=alpha,
        gamma=gamma,
        kind=kind,
    )


def _sentence_bleu_reference(
    candidates: Tensor,
    references: Tensor,
    max_order: int,
    smoothing: str,
    smoothing_value: float | None,
    pad_index: int,
) -> Tensor:
    from fastloss import reference

    return reference.sentence_bleu(
        candidates,
        references,
        max_order=max_order,
        smoothing=smoothing,
        smoothing_value=smoothing_value,
        pad_index=pad_index,
    )


def _reference_itself(name: str) -> Callable[..., Any]:
    """The twin of an operator with the function's own signature."""

    def call(*arguments: Any) -> Any:
        from fastloss import reference

        return getattr(reference, name)(*arguments)

    return call


_library = torch.library.Library("fastloss", "IMPL")
for _engine, _function in {
    "pointwise": _two_tensors_reference,
    "policy": _policy_reference,
    "softmax": _softmax_reference,
    "linear_cross_entropy": _linear_cross_entropy_reference,
    "box_pair": _box_pair_reference,
    "box_matrix": _box_matrix_reference,
    "box_crowd": _box_crowd_reference,
    "region": _region_reference,
    "ranked_region": _ranked_region_reference,
    "pairs": _pairs_reference,
    "triplet": _triplet_reference,
    "batch_hard": _batch_hard_reference,
    "row_pair": _two_tensors_reference,
    "edges": _edges_reference,
    "contrastive": _contrastive_reference,
    "task_aligned_assignment": _task_aligned_assignment_reference,
    "task_aligned_detection_loss": _task_aligned_detection_loss_reference,
    "crf": _reference_itself("crf_loss"),
    "crf_marginals": _reference_itself("crf_marginals"),
    "crf_decode": _reference_itself("crf_decode"),
    "detr_matching_cost": _detr_matching_cost_reference,
    "sentence_bleu": _sentence_bleu_reference,
}.items():
    for _key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):
        _library.impl(f"{_engine}_reference", _function, _key)
