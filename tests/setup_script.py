# SPDX-License-Identifier: MIT
"""The functions of ``setup.py``, for tests that build."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def setup_script() -> ModuleType:
    """The script as a module; importing it builds nothing."""
    path = Path(__file__).parent.parent / "setup.py"
    spec = importlib.util.spec_from_file_location("fastloss_setup", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
