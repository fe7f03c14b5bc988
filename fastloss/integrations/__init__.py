# SPDX-License-Identifier: MIT
"""Adapters to code that is already there."""

from __future__ import annotations


def patch(framework: str) -> None:
    """Placeholder until the integration lands in this tree."""
    raise NotImplementedError(framework)
