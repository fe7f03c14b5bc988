# SPDX-License-Identifier: MIT
"""What the references of losses on rows of logits share: where the classes are, and the labels.

And how parts that other processes have are brought together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["Labels", "classes_last", "of_all_ranks"]


def classes_last(tensor: Tensor) -> Tensor:
    """(N, C, d1, ...) to (N, d1, ..., C); (C,) stays as it is."""
    return tensor.movedim(1, -1) if tensor.dim() > 1 else tensor


def of_all_ranks(tensor: Tensor, group: distributed.ProcessGroup, dim: int = 0) -> Tensor:
    """The tensors of all processes, one after the other; the gradient is that of the own one."""
    parts: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(parts, tensor.detach().cpu(), group=group)
    parts = [part.to(tensor.device) for part in parts]
    parts[distributed.get_rank(group)] = tensor
    return torch.cat(parts, dim)


class Labels:
    """Class indices, some of which are ignored.

    Attributes:
        logits: The rows (..., C), classes last; ignored ones are zeros outside the graph.
        index: The labels (...,) as int64, 0 where ignored.
        counts: Boolean (...,): the rows that count.
        weight: The weight of each row's class (...,), 0 where ignored.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        class_weight: Tensor | None = None,
        ignore_index: int | None = None,
    ) -> None:
        rows = classes_last(logits)
        if ignore_index is None:
            self.counts = torch.ones_like(target, dtype=torch.bool)
        else:
            self.counts = target != ignore_index
        self.logits = torch.where(self.counts.unsqueeze(-1), rows, 0.0)
        self.index = torch.where(self.counts, target, 0).long()
        self.class_weight = None if class_weight is None else class_weight.to(rows.dtype)
        weight = torch.ones_like(self.index, dtype=rows.dtype)
        if self.class_weight is not None:
            weight = self.class_weight[self.index]
        self.weight = torch.where(self.counts, weight, 0.0)

    def pick(self, rows: Tensor) -> Tensor:
        """The number of each row (..., C) that belongs to its label."""
        return rows.gather(-1, self.index.unsqueeze(-1)).squeeze(-1)

    def only(self, loss: Tensor) -> Tensor:
        """A loss per row, 0 where ignored."""
        return torch.where(self.counts, loss, 0.0)
