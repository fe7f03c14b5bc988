# SPDX-License-Identifier: MIT
"""What the modules share: options come with the constructor, tensors with the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["ElementLoss", "Loss"]


class Loss(nn.Module):
    """A function of :mod:`fastloss.functional` with its options kept as attributes (or buffers).

    A subclass names the function, and lists the options once more in a constructor of its own, so
    that its signature is there to read.
    """

    function: ClassVar[Callable[..., Tensor]]
    reduction: str

    def __init__(
        self, *, buffers: Mapping[str, Tensor | None] | None = None, **options: object
    ) -> None:
        super().__init__()
        # Tensors move and are saved with the module, and parameters are its own; so does what may
        # become a tensor.
        tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
        buffers = {**tensors, **(buffers or {})}
        for name, buffer in buffers.items():
            if isinstance(buffer, nn.Parameter):
                self.register_parameter(name, buffer)
            else:
                self.register_buffer(name, buffer)
        self._plain_options = tuple(name for name in options if name not in buffers)
        for name in self._plain_options:
            setattr(self, name, options[name])
        self._option_names = (*self._plain_options, *buffers)

    def options(self) -> dict[str, Any]:
        """The function's options as they are now."""
        return {name: getattr(self, name) for name in self._option_names}

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._plain_options)


class ElementLoss(Loss):
    """A loss of every element against its target."""

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of the input against a target of its shape; ``weight`` broadcasts to it."""
        return self.function(input, target, weight=weight, avg_factor=avg_factor, **self.options())
