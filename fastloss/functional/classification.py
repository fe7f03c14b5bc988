# SPDX-License-Identifier: MIT
"""Classification losses.

Which one? One class of several: cross-entropy. Several labels at once, or yes and no: binary
cross-entropy with logits. Rare positives among very many negatives, as in dense detection: the
focal loss; with a box's quality as the target, quality focal or varifocal. Hundreds of labels of
which few are set: asymmetric. A margin and nothing beyond it: the hinge losses.
"""

from __future__ import annotations

import math

from torch import Tensor, distributed

from .. import _ops
from ..reference._reduce import reduce_loss
from ._parallel import cross_entropy_of_shards
from ._shared import check_number, documented, option_error

__all__ = [
    "asymmetric_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "crammer_singer_loss",
    "cross_entropy",
    "hinge_loss",
    "linear_cross_entropy",
    "multi_margin_loss",
    "nll_loss",
    "poly_cross_entropy",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]


@documented
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of probabilities, or log loss: torch's function of this name in one pass.

    -(t ln x + (1 - t) ln(1 - x)), a logarithm being at least -100, and with the gradient
    (x - t) / max(x (1 - x), 1e-12), as in torch. Unlike torch's, the mean over no elements is 0,
    and NaN is not an error. Where you have logits, :func:`binary_cross_entropy_with_logits` is
    exact at any of them.

    Args:
        input: Probabilities x in [0, 1], any shape, any floating dtype, any strides.
        target: Probabilities t in [0, 1], of the same shape.
        {uncounted_weight}
        {reduction}
        {avg_factor}

    {element_returns}

    {raises}
        ValueError: On CPU, for an input outside [0, 1]; on CUDA it stops the kernel.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> probabilities = torch.tensor([[0.9, 0.25], [0.5, 0.0]])
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> F.binary_cross_entropy(probabilities, target)
        tensor(0.2715)
    """
    return _ops.pointwise(
        "binary_cross_entropy",
        input,
        target,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Sigmoid cross-entropy, or log loss: torch's function of this name in one pass.

    -(p t ln σ(x) + (1 - t) ln σ(-x)), with p the positive weight. Unlike torch's, the mean over no
    elements is 0.

    Args:
        {element_logits}
        target: Probabilities t in [0, 1], of the same shape.
        {uncounted_weight}
        {reduction}
        pos_weight: Factor p of the positive part, broadcastable to the input.
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> F.binary_cross_entropy_with_logits(logits, target)
        tensor(0.3657)
    """
    return _ops.pointwise(
        "binary_cross_entropy_with_logits",
        input,
        target,
        weight=weight,
        extra=pos_weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Focal loss on logits: sigmoid cross-entropy that turns away from what is easy.

    -α_t (1 - p_t)^γ ln p_t, with p = σ(x), p_t = p t + (1 - p) (1 - t) and
    α_t = α t + (1 - α) (1 - t). torchvision's values. Class indices as targets spare the one-hot
    tensor.

    Focal Loss for Dense Object Detection, 2017, arXiv 1708.02002.

    Args:
        inputs: Logits x, any shape, any floating dtype, any strides.
        targets: Either probabilities t of the shape of the inputs; or, for inputs (..., C), integer
            class indices (...,): C is background (a row of zeros), a negative index marks a row
            that is ignored: no loss, no gradient, not counted by the mean.
        alpha: α in [0, 1], the balance of positives and negatives, or -1 for none.
        gamma: γ, at least 0. 0 is the plain cross-entropy.
        {reduction}
        weight: Factor of every element, broadcastable to the inputs. The mean divides by its sum.
        {avg_factor}

    {element_returns}

    {raises}
        IndexError: On CPU, for a class index above C.

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> F.sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), reduction="sum")
        tensor(0.3006)
        >>> F.sigmoid_focal_loss(logits, torch.tensor([0, 2]), reduction="sum")
        tensor(0.3006)
    """
    check_number("sigmoid_focal_loss", "alpha", alpha, "in [0, 1] or -1")
    check_number("sigmoid_focal_loss", "gamma", gamma, "at least 0")
    return _ops.pointwise(
        "sigmoid_focal_loss",
        inputs,
        targets,
        (alpha, gamma),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def hinge_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    squared: bool = False,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Hinge loss of a binary classifier: what is missing to the margin, as in an SVM.

    max(0, m - t x), or its square. Beyond the margin there is no loss and no gradient.

    Support-Vector Networks, 1995.

    Args:
        input: Scores x, any shape, any floating dtype, any strides.
        target: Labels t of the same shape: 1 and -1. The dtype may be another one, integers too.
        margin: m, the score that is enough, at least 0.
        squared: Whether the loss is squared, which makes it smooth.
        {reduction}
        {broadcast_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([2.0, 0.5, 0.25])
        >>> F.hinge_loss(scores, torch.tensor([1, 1, -1]), reduction="none")
        tensor([0.0000, 0.5000, 1.2500])
    """
    check_number("hinge_loss", "margin", margin, "at least 0")
    return _ops.pointwise(
        "hinge_loss",
        input,
        target,
        (margin, float(squared)),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def quality_focal_loss(
    input: Tensor,
    target: Tensor,
    beta: float = 2.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Quality focal loss: the focal loss for soft targets, such as the quality of a box.

    -|t - σ(x)|^β (t ln σ(x) + (1 - t) ln σ(-x)): nothing where the prediction is the target.

    Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object
    Detection, 2020, arXiv 2006.04388.

    Args:
        {element_logits}
        target: Qualities t in [0, 1], of the same shape: of the IoU for the class of an object, 0
            elsewhere.
        beta: β, how much is turned away from what is nearly right, at least 0.
        {reduction}
        {broadcast_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> F.quality_focal_loss(logits, torch.tensor([[0.8, 0.0], [0.0, 0.0]]), reduction="sum")
        tensor(0.4036)
    """
    check_number("quality_focal_loss", "beta", beta, "at least 0")
    return _ops.pointwise(
        "quality_focal_loss",
        input,
        target,
        (beta,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def varifocal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Varifocal loss: positives count by their quality, easy negatives hardly at all.

    The cross-entropy -(t ln σ(x) + (1 - t) ln σ(-x)), times t where t > 0, and times
    α |σ(x) - t|^γ where t is 0. The factor is part of the gradient, as in mmdetection.

    VarifocalNet: An IoU-aware Dense Object Detector, 2020, arXiv 2008.13367.

    Args:
        {element_logits}
        target: Qualities t in [0, 1], of the same shape: of the IoU for the class of an object, 0
            elsewhere.
        alpha: α, the share of negatives, at least 0.
        gamma: γ, how much is turned away from easy negatives, at least 0.
        {reduction}
        {broadcast_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> F.varifocal_loss(logits, torch.tensor([[0.8, 0.0], [0.0, 0.0]]), reduction="sum")
        tensor(0.7217)
    """
    check_number("varifocal_loss", "alpha", alpha, "at least 0")
    check_number("varifocal_loss", "gamma", gamma, "at least 0")
    return _ops.pointwise(
        "varifocal_loss",
        input,
        target,
        (alpha, gamma),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 1,
    clip: float = 0.05,
    detach_focusing: bool = True,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Asymmetric loss for many labels of which few are set: negatives are focused away harder.

    -(t ln p + (1 - t) ln(1 - p_c)) (1 - p_t)^(γ₊ t + γ₋ (1 - t)), with p = σ(x), the probability of
    negatives lowered by the clip, p_c = max(p - c, 0), and p_t = p t + (1 - p_c) (1 - t). The
    authors' code always sums: give ``reduction="sum"`` for its values.

    Asymmetric Loss For Multi-Label Classification, 2020, arXiv 2009.14119.

    Args:
        {element_logits}
        target: Probabilities t in [0, 1], of the same shape.
        gamma_neg: γ₋, the exponent for negatives, at least 0.
        gamma_pos: γ₊, the exponent for positives, at least 0.
        clip: c in [0, 1): negatives less probable than this have no loss at all.
        detach_focusing: Whether the power is a constant for the gradient.
        {reduction}
        {broadcast_weight}
        {avg_factor}

    {element_returns}

    {raises}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
        >>> F.asymmetric_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), reduction="sum")
        tensor(0.1070)
    """
    check_number("asymmetric_loss", "gamma_neg", gamma_neg, "at least 0")
    check_number("asymmetric_loss", "gamma_pos", gamma_pos, "at least 0")
    check_number("asymmetric_loss", "clip", clip, "in [0, 1)")
    return _ops.pointwise(
        "asymmetric_loss",
        input,
        target,
        (gamma_neg, gamma_pos, clip, float(detach_focusing)),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    avg_factor: Tensor | float | None = None,
    process_group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Softmax cross-entropy: torch's function of this name, in one pass over the logits.

    -w_y ln p_y for class indices y, -Σ w_c t_c ln p_c for probabilities t, with p the softmax of
    the logits. Label smoothing ε moves the share ε of every target to all classes alike. Unlike
    torch's, the loss is in float32 for half-precision logits, and the mean over no rows is 0.

    Label smoothing: Rethinking the Inception Architecture for Computer Vision, 2016,
    arXiv 1512.00567. z-loss: PaLM, 2022, arXiv 2204.02311. Soft cap: Gemma 2, 2024,
    arXiv 2408.00118.

    Args:
        {logits}
        target: Class indices in [0, C), shape (N,), () or (N, d1, ...), uint8, int16, int32 or
            int64; or probabilities, floating, of the shape of the input.
        weight: Factor of every class (C,). With class indices the mean divides by the sum of the
            labels' factors, with probabilities by the number of rows, as torch's does.
        ignore_index: Rows with this label do not count: no loss, no gradient, not part of the mean.
            For class indices only.
        {reduction}
        label_smoothing: ε in [0, 1].
        z_loss: Adds z_loss · (ln Σ exp x)² to every row that counts, which keeps the logits from
            drifting. At least 0.
        logit_softcap: The logits x become cap · tanh(x / cap) first. None: they stay.
        {avg_factor}
        process_group: Group of processes that share out the classes of the same rows, as
            vocabulary-parallel language models do; ``torch.distributed.group.WORLD`` is all of
            them. The input is then this process's share (N, C / processes) of the logits, not
            necessarily as large as others', in the order of the ranks; target, weight, C and all
            else are those of the whole and the same everywhere. Every process gets the loss of the
            whole, and the gradient of its own logits, not to be averaged over this group. Three
            numbers per row are exchanged, never the logits. Each process makes every call. Not
            with label smoothing or probabilities, and its gradient cannot be differentiated again.

    {row_returns}

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 3.0]])
        >>> F.cross_entropy(logits, torch.tensor([0, 2]))
        tensor(0.1469)
        >>> F.cross_entropy(logits, torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]]))
        tensor(0.5469)
    """
    loss, parameters = _cross_entropy_kernel(
        "cross_entropy", target, ignore_index, label_smoothing, z_loss, logit_softcap
    )
    if process_group is not None:
        if loss != "cross_entropy":
            option = "label_smoothing" if label_smoothing else "target"
            expected = "0 with a process_group" if label_smoothing else "indices with one"
            got = label_smoothing if label_smoothing else target.dtype
            raise option_error("cross_entropy", option, expected, got)
        if reduction not in ("none", "mean", "sum"):
            expected = "'none', 'mean' or 'sum'"
            raise option_error("cross_entropy", "reduction", expected, reduction)
        of_rows, factor = cross_entropy_of_shards(
            input, target, weight, ignore_index, z_loss, logit_softcap or 0.0, process_group
        )
        return reduce_loss(of_rows, None, reduction, avg_factor, divisor=factor.sum())
    return _ops.softmax(
        loss,
        input,
        target,
        parameters,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


def _cross_entropy_kernel(
    function: str,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float | None,
) -> tuple[str, tuple[float, ...]]:
    """The formula and its parameters, for options in range."""
    check_number(function, "label_smoothing", label_smoothing, "in [0, 1]")
    check_number(function, "z_loss", z_loss, "at least 0")
    check_number(function, "logit_softcap", logit_softcap, "above 0 or None")
    kind = ""
    if isinstance(target, Tensor) and target.is_floating_point():
        if ignore_index >= 0:
            expected = "negative where the target holds probabilities: they name no class to ignore"
            raise option_error(function, "ignore_index", expected, ignore_index)
        kind = "/probabilities"
    elif label_smoothing > 0:
        kind = "/label_smoothing"
    return f"cross_entropy{kind}", (ignore_index, label_smoothing, z_loss, logit_softcap or 0.0)


@documented
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_softcap: float | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of a linear layer's logits, which never exist all at once.

    cross_entropy(x Wᵀ + b, y), some rows at a time: their logits turn into their own gradient while
    they are in a cache. Needs the memory of the gradients of x, W and b and of one chunk of logits.
    Gradients are summed over the chunks in float32 (float64), also for half-precision input.

    The loss of torch's function of this name, whose ``options`` (how to chunk) are not needed. Cut
    Your Losses in Large-Vocabulary Language Models, 2024, arXiv 2411.09009.

    Args:
        input: Features x (..., F), any floating dtype, any strides.
        linear_weight: Weight W (C, F) of the layer, of the dtype of the input.
        target: Class indices in [0, C), shape (...,), uint8, int16, int32 or int64; or
            probabilities (..., C), floating.
        linear_bias: Bias b (C,) of the layer.
        weight: Factor of every class (C,), as for :func:`cross_entropy`.
        {reduction}
        {ignore_index}
        label_smoothing: ε in [0, 1], as for :func:`cross_entropy`.
        z_loss: Factor of the z-loss, as for :func:`cross_entropy`.
        logit_softcap: Cap of the logits, as for :func:`cross_entropy`.
        {avg_factor}

    Returns:
        The loss: one number per row, shape (...,), for ``"none"``, else a 0-d tensor; float32, or
        float64 if the input is. The mean over no rows is 0, with a gradient of 0.

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> features = torch.tensor([[1.0, 0.5], [-0.5, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
        >>> F.linear_cross_entropy(features, weight, torch.tensor([0, 1]))
        tensor(0.5503)
    """
    loss, parameters = _cross_entropy_kernel(
        "linear_cross_entropy", target, ignore_index, label_smoothing, z_loss, logit_softcap
    )
    return _ops.linear_cross_entropy(
        loss,
        input,
        linear_weight,
        linear_bias,
        target,
        parameters,
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Negative log-likelihood of log-probabilities: torch's function of this name.

    -w_y x_y. Where the logits are at hand, :func:`cross_entropy` does both steps at once.

    Args:
        input: Log-probabilities (N, C), (C,) or (N, C, d1, ...), any floating dtype, any strides.
        {labels}
        {class_weight}
        {ignore_index}
        {reduction}
        {avg_factor}

    {row_returns}

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> log_probabilities = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 3.0]]).log_softmax(1)
        >>> F.nll_loss(log_probabilities, torch.tensor([0, 2]))
        tensor(0.1469)
    """
    return _ops.softmax(
        "nll_loss",
        input,
        target,
        (ignore_index,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: Tensor | float | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Focal loss over classes: cross-entropy that turns away from what is easy.

    -α_y (1 - p_y)^γ ln p_y, with p the softmax of the logits. The mean divides by the number of
    rows that count, whatever α is.

    Focal Loss for Dense Object Detection, 2017, arXiv 1708.02002.

    Args:
        {logits}
        {labels}
        gamma: γ, at least 0. 0 is the plain cross-entropy.
        alpha: α: a number in [0, 1], or one per class (C,). None: 1.
        {ignore_index}
        {reduction}
        {avg_factor}

    {row_returns}

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 3.0]])
        >>> F.softmax_focal_loss(logits, torch.tensor([0, 1]))
        tensor(1.4296)
    """
    check_number("softmax_focal_loss", "gamma", gamma, "at least 0")
    check_number("softmax_focal_loss", "alpha", alpha, "in [0, 1], a Tensor or None")
    class_weight = alpha if isinstance(alpha, Tensor) else None
    factor = math.nan if isinstance(alpha, Tensor) else 1.0 if alpha is None else alpha
    return _ops.softmax(
        "softmax_focal_loss",
        input,
        target,
        (gamma, factor, ignore_index),
        weight=class_weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def poly_cross_entropy(
    input: Tensor,
    target: Tensor,
    epsilon: float = 1.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Poly-1 cross-entropy: the first term of the logarithm's series weighted anew.

    w_y (-ln p_y + ε (1 - p_y)), with p the softmax of the logits.

    PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, 2022,
    arXiv 2204.12511.

    Args:
        {logits}
        {labels}
        epsilon: ε, at least -1. 0 is the plain cross-entropy.
        {reduction}
        {class_weight}
        {ignore_index}
        {avg_factor}

    {row_returns}

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.0, 3.0]])
        >>> F.poly_cross_entropy(logits, torch.tensor([0, 2]))
        tensor(0.2832)
    """
    check_number("poly_cross_entropy", "epsilon", epsilon, "at least -1")
    return _ops.softmax(
        "poly_cross_entropy",
        input,
        target,
        (epsilon, ignore_index),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Multi-class hinge loss of Weston and Watkins: torch's function of this name.

    w_y / C Σ max(0, margin + x_c - x_y)^p over the other classes c.

    Support Vector Machines for Multi-Class Pattern Recognition, 1999.

    Args:
        {logits}
        {labels}
        p: 1 or 2.
        margin: How far the label's logit has to lead.
        weight: Factor of every class (C,). The mean still divides by the number of rows, as torch's
            does.
        {reduction}
        {avg_factor}

    {row_returns}

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 0.0, 1.5], [0.5, 0.0, 3.0]])
        >>> F.multi_margin_loss(scores, torch.tensor([0, 2]))
        tensor(0.0833)
    """
    if p not in (1, 2):
        raise option_error("multi_margin_loss", "p", "1 or 2", p)
    return _ops.softmax(
        "multi_margin_loss",
        input,
        target,
        (p, margin),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )


@documented
def crammer_singer_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Multi-class hinge loss of Crammer and Singer: only the strongest rival counts.

    w_y max(0, margin + max x_c - x_y) over the other classes c. Equal rivals share the gradient.

    On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, 2001.

    Args:
        {logits}
        {labels}
        margin: How far the label's logit has to lead.
        {reduction}
        {class_weight}
        {avg_factor}

    {row_returns}

    {raises}
    {raises_index}

    Example:
        >>> import torch
        >>> import fastloss.functional as F
        >>> scores = torch.tensor([[2.0, 0.0, 1.5], [0.5, 0.0, 3.0]])
        >>> F.crammer_singer_loss(scores, torch.tensor([0, 2]))
        tensor(0.2500)
    """
    return _ops.softmax(
        "crammer_singer_loss",
        input,
        target,
        (margin,),
        weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )
