# SPDX-License-Identifier: MIT
"""Losses of sequences in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._reduce import promote, reduce_loss

__all__ = ["crf_decode", "crf_loss", "crf_marginals", "minimum_risk_loss"]

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
