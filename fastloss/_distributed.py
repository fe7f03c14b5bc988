# SPDX-License-Identifier: MIT
"""What losses of several processes share: the rows of all of them, and the mean of their numbers.

A loss of the whole batch is the mean of what the processes (ranks) compute, and training averages
their gradients, as ``DistributedDataParallel`` does. So each rank differentiates its own share of
the loss, with respect to the rows of every rank: :func:`gather_rows` brings each rank the rows of
all, and in backward the gradients of its rows from all; :func:`mean_over_ranks` shows the loss of
the whole batch and leaves the gradient of the share as it is. The average over the ranks then is
the gradient that one process with the whole batch would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["gather_rows", "mean_over_ranks"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Shapes are exchanged as so many numbers, whatever the number of dimensions.
_MOST_DIMENSIONS = 8


class _GatherRows(torch.autograd.Function):
    """The rows of all ranks, one rank after the other; their gradients added up go back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [tensor.new_empty(tensor.shape) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        parts = list(gradient.contiguous().chunk(distributed.get_world_size(ctx.group)))
        own = torch.empty_like(parts[0])
        if own.numel() > 0:
            distributed.reduce_scatter(own, parts, group=ctx.group)
        return own, None


class _MeanOverRanks(torch.autograd.Function):
    """The mean over the ranks, whose gradient is that of this rank's number alone."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: distributed.ProcessGroup) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total, group=group)
        return total / distributed.get_world_size(group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def gather_rows(
    function: str, tensors: Mapping[str, Tensor], group: distributed.ProcessGroup
) -> tuple[Tensor, ...]:
    """The rows of every rank, in the order of the ranks.

    Every rank of the group calls this, with tensors of the same shapes and dtypes. That is checked
    first, which waits for the device.

    Args:
        function: Whose arguments they are, for messages.
        tensors: By argument name, all on the same device.
        group: Group of processes.

    Returns:
        For each of the tensors, those of all ranks along the first dimension.

    Raises:
        ValueError: On every rank, where shapes or dtypes differ between ranks.
    """
    described = [_description(tensor) for tensor in tensors.values()]
    own = torch.tensor(described, device=next(iter(tensors.values())).device)
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, own, group=group)
    found = torch.stack(parts).tolist()
    for i, name in enumerate(tensors):
        for rank, descriptions in enumerate(found):
            if descriptions[i] != found[0][i]:
                raise ValueError(
                    f"{function}: {name} must have one shape and dtype in all processes, got "
                    f"{_spelled(found[0][i])} in process 0 and {_spelled(descriptions[i])} in "
                    f"process {rank}"
                )
    return tuple(_GatherRows.apply(tensor, group) for tensor in tensors.values())


def mean_over_ranks(value: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """The mean of each rank's number; its gradient is that of this rank's number alone."""
    return _MeanOverRanks.apply(value, group)


def _description(tensor: Tensor) -> list[int]:
    """The dtype and the shape, as many numbers for every tensor."""
    shape = list(tensor.shape)[:_MOST_DIMENSIONS]
    dtype = _DTYPES.index(tensor.dtype) if tensor.dtype in _DTYPES else -1
    return [dtype, len(shape), *shape, *[0] * (_MOST_DIMENSIONS - len(shape))]


def _spelled(description: list[int]) -> str:
    code, dims, *shape = description
    dtype = "another dtype" if code < 0 else str(_DTYPES[code]).removeprefix("torch.")
    return f"{dtype} {tuple(shape[:dims])}"
