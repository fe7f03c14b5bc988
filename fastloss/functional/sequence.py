# SPDX-License-Identifier: MIT
"""Losses of sequences: conditional random fields, and objectives for generated sequences."""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from ._shared import check_number, documented

__all__ = ["crf_decode", "crf_loss", "crf_marginals", "sentence_bleu"]


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
def sentence_bleu(
    candidates: Tensor,
    references: Tensor,
    *,
    max_order: int = 4,
    smoothing: str = "exp",
    smoothing_value: float | None = None,
    pad_index: int = -1,
) -> Tensor:
    """BLEU of every sentence, on token ids: the metric, without a gradient.

    100 min(1, e^(1 - r / c)) (Π_n p_n)^(1 / N), where p_n is the share of the candidate's n-grams
    that stand in a reference too, each counted at most as often as in the reference that has most
    of it; c is the candidate's length and r that of the reference closest to it, the shorter one
    of two. N is ``max_order``, or c where that is less (the effective order). The numbers are those
    of sacrebleu's ``sentence_bleu`` for the same tokens.

    A reward for :func:`minimum_risk_loss`, :func:`self_critical_loss` or
    :func:`policy_gradient_loss`, computed where the samples are.

    BLEU: a Method for Automatic Evaluation of Machine Translation, 2002,
    doi 10.3115/1073083.1073135; the smoothing: A Systematic Comparison of Smoothing Techniques for
    Sentence-Level BLEU, 2014, doi 10.3115/v1/W14-3346.

    Args:
        candidates: The sentences (B, T): token ids, uint8, int16, int32 or int64, any strides.
            The first ``pad_index`` ends a sentence, and what stands behind it has no meaning.
        references: What they should be: (B, Tr), or (B, R, Tr) for several references of each
            sentence, padded likewise. A reference without tokens is as good as absent, so that
            sentences may have different numbers of them.
        max_order: The longest n-grams that count, at least 1.
        smoothing: What p_n is where no n-gram of an order matches: 0 for ``"none"``,
            ``smoothing_value`` matches for ``"floor"``, half a match, then a quarter, an eighth
            and so on for ``"exp"``. ``"add-k"`` adds ``smoothing_value`` to the matches and to the
            number of n-grams of every order but the first, of those too for which the candidate
            is too short. Without a single matching token BLEU is 0 in any case.
        smoothing_value: At least 0. None: 0.1 for ``"floor"`` and 1 for ``"add-k"``; the other two
            have none.
        pad_index: The token that is padding.

    Returns:
        The scores (B,), float32, from 0 to 100.

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> candidates = torch.tensor([[5, 3, 8, 9, 2, -1], [5, 3, 8, 9, 2, 7]])
        >>> references = torch.tensor([[5, 3, 8, 9, 4, 7], [5, 3, 8, 9, 2, 7]])
        >>> F.sentence_bleu(candidates, references)
        tensor([ 54.7518, 100.0000])
    """
    check_number("sentence_bleu", "max_order", max_order, "at least 1")
    if smoothing_value is not None:
        expected = "at least 0 and finite"
        check_number("sentence_bleu", "smoothing_value", smoothing_value, expected)
    return _ops.sentence_bleu(
        candidates, references, max_order, smoothing, smoothing_value, pad_index
    )
