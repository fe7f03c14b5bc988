# SPDX-License-Identifier: MIT
"""Losses in training on several processes.

Under ``DistributedDataParallel`` and ``fully_shard`` all losses work as they are: each process has
the loss of its own samples, and the mean of the gradients is taken. For ``reduction="mean"`` and
batches of one size that is the gradient of the whole batch.

Three things need to know of the other processes:

- a divisor that counts something, such as the objects in the images of a detector: each process has
  another number of them. :func:`reduce_avg_factor` makes one ``avg_factor`` of all;
- losses that are no sum over samples: ``dice_loss(batch=True, process_group=...)``,
  ``info_nce_loss(process_group=...)`` and the running mean of
  ``WiseBoxIoULoss(process_group=...)``;
- logits whose classes are shared out: ``cross_entropy(process_group=...)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["reduce_avg_factor"]


def reduce_avg_factor(
    count: Tensor | float, process_group: distributed.ProcessGroup | None = None
) -> Tensor:
    """The ``avg_factor`` of every process, from what each of them has counted: the mean.

    Divided by it, and with their gradients averaged as ``DistributedDataParallel`` does, the
    processes have the gradient of one process that has the whole batch: Σ loss / Σ count. The host
    does not wait for the device. Each process makes every call.

    Args:
        count: What this process would divide by: a number, or a 0-d tensor of any dtype; with a
            backend that needs a device (NCCL), a tensor there. Losses take 0 for an answer: the
            mean over nothing is 0. For at least 1, clamp the result.
        process_group: Group of processes that average their gradients. None: all processes, or, if
            ``torch.distributed`` is not initialised, this one alone.

    Returns:
        0-d tensor, float32, or float64 for such a tensor; without gradient.

    Raises:
        ValueError: For a tensor that is not 0-d.

    Example:
        >>> import torch
        >>> import fastloss
        >>> import fastloss.functional as F
        >>> foreground = torch.tensor([True, False, True])
        >>> avg_factor = fastloss.distributed.reduce_avg_factor(foreground.sum())
        >>> logits, targets = torch.tensor([1.0, -2.0, 0.5]), foreground.float()
        >>> F.sigmoid_focal_loss(logits, targets, reduction="mean", avg_factor=avg_factor)
        tensor(0.0120)
    """
    total = torch.as_tensor(count).detach()
    if total.dim() != 0:
        raise ValueError(
            "reduce_avg_factor: count must be a number or a 0-d tensor, got shape "
            f"{list(total.shape)}"
        )
    # A copy: the count is not to become the sum.
    total = total.to(torch.float64 if total.dtype == torch.float64 else torch.float32, copy=True)
    if process_group is None and not (distributed.is_available() and distributed.is_initialized()):
        return total
    distributed.all_reduce(total, group=process_group)
    return total / distributed.get_world_size(process_group)
