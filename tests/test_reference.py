# SPDX-License-Identifier: MIT
"""The oracle itself, against the papers' formulas in Python's floats, one box after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import BOX_PAIRS, CASES, Arguments, Case, find_case

from fastloss import functional, reference

EPS = 1e-7
Box = tuple[float, float, float, float]


@dataclass
class Measures:
    """Two proper boxes measured as the papers' figures show it."""

    iou: float
    union: float
    enclosing_area: float
    cw: float
    ch: float
    dx: float
    dy: float
    w1: float
    h1: float
    w2: float
    h2: float

    @classmethod
    def of(cls, a: Box, b: Box) -> Measures:
        w1, h1, w2, h2 = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
        overlap_w = min(a[2], b[2]) - max(a[0], b[0])
        overlap_h = min(a[3], b[3]) - max(a[1], b[1])
        intersection = overlap_w * overlap_h if overlap_w > 0 and overlap_h > 0 else 0.0
        union = w1 * h1 + w2 * h2 - intersection
        cw, ch = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
        dx, dy = (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2, (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2
        return cls(intersection / union, union, cw * ch, cw, ch, dx, dy, w1, h1, w2, h2)

    @property
    def diou(self) -> float:
        return self.iou - (self.dx**2 + self.dy**2) / (self.cw**2 + self.ch**2)

    def with_aspect(self, v: float) -> float:
        return self.diou - v / (1 - self.iou + v + EPS) * v


def giou(m: Measures) -> float:
    return m.iou - (m.enclosing_area - m.union) / m.enclosing_area


def ciou(m: Measures) -> float:
    return m.with_aspect(4 / math.pi**2 * (math.atan(m.w2 / m.h2) - math.atan(m.w1 / m.h1)) ** 2)


def xiou(m: Measures) -> float:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    return m.with_aspect((sigmoid(m.w2 / m.h2) - sigmoid(m.w1 / m.h1)) ** 2)


def eiou(m: Measures) -> float:
    return m.diou - (m.w1 - m.w2) ** 2 / m.cw**2 - (m.h1 - m.h2) ** 2 / m.ch**2


def siou(m: Measures, theta: float = 4.0) -> float:
    """By the angle itself, as in the paper: Λ = 1 - 2 sin²(arcsin(|dy| / σ) - π/4)."""
    distance = math.hypot(m.dx, m.dy)
    angle_cost = 1 - 2 * math.sin(math.asin(abs(m.dy) / distance) - math.pi / 4) ** 2
    gamma = 2 - angle_cost
    distance_cost = sum(
        1 - math.exp(-gamma * rho) for rho in ((m.dx / m.cw) ** 2, (m.dy / m.ch) ** 2)
    )
    omega = (abs(m.w1 - m.w2) / max(m.w1, m.w2), abs(m.h1 - m.h2) / max(m.h1, m.h2))
    shape_cost = sum((1 - math.exp(-side)) ** theta for side in omega)
    return m.iou - (distance_cost + shape_cost) / 2


def wise(
    m: Measures, focus: Callable[[float], float] = lambda beta: 1.0, mean: float = 0.4
) -> float:
    attention = math.exp((m.dx**2 + m.dy**2) / (m.cw**2 + m.ch**2))
    return focus((1 - m.iou) / mean) * attention * (1 - m.iou)


def wasserstein(m: Measures) -> float:
    return math.sqrt(m.dx**2 + m.dy**2 + ((m.w1 - m.w2) ** 2 + (m.h1 - m.h2) ** 2) / 4)


BY_HAND: dict[str, Callable[[Measures], float]] = {
    "box_iou_loss": lambda m: 1 - m.iou,
    "box_iou_loss-square": lambda m: 1 - m.iou**2,
    "box_iou_loss-log": lambda m: -math.log(max(m.iou, EPS)),
    "generalized_box_iou_loss": lambda m: 1 - giou(m),
    "distance_box_iou_loss": lambda m: 1 - m.diou,
    "complete_box_iou_loss": lambda m: 1 - ciou(m),
    "complete_box_iou_loss-aspect_threshold": lambda m: 1 - (ciou(m) if m.iou > 0.5 else m.diou),
    "efficient_box_iou_loss": lambda m: 1 - eiou(m),
    "efficient_box_iou_loss-focal": lambda m: (1 - eiou(m)) * m.iou**0.5,
    "efficient_box_iou_loss-focal_detached": lambda m: (1 - eiou(m)) * m.iou**0.5,
    "scylla_box_iou_loss": lambda m: 1 - siou(m),
    "scylla_box_iou_loss-theta": lambda m: 1 - siou(m, 2.5),
    "wise_box_iou_loss": wise,
    "wise_box_iou_loss-v2": lambda m: wise(m, lambda beta: beta**0.5),
    "wise_box_iou_loss-v3": lambda m: wise(m, lambda beta: beta / (3.0 * 1.9 ** (beta - 3.0))),
    "wise_box_iou_loss-v3_tensor": lambda m: wise(
        m, lambda beta: beta / (2.5 * 1.9 ** (beta - 2.5))
    ),
    "sigmoid_aspect_box_iou_loss": lambda m: 1 - xiou(m),
    "normalized_wasserstein_loss": lambda m: 1 - math.exp(-wasserstein(m) / 12.8),
    "normalized_wasserstein_loss-sqrt": wasserstein,
    "normalized_wasserstein_loss-log": lambda m: math.log(1 + wasserstein(m) ** 2),
    "normalized_wasserstein_loss-w2": lambda m: wasserstein(m) ** 2,
}
SIMILARITIES: dict[str, Callable[[Measures], float]] = {
    "iou": lambda m: m.iou,
    "giou": giou,
    "diou": lambda m: m.diou,
    "ciou": ciou,
    "eiou": eiou,
    "siou": siou,
    "nwd": lambda m: math.exp(-wasserstein(m) / 12.8),
}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.family is BOX_PAIRS], ids=lambda case: case.id
)
def test_box_losses(case: Case) -> None:
    arguments = case.arguments(60, torch.float64)
    found = case.reference(arguments)
    pairs = zip(arguments["boxes1"].tolist(), arguments["boxes2"].tolist(), strict=True)
    expected = [BY_HAND[case.id](Measures.of(tuple(a), tuple(b))) for a, b in pairs]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_similarities(kind: str) -> None:
    arguments = find_case(f"pairwise_box_iou-{kind}").arguments((7, 9), torch.float64)
    expected = [
        [SIMILARITIES[kind](Measures.of(tuple(a), tuple(b))) for b in arguments["boxes2"].tolist()]
        for a in arguments["boxes1"].tolist()
    ]
    found = reference.pairwise_box_iou(**arguments)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


