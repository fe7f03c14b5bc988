# SPDX-License-Identifier: MIT
"""What the pictures show: each loss along a line through its inputs, in float64 by the reference.

An engine's losses look alike: a line is laid for all rows of an engine, or of a family where those
differ. A row whose engine has no line here gets no picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.cases import (
    CASES,
    CLASS_INDICES,
    CROWD,
    DETECTION_LOGITS,
    DISCRIMINATED,
    DISTRIBUTIONS,
    FAKE,
    KEYPOINTS,
    PROBABILITIES,
    REAL_AND_FAKE,
    REGRESSION,
    ROTATED_PAIRS,
    SIGNS,
    Arguments,
    Case,
    Family,
)

POINTS = 241


@dataclass(frozen=True)
class Curve:
    """One line of a picture.

    Attributes:
        label: What the legend calls it.
        arguments: Of a call; its prediction moves along the line.
        dashed: Whether it is the other of two cases, as negatives beside positives.
    """

    label: str
    arguments: Arguments
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """The line itself.

    Attributes:
        title: What the horizontal axis says.
        places: The numbers along it.
        curves: Makes the lines of a row.
        slope: From the gradient of the prediction (points, ...) to the one along the axis.
        at_once: Whether the places are so many elements (or rows) of one call.
    """

    title: str
    places: Tensor
    curves: Callable[[Tensor, Case], Sequence[Curve]]
    slope: Callable[[Tensor], Tensor] = lambda gradient: gradient
    at_once: bool = True


def _places(first: float, last: float) -> Tensor:
    return torch.linspace(first, last, POINTS, dtype=torch.float64)


def _against(targets: dict[str, float]) -> Callable[[Tensor, Case], Sequence[Curve]]:
    """Every number along the line against the same target."""

    def curves(places: Tensor, case: Case) -> Sequence[Curve]:
        names = list(case.family.build((1,), torch.Generator()))
        return [
            Curve(label, {names[0]: places, names[1]: torch.full_like(places, value)}, number > 0)
            for number, (label, value) in enumerate(targets.items())
        ]

    return curves


def _scores(places: Tensor, case: Case) -> Sequence[Curve]:
    """A discriminator's loss is of two scores: one moves, the other one is where it costs least."""
    sides = case.family.differentiable
    if len(sides) == 1:
        return [Curve(sides[0], {sides[0]: places})]
    candidates = torch.linspace(-60, 60, 2401, dtype=torch.float64)
    best = {}
    for side, other in (sides, sides[::-1]):
        scores = {side: candidates, other: torch.zeros_like(candidates)}
        loss = case.reference({**case.options, **scores}, reduction="none")
        # A critic's loss has no least: its scores may be anything.
        best[side] = candidates[loss.argmin()] if loss.min() >= 0 else torch.zeros(())
    return [
        Curve(
            side,
            {
                **{name: score.to(places).expand(POINTS) for name, score in best.items()},
                side: places,
            },
            dashed=side == sides[1],
        )
        for side in best
    ]


def _distributions(places: Tensor, case: Case) -> Sequence[Curve]:
    """Mean or deviation move, the other one is that of the normal distribution."""
    rows = places[:, None]
    names = case.family.differentiable
    normal = {name: torch.zeros_like(rows) for name in names}
    return [
        Curve(name, {**normal, name: rows}, dashed=number > 0) for number, name in enumerate(names)
    ]


def _directions(places: Tensor, case: Case) -> Sequence[Curve]:
    """Two features whose second one moves, against a row along the first."""
    rows = torch.stack((torch.ones_like(places), places), -1)
    first, second = case.family.build((1, 2), torch.Generator())
    return [Curve("", {first: rows, second: torch.tensor([1.0, 0.0]).to(rows).expand_as(rows)})]


CLASSES = 10


def _rows(places: Tensor, case: Case) -> Sequence[Curve]:
    """The label's logit moves, those of the other classes are 0."""
    logits = torch.zeros(POINTS, CLASSES, dtype=torch.float64)
    logits[:, 0] = places
    return [Curve("", {"input": logits, "target": torch.zeros(POINTS, dtype=torch.int64)})]


LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
RIGHT = nn.functional.one_hot(LABELS, 3).T  # (classes, voxels)


