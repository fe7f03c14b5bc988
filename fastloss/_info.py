# SPDX-License-Identifier: MIT
"""What is installed: for bug reports, and for the tests that hold the names together."""

from __future__ import annotations

from importlib.metadata import version

import torch

from fastloss import _C


def build_info() -> dict[str, str | bool]:
    """What this installation was built with and runs on.

    Returns:
        ``version`` of fastloss; ``torch`` compiled against and ``torch_running``; the CPU ``instruction_set`` in use
        (``FASTLOSS_CPU_ISA`` forces another); whether there are ``cuda`` kernels, by which ``cuda_version`` and for
        which ``cuda_architectures``.

    Example:
        >>> import fastloss
        >>> sorted(fastloss.build_info())
        ['cuda', 'cuda_architectures', 'cuda_version', 'instruction_set', 'torch', 'torch_running', 'version']
    """
    return {"version": version("fastloss"), "torch_running": torch.__version__, **_C.build_info()}
