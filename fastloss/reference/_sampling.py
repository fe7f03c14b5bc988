# SPDX-License-Identifier: MIT
"""Pairs of nodes without an edge: what is drawn where none are given."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

__all__ = ["negative_edges"]


def negative_edges(edge_index: Tensor, nodes: int, generator: Generator | None = None) -> Tensor:
    """As many pairs of different nodes as there are edges, none of which is an edge.

    Each is drawn by itself, all free pairs with the same probability, by its rank among them: there
    is no second try, so the host never waits for a device.

    Args:
        edge_index: The edges (2, E), of any integer dtype.
        nodes: How many nodes there are.
        generator: Source of the random numbers.

    Returns:
        The pairs (2, E), int64.

    Raises:
        ValueError: On CPU, if every pair is an edge. On CUDA that is a device-side assertion.
    """
    if edge_index.shape[1] == 0:
        return edge_index.long()
    device = edge_index.device
    # A pair is the number source · nodes + target.
    source, target = edge_index.long().unbind()
    loops = torch.arange(nodes, device=device) * (nodes + 1)
    taken = torch.cat((source * nodes + target, loops)).sort().values
    is_another = torch.ones_like(taken, dtype=torch.bool)
    is_another[1:] = taken[1:] != taken[:-1]
    taken_so_far = is_another.cumsum(0)
    free_below = taken - taken_so_far + 1
    free = nodes * nodes - taken_so_far[-1]
    if device.type == "cpu" and not torch.compiler.is_compiling():
        if int(free) <= 0:
            raise ValueError(
                "graph_reconstruction_loss: neg_edge_index must be given, for every pair of nodes "
                "is an edge"
            )
    else:
        torch._assert_async(free > 0, "fastloss: every pair of nodes is an edge")
    uniform = torch.rand(len(source), dtype=torch.float64, device=device, generator=generator)
    rank = torch.minimum((uniform * free).long(), free - 1)
    passed = torch.searchsorted(free_below, rank, right=True)
    pair = rank + torch.nn.functional.pad(taken_so_far, (1, 0))[passed]
    return torch.stack((pair // nodes, pair % nodes))
