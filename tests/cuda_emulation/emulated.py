# SPDX-License-Identifier: MIT
"""Puts the extension with the emulated CUDA kernels in the place of the installed one.

For a process of its own: a pytest plugin (``python -m pytest -p emulated``), or an import before
that of fastloss. The environment variable ``FASTLOSS_EMULATED_EXTENSION`` tells where the extension
is.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

EXTENSION = os.environ["FASTLOSS_EMULATED_EXTENSION"]


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "fastloss._C":
            return None
        return importlib.util.spec_from_file_location(name, EXTENSION)


assert "fastloss" not in sys.modules
sys.meta_path.insert(0, _Finder())


def pytest_sessionstart() -> None:
    """Nobody shall test the wrong extension without noticing."""
    import fastloss

    assert fastloss.build_info()["instruction_set"] == "cuda_emulation"