# ---------------------------------------------------------------------------------------- repulsion


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def smooth_ln(x: float, sigma: float) -> float:
    return -math.log(1 - x) if x <= sigma else (x - sigma) / (1 - sigma) - math.log(1 - sigma)


def repulsion_by_hand(
    boxes: list[Box],
    targets: list[Box],
    index: list[int],
    images: list[int],
    target_images: list[int],
    sigma_gt: float,
    sigma_box: float,
) -> tuple[float, float, float, int]:
    """The sums of attraction, RepGT and RepBox, and the number of overlapping pairs: three loops,
    as in the paper.
    """
    attraction = sum(
        smooth_l1(p - t)
        for box, i in zip(boxes, index, strict=True)
        for p, t in zip(box, targets[i], strict=True)
    )
    rep_gt = 0.0
    for box, own, image in zip(boxes, index, images, strict=True):
        others = [j for j in range(len(targets)) if j != own and target_images[j] == image]
        if not others:
            continue
        nearest = max(others, key=lambda j: Measures.of(box, targets[j]).iou)
        m = Measures.of(box, targets[nearest])
        intersection = m.iou * m.union
        rep_gt += smooth_ln(intersection / (m.w2 * m.h2), sigma_gt)
    rep_box, pairs = 0.0, 0
    for i in range(len(boxes)):
        for j in range(i):
            if index[i] != index[j] and images[i] == images[j]:
                iou = Measures.of(boxes[i], boxes[j]).iou
                rep_box += smooth_ln(iou, sigma_box)
                pairs += iou > 0
    return attraction, rep_gt, rep_box, pairs


