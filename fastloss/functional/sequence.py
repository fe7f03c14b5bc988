# SPDX-License-Identifier: MIT
"""Losses of sequences: conditional random fields, and objectives for generated sequences."""

from __future__ import annotations

from torch import Tensor

from .. import _ops
from ._shared import check_number, documented, option_error

__all__ = [
    "crf_decode",
    "crf_loss",
    "crf_marginals",
    "grpo_loss",
    "minimum_risk_loss",
    "policy_gradient_loss",
    "ppo_loss",
    "selective_log_softmax",
    "self_critical_loss",
    "sentence_bleu",
]


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
        tensor(54.6223)
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


@documented
def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probability of one class per row of logits: of the tokens that a model chose.

    log_softmax(logits)[index], in one pass over the logits and without a tensor of their size: only
    the gradient is one.

    Args:
        logits: Logits (..., V), any floating dtype, any strides.
        index: Which class of every row (...,): uint8, int16, int32 or int64, in [0, V).

    Returns:
        The log-probabilities (...,); float32, or float64 if the logits are.

    {raises}
        {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> F.selective_log_softmax(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0]))
        tensor([-0.4076])
    """
    return _ops.softmax("selective_log_softmax", logits, index, reduction="none")


@documented
def policy_gradient_loss(
    logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    entropy_coefficient: float = 0.0,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """REINFORCE on logits: makes actions that were better than expected more probable.

    -A ln p_a - β H, with p = softmax(logits), the action a of every row, its advantage A and the
    entropy H = -Σ p ln p, which keeps the policy from settling too soon. One pass over the logits
    gives log-probability, entropy and gradient. A logit of -inf forbids an action.

    Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992,
    doi 10.1007/BF00992696.

    Args:
        logits: Logits (..., V), any floating dtype, any strides.
        actions: The action of every row (...,): uint8, int16, int32 or int64, in [0, V). Where the
            mask is 0 it may be anything.
        advantages: A of every row (...,), that is its return less a baseline; any integer or
            floating dtype. (Its gradient is computed by plain PyTorch.)
        mask: True, or not 0, where a row counts (...,), bool or any integer dtype. What stands in
            other rows has no meaning, even if it is NaN. None: all rows count.
        entropy_coefficient: β, at least 0.
        reduction: ``"none"``, ``"mean"`` over the rows that count, or ``"sum"``.
        {avg_factor}

    Returns:
        The loss: shape (...,), 0 where the mask is, for ``"none"``, else a 0-d tensor; float32, or
        float64 if logits or advantages are. The mean over no rows is 0, with a gradient of 0.

    {raises}
        {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        >>> F.policy_gradient_loss(logits, torch.tensor([0, 2]), torch.tensor([1.0, -0.5]))
        tensor(-0.0709)
    """
    name = "policy_gradient_loss"
    check_number(name, "entropy_coefficient", entropy_coefficient, "at least 0 and finite")
    return _ops.softmax(
        name,
        logits,
        actions,
        (entropy_coefficient,),
        weight=advantages,
        mask=mask,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def self_critical_loss(
    log_probs: Tensor,
    rewards: Tensor,
    baseline: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Self-critical sequence training: a sample's reward against the greedy sequence's.

    -(reward - baseline) ln p of every token that was drawn. With the reward of greedy decoding for
    a baseline, samples that are better than what the model would say become more probable.

    Self-Critical Sequence Training for Image Captioning, 2017, arXiv 1612.00563.

    Args:
        {token_log_probs}
        rewards: Reward of every sequence (B,) or token (B, T), any integer or floating dtype.
        baseline: What it is compared with, of one of these shapes.
        {token_mask}
        {token_reduction}
        {avg_factor}

    {token_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> log_probs = torch.tensor([[-0.5, -1.0], [-2.0, -0.25]])
        >>> rewards, greedy = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
        >>> F.self_critical_loss(log_probs, rewards, greedy)
        tensor(-0.0563)
    """
    return _ops.policy(
        "self_critical_loss",
        log_probs,
        baseline,
        rewards,
        mask=mask,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    clip: float = 0.2,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Proximal policy optimisation: a policy gradient that stops where enough has changed.

    -min(r A, clip(r, 1 - ε, 1 + ε) A), with the ratio r = e^(log_probs - old_log_probs). So that it
    stays finite, the exponent is held at 20 and below (r at 4.9e8), from where on there is no
    gradient.

    Proximal Policy Optimization Algorithms, 2017, arXiv 1707.06347.

    Args:
        {token_log_probs}
        {old_log_probs}
        {token_advantages}
        {token_mask}
        clip: ε, at least 0.
        {token_reduction}
        {avg_factor}

    {token_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
        >>> new = torch.tensor([[-0.9, -0.5], [-0.9, -0.5]])
        >>> F.ppo_loss(new, old, torch.tensor([1.0, -1.0]), reduction="none")
        tensor([[-1.1052, -1.2000],
                [ 1.1052,  1.6487]])
    """
    check_number("ppo_loss", "clip", clip, "at least 0")
    return _ops.policy(
        "ppo_loss",
        log_probs,
        old_log_probs,
        advantages,
        (clip,),
        mask=mask,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor | None,
    *,
    ref_log_probs: Tensor | None = None,
    beta: float = 0.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalizer: str = "grpo",
    reduction: str = "mean",
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Group relative policy optimisation: what language models are trained with on rewards.

    -min(r A, clip(r, 1 - ε_low, 1 + ε_high) A) + β (e^d - d - 1) of every token, with the ratio
    r = e^(log_probs - old_log_probs) and d = ref_log_probs - log_probs, whose term estimates the
    Kullback-Leibler divergence from a reference policy. Both exponents are held at 20 and below
    (their exponentials at 4.9e8), from where on there is no gradient.

    DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, 2024,
    arXiv 2402.03300; the normalisers ``"dr_grpo"`` of 2025, arXiv 2503.20783, and ``"dapo"`` of
    2025, arXiv 2503.14476.

    Args:
        {token_log_probs}
        {old_log_probs}
        {token_advantages}
        {token_mask}
        ref_log_probs: Log-probabilities under the reference policy, of the same shape. Needed where
            β is above 0, else not looked at.
        beta: β, at least 0.
        clip_low: ε_low, at least 0.
        clip_high: ε_high, at least 0.
        normalizer: What the mean is over. ``"grpo"``: over the tokens of each sequence, then over
            the sequences; ``"bnpo"``: over all tokens that count; ``"dr_grpo"``: over all B T
            places; ``"dapo"``: as ``"bnpo"``, but meant to be given the number of tokens of the
            whole batch, over all its parts, as ``avg_factor``.
        {reduction}
        {avg_factor}

    {token_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
        >>> new = torch.tensor([[-0.9, -0.5], [-0.9, -0.5]])
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> F.grpo_loss(new, old, torch.tensor([1.0, -1.0]), mask)
        tensor(-0.0237)
        >>> F.grpo_loss(new, old, torch.tensor([1.0, -1.0]), mask, ref_log_probs=old, beta=0.1)
        tensor(-0.0207)
    """
    name = "grpo_loss"
    for argument, value in (("beta", beta), ("clip_low", clip_low), ("clip_high", clip_high)):
        check_number(name, argument, value, "at least 0 and finite")
    if normalizer not in ("grpo", "bnpo", "dr_grpo", "dapo"):
        expected = "'grpo', 'bnpo', 'dr_grpo' or 'dapo'"
        raise option_error(name, "normalizer", expected, normalizer)
    if beta > 0 and ref_log_probs is None:
        raise ValueError(f"{name}: beta={beta} needs ref_log_probs, got None")
    return _ops.policy(
        name,
        log_probs,
        old_log_probs,
        advantages,
        (beta, clip_low, clip_high),
        mask=mask,
        ref_log_probs=ref_log_probs if beta > 0 else None,
        normalizer=normalizer,
        reduction=reduction,
        avg_factor=avg_factor,
    )


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