def _voxels(places: Tensor, case: Case) -> Sequence[Curve]:
    """An image of three classes, half of it background: the right logit moves in every voxel."""
    logits = places[:, None, None] * RIGHT
    return [Curve("", {"input": logits, "target": LABELS.expand(POINTS, -1)})]


SIDE = 16.0


def _shifted_boxes(places: Tensor, case: Case) -> Sequence[Curve]:
    """A box that moves sideways over its target, of the same size and half as wide."""
    target = torch.tensor([0.0, 0.0, SIDE, SIDE], dtype=torch.float64)
    curves: list[Curve] = []
    for label, box in (
        ("same size", target),
        ("half as wide", torch.tensor([SIDE / 4, 0.0, 3 * SIDE / 4, SIDE], dtype=torch.float64)),
    ):
        shift = SIDE * places[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
        arguments = {"boxes1": box + shift, "boxes2": target.expand(POINTS, 4)}
        curves.append(Curve(label, arguments, dashed=bool(curves)))
    return curves


def _shifted_rotated_boxes(places: Tensor, case: Case) -> Sequence[Curve]:
    """A box that moves along its longer side over its target, and over one across."""
    moved = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    curves: list[Curve] = []
    for label, angle in (("same angle", 0.0), ("turned by 90°", math.pi / 2)):
        target = torch.tensor([0.0, 0.0, SIDE, SIDE / 2, angle], dtype=torch.float64)
        box = torch.tensor([0.0, 0.0, SIDE, SIDE / 2, 0.0], dtype=torch.float64)
        arguments = {
            "boxes1": box + SIDE * places[:, None] * moved,
            "boxes2": target.expand(POINTS, 5),
        }
        curves.append(Curve(label, arguments, dashed=bool(curves)))
    return curves


def _shifted_keypoints(places: Tensor, case: Case) -> Sequence[Curve]:
    """A keypoint that moves sideways over its target, for two of COCO's kinds."""
    keypoints = torch.stack((SIDE * places, torch.zeros_like(places)), -1)
    return [
        Curve(
            label,
            {
                "keypoints": keypoints,
                "targets": torch.zeros_like(keypoints),
                "visibility": torch.ones(POINTS, dtype=torch.bool),
                "area": torch.full((), SIDE * SIDE, dtype=torch.float64),
                "sigmas": torch.full_like(places, sigma),
            },
            dashed=label == "eye",
        )
        for label, sigma in (("hip", 0.107), ("eye", 0.025))
    ]


def _crowd(places: Tensor, case: Case) -> Sequence[Curve]:
    """A box that moves from its own ground truth, at 0, over another one, at 1."""
    own = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    shift = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    return [
        Curve(
            "",
            {
                "boxes": own + places[:, None] * shift,
                "target_boxes": torch.stack((own, own + shift)),
                "target_index": torch.zeros(POINTS, dtype=torch.int64),
                "beta": 0.0,  # the boxes along the line are no crowd
            },
        )
    ]


def _along_x(gradient: Tensor) -> Tensor:
    """How the loss changes with a shift sideways."""
    return gradient[..., 0] + gradient[..., 2]


_LOGITS = _against({"target 1": 1.0, "target 0": 0.0})

# By family; None: the family's losses look like another one's.
_OF_FAMILY: dict[Family, Axis | None] = {
    REGRESSION: Axis("prediction - target", _places(-3, 3), _against({"": 0.0})),
    SIGNS: Axis("score", _places(-3, 3), _against({"label 1": 1.0, "label -1": -1.0})),
    PROBABILITIES: Axis("probability", _places(0.005, 0.995), _LOGITS),
    REAL_AND_FAKE: Axis("score", _places(-3, 3), _scores),
    FAKE: Axis("score", _places(-3, 3), _scores),
    DISCRIMINATED: Axis("logit", _places(-6, 6), _scores),
    DISTRIBUTIONS: Axis("µ, ln σ", _places(-2, 2), _distributions, lambda g: g[:, 0]),
    ROTATED_PAIRS: Axis(
        "shift, in widths", _places(-2, 2), _shifted_rotated_boxes, lambda g: SIDE * g[..., 0]
    ),
    KEYPOINTS: Axis(
        "distance, in sides of the object",
        _places(-0.4, 0.4),
        _shifted_keypoints,
        lambda g: SIDE * g[..., 0],
    ),
    CROWD: Axis("shift towards another object", _places(-0.5, 1.5), _crowd, _along_x),
    DETECTION_LOGITS: Axis("logit", _places(-6, 6), _LOGITS),
    CLASS_INDICES: None,
}
_OF_ROWS = Axis("logit of the label, others 0", _places(-8, 12), _rows, lambda g: g[:, 0])
_OF_VOXELS = Axis(
    "logit of the right class, others 0",
    _places(-4, 6),
    _voxels,
    lambda g: (g * RIGHT).sum((1, 2)),
    False,
)
_OF_ENGINE: dict[str, Axis] = {
    "box_pair": Axis(
        "shift, in widths", _places(-2, 2), _shifted_boxes, lambda g: SIDE * _along_x(g)
    ),
    "row_pair": Axis("(1, x) against (1, 0)", _places(-3, 3), _directions, lambda g: g[:, 1]),
}


def axis_of(case: Case) -> Axis | None:
    """The line on which a row is drawn; None: it is not."""
    family = case.family
    if family in _OF_FAMILY:
        return _OF_FAMILY[family]
    has_labels = "target" in family.integers
    if family.engine == "pointwise" and not has_labels and _tensors(case) == {"input", "target"}:
        return _OF_FAMILY[DETECTION_LOGITS]
    if family.engine == "softmax" and has_labels:
        return _OF_ROWS
    if family.engine in ("region", "ranked_region") and _tensors(case) == {"input", "target"}:
        is_of_logits = case.options.get("activation", "softmax") is not None
        return _OF_VOXELS if has_labels and is_of_logits else None
    return _OF_ENGINE.get(family.engine)


def _tensors(case: Case) -> set[str]:
    return case.arguments(1).keys() - case.options.keys()


def has_curves(function: str) -> bool:
    """Whether a row of the function can be drawn."""
    return any(case.function == function and axis_of(case) is not None for case in CASES)


@dataclass(frozen=True)
class Drawn:
    """A curve with its numbers: loss and slope along the axis."""

    case: Case
    curve: Curve
    axis: Axis
    loss: Tensor
    slope: Tensor


# A variant that is so many times as large as the first one would leave a flat line of that.
MUCH_LARGER = 8


def curves_of(function: str) -> list[Drawn]:
    """What is drawn of a function: the first row that can be, and the variants like it.

    Left out are those that differ from another one only off the line, and those that dwarf it.
    """
    rows = [case for case in CASES if case.function == function and axis_of(case) is not None]
    kept: list[list[Drawn]] = []
    for case in rows:
        axis = axis_of(case)
        if axis is None or axis is not axis_of(rows[0]):
            continue
        drawn = [
            Drawn(case, curve, axis, *_evaluate(case, axis, curve.arguments))
            for curve in axis.curves(axis.places, case)
        ]
        is_new = not any(_are_equal(drawn, others) for others in kept)
        if is_new and (not kept or _largest(drawn) < MUCH_LARGER * _largest(kept[0])):
            kept.append(drawn)
    return [one for drawn in kept for one in drawn]


def _are_equal(some: list[Drawn], others: list[Drawn]) -> bool:
    return all(
        torch.allclose(one.loss, other.loss) and torch.allclose(one.slope, other.slope)
        for one, other in zip(some, others, strict=True)
    )


def _largest(drawn: list[Drawn]) -> float:
    return max(float(one.loss.abs().max()) for one in drawn)


def _evaluate(case: Case, axis: Axis, arguments: Arguments) -> tuple[Tensor, Tensor]:
    moving = _moving(arguments, case)
    leaf = arguments[moving].clone().requires_grad_()
    given = {**case.options, **arguments, moving: leaf}
    if axis.at_once:
        loss = case.reference(given, reduction="none")
    else:
        each = [
            {name: x[i : i + 1] if isinstance(x, Tensor) else x for name, x in given.items()}
            for i in range(POINTS)
        ]
        loss = torch.stack([case.reference(one, reduction="mean") for one in each])
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), axis.slope(gradient)


def _moving(arguments: Arguments, case: Case) -> str:
    """The argument that moves: the one whose numbers differ."""
    floating = [name for name in case.family.differentiable if name in arguments]
    return max(floating, key=lambda name: float(arguments[name].std(0).max()))
