# SPDX-License-Identifier: MIT
"""Losses of graphs and of contrastive learning.

They are of the edges between nodes, and of what is learned about things without labels.

Which one? The graph reconstruction loss trains an autoencoder to tell edges from other pairs of
nodes, with the KL loss beside it a variational one. The scaled cosine error rebuilds masked
features. Deep graph infomax needs corrupted nodes, the bootstrap latent loss a second, slowly
moving encoder. InfoNCE compares two views of each thing with those of all others.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, distributed

from .. import _ops
from .._distributed import gather_rows, mean_over_ranks
from ..reference._sampling import negative_edges
from ._shared import against, are_separate, check_number, documented, option_error

__all__ = [
    "bootstrap_latent_loss",
    "deep_graph_infomax_loss",
    "graph_reconstruction_loss",
    "info_nce_loss",
    "scaled_cosine_error",
    "variational_graph_kl_loss",
]


@documented
def graph_reconstruction_loss(
    z: Tensor,
    pos_edge_index: Tensor,
    neg_edge_index: Tensor | None = None,
    reduction: str = "mean",
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Inner-product decoder of a graph autoencoder: edges against pairs of nodes without one.

    Mean of -ln σ(z_i · z_j) over the edges + mean of -ln σ(-z_i · z_j) over the other pairs, of
    logits: it does not saturate. Nothing of the size of the edges' features is in memory, and the
    gradient of a node is always summed in the same order.

    Variational Graph Auto-Encoders, 2016, arXiv 1611.07308.

    Args:
        z: Features of the nodes (N, D), any floating dtype, any strides.
        pos_edge_index: The two nodes of every edge (2, E), in [0, N): uint8, int16, int32 or int64.
        neg_edge_index: Pairs of nodes (2, F) in the same way. None: E pairs are drawn, each by
            itself, all with the same probability, of different nodes that are no column of
            ``pos_edge_index`` in this order. Where an edge has two directions, give both, or name
            the pairs. The host does not wait for a device. Under ``torch.compile`` too pairs are
            drawn anew in each call, for which there may be no ``generator``.
        reduction: ``"mean"`` and ``"sum"`` reduce the edges and the other pairs by themselves and
            add the two; ``"none"`` gives a number for each, the edges first.
        generator: Source of the random numbers, on the device of z.

    Returns:
        The loss: (E + F,) for ``"none"``, else a 0-d tensor; float32, or float64 if z is. The mean
        over no edges is 0, with a gradient of 0.

    Raises:
        ValueError: For shapes, devices or options that do not fit. On CPU, if pairs are to be drawn
            and every pair is an edge; on CUDA that is a device-side assertion.
        TypeError: For dtypes that do not fit, such as floating edges.
        IndexError: On CPU, for an end of an edge that is not a node. On CUDA that is a device-side
            assertion.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> z = torch.tensor([[1.0, 0.0], [2.0, 1.0], [-1.0, 0.5]])
        >>> edges, others = torch.tensor([[0], [1]]), torch.tensor([[0, 1], [2, 2]])
        >>> F.graph_reconstruction_loss(z, edges, others)
        tensor(0.3843)
    """
    name = "graph_reconstruction_loss"
    if generator is not None and not isinstance(generator, Generator):
        raise TypeError(
            f"{name}: generator must be a torch.Generator or None, got {type(generator).__name__}"
        )
    if neg_edge_index is None:
        # What is wrong with the others the operator says.
        can_draw = (
            isinstance(z, Tensor)
            and isinstance(pos_edge_index, Tensor)
            and z.dim() == pos_edge_index.dim() == 2
            and pos_edge_index.shape[0] == 2
            and pos_edge_index.dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)
        )
        neg_edge_index = (
            negative_edges(pos_edge_index, z.shape[0], generator) if can_draw else pos_edge_index
        )
    return _ops.edges(name, z, pos_edge_index, neg_edge_index, reduction=reduction)


