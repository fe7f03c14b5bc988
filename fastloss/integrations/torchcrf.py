# SPDX-License-Identifier: MIT
"""pytorch-crf: ``forward`` and ``decode`` of ``torchcrf.CRF``.

Objects that are there already run on fastloss too. Results and errors are pytorch-crf's. It
computes itself what it computes otherwise than the kernels: half-precision scores, masks that end
and begin again, no sequences at all, tags that count from the end, and subclasses that change a
step of the computation. What differs: masked tags may hold any number, and ``torch.where`` warns of
no uint8 mask. On a GPU, a mask that is no prefix and a tag out of range stop the kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastloss import functional

from ._adapters import PLAIN, has_kernels, unless_refused
from .patching import Framework, Function, Replacement

_REDUCTIONS = frozenset({"none", "sum", "mean", "token_mean"})
_STEPS = ("_validate", "_compute_score", "_compute_normalizer", "_viterbi_decode")


def _forward(original: Function) -> Function:
    own = original.__globals__["CRF"]

    @functools.wraps(original)
    def forward(
        self: Any,
        emissions: Tensor,
        tags: Tensor,
        mask: Tensor | None = None,
        reduction: str = "sum",
    ) -> Tensor:
        loss = None
        if (
            _is_of_kernels(own, self, emissions, mask)
            and type(tags) in PLAIN
            and tags.dtype == torch.int64
            and isinstance(reduction, str)
            and reduction in _REDUCTIONS
        ):
            loss = unless_refused(
                functional.crf_loss, *_arguments(self, emissions, mask, tags), reduction
            )
        return original(self, emissions, tags, mask, reduction) if loss is None else -loss

    return forward


def _decode(original: Function) -> Function:
    own = original.__globals__["CRF"]

    @functools.wraps(original)
    def decode(self: Any, emissions: Tensor, mask: Tensor | None = None) -> list[list[int]]:
        found: Any = None
        if _is_of_kernels(own, self, emissions, mask):
            found = unless_refused(functional.crf_decode, *_arguments(self, emissions, mask))
        if found is None:
            return original(self, emissions, mask)
        return [[tag for tag in row if tag >= 0] for row in found[0].tolist()]

    return decode


def _is_of_kernels(own: type, crf: Any, emissions: Tensor, mask: Tensor | None) -> bool:
    """Whether the kernels compute what pytorch-crf does with these."""
    scores = (emissions, crf.transitions, crf.start_transitions, crf.end_transitions)
    return (
        not torch.jit.is_tracing()
        and all(getattr(type(crf), step) is getattr(own, step) for step in _STEPS)
        and all(type(score) in PLAIN and score.dtype == emissions.dtype for score in scores)
        and emissions.dtype in (torch.float32, torch.float64)
        and has_kernels(emissions)
        and emissions.layout == torch.strided
        and not emissions.is_nested
        and emissions.dim() == 3
        and emissions.numel() > 0
        and crf.transitions.shape == (emissions.shape[2],) * 2
        and (
            mask is None
            or (type(mask) in PLAIN and mask.dim() == 2 and mask.dtype in (torch.uint8, torch.bool))
        )
    )


def _arguments(
    crf: Any, emissions: Tensor, mask: Tensor | None, *tags: Tensor
) -> tuple[Tensor | None, ...]:
    """What the functions take, with the batch first."""

    def batch_first(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or crf.batch_first or tensor.dim() < 2:
            return tensor
        return tensor.transpose(0, 1)

    return (
        batch_first(emissions),
        *map(batch_first, tags),
        crf.transitions,
        crf.start_transitions,
        crf.end_transitions,
        batch_first(mask),
    )


TORCHCRF = Framework(
    name="torchcrf",
    distribution="pytorch-crf",
    oldest=(0, 7),
    newest=(0, 7),
    replacements=(
        Replacement("torchcrf", "CRF.forward", _forward),
        Replacement("torchcrf", "CRF.decode", _decode),
    ),
)
