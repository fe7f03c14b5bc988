# SPDX-License-Identifier: MIT
"""Losses between boxes as modules."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from .. import functional
from ._base import Loss

__all__ = [
    "BoxIoULoss",
    "CompleteBoxIoULoss",
    "DistanceBoxIoULoss",
    "DistributionFocalLoss",
    "EfficientBoxIoULoss",
    "GeneralizedBoxIoULoss",
    "NormalizedWassersteinLoss",
    "ObjectKeypointSimilarityLoss",
    "ProbabilisticIoULoss",
    "RepulsionLoss",
    "ScyllaBoxIoULoss",
    "SigmoidAspectBoxIoULoss",
    "WiseBoxIoULoss",
]


class _BoxPairLoss(Loss):
    """A loss of every box against its partner."""

    eps: float

    def forward(
        self,
        boxes1: Tensor,
        boxes2: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of boxes against boxes of the same shape; ``weight`` has a number per box."""
        return self.function(boxes1, boxes2, weight=weight, avg_factor=avg_factor, **self.options())


class BoxIoULoss(_BoxPairLoss):
    """IoU loss: :func:`fastloss.functional.box_iou_loss`."""

    function = staticmethod(functional.box_iou_loss)
    mode: str

    def __init__(self, reduction: str = "mean", eps: float = 1e-7, *, mode: str = "linear") -> None:
        super().__init__(reduction=reduction, eps=eps, mode=mode)


class GeneralizedBoxIoULoss(_BoxPairLoss):
    """GIoU loss: :func:`fastloss.functional.generalized_box_iou_loss`."""

    function = staticmethod(functional.generalized_box_iou_loss)

    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__(reduction=reduction, eps=eps)


class DistanceBoxIoULoss(_BoxPairLoss):
    """DIoU loss: :func:`fastloss.functional.distance_box_iou_loss`."""

    function = staticmethod(functional.distance_box_iou_loss)

    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__(reduction=reduction, eps=eps)


class CompleteBoxIoULoss(_BoxPairLoss):
    """CIoU loss: :func:`fastloss.functional.complete_box_iou_loss`."""

    function = staticmethod(functional.complete_box_iou_loss)
    aspect_threshold: float

    def __init__(
        self, reduction: str = "mean", eps: float = 1e-7, *, aspect_threshold: float = 0.0
    ) -> None:
        super().__init__(reduction=reduction, eps=eps, aspect_threshold=aspect_threshold)


class EfficientBoxIoULoss(_BoxPairLoss):
    """EIoU loss, and Focal-EIoU: :func:`fastloss.functional.efficient_box_iou_loss`."""

    function = staticmethod(functional.efficient_box_iou_loss)
    gamma: float
    detach_focal: bool

    def __init__(
        self,
        reduction: str = "mean",
        eps: float = 1e-7,
        *,
        gamma: float = 0.0,
        detach_focal: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, eps=eps, gamma=gamma, detach_focal=detach_focal)


class ScyllaBoxIoULoss(_BoxPairLoss):
    """SIoU loss: :func:`fastloss.functional.scylla_box_iou_loss`."""

    function = staticmethod(functional.scylla_box_iou_loss)
    theta: float

    def __init__(self, reduction: str = "mean", eps: float = 1e-7, *, theta: float = 4.0) -> None:
        super().__init__(reduction=reduction, eps=eps, theta=theta)