@pytest.mark.parametrize("id", ["repulsion_loss", "repulsion_loss-images"])
def test_repulsion(id: str) -> None:
    case = find_case(id)
    arguments = case.arguments((40, 12), torch.float64)
    boxes = arguments["boxes"].unflatten(-1, (2, 2)).sort(-2).values.flatten(-2)  # proper ones
    arguments["boxes"] = boxes
    signature = {"sigma_gt": 0.9, "sigma_box": 0.5, "alpha": 0.5, "beta": 0.5, **case.options}
    attraction, rep_gt, rep_box, pairs = repulsion_by_hand(
        [tuple(box) for box in boxes.tolist()],
        [tuple(box) for box in arguments["target_boxes"].tolist()],
        arguments["target_index"].tolist(),
        arguments.get("batch_index", torch.zeros(40)).tolist(),
        arguments.get("target_batch_index", torch.zeros(12)).tolist(),
        signature["sigma_gt"],
        signature["sigma_box"],
    )
    assert pairs > 5
    assert rep_gt > 1
    total = attraction + signature["alpha"] * rep_gt + signature["beta"] * rep_box
    mean = (attraction + signature["alpha"] * rep_gt) / 40 + signature["beta"] * rep_box / pairs
    assert case.reference(arguments, reduction="sum").item() == pytest.approx(total, rel=1e-6)
    assert case.reference(arguments, reduction="mean").item() == pytest.approx(mean, rel=1e-6)
    each = case.reference(arguments, reduction="none")
    assert each.shape == (40,)
    assert each.sum().item() == pytest.approx(total, rel=1e-6)


