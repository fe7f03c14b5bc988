# SPDX-License-Identifier: MIT
"""What the stand-ins of every framework ask of a call's tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastloss import _C

from .patching import Function

__all__ = [
    "FLOATING",
    "PLAIN",
    "REDUCTIONS",
    "are_plain",
    "autocasts",
    "corners",
    "has_kernels",
    "in_dtype_of",
    "is_served",
    "scripted_as",
    "unless_refused",
]

REDUCTIONS = frozenset({"none", "mean", "sum"})
FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_HAS_CUDA = bool(_C.build_info()["cuda"])
# Exactly these: a subclass may mean something else by any of its operations.
PLAIN = (Tensor, torch.nn.Parameter)


def are_plain(first: Tensor, second: Tensor) -> bool:
    """Whether these are two floating tensors of one shape and device, and nothing more."""
    return (
        not torch.jit.is_tracing()
        and type(first) in PLAIN
        and type(second) in PLAIN
        and (torch.compiler.is_compiling() or not _under_transform(first, second))
        and first.dtype in FLOATING
        and second.dtype in FLOATING
        and first.layout == torch.strided
        and second.layout == torch.strided
        and not first.is_nested
        and not second.is_nested
        and first.shape == second.shape
        and first.device == second.device
    )


def _under_transform(*tensors: Tensor) -> bool:
    """Whether torch.func transforms these: the framework's own code is what it knows best."""
    return any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def autocasts(tensor: Tensor) -> bool:
    """Whether torch computes losses in float32 here, whatever the dtype."""
    return torch.is_autocast_enabled(tensor.device.type)


def in_dtype_of(logits: Tensor, loss: Tensor) -> Tensor:
    """The loss as a framework has it that computes in half precision, to the end."""
    return loss if autocasts(logits) else loss.to(logits.dtype)


def scripted_as(original: Function, stand_in: Function) -> Function:
    """Has ``torch.jit.script`` compile the original: TorchScript knows no kernels of ours."""
    stand_in.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]
    return stand_in


def has_kernels(tensor: Tensor) -> bool:
    """Whether there are kernels where a tensor lies."""
    return tensor.is_cpu or (tensor.is_cuda and _HAS_CUDA)


def is_served(tensor: Tensor) -> bool:
    """Whether this is a floating tensor that the kernels take."""
    return are_plain(tensor, tensor) and has_kernels(tensor)


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) of centre and sides as x1, y1, x2, y2."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def unless_refused(kernel: Function, *arguments: Any, **options: Any) -> Tensor | None:
    """The loss; None where the kernels refuse the values: the framework says what is wrong."""
    if torch.compiler.is_compiling():  # the values come later
        return kernel(*arguments, **options)
    try:
        return kernel(*arguments, **options)
    except (ValueError, TypeError, IndexError):
        return None
