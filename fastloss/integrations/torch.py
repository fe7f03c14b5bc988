# SPDX-License-Identifier: MIT
"""torch itself: the losses of ``torch.nn.functional``, which are those of ``torch.nn``'s modules.

Signatures, defaults, reductions, dtypes, warnings, errors and NaN are torch's. Calls that the
kernels do not take run torch's own code: shapes that differ and broadcast, targets that are
integers (but labels), a mean over nothing, the deprecated ``size_average`` and ``reduce``, weights
that have a gradient, tensor subclasses, sparse and nested tensors, devices without kernels,
``torch.jit.script`` and ``torch.jit.trace``. What differs from torch: half-precision losses are
computed in float32 and rounded once, at the end; and under ``torch.compile`` a label or probability
out of range is an error in fastloss's words.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fastloss import functional

from ._adapters import (
    PLAIN,
    REDUCTIONS,
    are_plain,
    autocasts,
    has_kernels,
    scripted_as,
    unless_refused,
)
from .patching import Framework, Function, Replacement


def _squared_or_absolute(kernel: Function) -> Function:
    """Makes the wrapper of ``mse_loss`` and of ``l1_loss``."""

    def wrap(original: Function) -> Function:
        def stand_in(
            input: Tensor,
            target: Tensor,
            size_average: bool | None = None,
            reduce: bool | None = None,
            reduction: str = "mean",
            weight: Tensor | None = None,
        ) -> Tensor:
            fits = (
                size_average is None
                and reduce is None
                and weight is None
                and _fit(input, target, reduction, promotes=True)
            )
            if fits:
                return _as_torchs(kernel(input, target, reduction), input, target)
            return _call(
                original,
                (input, target, weight),
                size_average=size_average,
                reduce=reduce,
                reduction=reduction,
                weight=weight,
            )

        return _in_place_of(original, stand_in)

    return wrap


def _smooth_l1_loss(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        beta: float = 1.0,
    ) -> Tensor:
        fits = (
            size_average is None
            and reduce is None
            and _is_number(beta)
            and beta >= 0
            and _fit(input, target, reduction, promotes=True)
        )
        if fits:
            loss = functional.smooth_l1_loss(input, target, reduction, beta)
            return _as_torchs(loss, input, target)
        return _call(
            original,
            (input, target),
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            beta=beta,
        )

    return _in_place_of(original, stand_in)


def _huber_loss(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        reduction: str = "mean",
        delta: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        fits = (
            weight is None
            and _is_number(delta)
            and delta > 0
            and _fit(input, target, reduction, promotes=False)
        )
        if fits:
            loss = functional.huber_loss(input, target, reduction, delta)
            return _as_torchs(loss, input, target)
        return _call(
            original, (input, target, weight), reduction=reduction, delta=delta, weight=weight
        )

    return _in_place_of(original, stand_in)


def _binary_cross_entropy_with_logits(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> Tensor:
        fits = (
            size_average is None
            and reduce is None
            and _fit(input, target, reduction, promotes=False)
            and _is_factor(weight, input)
            and _is_factor(pos_weight, input)
        )
        if fits:
            loss = functional.binary_cross_entropy_with_logits(
                input, target, weight, reduction, pos_weight
            )
            return _as_torchs(loss, input, target)
        return _call(
            original,
            (input, target, weight, pos_weight),
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
            pos_weight=pos_weight,
        )

    return _in_place_of(original, stand_in)


def _binary_cross_entropy(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        fits = (
            size_average is None
            and reduce is None
            and _fit(input, target, reduction, promotes=False)
            and not autocasts(input)  # torch forbids it on a GPU
            and not target.requires_grad  # torch's gradient is infinite where the input is 0 or 1
            and _is_factor(weight, input)
        )
        arguments = (input, target, weight, reduction)
        loss = unless_refused(functional.binary_cross_entropy, *arguments) if fits else None
        if loss is not None and not _is_invalid(loss):
            return _as_torchs(loss, input, target)
        return _call(
            original,
            (input, target, weight),
            weight=weight,
            size_average=size_average,
            reduce=reduce,
            reduction=reduction,
        )

    return _in_place_of(original, stand_in)


def _cross_entropy(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:
        fits = (
            size_average is None
            and reduce is None
            and (_are_rows(input, target, ignore_index) or _are_shares(input, target, ignore_index))
            and _fit(input, input, reduction, promotes=False)
            and _is_class_weight(weight, input)
            and _is_number(label_smoothing)
            and 0 <= label_smoothing <= 1
        )
        arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
        loss = unless_refused(functional.cross_entropy, *arguments) if fits else None
        if loss is not None and reduction == "mean" and not target.is_floating_point():
            loss = _unless_nothing_counts(loss, target, weight, ignore_index)
        if loss is not None:
            return _as_torchs(loss, input, input)
        return _call(
            original,
            (input, target, weight),
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    return _in_place_of(original, stand_in)


def _nll_loss(original: Function) -> Function:
    def stand_in(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        fits = (
            size_average is None
            and reduce is None
            and _are_rows(input, target, ignore_index)
            and _fit(input, input, reduction, promotes=False)
            and _is_class_weight(weight, input)
        )
        arguments = (input, target, weight, ignore_index, reduction)
        loss = unless_refused(functional.nll_loss, *arguments) if fits else None
        if loss is not None and reduction == "mean":
            loss = _unless_nothing_counts(loss, target, weight, ignore_index)
        if loss is not None:
            return _as_torchs(loss, input, input)
        return _call(
            original,
            (input, target, weight),
            weight=weight,
            size_average=size_average,
            ignore_index=ignore_index,
            reduce=reduce,
            reduction=reduction,
        )

    return _in_place_of(original, stand_in)


# ----------------------------------------------------------------------------- what the calls share


def _fit(input: Tensor, target: Tensor, reduction: str, *, promotes: bool) -> bool:
    """Whether the kernels compute what torch does of these.

    Args:
        input: What was predicted.
        target: What it is compared with.
        reduction: As given.
        promotes: Whether torch promotes inputs of two dtypes to one; some functions raise, or
            forget one of the two.
    """
    return (
        are_plain(input, target)
        and isinstance(reduction, str)
        and reduction in REDUCTIONS
        and has_kernels(input)
        and (reduction != "mean" or input.numel() > 0)  # torch's mean over nothing is NaN
        and (
            input.dtype == target.dtype
            or (torch.float64 not in (input.dtype, target.dtype) if autocasts(input) else promotes)
        )
    )


def _is_constant(weight: Tensor, input: Tensor) -> bool:
    """Whether a weight lies where the input does, changes no dtype, and has no gradient."""
    return (
        type(weight) in PLAIN
        and not weight.requires_grad
        and weight.layout == torch.strided
        and weight.device == input.device
        and (
            weight.dtype == input.dtype
            or (autocasts(input) and weight.dtype.is_floating_point and weight.dtype.itemsize < 8)
        )
    )


def _is_factor(weight: Tensor | None, input: Tensor) -> bool:
    """Whether a weight is one of every element."""
    return weight is None or (
        _is_constant(weight, input)
        and weight.dim() <= input.dim()
        and all(
            size in (1, full)
            for size, full in zip(reversed(weight.shape), reversed(input.shape), strict=False)
        )
    )


def _is_class_weight(weight: Tensor | None, input: Tensor) -> bool:
    """Whether a weight is one of every class."""
    classes = input.shape[1 if input.dim() > 1 else 0]
    return weight is None or (_is_constant(weight, input) and weight.shape == (classes,))


def _are_rows(input: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Whether these are rows of logits (N, C), (C,) or (N, C, d1, ...) and their labels."""
    return (
        type(input) in PLAIN
        and type(target) is Tensor
        and target.dtype in (torch.int64, torch.uint8)
        and not input.is_nested
        and input.dim() > 0
        and input.numel() > 0
        and target.shape == (input.shape[:1] + input.shape[2:] if input.dim() > 1 else ())
        and target.device == input.device
        and isinstance(ignore_index, int)
    )


