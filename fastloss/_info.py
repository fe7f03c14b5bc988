# SPDX-License-Identifier: MIT
"""What is installed: for bug reports, and for the tests that hold the names together."""

from __future__ import annotations

from importlib.metadata import version

import torch

from fastloss import _C


def build_info() -> dict[str, str | bool]:
    """What this installation was built with and runs on.

    Returns:
        ``version`` of fastloss; ``torch`` compiled against and ``torch_running``; the CPU
        ``instruction_set`` in use (``FASTLOSS_CPU_ISA`` forces another); whether there are ``cuda``
        kernels, by which ``cuda_version`` and for which ``cuda_architectures``.

    Example:
        >>> import fastloss
        >>> fastloss.build_info()["instruction_set"] in ("baseline", "avx2", "avx512")
        True
    """
    return {"version": version("fastloss"), "torch_running": torch.__version__, **_C.build_info()}
