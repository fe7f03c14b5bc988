# SPDX-License-Identifier: MIT
"""What the stand-ins of every framework ask of a call's tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .patching import Function

__all__ = ["PLAIN", "REDUCTIONS", "are_plain", "autocasts", "scripted_as"]

REDUCTIONS = frozenset({"none", "mean", "sum"})
_FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
# Exactly these: a subclass may mean something else by any of its operations.
PLAIN = (Tensor, torch.nn.Parameter)


def are_plain(first: Tensor, second: Tensor) -> bool:
    """Whether these are two floating tensors of one shape and device, and nothing more."""
    return (
        not torch.jit.is_tracing()
        and type(first) in PLAIN
        and type(second) in PLAIN
        and (torch.compiler.is_compiling() or not _under_transform(first, second))
        and first.dtype in _FLOATING
        and second.dtype in _FLOATING
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


def scripted_as(original: Function, stand_in: Function) -> Function:
    """Has ``torch.jit.script`` compile the original: TorchScript knows no kernels of ours."""
    stand_in.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]
    return stand_in
