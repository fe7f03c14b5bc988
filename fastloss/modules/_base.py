# SPDX-License-Identifier: MIT
"""What the modules share: options come with the constructor, tensors with the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["Loss"]


class Loss(nn.Module):
    """A function of :mod:`fastloss.functional` with its options kept as attributes.

    A subclass names the function, and lists the options once more in a constructor of its own, so
    that its signature is there to read.
    """

    function: ClassVar[Callable[..., Tensor]]
    reduction: str

    def __init__(self, **options: object) -> None:
        super().__init__()
        for name, value in options.items():
            setattr(self, name, value)
        self._option_names = tuple(options)

    def options(self) -> dict[str, Any]:
        """The function's options as they are now."""
        return {name: getattr(self, name) for name in self._option_names}

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())
