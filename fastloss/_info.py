# SPDX-License-Identifier: MIT
"""What is installed, and what it keeps."""

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


def empty_cache() -> None:
    """Gives the memory kept for CPU gradients back to the system.

    The blocks of gradients freed last (1 MiB and larger, at most 8 and 512 MiB in all) are kept for
    the next step, which asks for the same sizes again: taking them fresh from the system costs more
    than most losses. CUDA gradients come from torch's own caching allocator.

    Example:
        >>> import fastloss
        >>> fastloss.empty_cache()
    """
    _C.empty_cache()
