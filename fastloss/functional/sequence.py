# SPDX-License-Identifier: MIT
"""Losses of sequences: conditional random fields, and objectives for generated sequences."""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from ._shared import check_number, documented

__all__ = ["crf_decode", "crf_loss", "crf_marginals", "minimum_risk_loss"]


@documented
def crf_loss(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None = None,
    end_transitions: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of tag sequences in a linear-chain conditional random field.

    log Σ_y e^score(y) - score(tags), where the sum goes over all K^T sequences of tags and
    score(y) = start[y₁] + Σ_t emissions[t, y_t] + Σ_t transitions[y_t, y_t+1] + end[y_T].

    Every sequence is one sweep forth and one back, which together give the loss and the gradients
    of all four kinds of scores. Scores may be as extreme as ±1e4 (forbidden transitions) and
    sequences thousands of steps long.

    Conditional Random Fields: Probabilistic Models for Segmenting and Labeling Sequence Data, 2001;
    as the last layer of a tagger in Neural Architectures for Named Entity Recognition, 2016,
    arXiv 1603.01360.

    Args:
        {emissions}
        tags: The right tags (B, T): integers in [0, K). Where the mask is 0 they may be anything.
        {transitions}
        {start_transitions}
        {end_transitions}
        {sequence_mask}
        reduction: ``"none"`` (shape (B,)), ``"mean"`` over the sequences, ``"sum"``, or
            ``"token_mean"``: the sum over the number of steps that count.

    Returns:
        The loss, float32, or float64 if one of the scores is. It is 0 without sequences.

    {raises}
        IndexError: On CPU, for a tag outside [0, K) where the mask counts it. On CUDA that is a
            device-side assertion, and so is a mask that is no prefix.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> emissions = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]])
        >>> transitions = torch.tensor([[0.5, -0.5], [-1.0, 1.0]])
        >>> F.crf_loss(emissions, torch.tensor([[0, 1, 1]]), transitions)
        tensor(1.1710)
    """
    return _ops.crf(
        emissions, tags, transitions, start_transitions, end_transitions, mask, reduction
    )


@documented
def crf_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None = None,
    end_transitions: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Probability of every tag at every step in a linear-chain conditional random field.

    p(y_t = k) under p(y) = e^score(y) / Σ e^score, with the scores of :func:`crf_loss`. The
    gradient, a second derivative of that loss, is computed by plain PyTorch.

    Neural Architectures for Named Entity Recognition, 2016, arXiv 1603.01360.

    Args:
        {emissions}
        {transitions}
        {start_transitions}
        {end_transitions}
        {sequence_mask}

    Returns:
        The probabilities (B, T, K), 0 where the mask is; float32, or float64 if one of the scores
        is.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> emissions = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]])
        >>> transitions = torch.tensor([[0.5, -0.5], [-1.0, 1.0]])
        >>> F.crf_marginals(emissions, transitions)[0, :, 0]
        tensor([0.7585, 0.3907, 0.4306])
    """
    return _ops.crf_marginals(emissions, transitions, start_transitions, end_transitions, mask)


@documented
def crf_decode(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None = None,
    end_transitions: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Best tag sequences of a linear-chain conditional random field, by the Viterbi algorithm.

    The sequence of tags with the largest score of :func:`crf_loss`; of equally good tags the
    smaller one. No gradient flows back.

    Neural Architectures for Named Entity Recognition, 2016, arXiv 1603.01360.

    Args:
        {emissions}
        {transitions}
        {start_transitions}
        {end_transitions}
        {sequence_mask}

    Returns:
        The tags (B, T), int64, -1 where the mask is 0; and their scores (B,), float32, or float64
        if one of the scores given is.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> emissions = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]])
        >>> transitions = torch.tensor([[0.5, -0.5], [-1.0, 1.0]])
        >>> F.crf_decode(emissions, transitions)
        (tensor([[0, 0, 0]]), tensor([3.5000]))
    """
    return _ops.crf_decode(emissions, transitions, start_transitions, end_transitions, mask)


@documented
def minimum_risk_loss(
    log_probs: Tensor,
    risks: Tensor,
    alpha: float = 5e-3,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Minimum risk training: the risk to be expected of a few candidates for each sequence.

    Σ_k q_k risks_k, with q = softmax(α log_probs) over the candidates of a row. As a risk, take
    what is missing to the best score, such as 100 less the BLEU of a candidate.

    Minimum Risk Training for Neural Machine Translation, 2016, arXiv 1512.02433.

    Args:
        log_probs: Log-probabilities (B, K) of K candidates for each of B sequences, every one the
            sum over its tokens; any floating dtype, any strides. -inf makes a candidate count for
            nothing. There may be any number of leading dimensions.
        risks: Risk of every candidate, of the same shape, any floating dtype. (Its gradient is
            computed by plain PyTorch.)
        alpha: How sharp the distribution over the candidates is, above 0.
        {reduction}
        {avg_factor}

    Returns:
        The loss: shape (B,) for ``"none"``, else a 0-d tensor; float32, or float64 if one of the
        tensors is. The mean over no sequences is 0, with a gradient of 0.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> log_probs = torch.tensor([[-10.0, -12.0, -30.0]])
        >>> F.minimum_risk_loss(log_probs, torch.tensor([[60.0, 40.0, 90.0]]), alpha=0.5)
        tensor(54.6212)
    """
    check_number("minimum_risk_loss", "alpha", alpha, "above 0 and finite")
    return _ops.softmax(
        "minimum_risk_loss",
        log_probs,
        risks,
        (alpha,),
        reduction=reduction,
        avg_factor=avg_factor,
    )
