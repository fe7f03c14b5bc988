# SPDX-License-Identifier: MIT
"""Fused forward/backward loss kernels for PyTorch.

``fastloss.functional`` holds the losses as functions, this package one ``nn.Module`` per loss,
``fastloss.reference`` the same functions in plain PyTorch, and :func:`fastloss.patch` puts the
kernels into code that is already there.
"""

from __future__ import annotations

from importlib.metadata import version as _version

from fastloss import distributed, functional, modules, reference
from fastloss._info import build_info, empty_cache
from fastloss.integrations import patch
from fastloss.modules import *  # noqa: F403

__version__ = _version("fastloss")
__all__ = [
    "__version__",
    "build_info",
    "distributed",
    "empty_cache",
    "functional",
    "patch",
    "reference",
    *modules.__all__,
]