def _are_shares(input: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Whether these are rows of logits, and probabilities of the same shape without a gradient."""
    return (
        are_plain(input, target)
        and input.dtype == target.dtype
        and not target.requires_grad
        and input.dim() > 0
        and isinstance(ignore_index, int)
        and ignore_index < 0  # torch has an error for others
    )


def _unless_nothing_counts(
    loss: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int
) -> Tensor | None:
    """The mean over labels, which for torch is NaN where all are ignored or of no weight.

    None: a loss of 0 on a CPU is so rare that torch may say what it is. Elsewhere nobody waits.
    """
    if loss.is_cpu and not torch.compiler.is_compiling():
        return loss if loss.item() != 0 else None
    counts = target != ignore_index
    if weight is not None:
        counts = torch.where(counts, weight[torch.where(counts, target, 0).long()], 0.0)
    return torch.where(counts.any(), loss, torch.nan)


def _is_number(value: object) -> bool:
    return isinstance(value, (float, int))


def _as_torchs(loss: Tensor, input: Tensor, target: Tensor) -> Tensor:
    """The loss in torch's dtype."""
    if input.dtype == target.dtype != loss.dtype and not autocasts(input):
        return loss.to(input.dtype)  # torch computes in half precision, to the end
    return loss


def _is_invalid(loss: Tensor) -> bool:
    """Whether NaN came of it, which torch may have an error for: as far as nobody has to wait."""
    if not loss.is_cpu or torch.compiler.is_compiling():
        return False
    return math.isnan(loss.item()) if loss.dim() == 0 else bool(loss.isnan().any())


def _call(original: Function, tensors: tuple[Tensor | None, ...], **options: object) -> Tensor:
    """Calls torch's own function, as if nothing stood in for it."""
    input, target, *_ = tensors
    if not torch.compiler.is_compiling() and has_torch_function(tensors):
        # The original would hand on what now has its name: the stand-in, which no table knows.
        return handle_torch_function(original, tensors, input, target, **options)
    return original(input, target, **options)


def _in_place_of(original: Function, stand_in: Function) -> Function:
    """Gives the stand-in the original's looks."""
    parameters = list(inspect.signature(original).parameters)
    if parameters != list(inspect.signature(stand_in).parameters):
        raise ImportError(
            f"torch {torch.__version__}: {original.__name__} takes {parameters}, which fastloss "
            "does not know; nothing was patched"
        )
    return scripted_as(original, functools.wraps(original)(stand_in))


def _import_dynamo() -> None:
    """Has ``torch.compile`` make its table of torch's functions before others have their names."""
    importlib.import_module("torch._dynamo")


TORCH = Framework(
    name="torch",
    oldest=(2, 10),
    newest=(2, 13),
    within=("torch.nn",),
    before=_import_dynamo,
    replacements=tuple(
        Replacement("torch.nn.functional", name, wrap)
        for name, wrap in {
            "cross_entropy": _cross_entropy,
            "nll_loss": _nll_loss,
            "mse_loss": _squared_or_absolute(functional.mse_loss),
            "l1_loss": _squared_or_absolute(functional.l1_loss),
            "smooth_l1_loss": _smooth_l1_loss,
            "huber_loss": _huber_loss,
            "binary_cross_entropy": _binary_cross_entropy,
            "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
        }.items()
    ),
)