def test_repulsion_beyond_sigma_is_the_tangent() -> None:
    """Two boxes on top of each other, of different ground truths: -ln(1 - x) would be infinite."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]], dtype=torch.float64)
    targets = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]], dtype=torch.float64)
    found = reference.repulsion_loss(
        boxes, targets, torch.tensor([0, 1]), "sum", alpha=0.0, beta=1.0
    )
    attraction = 2 * (20 - 0.5)
    assert found.item() == pytest.approx(attraction + smooth_ln(1.0, 0.5), rel=1e-6)


# ----------------------------------------------------------------------------------- classification


@pytest.mark.parametrize(
    "id", ["sigmoid_focal_loss", "sigmoid_focal_loss-gamma", "sigmoid_focal_loss-indices"]
)
def test_focal_loss(id: str) -> None:
    case = find_case(id)
    arguments = case.arguments(20, torch.float64)
    alpha, gamma = case.options.get("alpha", 0.25), case.options.get("gamma", 2)
    logits, targets = arguments["inputs"], arguments["targets"]
    found = case.reference(arguments)
    for position in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape)).tolist():
        x = logits[tuple(position)].item()
        if targets.shape == logits.shape:
            t = targets[tuple(position)].item()
        else:
            label = targets[position[0]].item()
            if label < 0:
                assert found[tuple(position)] == 0
                continue
            t = float(label == position[1])
        p = 1 / (1 + math.exp(-x))
        p_t = p * t + (1 - p) * (1 - t)
        balance = alpha * t + (1 - alpha) * (1 - t) if alpha >= 0 else 1.0
        cross_entropy = -t * math.log(p) - (1 - t) * math.log(1 - p)
        expected = balance * cross_entropy * (1 - p_t) ** gamma
        assert found[tuple(position)].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


# ------------------------------------------------------- every other loss with a number per element


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_loss(p: float, t: float) -> float:
    """Cross-entropy of a probability."""
    return -(t * math.log(p) if t else 0.0) - ((1 - t) * math.log(1 - p) if t < 1 else 0.0)


def varifocal(x: float, t: float, alpha: float = 0.75, gamma: float = 2.0) -> float:
    factor = t if t > 0 else alpha * sigma(x) ** gamma
    return factor * log_loss(sigma(x), t)


def asymmetric(x: float, t: float, minus: float, plus: float, clip: float) -> float:
    p = sigma(x)
    lowered = max(p - clip, 0.0)
    cross_entropy = -t * math.log(p) - (1 - t) * math.log(1 - lowered)
    p_t = p * t + (1 - lowered) * (1 - t)
    return cross_entropy * (1 - p_t) ** (plus * t + minus * (1 - t))


def pinball(x: float, t: float, q: float) -> float:
    return q * (t - x) if t >= x else (1 - q) * (x - t)


ELEMENT_BY_HAND: dict[str, Callable[..., float]] = {
    "binary_cross_entropy": log_loss,
    "binary_cross_entropy_with_logits": lambda x, t: log_loss(sigma(x), t),
    "margin_ranking_loss": lambda x1, x2, t: max(0.0, t * (x2 - x1)),
    "margin_ranking_loss-margin": lambda x1, x2, t: max(0.0, 0.5 + t * (x2 - x1)),
    "hinge_loss": lambda x, t: max(0.0, 1 - t * x),
    "hinge_loss-squared": lambda x, t: max(0.0, 0.5 - t * x) ** 2,
    "quality_focal_loss": lambda x, t: abs(t - sigma(x)) ** 2 * log_loss(sigma(x), t),
    "quality_focal_loss-beta": lambda x, t: abs(t - sigma(x)) ** 1.5 * log_loss(sigma(x), t),
    "varifocal_loss": varifocal,
    "varifocal_loss-positives": varifocal,
    "varifocal_loss-gamma": lambda x, t: varifocal(x, t, 0.4, 1.5),
    "asymmetric_loss": lambda x, t: asymmetric(x, t, 4, 1, 0.05),
    "asymmetric_loss-focusing": lambda x, t: asymmetric(x, t, 2.5, 1, 0.2),
    "asymmetric_loss-no_clip": lambda x, t: asymmetric(x, t, 4, 0, 0.0),
    "mse_loss": lambda x, t: (x - t) ** 2,
    "rmse_loss": lambda x, t: abs(x - t),
    "l1_loss": lambda x, t: abs(x - t),
    "smooth_l1_loss": lambda x, t: smooth_l1(x - t),
    "smooth_l1_loss-beta_0": lambda x, t: abs(x - t),
    "huber_loss": lambda x, t: smooth_l1(x - t),
    "huber_loss-delta": lambda x, t: (
        0.3 * min((x - t) ** 2 / 0.6, abs(x - t) - 0.15) if abs(x - t) > 0.3 else (x - t) ** 2 / 2
    ),
    "log_cosh_loss": lambda x, t: math.log(math.cosh(x - t)),
    "quantile_loss": lambda x, t: pinball(x, t, 0.3),
    "lsgan_discriminator_loss": lambda real, fake: ((real - 1) ** 2 + fake**2) / 2,
    "lsgan_discriminator_loss-targets": lambda real, fake: (
        ((real - 0.9) ** 2 + (fake + 1) ** 2) / 2
    ),
    "lsgan_generator_loss": lambda fake: (fake - 1) ** 2 / 2,
    "lsgan_generator_loss-target": lambda fake: (fake - 0.5) ** 2 / 2,
    "wasserstein_discriminator_loss": lambda real, fake: fake - real,
    "wasserstein_generator_loss": lambda fake: -fake,
    "non_saturating_discriminator_loss": lambda real, fake: (
        log_loss(sigma(real), 1.0) + log_loss(sigma(fake), 0.0)
    ),
    "non_saturating_discriminator_loss-label_smoothing": lambda real, fake: (
        log_loss(sigma(real), 0.9) + log_loss(sigma(fake), 0.0)
    ),
    "non_saturating_generator_loss": lambda fake: log_loss(sigma(fake), 1.0),
    "hinge_discriminator_loss": lambda real, fake: max(0.0, 1 - real) + max(0.0, 1 + fake),
    "hinge_generator_loss": lambda fake: -fake,
    "deep_graph_infomax_loss": lambda positive, negative: (
        log_loss(sigma(positive), 1.0) + log_loss(sigma(negative), 0.0)
    ),
}
BY_OTHER_TESTS = {
    *("sigmoid_focal_loss", "quantile_loss-several"),
    *("self_critical_loss", "ppo_loss", "grpo_loss"),  # in test_policy.py
}


def of_elements(case: Case) -> bool:
    return (
        case.family.engine == "pointwise"
        and case.function not in BY_OTHER_TESTS
        and case.id not in BY_OTHER_TESTS
    )


@pytest.mark.parametrize("case", filter(of_elements, CASES), ids=lambda case: case.id)
def test_losses_of_elements(case: Case) -> None:
    arguments: Arguments = case.arguments(40, torch.float64)
    found = case.reference(arguments, reduction="none")
    factor = arguments.pop("pos_weight", None)
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    by_hand = ELEMENT_BY_HAND[case.id.removesuffix("-pos_weight")]
    columns = [tensor.flatten().tolist() for tensor in tensors]
    expected = [by_hand(*numbers) for numbers in zip(*columns, strict=True)]
    wanted = torch.tensor(expected, dtype=torch.float64).view(found.shape)
    if factor is not None:  # of the positive part
        logits, labels = tensors
        wanted = wanted - (factor - 1) * labels * torch.nn.functional.logsigmoid(logits)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    # The reduced losses follow from these, but for those that are reduced before something else.
    if case.function != "rmse_loss":
        for reduction in ("mean", "sum"):
            reduced = case.reference(case.arguments(40, torch.float64), reduction=reduction)
            torch.testing.assert_close(reduced, getattr(found, reduction)())


def test_quantiles_of_forecasts() -> None:
    arguments = find_case("quantile_loss-several").arguments((20, 3), torch.float64)
    found = reference.quantile_loss(**arguments, reduction="none")
    for row, (forecasts, target) in enumerate(
        zip(arguments["input"].tolist(), arguments["target"].tolist(), strict=True)
    ):
        for place, x in enumerate(forecasts):
            expected = pinball(x, target, arguments["quantiles"][place].item())
            assert found[row, place].item() == pytest.approx(expected)


@pytest.mark.parametrize("eps", [0.0, 0.25])
def test_root_of_the_squared_error(eps: float) -> None:
    """The root is taken after the reduction."""
    x, t = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([1.0, 2.0, 6.0])
    for function in (reference.rmse_loss, functional.rmse_loss):
        assert function(x, t, eps=eps).item() == pytest.approx(math.sqrt(25 / 3 + eps))
        assert function(x, t, "sum", eps).item() == pytest.approx(math.sqrt(25 + eps))
        assert function(x, t, "none", eps).tolist() == pytest.approx(
            [math.sqrt(d * d + eps) for d in (0.0, 3.0, 4.0)]
        )
        weight = torch.tensor([1.0, 2.0, 0.0])
        assert function(x, t, eps=eps, weight=weight).item() == pytest.approx(math.sqrt(6 + eps))
        assert function(x, t, eps=eps, avg_factor=5).item() == pytest.approx(math.sqrt(5 + eps))
