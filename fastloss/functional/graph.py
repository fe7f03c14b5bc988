# SPDX-License-Identifier: MIT
"""Losses of graphs and of contrastive learning."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from .. import _ops
from .._distributed import gather_rows, mean_over_ranks
from ._shared import check_number, documented, option_error

__all__ = ["info_nce_loss"]


@documented
def info_nce_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float = 0.5,
    *,
    mode: str = "nt_xent",
    normalize: bool = True,
    reduction: str = "mean",
    process_group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE: how well a row finds its other view among the rows of the batch.

    Cross-entropy -ln(e^(s_p/τ) / Σ e^(s_j/τ)) of the similarities s_j of a row with others, s_p
    being that with its positive, the row of the same number on the other side:

    - ``"nt_xent"``: every row of either side over all other rows of both (SimCLR);
    - ``"cross"``: every row of ``z1`` over the rows of ``z2``;
    - ``"clip"``: the mean of that and of every row of ``z2`` over the rows of ``z1`` (CLIP).

    No matrix of similarities is in memory: some rows of it exist at a time, beside a few MiB, or as
    much as both sides take, that need not be computed twice. Products of half precision are those
    of float32; on CUDA torch's own switch lets them run in TF32.

    Representation Learning with Contrastive Predictive Coding, 2018, arXiv 1807.03748. A Simple
    Framework for Contrastive Learning of Visual Representations (NT-Xent), 2020, arXiv 2002.05709.
    Learning Transferable Visual Models From Natural Language Supervision (CLIP), 2021, arXiv
    2103.00020.

    Args:
        z1: Embeddings of one view (N, features), any floating dtype, any strides.
        z2: Those of the other view, of the same shape.
        temperature: τ, above 0: a number, or a 0-d tensor, which may need a gradient and which the
            host does not read from a device: for CLIP, ``torch.exp(-logit_scale)``.
        mode: ``"nt_xent"``, ``"cross"`` or ``"clip"``.
        normalize: Whether similarities are cosines: rows are brought to unit length, those shorter
            than 1e-12 divided by that. Else they are inner products.
        reduction: ``"none"``, ``"sum"``, or ``"mean"`` over the rows; for ``"nt_xent"`` these are
            2 N.
        process_group: Group of processes that each have N rows of the batch;
            ``torch.distributed.group.WORLD`` is all of them. Each returns the loss of the whole
            batch, and its gradients are such that their mean over the processes, which is what
            ``DistributedDataParallel`` makes, is the gradient of that loss. Each process makes
            every call and compares its own rows with those of all, which its backward waits for,
            too; ``"none"`` is not offered.

    Returns:
        The loss: shape (N,) for ``"none"``, (2 N,) with ``"nt_xent"``, those of ``z1`` first; else
        a 0-d tensor; float32, or float64 if one side is. Of no rows it is 0, with a gradient of 0.
        A NaN in a row makes the losses of all rows compared with it NaN.

    Raises:
        ValueError: For shapes, devices or options that do not fit; in every process, where their
            rows differ in number or dtype.
        TypeError: For dtypes that do not fit.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> z2 = torch.tensor([[2.0, 0.1], [0.0, 3.0], [0.5, 1.0]])
        >>> F.info_nce_loss(z1, z2, mode="clip")
        tensor(0.6301)
    """
    if not isinstance(temperature, Tensor):
        check_number("info_nce_loss", "temperature", temperature, "above 0 and finite")
    if mode not in ("nt_xent", "cross", "clip"):
        raise option_error("info_nce_loss", "mode", "'nt_xent', 'cross' or 'clip'", mode)
    if process_group is not None:
        return _of_all_ranks(z1, z2, temperature, mode, normalize, reduction, process_group)
    return _ops.contrastive(
        z1,
        z2,
        temperature,
        mode="rows" if mode == "cross" else mode,
        normalize=normalize,
        reduction=reduction,
    )


def _of_all_ranks(
    z1: Tensor,
    z2: Tensor,
    temperature: Tensor | float,
    mode: str,
    normalize: bool,
    reduction: str,
    group: distributed.ProcessGroup,
) -> Tensor:
    """This rank's rows over those of all ranks; the loss of all ranks' rows."""
    if reduction not in ("mean", "sum"):
        expected = "'mean' or 'sum' with a process_group"
        raise option_error("info_nce_loss", "reduction", expected, reduction)
    all1, all2 = gather_rows("info_nce_loss", {"z1": z1, "z2": z2}, group)
    if z1.shape != z2.shape:  # said before one of the processes waits for the others again
        raise ValueError(
            f"info_nce_loss: z2 must have the shape of z1, {list(z1.shape)}, got {list(z2.shape)}"
        )
    ranks, count = distributed.get_world_size(group), z1.shape[0]
    own, total = distributed.get_rank(group) * count, all1.shape[0]

    def compare(rows: Tensor, columns: Tensor, positive: int, itself: int | None = None) -> Tensor:
        return _ops.contrastive(
            rows,
            columns,
            temperature,
            mode="rows",
            normalize=normalize,
            positive=positive,
            itself=itself,
            reduction=reduction,
        )

    if mode == "cross":
        loss = compare(z1, all2, own)
    elif mode == "clip":
        loss = (compare(z1, all2, own) + compare(z2, all1, own)) / 2
    else:
        both = torch.cat((all1, all2))
        loss = compare(z1, both, total + own, own) + compare(z2, both, own, total + own)
        if reduction == "mean":
            loss = loss / 2
    return mean_over_ranks(loss if reduction == "mean" else ranks * loss, group)
