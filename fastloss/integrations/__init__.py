# SPDX-License-Identifier: MIT
"""fastloss in code that is already there: :func:`fastloss.patch`."""

from __future__ import annotations

from .fvcore import FVCORE
from .mmdet import MMDET
from .mmyolo import MMYOLO
from .monai import MONAI
from .patching import FrameworkStatus, Patch
from .torch import TORCH
from .torchcrf import TORCHCRF
from .torchvision import TORCHVISION
from .transformers import TRANSFORMERS
from .ultralytics import ULTRALYTICS

__all__ = ["FrameworkStatus", "Patch", "patch"]

_FRAMEWORKS = {
    framework.name: framework
    for framework in (
        *(FVCORE, MMDET, MMYOLO, MONAI, TORCH, TORCHCRF, TORCHVISION, TRANSFORMERS),
        ULTRALYTICS,
    )
}


class _Patcher:
    """Makes a framework compute its losses with fastloss.

    Every function that fastloss has a kernel for is replaced in the module that defines it and
    in every module of the framework that imported it, all of them or none; of a class, its
    ``forward`` is. Modules of the framework imported later get the replacement too. Your own
    modules are left alone: where one says ``from torchvision.ops import sigmoid_focal_loss``,
    patch before that line runs, or call ``torchvision.ops.sigmoid_focal_loss``.

    Args:
        framework: Its name; :meth:`available` tells which there are.
        **options: More to replace. For ``"ultralytics"``: ``criterion="fused"``, the criterion of
            detection as a whole.

    Returns:
        A :class:`~fastloss.integrations.Patch`: call its ``undo()``, or use it in a ``with``
        statement.

    Raises:
        ValueError: For an unknown framework or option.
        ImportError: For a framework that is not installed, or in a version that was not tested.

    Example:
        >>> import fastloss
        >>> fastloss.patch.available()["torchvision"].supported
        '0.25 to 0.29'
    """

    def __call__(self, framework: str, **options: str) -> Patch:
        if framework not in _FRAMEWORKS:
            raise ValueError(
                f"fastloss.patch: framework must be one of {sorted(_FRAMEWORKS)}, got {framework!r}"
            )
        known = _FRAMEWORKS[framework].options
        for option, value in options.items():
            if (option, value) not in known:
                expected = ", ".join(f"{name}={of!r}" for name, of in known) or "none"
                raise ValueError(
                    f"fastloss.patch: options of {framework!r} must be among {expected}; got "
                    f"{option}={value!r}"
                )
        return Patch(_FRAMEWORKS[framework], options)

    def available(self) -> dict[str, FrameworkStatus]:
        """The frameworks known, with the version installed and the versions supported."""
        return {name: framework.status() for name, framework in _FRAMEWORKS.items()}

    def __repr__(self) -> str:
        return "<fastloss.patch: call it with the name of a framework>"


patch = _Patcher()
