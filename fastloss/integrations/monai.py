# SPDX-License-Identifier: MIT
"""MONAI: ``DiceLoss``, ``TverskyLoss``, ``FocalLoss`` and ``DiceCELoss``.

The classes get another ``forward``, so that objects which are there already run on it too.

Options, shapes, dtypes, errors and warnings are MONAI's. It computes itself what the kernels do not
take: other activations, soft-label formulas, ignored labels, losses of a single channel but for the
sigmoid, a focal loss on one-hot targets or with class factors. What differs: a ``MetaTensor`` gives
a plain tensor; no one-hot tensor is made of labels; half-precision logits are computed in float32.
``torch.jit.script`` compiles these modules only while they are not patched.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from fastloss import functional

from ._adapters import FLOATING, PLAIN, REDUCTIONS, has_kernels, unless_refused
from .patching import Framework, Function, Replacement

_LABELS = frozenset({torch.uint8, torch.int16, torch.int32, torch.int64})


def _dice_loss(original: Function) -> Function:
    @functools.wraps(original)
    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        x, t = _without_metadata(input), _without_metadata(target)
        loss = None
        if _is_of_kernels(self, x, t) and _is_class_weight(self, x):
            loss = unless_refused(
                functional.dice_loss,
                x,
                _targets(self, t),
                **_options_of_region(self),
                squared_pred=self.squared_pred,
                jaccard=self.jaccard,
                weight=self.class_weight if x.shape[1] > 1 else None,
                reduction=self.reduction,
            )
        if loss is None:
            return original(self, input, target)
        # As MONAI has it: a 1 for each dimension of space.
        return loss.view(*loss.shape[:2], *[1] * (x.dim() - 2)) if loss.dim() > 0 else loss

    return forward


def _tversky_loss(original: Function) -> Function:
    @functools.wraps(original)
    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        x, t = _without_metadata(input), _without_metadata(target)
        loss = None
        if _is_of_kernels(self, x, t):
            loss = unless_refused(
                functional.tversky_loss,
                x,
                _targets(self, t),
                **_options_of_region(self),
                alpha=self.alpha,
                beta=self.beta,
                reduction=self.reduction,
            )
        return original(self, input, target) if loss is None else loss

    return forward


def _dice_cross_entropy_loss(original: Function) -> Function:
    own, part = (original.__globals__[name] for name in ("DiceCELoss", "DiceLoss"))

    def is_unchanged(loss: Any) -> bool:
        """Whether it still is made of what it was made of."""
        return (
            (type(loss).ce, type(loss).bce) == (own.ce, own.bce)
            and type(loss.dice) is part
            and type(loss.cross_entropy) is nn.CrossEntropyLoss
            and loss.cross_entropy.ignore_index == -100  # no class's
        )

    @functools.wraps(original)
    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        x, t = _without_metadata(input), _without_metadata(target)
        dice, cross_entropy = self.dice, self.cross_entropy
        loss = None
        if (
            is_unchanged(self)
            and _is_of_kernels(dice, x, t)
            # Over the classes, MONAI's cross-entropy is the softmax's, whatever the Dice loss is.
            and (dice.softmax if x.shape[1] > 1 else dice.sigmoid)
            and (x.shape[1] > 1 or (cross_entropy.weight is None and t.is_floating_point()))
            and dice.reduction == cross_entropy.reduction != "none"
        ):
            loss = unless_refused(
                functional.dice_cross_entropy_loss,
                x,
                _targets(dice, t),
                **_options_of_region(dice),
                lambda_dice=self.lambda_dice,
                lambda_ce=self.lambda_ce,
                label_smoothing=cross_entropy.label_smoothing if dice.softmax else 0.0,
                squared_pred=dice.squared_pred,
                jaccard=dice.jaccard,
                weight=cross_entropy.weight,
                reduction=dice.reduction,
            )
        return original(self, input, target) if loss is None else loss

    return forward


def _focal_loss(original: Function) -> Function:
    @functools.wraps(original)
    def forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
        x, t = _without_metadata(input), _without_metadata(target)
        loss = None
        if (
            self.to_onehot_y
            and self.include_background
            and self.class_weight is None
            and self.reduction in ("mean", "sum")
            and x.dtype != torch.float64  # MONAI's is in float32
            and not isinstance(self.alpha, Tensor)
            and (self.alpha is None or (not self.use_softmax and 0 <= self.alpha <= 1))
            and _are_voxels(self, x, t)
        ):
            # MONAI's sum is a mean over space; its mean is over the classes too.
            voxels = math.prod(x.shape[2:])
            divisor = voxels * (x.shape[0] * x.shape[1] if self.reduction == "mean" else 1)
            labels = _targets(self, t)
            if self.use_softmax:
                loss = unless_refused(
                    functional.softmax_focal_loss,
                    x,
                    labels,
                    self.gamma,
                    ignore_index=-1,  # no label: MONAI has an error for negative ones
                    avg_factor=divisor,
                )
            else:
                loss = unless_refused(
                    functional.sigmoid_focal_loss,
                    x.movedim(1, -1),
                    labels,
                    -1 if self.alpha is None else self.alpha,
                    self.gamma,
                    "mean",
                    avg_factor=divisor,
                )
        if loss is None or _are_out_of_range(t, x.shape[1]):
            return original(self, input, target)
        return loss

    return forward


# ----------------------------------------------------------------------------- what the calls share


def _without_metadata(tensor: Tensor) -> Tensor:
    """A MetaTensor as the tensor it is."""
    return tensor.as_subclass(Tensor) if type(tensor).__name__ == "MetaTensor" else tensor


def _are_voxels(loss: Any, input: Tensor, target: Tensor) -> bool:
    """Whether these are logits (B, C, *spatial), and targets that the kernels take for them."""
    if not (
        not torch.jit.is_tracing()
        and type(input) in PLAIN
        and type(target) in PLAIN
        and input.dtype in FLOATING
        and has_kernels(input)
        and input.device == target.device
        and input.layout == target.layout == torch.strided
        and not input.is_nested
        and not target.is_nested
        and input.dim() > 2
        and input.numel() > 0
        and getattr(loss, "ignore_index", None) is None
        and not target.requires_grad
        and (target.dtype in FLOATING or target.dtype in _LABELS or target.dtype is torch.bool)
    ):
        return False
    if loss.to_onehot_y:  # the labels of several classes, in a channel of their own
        return input.shape[1] > 1 and target.shape == (input.shape[0], 1, *input.shape[2:])
    # Two in half precision are for MONAI to compute in it, to the end.
    wide = (torch.float32, torch.float64)
    return input.shape == target.shape and (input.dtype in wide or target.dtype in wide)


def _is_of_kernels(loss: Any, input: Tensor, target: Tensor) -> bool:
    """Whether the kernels have the formula of a Dice or Tversky loss for these."""
    return (
        loss.other_act is None
        and not loss.soft_label
        and loss.reduction in REDUCTIONS
        # Where nothing is predicted and nothing is there; a softmax or sigmoid predicts something.
        and (loss.smooth_nr == loss.smooth_dr or loss.softmax or loss.sigmoid)
        and _are_voxels(loss, input, target)
        # MONAI warns of a single channel with the options of several.
        and (input.shape[1] > 1 or (loss.include_background and not loss.softmax))
    )


def _is_class_weight(loss: Any, input: Tensor) -> bool:
    """Whether the weight is one that MONAI takes, as far as nobody has to wait for it."""
    weight = loss.class_weight
    return weight is None or (
        weight.shape == (input.shape[1] - (not loss.include_background),)
        and not weight.requires_grad
        and weight.device == input.device
        and not (weight.is_cpu and bool(weight.min() < 0))
    )


def _targets(loss: Any, target: Tensor) -> Tensor:
    """The targets as the kernels take them: labels without the channel, numbers as they are."""
    if not loss.to_onehot_y:
        return target
    labels = target.squeeze(1)
    return labels if labels.dtype in _LABELS else labels.long()


def _options_of_region(loss: Any) -> dict[str, Any]:
    """The options that these losses share with the functions of their kind."""
    return {
        "activation": "softmax" if loss.softmax else "sigmoid" if loss.sigmoid else None,
        "smooth_nr": loss.smooth_nr,
        "smooth_dr": loss.smooth_dr,
        "include_background": loss.include_background,
        "batch": loss.batch,
    }


def _are_out_of_range(labels: Tensor, classes: int) -> bool:
    """Whether a label is none of the classes, as far as nobody has to wait for it."""
    if not labels.is_cpu or torch.compiler.is_compiling():
        return False
    least, largest = labels.aminmax()
    return bool(least < 0) or bool(largest >= classes)


MONAI = Framework(
    name="monai",
    oldest=(1, 5),
    newest=(1, 6),
    replacements=(
        Replacement("monai.losses.dice", "DiceLoss.forward", _dice_loss),
        Replacement("monai.losses.dice", "DiceCELoss.forward", _dice_cross_entropy_loss),
        Replacement("monai.losses.tversky", "TverskyLoss.forward", _tversky_loss),
        Replacement("monai.losses.focal_loss", "FocalLoss.forward", _focal_loss),
    ),
)