@documented
def variational_graph_kl_loss(mu: Tensor, logstd: Tensor, reduction: str = "mean") -> Tensor:
    """Distance of a variational autoencoder's distributions from the normal one, per node.

    ½ Σ (μ² + σ² - 1 - ln σ²) over the features of a node: the Kullback-Leibler divergence of
    N(μ, σ²) from N(0, 1). The logarithm of σ is held at 10 or below.

    Variational Graph Auto-Encoders, 2016, arXiv 1611.07308. It is usually divided by the number of
    nodes once more before it is added to the reconstruction loss.

    Args:
        mu: Means (..., D), a row per node, any floating dtype, any strides.
        logstd: Logarithms of the standard deviations, of the same shape.
        {node_reduction}

    {node_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> mu, logstd = torch.tensor([[1.0, 0.0], [0.5, -0.5]]), torch.zeros(2, 2)
        >>> F.variational_graph_kl_loss(mu, logstd)
        tensor(0.3750)
    """
    return _ops.row_pair("variational_graph_kl_loss", mu, logstd, (), reduction=reduction)


@documented
def deep_graph_infomax_loss(
    pos_logits: Tensor, neg_logits: Tensor, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of a discriminator that tells a graph's nodes from corrupted ones.

    -ln σ(pos) - ln σ(-neg), of logits: it does not saturate.

    Deep Graph Infomax, 2018, arXiv 1809.10341.

    Args:
        pos_logits: Logits of how well true nodes fit the graph's summary, any shape, any floating
            dtype, any strides.
        neg_logits: Logits of corrupted nodes in the same way.
        {pair_reduction}

    {pair_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.deep_graph_infomax_loss(torch.tensor([0.8, 1.1]), torch.tensor([0.3, -0.2, 0.5]))
        tensor(1.1381)
    """
    name = "deep_graph_infomax_loss"
    if are_separate(name, pos_logits, neg_logits, (), reduction):
        formula = f"{name}:binary_cross_entropy_with_logits"
        of_true = against(formula, pos_logits, 1.0, (), reduction)
        return of_true + against(formula, neg_logits, 0.0, (), reduction)
    return _ops.pointwise(name, pos_logits, neg_logits, reduction=reduction)


@documented
def scaled_cosine_error(
    x: Tensor, y: Tensor, alpha: float = 3.0, reduction: str = "mean"
) -> Tensor:
    """Scaled cosine error: (1 - cos)^α of rows of features, small where they nearly agree.

    A row is divided by its norm, or by 1e-12 where that is larger.

    GraphMAE: Self-Supervised Masked Graph Autoencoders, 2022, arXiv 2205.10803.

    Args:
        x: Rebuilt features (..., D), any floating dtype, any strides.
        y: The true ones, of the same shape. The dtype may be another one.
        alpha: α above 0. The more, the less count rows that nearly agree.
        {node_reduction}

    {node_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.scaled_cosine_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), alpha=2)
        tensor(0.0858)
    """
    check_number("scaled_cosine_error", "alpha", alpha, "above 0 and finite")
    return _ops.row_pair("scaled_cosine_error", x, y, (alpha,), reduction=reduction)


@documented
def bootstrap_latent_loss(predictions: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Bootstrap latent loss: 2 - 2 cos of predictions and targets, which are constant.

    The targets come from an encoder that follows the trained one slowly; they get no gradient. The
    loss is usually the mean, or the sum, of two of these with the views exchanged. A row is divided
    by its norm, or by 1e-12 where that is larger.

    Large-Scale Representation Learning on Graphs via Bootstrapping, 2021, arXiv 2102.06514; the
    loss is from Bootstrap Your Own Latent, 2020, arXiv 2006.07733.

    Args:
        predictions: Predicted features (..., D), any floating dtype, any strides.
        targets: The other encoder's, of the same shape. The dtype may be another one.
        {node_reduction}

    {node_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.bootstrap_latent_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.5858)
    """
    if isinstance(targets, Tensor):
        targets = targets.detach()
    return _ops.row_pair("bootstrap_latent_loss", predictions, targets, (), reduction=reduction)


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