class WiseBoxIoULoss(_BoxPairLoss):
    """WIoU loss: :func:`fastloss.functional.wise_box_iou_loss`, with the running mean it needs.

    In training, every call of version 2 or 3 first moves ``iou_mean`` towards the batch's mean of
    1 - IoU. Boxes of weight 0 do not count for it; a batch without boxes or with NaN leaves it as
    it is. In evaluation it is only used. The host never reads it.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: Added to denominators.
        version: 1, 2 or 3.
        momentum: How far ``iou_mean`` moves, in [0, 1].
        alpha: α of version 3.
        delta: δ of version 3.
        gamma: γ of version 2.
        process_group: Group of processes over whose boxes the batch's mean is taken; each of them
            must make every call. ``torch.distributed.group.WORLD`` is all of them, None this one.

    Attributes:
        iou_mean: Running mean of 1 - IoU, a 0-d buffer that starts at 1.

    Example:
        >>> import torch
        >>> import fastloss
        >>> loss = fastloss.WiseBoxIoULoss(momentum=0.1)
        >>> boxes1 = torch.tensor([[10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 60.0, 80.0]])
        >>> boxes2 = torch.tensor([[12.0, 8.0, 48.0, 44.0], [70.0, 30.0, 90.0, 80.0]])
        >>> loss(boxes1, boxes2)
        tensor(0.7954)
        >>> loss.iou_mean
        tensor(0.9619)
    """

    function = staticmethod(functional.wise_box_iou_loss)
    version: int
    alpha: float
    delta: float
    gamma: float
    iou_mean: Tensor

    def __init__(
        self,
        reduction: str = "mean",
        eps: float = 1e-7,
        *,
        version: int = 3,
        momentum: float = 0.01,
        alpha: float = 1.9,
        delta: float = 3.0,
        gamma: float = 0.5,
        process_group: distributed.ProcessGroup | None = None,
    ) -> None:
        if not 0 <= momentum <= 1:
            raise ValueError(f"WiseBoxIoULoss: momentum must be in [0, 1], got {momentum!r}")
        super().__init__(
            reduction=reduction, eps=eps, version=version, alpha=alpha, delta=delta, gamma=gamma
        )
        self.momentum = momentum
        self.process_group = process_group
        self.register_buffer("iou_mean", torch.ones(()))

    def forward(
        self,
        boxes1: Tensor,
        boxes2: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of boxes (..., 4) against boxes of the same shape; ``weight`` is (...)."""
        iou_mean = self.iou_mean
        if self.training and self.version != 1:
            # The loss gets a tensor of its own: the next call changes the buffer, perhaps before
            # this one's backward.
            iou_mean = self._moved_mean(boxes1, boxes2, weight)
            self.iou_mean.copy_(iou_mean)
        return functional.wise_box_iou_loss(
            boxes1,
            boxes2,
            iou_mean=iou_mean,
            weight=weight,
            avg_factor=avg_factor,
            **self.options(),
        )

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{super().extra_repr()}, momentum={self.momentum!r}"

    @torch.no_grad()
    def _moved_mean(self, boxes1: Tensor, boxes2: Tensor, weight: Tensor | None) -> Tensor:
        counts = None if weight is None else (weight != 0).float()
        total = functional.box_iou_loss(boxes1, boxes2, "sum", self.eps, weight=counts)
        count = total.new_full((), boxes1.numel() // 4) if counts is None else counts.sum()
        if self.process_group is not None:
            both = torch.stack((total, count.to(total.dtype)))
            distributed.all_reduce(both, group=self.process_group)
            total, count = both.unbind()
        batch_mean = (total / count).to(self.iou_mean.dtype)
        moved = torch.lerp(self.iou_mean, batch_mean, self.momentum)
        # 0 / 0 of an empty batch is no more a mean than NaN is, and either would stay for ever.
        return torch.where(batch_mean.isfinite(), moved, self.iou_mean)


class SigmoidAspectBoxIoULoss(_BoxPairLoss):
    """XIoU loss: :func:`fastloss.functional.sigmoid_aspect_box_iou_loss`."""

    function = staticmethod(functional.sigmoid_aspect_box_iou_loss)

    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__(reduction=reduction, eps=eps)


class NormalizedWassersteinLoss(_BoxPairLoss):
    """NWD loss: :func:`fastloss.functional.normalized_wasserstein_loss`."""

    function = staticmethod(functional.normalized_wasserstein_loss)
    constant: float
    mode: str

    def __init__(
        self,
        reduction: str = "mean",
        eps: float = 1e-7,
        *,
        constant: float = 12.8,
        mode: str = "exp",
    ) -> None:
        super().__init__(reduction=reduction, eps=eps, constant=constant, mode=mode)


class ProbabilisticIoULoss(_BoxPairLoss):
    """ProbIoU loss: :func:`fastloss.functional.probabilistic_iou_loss`."""

    function = staticmethod(functional.probabilistic_iou_loss)
    floor: float

    def __init__(self, reduction: str = "mean", eps: float = 1e-3, *, floor: float = 0.0) -> None:
        super().__init__(reduction=reduction, eps=eps, floor=floor)


class ObjectKeypointSimilarityLoss(Loss):
    """OKS loss: :func:`fastloss.functional.object_keypoint_similarity_loss`.

    Args:
        sigmas: σ of each of the K keypoints (K,).
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
    """

    function = staticmethod(functional.object_keypoint_similarity_loss)
    sigmas: Tensor

    def __init__(self, sigmas: Tensor, reduction: str = "mean") -> None:
        super().__init__(sigmas=sigmas, reduction=reduction)

    def forward(
        self, keypoints: Tensor, targets: Tensor, visibility: Tensor, area: Tensor
    ) -> Tensor:
        """The loss of keypoints (N, K, 2); ``visibility`` is (N, K), ``area`` is (N,)."""
        return self.function(keypoints, targets, visibility, area, **self.options())


class RepulsionLoss(Loss):
    """Repulsion loss: :func:`fastloss.functional.repulsion_loss`."""

    function = staticmethod(functional.repulsion_loss)
    sigma_gt: float
    sigma_box: float
    alpha: float
    beta: float

    def __init__(
        self,
        reduction: str = "mean",
        *,
        sigma_gt: float = 0.9,
        sigma_box: float = 0.5,
        alpha: float = 0.5,
        beta: float = 0.5,
    ) -> None:
        super().__init__(
            reduction=reduction, sigma_gt=sigma_gt, sigma_box=sigma_box, alpha=alpha, beta=beta
        )

    def forward(
        self,
        boxes: Tensor,
        target_boxes: Tensor,
        target_index: Tensor,
        batch_index: Tensor | None = None,
        target_batch_index: Tensor | None = None,
    ) -> Tensor:
        """The loss of boxes (P, 4) that aim at ``target_boxes[target_index]``."""
        return self.function(
            boxes,
            target_boxes,
            target_index,
            batch_index=batch_index,
            target_batch_index=target_batch_index,
            **self.options(),
        )


class DistributionFocalLoss(Loss):
    """Distribution focal loss: :func:`fastloss.functional.distribution_focal_loss`."""

    function = staticmethod(functional.distribution_focal_loss)

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """The loss of logits (..., bins) against positions (...,)."""
        return self.function(input, target, weight=weight, avg_factor=avg_factor, **self.options())
