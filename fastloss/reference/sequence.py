# SPDX-License-Identifier: MIT
"""Losses of sequences in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._reduce import promote, reduce_loss

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

# ------------------------------------------------------------------- linear-chain random fields


def crf_loss(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None = None,
    end_transitions: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``log Σ_paths e^score(path) - score(tags)``."""
    counts = _counts(emissions, mask)
    x, transitions, start, end = _chain(
        emissions, transitions, start_transitions, end_transitions, counts
    )
    known = torch.where(counts, tags.long(), 0)
    first, last = known[:, 0], known.gather(1, counts.sum(1, keepdim=True) - 1).squeeze(1)
    of_tags = torch.where(counts, x.gather(2, known.unsqueeze(2)).squeeze(2), 0.0).sum(1)
    of_pairs = torch.where(counts[:, 1:], transitions[known[:, :-1], known[:, 1:]], 0.0).sum(1)
    score = of_tags + of_pairs + start[first] + end[last]
    loss = (_prefixes(x, transitions, start, counts)[:, -1] + end).logsumexp(1) - score
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(len(loss), 1)
    if reduction == "token_mean":
        return loss.sum() / counts.sum().clamp(min=1)
    raise ValueError(f"reduction must be 'none', 'mean', 'sum' or 'token_mean', got {reduction!r}")


def crf_marginals(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None = None,
    end_transitions: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Forward and backward sums of all paths, multiplied and normalised at every step."""
    counts = _counts(emissions, mask)
    x, transitions, start, end = _chain(
        emissions, transitions, start_transitions, end_transitions, counts
    )
    prefixes = _prefixes(x, transitions, start, counts)
    suffix = end.expand(x.shape[0], -1)
    suffixes = [suffix]
    for emission, count in reversed(_later_steps(x, counts)):
        onward = (transitions + (emission + suffix).unsqueeze(1)).logsumexp(2)
        suffix = torch.where(count, onward, suffix)
        suffixes.append(suffix)
    marginals = (prefixes + torch.stack(suffixes[::-1], 1)).softmax(2)
    return torch.where(counts.unsqueeze(2), marginals, 0.0)


def crf_decode(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None = None,
    end_transitions: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The Viterbi algorithm; the first of equally good tags wins."""
    counts = _counts(emissions, mask)
    x, transitions, start, end = _chain(
        emissions, transitions, start_transitions, end_transitions, counts
    )
    score = start + x[:, 0]
    stay = torch.arange(x.shape[2], device=x.device).expand_as(score)
    origins = []
    for emission, count in _later_steps(x, counts):
        best, origin = (score.unsqueeze(2) + transitions).max(1)
        score = torch.where(count, best + emission, score)
        origins.append(torch.where(count, origin, stay))
    best_score, tag = (score + end).max(1)
    tags = [tag]
    for origin in reversed(origins):
        tag = origin.gather(1, tag.unsqueeze(1)).squeeze(1)
        tags.append(tag)
    return torch.where(counts, torch.stack(tags[::-1], 1), -1).detach(), best_score.detach()


def _counts(emissions: Tensor, mask: Tensor | None) -> Tensor:
    """Which steps count (B, T)."""
    if mask is None:
        return torch.ones(emissions.shape[:2], dtype=torch.bool, device=emissions.device)
    return mask != 0


def _chain(
    emissions: Tensor,
    transitions: Tensor,
    start_transitions: Tensor | None,
    end_transitions: Tensor | None,
    counts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scores in the compute dtype, all of them, and 0 where nothing counts."""
    nothing = transitions.detach()[0] * 0
    start = nothing if start_transitions is None else start_transitions
    end = nothing if end_transitions is None else end_transitions
    x, transitions, start, end = promote(emissions, transitions, start, end)
    return torch.where(counts.unsqueeze(2), x, 0.0), transitions, start, end


def _prefixes(x: Tensor, transitions: Tensor, start: Tensor, counts: Tensor) -> Tensor:
    """Logarithm of the sum over all paths up to every step and tag (B, T, K)."""
    prefix = start + x[:, 0]
    prefixes = [prefix]
    for emission, count in _later_steps(x, counts):
        onward = (prefix.unsqueeze(2) + transitions).logsumexp(1) + emission
        prefix = torch.where(count, onward, prefix)
        prefixes.append(prefix)
    return torch.stack(prefixes, 1)


def _later_steps(x: Tensor, counts: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The scores of every step but the first (B, K), and who counts it (B, 1).

    Taken apart all at once: each of as many slices would have a gradient of the whole's size.
    """
    return list(zip(x.unbind(1), counts.unsqueeze(2).unbind(1), strict=True))[1:]


# -------------------------------------------------------------- objectives for generated sequences


def minimum_risk_loss(
    log_probs: Tensor,
    risks: Tensor,
    alpha: float = 5e-3,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``Σ_k softmax(alpha log_probs)_k risks_k``."""
    log_probs, risks = promote(log_probs, risks)
    loss = ((alpha * log_probs).softmax(-1) * risks).sum(-1)
    return reduce_loss(loss, None, reduction, avg_factor)


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    """``log_softmax(logits)[index]``."""
    (logits,) = promote(logits)
    return logits.log_softmax(-1).gather(-1, index.long().unsqueeze(-1)).squeeze(-1)


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
    """``-advantages log_softmax(logits)[actions] - entropy_coefficient H(softmax(logits))``."""
    counts = torch.ones_like(actions, dtype=torch.bool) if mask is None else mask != 0
    logits, advantages = promote(logits, advantages)
    advantages = torch.where(counts, advantages, 0.0)
    log_probs = torch.where(counts.unsqueeze(-1), logits, 0.0).log_softmax(-1)
    chosen = log_probs.gather(-1, torch.where(counts, actions, 0).long().unsqueeze(-1)).squeeze(-1)
    # A logit of -inf has a probability of 0, which must not make NaN of it.
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    entropy = -(log_probs.exp() * finite).sum(-1)
    loss = torch.where(counts, -advantages * chosen - entropy_coefficient * entropy, 0.0)
    return reduce_loss(loss, None, reduction, avg_factor, counted=None if mask is None else counts)


def self_critical_loss(
    log_probs: Tensor,
    rewards: Tensor,
    baseline: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """``-(rewards - baseline) log_probs``."""
    counts, (log_probs, rewards, baseline) = _of_tokens(mask, log_probs, rewards, baseline)
    loss = (baseline - rewards) * log_probs
    return reduce_loss(loss, None, reduction, avg_factor, counted=counts)


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
    """``-min(r A, clip(r, 1 - clip, 1 + clip) A)``, with ``r = e^(log_probs - old_log_probs)``."""
    counts, (x, old, advantage) = _of_tokens(mask, log_probs, old_log_probs, advantages)
    loss = _clipped_surrogate(x, old, advantage, clip, clip)
    if counts is not None:
        loss = torch.where(counts, loss, 0.0)
    return reduce_loss(loss, None, reduction, avg_factor, counted=counts)


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
    """The clipped surrogate and ``beta (e^d - d - 1)``, with ``d = ref_log_probs - log_probs``."""
    reference = log_probs.detach() if ref_log_probs is None else ref_log_probs
    counts, (x, old, advantage, ref) = _of_tokens(
        mask, log_probs, old_log_probs, advantages, reference
    )
    loss = _clipped_surrogate(x, old, advantage, clip_low, clip_high)
    if beta != 0:
        difference = _bounded(ref - x)
        loss = loss + beta * (difference.exp() - difference - 1)
    if counts is not None:
        loss = torch.where(counts, loss, 0.0)
    if reduction == "mean" and normalizer == "grpo":
        tokens = max(loss.shape[-1], 1) if counts is None else counts.sum(-1).clamp(min=1)
        return reduce_loss(loss.sum(-1) / tokens, None, reduction, avg_factor)
    everything = normalizer == "dr_grpo"
    return reduce_loss(loss, None, reduction, avg_factor, counted=None if everything else counts)


def _of_tokens(
    mask: Tensor | None, log_probs: Tensor, *others: Tensor
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """What counts, and numbers per token in the compute dtype, 0 where nothing counts."""
    per_token = [
        (other.unsqueeze(-1) if other.dim() < log_probs.dim() else other).expand_as(log_probs)
        for other in others
    ]
    numbers = promote(log_probs, *per_token)
    if mask is None:
        return None, numbers
    counts = mask != 0
    return counts, tuple(torch.where(counts, number, 0.0) for number in numbers)


def _bounded(log_ratio: Tensor) -> Tensor:
    """20 at most, so that its exponential stays finite."""
    return torch.where(log_ratio > 20, 20.0, log_ratio)


def _clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, low: float, high: float
) -> Tensor:
    ratio = _bounded(log_probs - old_log_probs).exp()
    gain = ratio * advantages
    # Where this is not the gain itself, it has no slope.
    clipped = ratio.detach().clamp(1 - low, 1 + high) * advantages
    return -torch.where(gain > clipped, clipped, gain)


def sentence_bleu(
    candidates: Tensor,
    references: Tensor,
    *,
    max_order: int = 4,
    smoothing: str = "exp",
    smoothing_value: float | None = None,
    pad_index: int = -1,
) -> Tensor:
    """Every n-gram is compared with every other, of the sentence and of its references."""
    defaults: dict[str, tuple[float, float, float]] = {
        "none": (0.0, 0.0, 1.0),
        "floor": (0.0, 0.1 if smoothing_value is None else smoothing_value, 1.0),
        "add-k": (1.0 if smoothing_value is None else smoothing_value, 0.0, 1.0),
        "exp": (0.0, 1.0, 0.5),
    }
    added, of_none, fading = defaults[smoothing]
    tokens, others = candidates.long(), references.long()
    if others.dim() == 2:
        others = others.unsqueeze(1)
    exists, other_exists = _before_padding(tokens, pad_index), _before_padding(others, pad_index)
    length = exists.sum(1)

    equal_earlier = (tokens.unsqueeze(2) == tokens.unsqueeze(1)) & exists.unsqueeze(2)  # (B, T, T)
    equal_other = tokens[:, None, :, None] == others.unsqueeze(2)  # (B, R, T, Tr)
    equal_other = equal_other & exists[:, None, :, None] & other_exists.unsqueeze(2)
    earlier, other = equal_earlier, equal_other  # n-grams that begin at the two places are equal
    first = torch.zeros(length.shape, dtype=torch.float64, device=tokens.device)
    log_precisions, orders, unmatched = first, first, first + of_none
    for order in range(1, max_order + 1):
        if order > 1:
            earlier = _continued(earlier, equal_earlier, order)
            other = _continued(other, equal_other, order)
        most = _largest(other.sum(3), 1)
        matches = (earlier.tril(-1).sum(2) < most).sum(1).double()
        if order == 1:
            first = matches
        ngrams = (length - order + 1).clamp(min=0).double()
        more = added if order > 1 else 0.0
        hits = matches + more
        missed = hits == 0
        counts = ngrams + more > 0
        unmatched = torch.where(missed & counts, unmatched * fading, unmatched)
        precision = torch.where(missed, unmatched, hits) / (ngrams + more).clamp(min=more or 1.0)
        log_precisions = log_precisions + torch.where(counts, (100 * precision).log(), 0.0)
        orders = orders + counts
    closest = _closest_length(length, other_exists.sum(2))
    penalty = (1 - closest.double() / length.clamp(min=1)).clamp(max=0.0).exp()
    score = penalty * (log_precisions / orders.clamp(min=1)).exp()
    return torch.where(first > 0, score, 0.0).float()


def _before_padding(tokens: Tensor, pad_index: int) -> Tensor:
    return (tokens == pad_index).cumsum(-1) == 0


def _continued(shorter: Tensor, equal: Tensor, order: int) -> Tensor:
    """From n-grams of the order before to those of this one, by the equality of single tokens."""
    step = order - 1
    padded = torch.nn.functional.pad(equal, (0, step, 0, step))
    return shorter & padded[..., step:, step:]


def _largest(numbers: Tensor, dim: int) -> Tensor:
    """The largest along a dimension, or 0 where that has no elements."""
    return torch.cat((numbers, torch.zeros_like(numbers.sum(dim, keepdim=True))), dim).amax(dim)


def _closest_length(length: Tensor, others: Tensor) -> Tensor:
    """The reference's length that is closest to a sentence's; of two, the shorter one."""
    lengths = torch.cat((others, torch.zeros_like(length).unsqueeze(1)), 1)
    apart = lengths - length.unsqueeze(1)
    distance = 2 * apart.abs() + (apart > 0)  # of two as close, the longer one is farther
    nobody = torch.iinfo(torch.int64).max
    closest = torch.where(lengths > 0, distance, nobody).argmin(1, keepdim=True)
    return lengths.gather(1, closest).squeeze(1)
