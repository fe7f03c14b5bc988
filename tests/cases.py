# SPDX-License-Identifier: MIT
"""The one table: a row per loss and variant. Tests and benchmarks iterate over it.

A new loss is one more row, a :class:`Case`. A :class:`Family` is what losses of one access pattern
share: how inputs of a shape look, which of them have gradients, which ones are degenerate.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from fastloss import functional, reference

Shape = tuple[int, ...]
Arguments = dict[str, Any]

HALF_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (*HALF_DTYPES, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
# Around the widths of the vectors, and enough for several of them with a remainder.
SIZES = (0, 1, 3, 15, 16, 17, 1031)


@dataclass(frozen=True)
class Tolerance:
    """|found - expected| <= relative·|expected| + absolute·(largest |expected|)."""

    relative: float
    absolute: float


# Gradients in half precision are rounded twice: when they are saved, and when backward scales them.
TOLERANCES = {
    torch.float16: Tolerance(2 * 2.0**-11 + 1e-5, 2e-6),
    torch.bfloat16: Tolerance(2 * 2.0**-8 + 3e-5, 2e-6),
    torch.float32: Tolerance(1e-5, 2e-6),
    torch.float64: Tolerance(1e-12, 1e-13),
}
# Sinkhorn's rounds end when every sum is within 1e-6 of 1, which float32 may see a round earlier or
# later than float64.
A_ROUND_MORE = Tolerance(1e-5, 4e-5)
# A coordinate near 100 is exact to 4e-6, and the distance of two centres may be far below 1.
CANCELLING = Tolerance(1e-5, 5e-6)
# The gradient of a probability near 1 is the difference of two slopes, rounded as they are. Where
# all voxels are sure of themselves, nothing in a gradient is as large as a slope.
SATURATING = Tolerance(1e-5, 2e-5)


@dataclass(frozen=True)
class Family:
    """What the losses of one access pattern share.

    Attributes:
        engine: Name of the engine, a key of ``fastloss._C.kernels()``.
        build: Tensors by argument name, in the order of the signature, for a shape; floating ones
            are float64.
        degenerate: Tensors on which a careless formula fails: 0 / 0, infinity, overflow.
        shape_of: The shape with about so many elements (or boxes).
        differentiable: The arguments with a gradient; the first one is the prediction.
        integers: The arguments that are class indices or the like.
        weight_shapes: The shapes a weight may have; none where the function takes no weight.
        element_wise: Whether a number of the unreduced loss depends on one element (or box pair, or
            row of logits) alone.
        reduces: Whether there is a ``reduction`` at all.
        reductions: The reductions there are.
        ignored: The label of rows that do not count, where there is one.
        rounds_inside: Whether numbers between input and loss are rounded to the input's dtype, as
            matrix products are: in half precision the oracle's float64 is another function then.
        bounded: Whether the prediction must be a probability.
        trained: How many of the differentiable arguments, the first ones, have a gradient in
            training: what a model predicts, and what it learns beside.
        degenerate_error: How far apart two ways of computing degenerate input may be in float64,
            beside what is relative to a number.
    """

    engine: str
    build: Callable[[Shape, Generator], dict[str, Tensor]]
    degenerate: Callable[[], dict[str, Tensor]]
    differentiable: tuple[str, ...]
    shape_of: Callable[[int], Shape] = lambda size: (size,)
    integers: tuple[str, ...] = ()
    weight_shapes: Callable[[Shape], Sequence[Shape]] = lambda shape: ()
    element_wise: bool = True
    reduces: bool = True
    reductions: tuple[str, ...] = ("none", "mean", "sum")
    ignored: int | None = None
    rounds_inside: bool = False
    bounded: bool = False
    trained: int = 1
    degenerate_error: float = 1e-12


@dataclass(frozen=True)
class Case:
    """A row: one loss in one variant.

    Attributes:
        function: Name in ``fastloss.functional`` and ``fastloss.reference``.
        label: What people call it: a word for tables and plots.
        family: What it shares with others.
        module: Name of the ``nn.Module``; None where there is none.
        kernel: Name of the formula in ``fastloss._C.kernels()``, if it is not the function's.
        variant: What tells this row from others of the function.
        options: Keyword arguments of the variant; tensors among them go where the inputs go.
        own_module: Whether the module is called otherwise than the function, as the one of another
            library is that it stands for; it has tests of its own then.
        exact_gradient: False where the formula holds a factor constant for the gradient: finite
            differences see another function there, only the oracle tells what is right.
        float32: Tolerance in float32; a looser one has its reason beside it.
    """

    function: str
    label: str
    family: Family
    module: str | None
    kernel: str = ""
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    own_module: bool = False
    exact_gradient: bool = True
    float32: Tolerance = TOLERANCES[torch.float32]

    @property
    def id(self) -> str:
        return f"{self.function}-{self.variant}" if self.variant else self.function

    @property
    def kernel_name(self) -> str:
        return self.kernel or self.function

    @property
    def prediction(self) -> str:
        return self.family.differentiable[0]

    @property
    def reductions(self) -> tuple[Arguments, ...]:
        """The keyword arguments that reduce: one dictionary per reduction, empty where nothing is
        reduced.
        """
        if not self.family.reduces:
            return ({},)
        return tuple({"reduction": name} for name in self.family.reductions)

    @property
    def takes_weight(self) -> bool:
        """Whether there is a weight per element, pair of boxes or row beside the arguments."""
        return len(self.family.weight_shapes((1, 1))) > 0

    @property
    def takes_avg_factor(self) -> bool:
        return "avg_factor" in inspect.signature(getattr(functional, self.function)).parameters

    def arguments(
        self,
        size: int | Shape = 17,
        dtype: torch.dtype = torch.float32,
        *,
        device: str | torch.device = "cpu",
        seed: int = 0,
        requires_grad: Sequence[str] | bool = False,
        degenerate: bool = False,
        **dtypes: torch.dtype,
    ) -> Arguments:
        """Everything a call takes but the reduction, fresh and the same every time.

        Args:
            size: Number of elements (or boxes), or the whole shape.
            dtype: Of the floating tensors.
            device: Where they lie.
            seed: Of the random numbers.
            requires_grad: The arguments that do, or True for all that can.
            degenerate: The degenerate inputs in place of random ones, whatever the size.
            **dtypes: Other dtypes, by the argument's name.
        """
        shape = size if isinstance(size, tuple) else self.family.shape_of(size)
        generator = torch.Generator().manual_seed(seed)
        tensors = self.family.degenerate() if degenerate else self.family.build(shape, generator)
        wanted = self.family.differentiable if requires_grad is True else requires_grad or ()
        result: Arguments = {}
        for name, tensor in tensors.items():
            target = dtypes.get(name, dtype if tensor.is_floating_point() else tensor.dtype)
            result[name] = tensor.to(device, target).requires_grad_(name in wanted)
        for name, value in self.options.items():
            result[name] = value.to(device, copy=True) if isinstance(value, Tensor) else value
        return result

    def weights(
        self,
        size: int | Shape = 17,
        dtype: torch.dtype = torch.float32,
        *,
        device: str | torch.device = "cpu",
        seed: int = 1,
    ) -> list[Tensor]:
        """A weight of every shape that fits inputs of this size; some of the numbers are 0."""
        shape = size if isinstance(size, tuple) else self.family.shape_of(size)
        generator = torch.Generator().manual_seed(seed)
        weights = []
        for weight_shape in self.family.weight_shapes(shape):
            weight = torch.rand(weight_shape, generator=generator, dtype=torch.float64)
            weights.append(torch.where(weight < 0.2, 0.0, weight).to(device, dtype))
        return weights

    def loss(self, arguments: Arguments, **more: Any) -> Tensor:
        """The loss by the kernels."""
        return getattr(functional, self.function)(**arguments, **more)

    def reference(self, arguments: Arguments, **more: Any) -> Tensor:
        """The loss by plain PyTorch."""
        return getattr(reference, self.function)(**arguments, **more)

    def compulsory_bytes(self, arguments: Arguments, *, gradient: bool = True) -> int:
        """What any implementation moves: every input read once, every gradient written once, an
        unreduced loss.
        """
        tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
        moved = sum(tensor.nbytes for tensor in tensors)
        if gradient:
            moved += sum(tensor.nbytes for tensor in tensors if tensor.requires_grad)
        if not self.family.reduces:
            moved += self._result_bytes(arguments)
        return moved

    def _result_bytes(self, arguments: Arguments) -> int:
        shapes = {
            name: value.detach().to("meta") if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        result = getattr(functional, self.function)(**shapes)
        return sum(part.nbytes for part in (result if isinstance(result, tuple) else (result,)))


# -------------------------------------------------------------------------------------------- boxes


def _random_boxes(shape: Shape, generator: Generator) -> Tensor:
    """Proper boxes (*shape, 4) in a scene of 100 × 100, sides between 4 and 60."""
    center = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 100
    log_side = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    half_side = 2 * 15**log_side
    return torch.cat((center - half_side, center + half_side), -1)


def _box_pairs(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Predictions near their targets, every fourth somewhere else."""
    targets = _random_boxes(shape, generator)
    noise = 6 * torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    elsewhere = torch.rand(*shape, 1, generator=generator, dtype=torch.float64) < 0.25
    # Noise may turn a small box inside out: sorting the coordinates keeps it proper.
    near = (targets + noise).unflatten(-1, (2, 2)).sort(-2).values.flatten(-2)
    predictions = torch.where(elsewhere, _random_boxes(shape, generator), near)
    return {"boxes1": predictions, "boxes2": targets}


# Every way in which a box can be degenerate, beside a few that are not. All numbers are exact in
# every dtype, and
# products of the largest stay finite in float32.
_DEGENERATE_BOXES = (
    (0.0, 0.0, 0.0, 0.0),  # a point at the origin
    (5.0, 7.0, 5.0, 7.0),  # a point
    (5.0, 2.0, 5.0, 12.0),  # no width
    (2.0, 7.0, 12.0, 7.0),  # no height
    (12.0, 2.0, 2.0, 12.0),  # inverted in x
    (2.0, 12.0, 12.0, 2.0),  # inverted in y
    (12.0, 12.0, 2.0, 2.0),  # inverted in both
    (2.0, 2.0, 12.0, 12.0),
    (4.0, 4.0, 8.0, 8.0),  # inside, concentric with points above
    (12.0, 2.0, 22.0, 12.0),  # touches
    (-32.0, -32.0, -16.0, -24.0),  # far away
    (-(2.0**-14), -(2.0**-14), 2.0**-14, 2.0**-14),  # tiny
    (0.0, 0.0, 2.0**-24, 2.0**-24),  # the smallest in float16, below eps squared
    (-32768.0, -32768.0, 32768.0, 32768.0),  # huge
    (32768.0, 32768.0, -32768.0, -32768.0),  # huge and inverted
)


def _degenerate_pairs() -> dict[str, Tensor]:
    """Every degenerate box with every other and with itself."""
    boxes = torch.tensor(_DEGENERATE_BOXES, dtype=torch.float64)
    count = len(boxes)
    return {"boxes1": boxes.repeat_interleave(count, 0), "boxes2": boxes.repeat(count, 1)}


BOX_PAIRS = Family(
    engine="box_pair",
    build=_box_pairs,
    degenerate=_degenerate_pairs,
    differentiable=("boxes1", "boxes2"),
    weight_shapes=lambda shape: [shape],
)


def _random_rotated_boxes(shape: Shape, generator: Generator) -> Tensor:
    """Boxes (*shape, 5) in a scene of 100 × 100, sides between 4 and 60, any angle."""
    boxes = _random_boxes(shape, generator)
    side = boxes[..., 2:] - boxes[..., :2]
    angle = 4 * torch.randn(*shape, 1, generator=generator, dtype=torch.float64)
    return torch.cat((boxes[..., :2] + side / 2, side, angle), -1)


def _rotated_pairs(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Predictions near their targets, every fourth somewhere else."""
    targets = _random_rotated_boxes(shape, generator)
    noise = torch.randn(*shape, 5, generator=generator, dtype=torch.float64)
    near = targets + noise * torch.tensor([4.0, 4.0, 2.0, 2.0, 0.5], dtype=torch.float64)
    near[..., 2:4] = near[..., 2:4].abs() + 1
    elsewhere = torch.rand(*shape, 1, generator=generator, dtype=torch.float64) < 0.25
    predictions = torch.where(elsewhere, _random_rotated_boxes(shape, generator), near)
    return {"boxes1": predictions, "boxes2": targets}


_DEGENERATE_ROTATED_BOXES = (
    (0.0, 0.0, 0.0, 0.0, 0.0),  # a point at the origin
    (5.0, 7.0, 0.0, 0.0, 1.0),  # a point
    (5.0, 7.0, 0.0, 16.0, 1.0),  # no width
    (5.0, 7.0, 16.0, 0.0, 1.0),  # no height
    (5.0, 7.0, -8.0, 16.0, 0.5),  # a negative side
    (5.0, 7.0, 8.0, 16.0, 0.5),
    (5.0, 7.0, 8.0, 16.0, -256.0),  # turned many times
    (6.0, 8.0, 8.0, 8.0, 0.25),  # no direction of its own
    (-1024.0, 512.0, 8.0, 16.0, 0.5),  # far away
    (5.0, 7.0, 2.0**-14, 2.0**-14, 0.5),  # tiny
    (0.0, 0.0, 2.0**-24, 2.0**-24, 0.0),  # the smallest in float16
    (0.0, 0.0, 4096.0, 2.0**-10, 0.75),  # a hair
    (0.0, 0.0, 32768.0, 32768.0, 0.5),  # huge
)


def _degenerate_rotated_pairs() -> dict[str, Tensor]:
    """Every one with every other and with itself."""
    boxes = torch.tensor(_DEGENERATE_ROTATED_BOXES, dtype=torch.float64)
    count = len(boxes)
    return {"boxes1": boxes.repeat_interleave(count, 0), "boxes2": boxes.repeat(count, 1)}


ROTATED_PAIRS = Family(
    engine="box_pair",
    build=_rotated_pairs,
    degenerate=_degenerate_rotated_pairs,
    differentiable=("boxes1", "boxes2"),
    weight_shapes=lambda shape: [shape],
)

KEYPOINTS_OF_AN_OBJECT = 5


def _keypoints(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Keypoints (*shape, K, 2) near those of objects; some are hidden, and some objects whole."""
    points = (*shape, KEYPOINTS_OF_AN_OBJECT)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    targets = 50 + 20 * normal(*points, 2)
    visible = torch.rand(points, generator=generator, dtype=torch.float64) < 0.7
    hidden = torch.rand(*shape, 1, generator=generator, dtype=torch.float64) < 0.1
    return {
        "keypoints": targets + 3 * normal(*points, 2),
        "targets": targets,
        "visibility": visible & ~hidden,
        "area": 400 * normal(*shape).exp(),
        "sigmas": torch.linspace(0.03, 0.11, KEYPOINTS_OF_AN_OBJECT, dtype=torch.float64),
    }


def _degenerate_keypoints() -> dict[str, Tensor]:
    """At, near and far from the target, of objects with, nearly without and without an area."""
    offset = torch.tensor([0.0, 2.0**-24, 1.0, 2.0**10, 2.0**15], dtype=torch.float64)
    targets = torch.zeros(4, KEYPOINTS_OF_AN_OBJECT, 2, dtype=torch.float64)
    return {
        "keypoints": targets + offset[:, None],
        "targets": targets,
        "visibility": torch.tensor([[1], [0], [1], [2]]).expand(4, KEYPOINTS_OF_AN_OBJECT),
        "area": torch.tensor([0.0, 1.0, 2.0**-24, 65504.0], dtype=torch.float64),
        "sigmas": torch.tensor([0.025, 0.0, 1.0, 0.05, 0.107], dtype=torch.float64),
    }


KEYPOINTS = Family(
    engine="box_pair",
    build=_keypoints,
    degenerate=_degenerate_keypoints,
    differentiable=("keypoints", "targets"),
)


def _box_sets(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Sets (*batch, N, 4) and (*batch, M, 4) for a shape (*batch, N, M)."""
    *batch, rows, columns = shape
    return {
        "boxes1": _random_boxes((*batch, rows), generator),
        "boxes2": _random_boxes((*batch, columns), generator),
    }


def _degenerate_sets() -> dict[str, Tensor]:
    boxes = torch.tensor(_DEGENERATE_BOXES, dtype=torch.float64)
    return {"boxes1": boxes, "boxes2": boxes.clone()}


BOX_SETS = Family(
    engine="box_matrix",
    build=_box_sets,
    degenerate=_degenerate_sets,
    differentiable=("boxes1", "boxes2"),
    shape_of=lambda size: (2, size, min(size, 5)),
    element_wise=False,
    reduces=False,
)


def _crowd(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """P boxes around G overlapping ground truths of one image, for a shape (P, G)."""
    boxes, targets = shape
    target_boxes = _random_boxes((targets,), generator)
    index = torch.randint(max(targets, 1), (boxes,), generator=generator)
    noise = 6 * torch.randn(boxes, 4, generator=generator, dtype=torch.float64)
    return {
        "boxes": target_boxes[index] + noise if boxes else torch.empty(0, 4, dtype=torch.float64),
        "target_boxes": target_boxes,
        "target_index": index,
    }


def _crowd_of_images(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """The same with three images; a box lies in the image of its ground truth."""
    result = _crowd(shape, generator)
    image = torch.randint(3, (shape[1],), generator=generator)
    result["batch_index"] = image[result["target_index"]]
    result["target_batch_index"] = image
    return result


def _degenerate_crowd() -> dict[str, Tensor]:
    boxes = torch.tensor(_DEGENERATE_BOXES, dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(len(boxes)), torch.arange(0, len(boxes), 3))
    return {
        "boxes": boxes[pairs[:, 0]],
        "target_boxes": torch.cat((boxes, boxes)),  # every ground truth has a twin of its own
        "target_index": pairs[:, 1],
    }


CROWD = Family(
    engine="box_crowd",
    build=_crowd,
    degenerate=_degenerate_crowd,
    differentiable=("boxes",),
    # The oracle's work and memory are quadratic.
    shape_of=lambda size: (min(size, 131), min(size, 131) // 3 + 2),
    integers=("target_index",),
    element_wise=False,
)


def _degenerate_crowd_of_images() -> dict[str, Tensor]:
    result = _degenerate_crowd()
    image = torch.arange(len(result["target_boxes"])) % 2
    result["batch_index"] = image[result["target_index"]]
    result["target_batch_index"] = image
    return result


CROWD_OF_IMAGES = Family(
    engine="box_crowd",
    build=_crowd_of_images,
    degenerate=_degenerate_crowd_of_images,
    differentiable=CROWD.differentiable,
    shape_of=CROWD.shape_of,
    integers=("target_index", "batch_index", "target_batch_index"),
    element_wise=False,
)


# ----------------------------------------------------------------------------------- classification

# Up to the largest a logit may be asked for, and where exponentials of float32 end.
_DEGENERATE_LOGITS = (
    0.0,
    2.0**-24,
    -(2.0**-24),
    1.0,
    -1.0,
    17.0,
    -17.0,
    88.0,
    -88.0,
    104.0,
    -104.0,
    1e4,
    -1e4,
)


def _logits(shape: Shape, generator: Generator) -> Tensor:
    return 4 * torch.randn(shape, generator=generator, dtype=torch.float64)


def _probabilities(shape: Shape, generator: Generator) -> Tensor:
    """Mostly labels of 0 and 1, as in training, and some soft ones."""
    soft = torch.rand(shape, generator=generator, dtype=torch.float64)
    hard = torch.rand(shape, generator=generator, dtype=torch.float64) < 0.75
    return torch.where(hard, soft.round(), soft)


def _dense(input: str, target: str) -> Callable[[Shape, Generator], dict[str, Tensor]]:
    return lambda shape, generator: {
        input: _logits(shape, generator),
        target: _probabilities(shape, generator),
    }


def _degenerate_dense(input: str, target: str) -> Callable[[], dict[str, Tensor]]:
    def build() -> dict[str, Tensor]:
        logits = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
        targets = torch.tensor((0.0, 0.5, 1.0), dtype=torch.float64)
        both = torch.cartesian_prod(logits, targets)
        return {input: both[:, 0].contiguous(), target: both[:, 1].contiguous()}

    return build


def _broadcastable(shape: Shape) -> list[Shape]:
    return [shape, shape[-1:], (*shape[:-1], 1)]


BINARY = Family(
    engine="pointwise",
    build=_dense("input", "target"),
    degenerate=_degenerate_dense("input", "target"),
    differentiable=("input", "target"),
    shape_of=lambda size: (size, 3) if size else (0, 3),
    weight_shapes=_broadcastable,
)


def _binary_with_pos_weight(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    pos_weight = 3 * torch.rand(shape[-1:], generator=generator, dtype=torch.float64)
    return {**BINARY.build(shape, generator), "pos_weight": pos_weight}


BINARY_WITH_POS_WEIGHT = Family(
    engine="pointwise",
    build=_binary_with_pos_weight,
    degenerate=lambda: {
        **BINARY.degenerate(),
        "pos_weight": torch.tensor(3.0, dtype=torch.float64),
    },
    differentiable=BINARY.differentiable,
    shape_of=BINARY.shape_of,
    weight_shapes=_broadcastable,
)

# Targets that are 0 for negatives: there the loss has a step in them.
BINARY_WITH_FIXED_TARGETS = replace(BINARY, differentiable=("input",))


def _binary_with_positive_targets(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    targets = torch.rand(shape, generator=generator, dtype=torch.float64)
    return {"input": _logits(shape, generator), "target": 0.1 + 0.9 * targets}


BINARY_WITH_POSITIVE_TARGETS = replace(BINARY, build=_binary_with_positive_targets)


def _predicted_probabilities(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    inside = torch.rand(shape, generator=generator, dtype=torch.float64)
    return {"input": 0.02 + 0.96 * inside, "target": _probabilities(shape, generator)}


def _degenerate_probabilities() -> dict[str, Tensor]:
    """Certain ones, and those that are so in some dtype."""
    numbers = torch.tensor(
        (0.0, 2.0**-45, 2.0**-24, 0.25, 0.5, 1 - 2.0**-8, 1 - 2.0**-24, 1.0), dtype=torch.float64
    )
    targets = torch.tensor((0.0, 0.5, 1.0), dtype=torch.float64)
    both = torch.cartesian_prod(numbers, targets)
    return {"input": both[:, 0].contiguous(), "target": both[:, 1].contiguous()}


PROBABILITIES = replace(
    BINARY, build=_predicted_probabilities, degenerate=_degenerate_probabilities, bounded=True
)


def _signs(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    signs = 2 * torch.randint(0, 2, shape, generator=generator, dtype=torch.float64) - 1
    return {
        "input": 2 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "target": signs,
    }


def _degenerate_signs() -> dict[str, Tensor]:
    logits = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    both = torch.cartesian_prod(logits, torch.tensor((-1.0, 0.0, 1.0), dtype=torch.float64))
    return {"input": both[:, 0].contiguous(), "target": both[:, 1].contiguous()}


SIGNS = replace(BINARY, build=_signs, degenerate=_degenerate_signs)

DETECTION_LOGITS = Family(
    engine="pointwise",
    build=_dense("inputs", "targets"),
    degenerate=_degenerate_dense("inputs", "targets"),
    differentiable=("inputs", "targets"),
    shape_of=BINARY.shape_of,
    weight_shapes=_broadcastable,
)


def _class_indices(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Labels in [-1, classes]: -1 is ignored, the number of classes is background."""
    *rows, classes = shape
    labels = torch.randint(-1, classes + 1, tuple(rows), generator=generator)
    return {"inputs": _logits(shape, generator), "targets": labels}


def _degenerate_class_indices() -> dict[str, Tensor]:
    logits = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    labels = torch.tensor((-1, 0, len(logits) // 2, len(logits) - 1, len(logits)))
    return {"inputs": logits.repeat(len(labels), 1), "targets": labels}


CLASS_INDICES = Family(
    engine="pointwise",
    build=_class_indices,
    degenerate=_degenerate_class_indices,
    differentiable=("inputs",),
    shape_of=lambda size: (size, 7),
    integers=("targets",),
    weight_shapes=_broadcastable,
    ignored=-1,
)


def _row_shape(shape: Shape) -> Shape:
    """The shape of the labels of logits (N, C, d1, ...)."""
    return (*shape[:1], *shape[2:])


def _labelled_rows(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Logits (N, C, d1, ...) and labels, every fifth of them ignored."""
    return {"input": _logits(shape, generator), "target": _labels(shape, generator)}


def _labels(shape: Shape, generator: Generator) -> Tensor:
    labels = torch.randint(shape[1], _row_shape(shape), generator=generator)
    ignored = torch.rand(labels.shape, generator=generator) < 0.2
    return torch.where(ignored, -100, labels)


def _degenerate_rows() -> dict[str, Tensor]:
    """Every degenerate logit as the label's and as a rival's, alone and all together."""
    logits = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    pairs = torch.cartesian_prod(logits, logits)
    rows = torch.cat((pairs, pairs.flip(1), pairs[:1], pairs[-1:]))
    # Two numbers of the pair, a repeated one and a small one: four classes.
    rows = torch.cat((rows, rows[:, :1], torch.full_like(rows[:, :1], -0.5)), 1)
    labels = torch.arange(len(rows)) % 3
    labels[-1] = -100
    return {"input": rows, "target": labels}


ROWS = Family(
    engine="softmax",
    build=_labelled_rows,
    degenerate=_degenerate_rows,
    differentiable=("input",),
    shape_of=lambda size: (size, 7),
    integers=("target",),
    ignored=-100,
)


def _pixels(size: int) -> Shape:
    return (size, 5, 3)


def _all_count(family: Family) -> Family:
    """The same for losses that ignore no label."""

    def build(shape: Shape, generator: Generator) -> dict[str, Tensor]:
        tensors = family.build(shape, generator)
        return {**tensors, "target": tensors["target"].clamp(min=0)}

    def degenerate() -> dict[str, Tensor]:
        tensors = family.degenerate()
        return {**tensors, "target": tensors["target"].clamp(min=0)}

    return replace(family, build=build, degenerate=degenerate, ignored=None)


def _with_class_weight(family: Family, name: str = "weight") -> Family:
    """The same with a weight per class; the second class weighs nothing."""

    def weigh(tensors: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        classes = tensors["input"].shape[1]
        weight = 0.25 + torch.rand(classes, generator=generator, dtype=torch.float64)
        weight[1:2] = 0
        return {**tensors, name: weight}

    return replace(
        family,
        build=lambda shape, generator: weigh(family.build(shape, generator), generator),
        degenerate=lambda: weigh(family.degenerate(), torch.Generator().manual_seed(0)),
    )


def _linear_rows(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Features (N, F), a linear layer and labels for a shape (N, F, C), or (N, C) with F = 6."""
    rows, *given, classes = shape
    features = given[0] if given else 6

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return {
        "input": normal(rows, features),
        "linear_weight": 4 / math.sqrt(features) * normal(classes, features),
        "target": _labels((rows, classes), generator),
        "linear_bias": normal(classes),
    }


def _degenerate_linear_rows() -> dict[str, Tensor]:
    """A layer that passes the degenerate logits on."""
    tensors = _degenerate_rows()
    classes = tensors["input"].shape[1]
    return {
        "input": tensors["input"],
        "linear_weight": torch.eye(classes, dtype=torch.float64),
        "target": tensors["target"],
        "linear_bias": torch.zeros(classes, dtype=torch.float64),
    }


LINEAR_ROWS = Family(
    engine="linear_cross_entropy",
    build=_linear_rows,
    degenerate=_degenerate_linear_rows,
    differentiable=("input", "linear_weight", "linear_bias"),
    shape_of=ROWS.shape_of,
    integers=("target",),
    element_wise=False,
    ignored=-100,
    rounds_inside=True,
)


def _probability_rows(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Target probabilities: some rows a single class, some spread."""
    spread = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = spread.softmax(1) if shape[0] else spread
    hard = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.5
    one_hot = (target == target.amax(1, keepdim=True)).double() if shape[0] else target
    return {"input": _logits(shape, generator), "target": torch.where(hard, one_hot, target)}


def _degenerate_probability_rows() -> dict[str, Tensor]:
    rows = _degenerate_rows()["input"]
    target = torch.zeros_like(rows)
    target[::2, 0] = 1
    target[1::2] = torch.tensor((0.0, 0.5, 0.25, 0.25), dtype=torch.float64)
    return {"input": rows, "target": target}


PROBABILITY_ROWS = Family(
    engine="softmax",
    build=_probability_rows,
    degenerate=_degenerate_probability_rows,
    differentiable=("input",),
    shape_of=ROWS.shape_of,
)


def _bins(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Logits (..., bins) and positions, a few of them beyond the ends."""
    *rows, bins = shape
    target = (bins + 1) * torch.rand(tuple(rows), generator=generator, dtype=torch.float64) - 1
    return {"input": _logits(shape, generator), "target": target}


def _degenerate_bins() -> dict[str, Tensor]:
    rows = _degenerate_rows()["input"]
    positions = torch.tensor((0.0, 1.0, 0.5, 2.5, 2.99, 3.0, -7.0, 1e4), dtype=torch.float64)
    return {"input": rows, "target": positions.repeat(len(rows) // 8 + 1)[: len(rows)]}


BINS = Family(
    engine="softmax",
    build=_bins,
    degenerate=_degenerate_bins,
    differentiable=("input",),
    shape_of=ROWS.shape_of,
    weight_shapes=lambda shape: [shape[:-1]],
)


# --------------------------------------------------------------------------------------- regression


def _predictions_and_targets(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    return {
        "input": 2 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "target": 2 * torch.randn(shape, generator=generator, dtype=torch.float64),
    }


def _degenerate_regression() -> dict[str, Tensor]:
    numbers = torch.tensor(
        (0.0, 2.0**-24, 1.0, -1.0, 256.0, 1e4, -1e4, 32768.0), dtype=torch.float64
    )
    both = torch.cartesian_prod(numbers, numbers)
    return {"input": both[:, 0].contiguous(), "target": both[:, 1].contiguous()}


REGRESSION = Family(
    engine="pointwise",
    build=_predictions_and_targets,
    degenerate=_degenerate_regression,
    differentiable=("input", "target"),
    weight_shapes=lambda shape: [shape],
)


def _forecasts(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Several predictions of each target."""
    return {
        "input": 2 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "target": 2 * torch.randn(shape[:-1], generator=generator, dtype=torch.float64),
        # The last dimension has a quantile for each place.
        "quantiles": torch.linspace(0.05, 0.9, shape[-1], dtype=torch.float64),
    }


def _degenerate_forecasts() -> dict[str, Tensor]:
    pairs = _degenerate_regression()
    return {
        "input": pairs["input"].unsqueeze(-1).repeat(1, 2),
        "target": pairs["target"],
        "quantiles": torch.tensor((0.0, 0.75), dtype=torch.float64),
    }


FORECASTS = Family(
    engine="pointwise",
    build=_forecasts,
    degenerate=_degenerate_forecasts,
    differentiable=("input",),
    shape_of=BINARY.shape_of,
    weight_shapes=_broadcastable,
)


# ---------------------------------------------------------------------------------------- sequences


def _chains(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Sequences of tags and their scores for a shape (B, T, K), or (B, K) with T = 3."""
    sequences, tags = shape[0], shape[-1]
    steps = shape[1] if len(shape) == 3 else 3

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return {
        "emissions": 2 * normal(sequences, steps, tags),
        "tags": torch.randint(tags, (sequences, steps), generator=generator),
        "transitions": normal(tags, tags),
        "start_transitions": normal(tags),
        "end_transitions": normal(tags),
    }


def _masked_chains(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Sequences of any length from 1 on; where the mask is 0, a tag is any number."""
    tensors = _chains(shape, generator)
    sequences, steps = tensors["tags"].shape
    lengths = torch.randint(1, steps + 1, (sequences, 1), generator=generator)
    mask = torch.arange(steps) < lengths
    return {**tensors, "tags": torch.where(mask, tensors["tags"], -100), "mask": mask}


def _degenerate_chains() -> dict[str, Tensor]:
    """Emissions that ask for one tag, transitions that forbid it, and steps without a choice."""
    tensors = _masked_chains((40, 5, 4), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for name in ("emissions", "transitions", "start_transitions", "end_transitions"):
        scores = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
        chosen = torch.randint(len(scores), tensors[name].shape, generator=generator)
        tensors[name] = scores[chosen]
    tensors["emissions"][:5] = 0
    return tensors


CHAINS = Family(
    engine="sequence",
    build=_chains,
    degenerate=_degenerate_chains,
    differentiable=("emissions", "transitions", "start_transitions", "end_transitions"),
    shape_of=lambda size: (size, 6, 3),
    integers=("tags",),
    element_wise=False,
    reductions=("none", "mean", "sum", "token_mean"),
    trained=4,
    degenerate_error=1e-10,  # the scores of a path add up to 1e5, whose last digits are 1e-11
)
# More tags than lanes of most vectors.
MASKED_CHAINS = replace(CHAINS, build=_masked_chains, shape_of=lambda size: (size, 3, 9))


def _without_tags(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "tags"}


CHAINS_WITHOUT_TAGS = replace(
    CHAINS,
    build=lambda shape, generator: _without_tags(_masked_chains(shape, generator)),
    degenerate=lambda: _without_tags(_degenerate_chains()),
    shape_of=lambda size: (size, 4, 3),
    integers=(),
    reduces=False,
)


# ------------------------------------------------------------------------------ sequence objectives


def _candidates(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Log-probabilities of candidates (B, K), and risks like 100 less a BLEU."""
    return {
        "log_probs": -40 * torch.rand(shape, generator=generator, dtype=torch.float64),
        "risks": 100 * torch.rand(shape, generator=generator, dtype=torch.float64),
    }


def _degenerate_candidates() -> dict[str, Tensor]:
    rows = _degenerate_rows()["input"]
    risks = torch.tensor((0.0, 100.0, -1.0, 50.0), dtype=torch.float64)
    return {"log_probs": rows, "risks": risks.repeat(len(rows), 1)}


CANDIDATES = Family(
    engine="softmax",
    build=_candidates,
    degenerate=_degenerate_candidates,
    differentiable=("log_probs",),
    shape_of=lambda size: (size, 7),
)


def _counting(shape: Shape, generator: Generator) -> Tensor:
    """A mask: some do not count, and nothing of the second row does."""
    rows = torch.arange(shape[0]).view(-1, *(1 for _ in shape[1:]))
    return (torch.rand(shape, generator=generator) < 0.7) & (rows != 1)


def _advantages(shape: Shape, generator: Generator) -> Tensor:
    """Most of them above 0, so that their mean is not lost among them."""
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.4


def _steps(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Logits (..., V), actions, and what they were worth."""
    *rows, actions = shape
    return {
        "logits": _logits(shape, generator),
        "actions": torch.randint(actions, rows, generator=generator),
        "advantages": _advantages(tuple(rows), generator),
    }


def _masked_steps(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Some do not count."""
    return {**_steps(shape, generator), "mask": _counting(shape[:-1], generator)}


def _degenerate_steps() -> dict[str, Tensor]:
    rows = _degenerate_rows()
    count = len(rows["target"])
    advantages = torch.tensor((1.0, -1.0, 0.0, 100.0), dtype=torch.float64)
    return {
        "logits": rows["input"],
        "actions": rows["target"].clamp(min=0),
        "advantages": advantages.repeat(count // 4 + 1)[:count],
    }


def _degenerate_masked_steps() -> dict[str, Tensor]:
    result = _degenerate_steps()
    return {**result, "mask": torch.arange(len(result["actions"])) % 5 != 0}


STEPS = Family(
    engine="softmax",
    build=_steps,
    degenerate=_degenerate_steps,
    differentiable=("logits",),
    shape_of=ROWS.shape_of,
    integers=("actions",),
)
MASKED_STEPS = replace(STEPS, build=_masked_steps, degenerate=_degenerate_masked_steps)


def _chosen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"logits": tensors["logits"], "index": tensors["actions"]}


CHOSEN = Family(
    engine="softmax",
    build=lambda shape, generator: _chosen(_steps(shape, generator)),
    degenerate=lambda: _chosen(_degenerate_steps()),
    differentiable=("logits",),
    shape_of=ROWS.shape_of,
    integers=("index",),
    element_wise=False,  # as far as the tests go, which give a reduction
    reduces=False,
)


def _sentences(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Translations (B, T) of which every fifth token is another one, and a reference of each."""
    references = torch.randint(1000, shape, generator=generator)
    wrong = torch.rand(shape, generator=generator) < 0.2
    others = torch.randint(1000, shape, generator=generator)
    return {"candidates": torch.where(wrong, others, references), "references": references}


SENTENCES = Family(
    engine="ngrams",
    build=_sentences,
    degenerate=lambda: {
        "candidates": torch.full((2, 3), -1),
        "references": torch.tensor([[-1, 5, 5], [5, 5, 5]]),
    },
    differentiable=(),
    shape_of=lambda size: (size, 9),
    element_wise=False,
    reduces=False,
)


def _queries_and_targets(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Predictions (*batch, N) of C classes and M targets, for a shape (*batch, N, C, M)."""
    *batch, rows, classes, columns = shape

    def boxes(count: int) -> Tensor:
        center = torch.rand(*batch, count, 2, generator=generator, dtype=torch.float64)
        sides = torch.rand(*batch, count, 2, generator=generator, dtype=torch.float64)
        return torch.cat((center, 0.02 + 0.5 * sides), -1)

    return {
        "logits": _logits((*batch, rows, classes), generator),
        "boxes": boxes(rows),
        "target_labels": torch.randint(classes, (*batch, columns), generator=generator),
        "target_boxes": boxes(columns),
    }


def _degenerate_predictions() -> dict[str, Tensor]:
    sides = torch.tensor(_DEGENERATE_BOXES, dtype=torch.float64)
    logits = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    return {
        "logits": torch.stack((logits, logits.flip(0), logits[:1].expand_as(logits))).repeat(5, 1),
        "boxes": sides,
        "target_labels": torch.arange(len(sides)) % len(logits),
        "target_boxes": sides.clone(),
    }


MATCHES = Family(
    engine="matching",
    build=_queries_and_targets,
    degenerate=_degenerate_predictions,
    differentiable=(),
    shape_of=lambda size: (size, 7, min(size, 19)),
    integers=("target_labels",),
    element_wise=False,
    reduces=False,
)


def _drawn_tokens(shape: Shape, generator: Generator, *names: str) -> dict[str, Tensor]:
    """Log-probabilities of tokens (B, T) under policies that are not far from each other."""
    first = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in names]
    others = {name: first + 0.3 * moved for name, moved in zip(names, noise, strict=True)}
    return {"log_probs": first, **others}


def _rewarded_tokens(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Rewards per sequence, a baseline per token."""
    return {
        **_drawn_tokens(shape, generator),
        "rewards": 1 + torch.rand(shape[:-1], generator=generator, dtype=torch.float64),
        "baseline": torch.rand(shape, generator=generator, dtype=torch.float64),
        "mask": _counting(shape, generator),
    }


def _tokens_with_advantages(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Advantages per token; all count."""
    return {
        **_drawn_tokens(shape, generator, "old_log_probs"),
        "advantages": _advantages(shape, generator),
    }


def _tokens_of_groups(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Advantages per sequence, a mask and a reference policy."""
    tokens = _drawn_tokens(shape, generator, "old_log_probs", "ref_log_probs")
    return {
        "log_probs": tokens["log_probs"],
        "old_log_probs": tokens["old_log_probs"],
        "advantages": _advantages(shape[:-1], generator),
        "mask": _counting(shape, generator),
        "ref_log_probs": tokens["ref_log_probs"],
    }


def _degenerate_tokens() -> dict[str, Tensor]:
    """Probabilities of nearly 0 and of 1, now and then, with every kind of advantage."""
    numbers = torch.tensor((0.0, -(2.0**-14), -1.0, -17.0, -104.0, -1e4), dtype=torch.float64)
    now, then = torch.cartesian_prod(numbers, numbers).unbind(1)
    advantages = torch.tensor((1.0, -1.0, 0.0, 100.0), dtype=torch.float64)
    return {
        "log_probs": now.repeat(4, 1),
        "old_log_probs": then.repeat(4, 1),
        "ref_log_probs": then.flip(0).repeat(4, 1),
        "advantages": advantages,
        "mask": torch.arange(4 * len(now)).view(4, -1) % 7 != 0,
    }


def _degenerate_rewards() -> dict[str, Tensor]:
    tokens = _degenerate_tokens()
    names = ("log_probs", "advantages", "mask")
    log_probs, rewards, mask = (tokens[name] for name in names)
    return {
        "log_probs": log_probs,
        "rewards": rewards,
        "baseline": torch.zeros_like(log_probs),
        "mask": mask,
    }


def _degenerate_advantages() -> dict[str, Tensor]:
    tokens = _degenerate_tokens()
    advantages = tokens["advantages"][:, None].expand_as(tokens["log_probs"]).contiguous()
    return {
        "log_probs": tokens["log_probs"],
        "old_log_probs": tokens["old_log_probs"],
        "advantages": advantages,
    }


REWARDED_TOKENS = Family(
    engine="pointwise",
    build=_rewarded_tokens,
    degenerate=_degenerate_rewards,
    differentiable=("log_probs",),
    shape_of=BINARY.shape_of,
    element_wise=False,
)
TOKENS_WITH_ADVANTAGES = replace(
    REWARDED_TOKENS,
    build=_tokens_with_advantages,
    degenerate=_degenerate_advantages,
    element_wise=True,
)
TOKENS_OF_GROUPS = replace(
    REWARDED_TOKENS,
    build=_tokens_of_groups,
    degenerate=_degenerate_tokens,
)


# --------------------------------------------------------------------------------------- generation


def _real_and_fake(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    return {
        "real": 1 + torch.randn(shape, generator=generator, dtype=torch.float64),
        "fake": torch.randn(shape, generator=generator, dtype=torch.float64) - 1,
    }


def _degenerate_real_and_fake() -> dict[str, Tensor]:
    scores = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    both = torch.cartesian_prod(scores, scores)
    return {"real": both[:, 0].contiguous(), "fake": both[:, 1].contiguous()}


REAL_AND_FAKE = Family(
    engine="pointwise",
    build=_real_and_fake,
    degenerate=_degenerate_real_and_fake,
    differentiable=("real", "fake"),
)

FAKE = Family(
    engine="pointwise",
    build=lambda shape, generator: {"fake": _logits(shape, generator)},
    degenerate=lambda: {"fake": torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)},
    differentiable=("fake",),
)


# ------------------------------------------------------------------------------------- segmentation


def _labelled_voxels(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Logits (B, C, *spatial) and labels; the last class is rare."""
    classes = shape[1]
    labels = torch.randint(classes, _row_shape(shape), generator=generator)
    rare = torch.rand(labels.shape, generator=generator) < 0.9
    return {
        "input": _logits(shape, generator),
        "target": torch.where(rare & (labels == classes - 1), 0, labels),
    }


def _degenerate_voxels() -> dict[str, Tensor]:
    """Two samples of three classes, one of them absent: every mixture of a few extreme logits; and
    logits that leave nothing to improve.
    """
    logits = torch.tensor((0.0, 2.0**-24, 17.0, -88.0, 1e4, -1e4), dtype=torch.float64)
    mixed = torch.cartesian_prod(logits, logits, logits)  # [N, 3]
    labels = torch.arange(len(mixed)) % 2
    perfect = torch.where(labels[:, None] == torch.arange(3), 1e4, -1e4).double()
    return {
        "input": torch.stack((mixed.T, perfect.T)).contiguous(),
        "target": torch.stack((labels, labels)),
    }


VOXELS = Family(
    engine="region",
    build=_labelled_voxels,
    degenerate=_degenerate_voxels,
    differentiable=("input",),
    shape_of=lambda size: (size, 4, 5),
    integers=("target",),
    element_wise=False,
)


def _as_volumes(family: Family) -> Family:
    """The same, where the size is the spatial one."""
    return replace(family, shape_of=lambda size: (5, 3, size))


def _with_ignored(family: Family, label: int) -> Family:
    """The same with every fifth voxel ignored."""

    def build(shape: Shape, generator: Generator) -> dict[str, Tensor]:
        tensors = family.build(shape, generator)
        ignored = torch.rand(tensors["target"].shape, generator=generator) < 0.2
        return {**tensors, "target": torch.where(ignored, label, tensors["target"])}

    return replace(family, build=build, ignored=label)


def _without_background(family: Family) -> Family:
    """The same, where the weight is one of the classes but the first."""

    def build(shape: Shape, generator: Generator) -> dict[str, Tensor]:
        tensors = family.build(shape, generator)
        return {**tensors, "weight": tensors["weight"][1:]}

    def degenerate() -> dict[str, Tensor]:
        tensors = family.degenerate()
        return {**tensors, "weight": tensors["weight"][1:]}

    return replace(family, build=build, degenerate=degenerate)


def _dense_voxels(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Every class by itself: several at a voxel, or none."""
    return {"input": _logits(shape, generator), "target": _probabilities(shape, generator)}


def _degenerate_dense_voxels() -> dict[str, Tensor]:
    tensors = _degenerate_voxels()
    target = tensors["target"][:, None] == torch.arange(3)[:, None]
    return {"input": tensors["input"], "target": target.double()}


DENSE_VOXELS = replace(
    VOXELS, build=_dense_voxels, degenerate=_degenerate_dense_voxels, integers=()
)


def _probability_voxels(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    return {
        "input": torch.rand(shape, generator=generator, dtype=torch.float64),
        "target": _probabilities(shape, generator),
    }


def _degenerate_probability_voxels() -> dict[str, Tensor]:
    numbers = torch.tensor((0.0, 2.0**-24, 1.0), dtype=torch.float64)
    mixed = torch.cartesian_prod(numbers, numbers, numbers)
    target = torch.stack((mixed.T, mixed.flip(0).T, torch.zeros_like(mixed.T)))
    return {"input": torch.stack((mixed.T, mixed.T, torch.zeros_like(mixed.T))), "target": target}


PROBABILITY_VOXELS = replace(
    DENSE_VOXELS, build=_probability_voxels, degenerate=_degenerate_probability_voxels
)
# Regions and voxels together are reduced.
VOXELS_REDUCED = replace(VOXELS, reductions=("mean", "sum"))
DENSE_VOXELS_REDUCED = replace(DENSE_VOXELS, reductions=("mean", "sum"))


def _ranked_voxels(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Errors far enough apart for float32 to put them in the same order."""
    tensors = _labelled_voxels(shape, generator)
    return {**tensors, "input": tensors["input"] / 4}


RANKED_VOXELS = replace(
    VOXELS,
    engine="ranked_region",
    build=_ranked_voxels,
    shape_of=lambda size: (min(size, 33), 4, 5),
)
RANKED_IMAGES = replace(RANKED_VOXELS, shape_of=lambda size: (5, 3, min(size, 99)))


# ------------------------------------------------------------------------------------------ ranking


def _lists(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Lists (B, L), every third item relevant to some degree."""
    degrees = torch.randint(-8, 5, shape, generator=generator).clamp(min=0)
    return {
        "scores": 2 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "relevance": degrees.to(torch.float64),
    }


def _masked_lists(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Padded at the end, and here and there; of the first list nothing is left."""
    result = _lists(shape, generator)
    lists, length = shape
    lengths = torch.randint(length + 1, (lists, 1), generator=generator) + 2
    lengths = torch.where(torch.arange(lists)[:, None] == 0, 0, lengths)
    holes = torch.rand(shape, generator=generator) < 0.1
    return {**result, "mask": (torch.arange(length) < lengths) & ~holes}


def _degenerate_lists() -> dict[str, Tensor]:
    """Scores up to the largest, and equal ones; relevance without order, tiny, negative, huge."""
    logits = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    length = len(logits)
    nothing = torch.zeros(length, dtype=torch.float64)
    degrees = torch.arange(length, dtype=torch.float64) % 4
    relevances = (
        *(nothing, nothing + 2, degrees, degrees * 2.0**-14),
        *(degrees - 3, -degrees, degrees * 40, degrees * 4096),
    )
    scores = (logits, nothing, logits.flip(0))
    return {
        "scores": torch.stack([score for score in scores for _ in relevances]),
        "relevance": torch.stack([relevance for _ in scores for relevance in relevances]),
    }


def _degenerate_masked_lists() -> dict[str, Tensor]:
    result = _degenerate_lists()
    lists, length = result["scores"].shape
    number, item = torch.arange(lists)[:, None], torch.arange(length)
    mask = torch.where(number % 5 == 0, item == 3, item != number % length)  # one item, or all but
    return {**result, "mask": mask & (number % 7 != 0)}


LISTS = Family(
    engine="pairs",
    build=_lists,
    degenerate=_degenerate_lists,
    differentiable=("scores",),
    # The oracle's memory is that of all pairs.
    shape_of=lambda size: (5, min(size, 131)) if size else (0, 7),
    element_wise=False,
)
MASKED_LISTS = replace(LISTS, build=_masked_lists, degenerate=_degenerate_masked_lists)
# The oracle's memory is that of all pairs in fifty rounds.
SHORT_LISTS = replace(LISTS, shape_of=lambda size: (5, min(size, 37)) if size else (0, 7))
SHORT_MASKED_LISTS = replace(SHORT_LISTS, build=_masked_lists, degenerate=_degenerate_masked_lists)
_WITHOUT_GRADIENT = replace(LISTS, differentiable=(), reduces=False)
_MASKED_WITHOUT_GRADIENT = replace(MASKED_LISTS, differentiable=(), reduces=False)


# ---------------------------------------------------------------------------------- metric learning


def _two_scores(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Two scores, and which of them is to be larger."""
    return {
        "input1": torch.randn(shape, generator=generator, dtype=torch.float64),
        "input2": torch.randn(shape, generator=generator, dtype=torch.float64),
        "target": 2 * torch.randint(2, shape, generator=generator) - 1,
    }


def _degenerate_two_scores() -> dict[str, Tensor]:
    scores = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    both = torch.cartesian_prod(scores, scores).repeat_interleave(3, 0)
    target = torch.tensor((-1, 0, 1)).repeat(len(both) // 3)
    return {"input1": both[:, 0].contiguous(), "input2": both[:, 1].contiguous(), "target": target}


TWO_SCORES = Family(
    engine="pointwise",
    build=_two_scores,
    degenerate=_degenerate_two_scores,
    differentiable=("input1", "input2"),
    shape_of=BINARY.shape_of,
    trained=2,
)


def _triplets(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Triplets (N, features); negatives are somewhat farther from the anchors than positives."""

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    anchor = noise()
    return {
        "anchor": anchor,
        "positive": anchor + 0.7 * noise(),
        "negative": anchor + 0.9 * noise(),
    }


# Equal, near, far, far on both sides; no two distances differ by a margin of the table.
_DEGENERATE_ROWS = (
    (0.0, 0.0, 0.0, 0.0),
    (3.0, 0.0, 0.0, 0.0),
    (0.0, -3.0, 3.0, 0.0),
    (2.0**-10, 0.0, 0.0, 0.0),
    (17.0, 17.0, -17.0, 17.0),
    (1e4, -1e4, 1e4, 0.0),
    (-1e4, 1e4, 1e4, 0.0),
)


def _degenerate_triplets() -> dict[str, Tensor]:
    """Every row as anchor, as positive and as negative."""
    rows = torch.tensor(_DEGENERATE_ROWS, dtype=torch.float64)
    index = torch.cartesian_prod(*3 * (torch.arange(len(rows)),))
    names = ("anchor", "positive", "negative")
    return {name: rows[index[:, place]] for place, name in enumerate(names)}


TRIPLETS = Family(
    engine="triplet",
    build=_triplets,
    degenerate=_degenerate_triplets,
    differentiable=("anchor", "positive", "negative"),
    shape_of=lambda size: (5 + size // 16, min(size, 37)) if size else (0, 7),
    trained=3,
)


def _labelled_batch(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Embeddings (N, features) of a few classes; one row is of a class of its own."""
    rows, _ = shape
    labels = torch.randint(1, 5, (rows,), generator=generator)
    return {
        "embeddings": torch.randn(shape, generator=generator, dtype=torch.float64),
        "labels": torch.where(torch.arange(rows) == 1, 0, labels),
    }


def _degenerate_batch() -> dict[str, Tensor]:
    """Every row twice in a class and once in another: equal distances everywhere."""
    rows = torch.tensor(_DEGENERATE_ROWS, dtype=torch.float64)
    labels = torch.arange(len(rows)) % 3
    return {"embeddings": rows.repeat(3, 1), "labels": torch.cat((labels, labels, labels + 1))}


LABELLED_BATCH = Family(
    engine="batch_hard",
    build=_labelled_batch,
    degenerate=_degenerate_batch,
    differentiable=("embeddings",),
    # The oracle's memory is that of all differences.
    shape_of=lambda size: (min(size, 131), 6),
    integers=("labels",),
    element_wise=False,
)


# ---------------------------------------------------------------------------------- dense detectors


def _detections(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Predictions of B images at A anchors, and G boxes that a quarter of those are to predict.

    Of a shape (B, C, A, bins, G), or (B, C). The last box of each image is padding.
    """
    batch, classes, count, bins, targets = shape if len(shape) > 2 else (*shape, 3, 2, 2)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    number = torch.arange(count)
    anchors = torch.stack((number % 16, number // 16 % 16), dim=-1) + 0.5
    strides = torch.where(number % 3 == 0, 16.0, 8.0)
    labels = torch.randint(classes, (batch, targets), generator=generator)
    is_padding = (torch.arange(targets) == targets - 1) & (targets > 1)
    indices = torch.randint(max(targets - 1, 1), (batch, count), generator=generator)
    is_background = torch.rand(batch, count, generator=generator) < 0.75
    scores = torch.rand(batch, count, generator=generator, dtype=torch.float64)
    return {
        "logits": 2 * normal(batch, classes, count) - 2,
        "distances": normal(batch, 4 * bins, count),
        "anchors": anchors.double(),
        "strides": strides.double(),
        "target_labels": torch.where(is_padding, -1, labels),
        "target_boxes": _random_boxes((batch, targets), generator),
        "target_indices": torch.where(is_background, -1, indices),
        "target_scores": torch.where(is_background, 0.0, scores),
    }


def _degenerate_detections() -> dict[str, Tensor]:
    """Every degenerate box, from anchors that are sure of everything or of nothing."""
    boxes = torch.tensor(_DEGENERATE_BOXES, dtype=torch.float64)
    count = len(boxes)
    sure = torch.tensor([1e4, -1e4, 0.0]).double()
    return {
        "logits": sure.repeat(count).view(1, 3, count),
        "distances": sure.repeat(4 * count).view(1, 12, count),
        "anchors": torch.full((count, 2), 0.5, dtype=torch.float64),
        "strides": torch.full((count,), 8.0, dtype=torch.float64),
        "target_labels": torch.arange(count)[None] % 3,
        "target_boxes": boxes[None],
        "target_indices": torch.arange(count)[None],
        "target_scores": (torch.arange(count)[None] % 3 / 2).double(),
    }


DETECTIONS = Family(
    engine="detection",
    build=_detections,
    degenerate=_degenerate_detections,
    differentiable=("logits", "distances"),
    shape_of=lambda size: (2, 3, size, 4, 3),
    integers=("target_labels", "target_indices"),
    element_wise=False,
    reduces=False,
    trained=2,
)


# ------------------------------------------------------------------------------------------- graphs


def _graph(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Edges (2, E) of nodes with D features, and fewer other pairs.

    Of a shape (E, N, D), or (E, D) with N = 3.

    The first node is an end of many edges, up to two hundred; the last node is of none.
    """
    edges, *given, features = shape
    nodes = given[0] if given else 3

    def pairs(count: int) -> Tensor:
        ends = torch.randint(max(nodes - 1, 1), (2, count), generator=generator)
        hub = torch.rand(2, count, generator=generator) < min(100 / max(count, 1), 0.125)
        return torch.where(hub, 0, ends)

    z = torch.randn(nodes, features, generator=generator, dtype=torch.float64)
    return {
        "z": 1.5 / features**0.25 * z,  # so that logits are a few units wide
        "pos_edge_index": pairs(edges),
        "neg_edge_index": pairs(edges - edges // 3),
    }


def _degenerate_graph() -> dict[str, Tensor]:
    """Every node with every other and with itself, as an edge and as none."""
    rows = torch.tensor(_DEGENERATE_ROWS, dtype=torch.float64)
    nodes = torch.arange(len(rows))
    pairs = torch.cartesian_prod(nodes, nodes).T.contiguous()
    return {"z": rows, "pos_edge_index": pairs, "neg_edge_index": pairs.flip(0)}


GRAPH = Family(
    engine="edges",
    build=_graph,
    degenerate=_degenerate_graph,
    differentiable=("z",),
    shape_of=lambda size: (size, min(size, 131) // 3 + 3 if size else 0, 6),
    integers=("pos_edge_index", "neg_edge_index"),
    element_wise=False,
)


def _two_rows(first: str, second: str) -> Callable[[Shape, Generator], dict[str, Tensor]]:
    def build(shape: Shape, generator: Generator) -> dict[str, Tensor]:
        """Rows of features (..., D) that point about the same way."""
        rows = torch.randn(shape, generator=generator, dtype=torch.float64)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return {first: rows + noise / 2, second: 3 * rows - noise}

    return build


def _degenerate_two_rows(first: str, second: str) -> Callable[[], dict[str, Tensor]]:
    def build() -> dict[str, Tensor]:
        """Equal, opposed, at right angles, far longer than each other; without any direction."""
        rows = torch.tensor(_DEGENERATE_ROWS, dtype=torch.float64)
        index = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(rows)))
        return {first: rows[index[:, 0]], second: rows[index[:, 1]]}

    return build


X_AND_Y = Family(
    engine="row_pair",
    build=_two_rows("x", "y"),
    degenerate=_degenerate_two_rows("x", "y"),
    differentiable=("x", "y"),
    # (Rows of one feature have one direction, or the opposite one.)
    shape_of=lambda size: (5 + size // 16, min(size + 1, 37)) if size else (0, 7),
    degenerate_error=1e-10,  # what a row of 2^-10 is divided by, its digits are too
)
PREDICTED_ROWS = replace(
    X_AND_Y,
    build=_two_rows("predictions", "targets"),
    degenerate=_degenerate_two_rows("predictions", "targets"),
    differentiable=("predictions",),
)


def _distributions(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    return {
        "mu": torch.randn(shape, generator=generator, dtype=torch.float64),
        "logstd": torch.randn(shape, generator=generator, dtype=torch.float64) / 2,
    }


def _degenerate_distributions() -> dict[str, Tensor]:
    numbers = torch.tensor(_DEGENERATE_LOGITS, dtype=torch.float64)
    both = torch.cartesian_prod(numbers, numbers)
    return {"mu": both[:, :1].contiguous(), "logstd": both[:, 1:].contiguous()}


DISTRIBUTIONS = Family(
    engine="row_pair",
    build=_distributions,
    degenerate=_degenerate_distributions,
    differentiable=("mu", "logstd"),
    shape_of=TRIPLETS.shape_of,
    trained=2,
)


def _views(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    """Two views (N, features) of the same things: near each other, and of any length."""
    z1 = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"z1": z1, "z2": 2 * (z1 + 0.5 * noise)}


def _degenerate_views() -> dict[str, Tensor]:
    """Rows without a direction, equal ones, opposite ones, tiny and large ones."""
    z1 = torch.tensor(_DEGENERATE_ROWS, dtype=torch.float64)
    return {"z1": z1, "z2": torch.cat((z1[:1], -z1[1:2], z1[2:].flip(0)))}


VIEWS = Family(
    engine="contrastive",
    build=_views,
    degenerate=_degenerate_views,
    differentiable=("z1", "z2"),
    shape_of=lambda size: (min(size, 131), 6),
    element_wise=False,
    trained=2,
)


def _discriminated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"pos_logits": tensors["real"], "neg_logits": tensors["fake"]}


DISCRIMINATED = Family(
    engine="pointwise",
    build=lambda shape, generator: _discriminated(_real_and_fake(shape, generator)),
    degenerate=lambda: _discriminated(_degenerate_real_and_fake()),
    differentiable=("pos_logits", "neg_logits"),
    trained=2,
)


def _views_and_temperature(shape: Shape, generator: Generator) -> dict[str, Tensor]:
    return {**_views(shape, generator), "temperature": torch.tensor(0.25, dtype=torch.float64)}


LEARNED_TEMPERATURE = replace(
    VIEWS,
    build=_views_and_temperature,
    degenerate=lambda: {**_degenerate_views(), "temperature": torch.tensor(1.0).double()},
    differentiable=("z1", "z2", "temperature"),
    trained=3,
)


# ---------------------------------------------------------------------------------------- the table

_SEGMENTATION: tuple[Case, ...] = (
    Case("dice_loss", "Dice", VOXELS, "DiceLoss"),
    Case(
        "dice_loss",
        "Dice, squared, multi-label",
        _as_volumes(DENSE_VOXELS),
        "DiceLoss",
        variant="squared",
        options={"activation": "sigmoid", "squared_pred": True},
    ),
    Case(
        "dice_loss",
        "Jaccard, weights, over the batch",
        _with_class_weight(_as_volumes(VOXELS)),
        "DiceLoss",
        variant="jaccard",
        options={"jaccard": True, "batch": True, "squared_pred": True},
    ),
    Case(
        "dice_loss",
        "Dice without background",
        _with_ignored(_without_background(_with_class_weight(VOXELS)), 255),
        "DiceLoss",
        variant="foreground",
        options={"include_background": False, "ignore_index": 255, "smooth_nr": 0.0},
    ),
    Case(
        "dice_loss",
        "Dice of probabilities",
        PROBABILITY_VOXELS,
        "DiceLoss",
        variant="probabilities",
        options={"activation": None, "smooth_nr": 0.0, "smooth_dr": 0.0},
    ),
    Case(
        "dice_loss",
        "Dice, one-hot, a class ignored",
        DENSE_VOXELS,
        "DiceLoss",
        variant="dense_ignored",
        options={"ignore_index": 1},
    ),
    Case("tversky_loss", "Tversky", VOXELS, "TverskyLoss", options={"alpha": 0.3, "beta": 0.7}),
    Case(
        "tversky_loss",
        "Tversky, multi-label, over the batch",
        DENSE_VOXELS,
        "TverskyLoss",
        variant="dense",
        options={"activation": "sigmoid", "batch": True, "ignore_index": -1},
    ),
    Case("focal_tversky_loss", "Focal Tversky", VOXELS, "FocalTverskyLoss"),
    Case(
        "focal_tversky_loss",
        "Focal Tversky, γ 2",
        _with_class_weight(_as_volumes(VOXELS)),
        "FocalTverskyLoss",
        variant="gamma",
        options={"gamma": 2.0, "alpha": 0.6, "beta": 0.2},
    ),
    Case(
        "generalized_dice_loss",
        "Generalised Dice",
        VOXELS,
        "GeneralizedDiceLoss",
        "generalized_dice_loss/square",
    ),
    *(
        Case(
            "generalized_dice_loss",
            f"Generalised Dice, {w_type}",
            VOXELS,
            "GeneralizedDiceLoss",
            f"generalized_dice_loss/{w_type}",
            w_type,
            {"w_type": w_type},
        )
        for w_type in ("simple", "uniform")
    ),
    Case(
        "generalized_dice_loss",
        "Generalised Dice, over the batch",
        _with_ignored(_as_volumes(VOXELS), -100),
        "GeneralizedDiceLoss",
        "generalized_dice_loss/square",
        "batch",
        {"batch": True, "ignore_index": -100},
    ),
    Case(
        "generalized_dice_loss",
        "Generalised Dice, multi-label, without background",
        DENSE_VOXELS,
        "GeneralizedDiceLoss",
        "generalized_dice_loss/simple",
        "dense",
        {"w_type": "simple", "include_background": False, "activation": "sigmoid"},
    ),
    Case(
        "dice_cross_entropy_loss",
        "Dice + cross-entropy",
        VOXELS_REDUCED,
        "DiceCrossEntropyLoss",
        "dice_cross_entropy_loss/softmax",
    ),
    Case(
        "dice_cross_entropy_loss",
        "Dice + cross-entropy, smoothed, weights",
        _with_ignored(_with_class_weight(_as_volumes(VOXELS_REDUCED)), -100),
        "DiceCrossEntropyLoss",
        "dice_cross_entropy_loss/softmax",
        "smoothing",
        {
            "label_smoothing": 0.1,
            "ignore_index": -100,
            "include_background": False,
            "squared_pred": True,
            "lambda_dice": 0.5,
            "lambda_ce": 2.0,
        },
    ),
    Case(
        "dice_cross_entropy_loss",
        "Dice + cross-entropy, probabilities",
        _with_class_weight(_as_volumes(DENSE_VOXELS_REDUCED)),
        "DiceCrossEntropyLoss",
        "dice_cross_entropy_loss/softmax",
        "dense",
        {"ignore_index": 2, "batch": True},
    ),
    Case(
        "dice_cross_entropy_loss",
        "Dice + binary cross-entropy",
        _with_class_weight(DENSE_VOXELS_REDUCED),
        "DiceCrossEntropyLoss",
        "dice_cross_entropy_loss/sigmoid",
        "sigmoid",
        {"activation": "sigmoid"},
    ),
    Case("dice_focal_loss", "Dice + focal", VOXELS_REDUCED, "DiceFocalLoss"),
    Case(
        "dice_focal_loss",
        "Dice + focal, γ 1.5, without background",
        _with_ignored(_without_background(_with_class_weight(_as_volumes(VOXELS_REDUCED))), 255),
        "DiceFocalLoss",
        variant="foreground",
        options={
            "gamma": 1.5,
            "alpha": 0.25,
            "include_background": False,
            "ignore_index": 255,
            "lambda_focal": 3.0,
        },
    ),
    Case(
        "dice_focal_loss",
        "Dice + focal, multi-label",
        DENSE_VOXELS_REDUCED,
        "DiceFocalLoss",
        variant="sigmoid",
        options={"activation": "sigmoid", "squared_pred": True, "batch": True},
    ),
    Case("lovasz_softmax_loss", "Lovász-softmax", RANKED_VOXELS, "LovaszSoftmaxLoss"),
    Case(
        "lovasz_softmax_loss",
        "Lovász-softmax, all classes of each image",
        _with_ignored(RANKED_IMAGES, 255),
        "LovaszSoftmaxLoss",
        variant="images",
        options={"classes": "all", "per_image": True, "ignore_index": 255},
    ),
)

CASES: tuple[Case, ...] = (
    Case("box_iou_loss", "IoU", BOX_PAIRS, "BoxIoULoss", "box_iou_loss/linear"),
    Case(
        "box_iou_loss",
        "IoU square",
        BOX_PAIRS,
        "BoxIoULoss",
        "box_iou_loss/square",
        "square",
        {"mode": "square"},
    ),
    Case(
        "box_iou_loss",
        "IoU log",
        BOX_PAIRS,
        "BoxIoULoss",
        "box_iou_loss/log",
        "log",
        {"mode": "log"},
    ),
    Case("generalized_box_iou_loss", "GIoU", BOX_PAIRS, "GeneralizedBoxIoULoss"),
    Case("distance_box_iou_loss", "DIoU", BOX_PAIRS, "DistanceBoxIoULoss"),
    Case("complete_box_iou_loss", "CIoU", BOX_PAIRS, "CompleteBoxIoULoss", exact_gradient=False),
    Case(
        "complete_box_iou_loss",
        "CIoU, α from IoU 0.5",
        BOX_PAIRS,
        "CompleteBoxIoULoss",
        variant="aspect_threshold",
        options={"aspect_threshold": 0.5},
        exact_gradient=False,
    ),
    Case("efficient_box_iou_loss", "EIoU", BOX_PAIRS, "EfficientBoxIoULoss"),
    Case(
        "efficient_box_iou_loss",
        "Focal-EIoU",
        BOX_PAIRS,
        "EfficientBoxIoULoss",
        variant="focal",
        options={"gamma": 0.5},
    ),
    Case(
        "efficient_box_iou_loss",
        "Focal-EIoU, detached",
        BOX_PAIRS,
        "EfficientBoxIoULoss",
        variant="focal_detached",
        options={"gamma": 0.5, "detach_focal": True},
        exact_gradient=False,
    ),
    Case("scylla_box_iou_loss", "SIoU", BOX_PAIRS, "ScyllaBoxIoULoss"),
    Case(
        "scylla_box_iou_loss",
        "SIoU, θ 2.5",
        BOX_PAIRS,
        "ScyllaBoxIoULoss",
        variant="theta",
        options={"theta": 2.5},
    ),
    Case("wise_box_iou_loss", "WIoU v1", BOX_PAIRS, "WiseBoxIoULoss", exact_gradient=False),
    Case(
        "wise_box_iou_loss",
        "WIoU v2",
        BOX_PAIRS,
        "WiseBoxIoULoss",
        variant="v2",
        options={"version": 2, "iou_mean": 0.4},
        exact_gradient=False,
    ),
    Case(
        "wise_box_iou_loss",
        "WIoU v3",
        BOX_PAIRS,
        "WiseBoxIoULoss",
        variant="v3",
        options={"version": 3, "iou_mean": 0.4},
        exact_gradient=False,
    ),
    Case(
        "wise_box_iou_loss",
        "WIoU v3, mean on the device",
        BOX_PAIRS,
        "WiseBoxIoULoss",
        variant="v3_tensor",
        options={"version": 3, "iou_mean": torch.tensor(0.4), "delta": 2.5},
        exact_gradient=False,
    ),
    Case(
        "sigmoid_aspect_box_iou_loss",
        "XIoU",
        BOX_PAIRS,
        "SigmoidAspectBoxIoULoss",
        exact_gradient=False,
    ),
    Case(
        "normalized_wasserstein_loss",
        "NWD",
        BOX_PAIRS,
        "NormalizedWassersteinLoss",
        "normalized_wasserstein_loss/exp",
        float32=CANCELLING,
    ),
    *(
        Case(
            "normalized_wasserstein_loss",
            f"NWD {mode}",
            BOX_PAIRS,
            "NormalizedWassersteinLoss",
            f"normalized_wasserstein_loss/{mode}",
            mode,
            {"mode": mode},
            float32=CANCELLING,
        )
        for mode in ("sqrt", "log", "w2")
    ),
    Case("probabilistic_iou_loss", "ProbIoU", ROTATED_PAIRS, "ProbabilisticIoULoss"),
    Case(
        "probabilistic_iou_loss",
        "ProbIoU, ultralytics' eps and floor",
        ROTATED_PAIRS,
        "ProbabilisticIoULoss",
        variant="floor",
        options={"eps": 1e-7, "floor": 0.01},
    ),
    Case("object_keypoint_similarity_loss", "OKS", KEYPOINTS, "ObjectKeypointSimilarityLoss"),
    Case("repulsion_loss", "Repulsion", CROWD, "RepulsionLoss"),
    Case(
        "repulsion_loss",
        "Repulsion, images",
        CROWD_OF_IMAGES,
        "RepulsionLoss",
        variant="images",
        options={"sigma_gt": 0.4, "sigma_box": 0.2, "alpha": 0.7, "beta": 0.3},
    ),
    *(
        Case(
            "pairwise_box_iou",
            f"pairwise {kind}",
            BOX_SETS,
            None,
            kind,
            kind,
            {"kind": kind},
            exact_gradient=kind != "ciou",
        )
        for kind in ("iou", "giou", "diou", "ciou", "eiou", "siou", "nwd")
    ),
    Case("sigmoid_focal_loss", "Focal", DETECTION_LOGITS, "SigmoidFocalLoss"),
    Case(
        "sigmoid_focal_loss",
        "Focal, γ 1.5, no α",
        DETECTION_LOGITS,
        "SigmoidFocalLoss",
        variant="gamma",
        options={"alpha": -1, "gamma": 1.5},
    ),
    Case(
        "sigmoid_focal_loss",
        "Focal, class indices",
        CLASS_INDICES,
        "SigmoidFocalLoss",
        variant="indices",
    ),
    Case("binary_cross_entropy_with_logits", "BCE", BINARY, "BCEWithLogitsLoss"),
    Case(
        "binary_cross_entropy_with_logits",
        "BCE, positive weight",
        BINARY_WITH_POS_WEIGHT,
        "BCEWithLogitsLoss",
        variant="pos_weight",
    ),
    Case("cross_entropy", "Cross-entropy", ROWS, "CrossEntropyLoss"),
    Case(
        "cross_entropy",
        "Cross-entropy, weights",
        _with_class_weight(ROWS),
        "CrossEntropyLoss",
        variant="weight",
    ),
    Case(
        "cross_entropy",
        "Cross-entropy of pixels",
        replace(ROWS, shape_of=_pixels),
        "CrossEntropyLoss",
        variant="pixels",
    ),
    Case(
        "cross_entropy",
        "Cross-entropy, smoothed",
        _with_class_weight(ROWS),
        "CrossEntropyLoss",
        "cross_entropy/label_smoothing",
        "smoothing",
        {"label_smoothing": 0.1},
    ),
    Case(
        "cross_entropy",
        "Cross-entropy, z-loss and soft cap",
        ROWS,
        "CrossEntropyLoss",
        "cross_entropy/label_smoothing",
        "z_loss",
        {"label_smoothing": 0.05, "z_loss": 1e-3, "logit_softcap": 6.0},
    ),
    Case(
        "cross_entropy",
        "Cross-entropy of pixels, soft cap",
        replace(ROWS, shape_of=_pixels),
        "CrossEntropyLoss",
        variant="pixels_softcap",
        options={"logit_softcap": 6.0},
    ),
    Case(
        "cross_entropy",
        "Cross-entropy, probabilities",
        PROBABILITY_ROWS,
        "CrossEntropyLoss",
        "cross_entropy/probabilities",
        "probabilities",
    ),
    Case(
        "cross_entropy",
        "Cross-entropy of pixels, probabilities, weights, smoothed",
        replace(_with_class_weight(PROBABILITY_ROWS), shape_of=_pixels),
        "CrossEntropyLoss",
        "cross_entropy/probabilities",
        "probabilities_smoothing",
        {"label_smoothing": 0.2},
    ),
    Case(
        "linear_cross_entropy",
        "Linear + cross-entropy",
        LINEAR_ROWS,
        "LinearCrossEntropyLoss",
        "cross_entropy",
    ),
    Case(
        "linear_cross_entropy",
        "Linear + cross-entropy, smoothed, z-loss",
        LINEAR_ROWS,
        "LinearCrossEntropyLoss",
        "cross_entropy/label_smoothing",
        "smoothing",
        {"label_smoothing": 0.1, "z_loss": 1e-3},
    ),
    Case("nll_loss", "NLL", _with_class_weight(ROWS), "NLLLoss"),
    Case("softmax_focal_loss", "Softmax focal", ROWS, "SoftmaxFocalLoss"),
    Case(
        "softmax_focal_loss",
        "Softmax focal, α per class",
        _with_class_weight(ROWS, "alpha"),
        "SoftmaxFocalLoss",
        variant="alpha",
        options={"gamma": 0.5},
    ),
    Case(
        "poly_cross_entropy",
        "Poly-1 cross-entropy",
        _with_class_weight(ROWS),
        "PolyCrossEntropy",
        options={"epsilon": 2.0},
    ),
    Case("multi_margin_loss", "Multi-class hinge", _all_count(ROWS), "MultiMarginLoss"),
    Case(
        "multi_margin_loss",
        "Multi-class hinge, squared",
        _with_class_weight(_all_count(ROWS)),
        "MultiMarginLoss",
        variant="squared",
        options={"p": 2, "margin": 2.5},
    ),
    Case("crammer_singer_loss", "Crammer-Singer hinge", _all_count(ROWS), "CrammerSingerLoss"),
    Case("distribution_focal_loss", "DFL", BINS, "DistributionFocalLoss"),
    Case("binary_cross_entropy", "BCE of probabilities", PROBABILITIES, "BCELoss"),
    Case("hinge_loss", "Hinge", SIGNS, "HingeLoss"),
    Case(
        "hinge_loss",
        "Hinge squared, margin 0.5",
        SIGNS,
        "HingeLoss",
        variant="squared",
        options={"margin": 0.5, "squared": True},
    ),
    Case("quality_focal_loss", "Quality focal", BINARY, "QualityFocalLoss"),
    Case(
        "quality_focal_loss",
        "Quality focal, β 1.5",
        BINARY,
        "QualityFocalLoss",
        variant="beta",
        options={"beta": 1.5},
    ),
    Case("varifocal_loss", "Varifocal", BINARY_WITH_FIXED_TARGETS, "VarifocalLoss"),
    Case(
        "varifocal_loss",
        "Varifocal, positives",
        BINARY_WITH_POSITIVE_TARGETS,
        "VarifocalLoss",
        variant="positives",
    ),
    Case(
        "varifocal_loss",
        "Varifocal, α 0.4, γ 1.5",
        BINARY_WITH_FIXED_TARGETS,
        "VarifocalLoss",
        variant="gamma",
        options={"alpha": 0.4, "gamma": 1.5},
    ),
    Case("asymmetric_loss", "Asymmetric", BINARY, "AsymmetricLoss", exact_gradient=False),
    Case(
        "asymmetric_loss",
        "Asymmetric, no constant",
        BINARY,
        "AsymmetricLoss",
        variant="focusing",
        options={"detach_focusing": False, "gamma_neg": 2.5, "clip": 0.2},
    ),
    Case(
        "asymmetric_loss",
        "Asymmetric, no clip",
        BINARY,
        "AsymmetricLoss",
        variant="no_clip",
        options={"detach_focusing": False, "gamma_pos": 0, "clip": 0},
    ),
    Case("mse_loss", "MSE", REGRESSION, "MSELoss"),
    Case("rmse_loss", "RMSE", REGRESSION, "RMSELoss", "mse_loss"),
    Case("l1_loss", "L1", REGRESSION, "L1Loss"),
    Case("smooth_l1_loss", "Smooth L1", REGRESSION, "SmoothL1Loss"),
    Case(
        "smooth_l1_loss",
        "Smooth L1, β 0",
        REGRESSION,
        "SmoothL1Loss",
        variant="beta_0",
        options={"beta": 0.0},
    ),
    Case("huber_loss", "Huber", REGRESSION, "HuberLoss"),
    Case(
        "huber_loss",
        "Huber, δ 0.3",
        REGRESSION,
        "HuberLoss",
        variant="delta",
        options={"delta": 0.3},
    ),
    Case("log_cosh_loss", "Log-cosh", REGRESSION, "LogCoshLoss"),
    Case(
        "quantile_loss",
        "Quantile 0.3",
        REGRESSION,
        "QuantileLoss",
        options={"quantiles": 0.3},
    ),
    Case("quantile_loss", "Quantiles", FORECASTS, "QuantileLoss", variant="several"),
    Case(
        "task_aligned_detection_loss",
        "Task-aligned detection",
        DETECTIONS,
        "TaskAlignedDetectionLoss",
        own_module=True,
        exact_gradient=False,
    ),
    Case(
        "task_aligned_detection_loss",
        "Task-aligned detection, weighted",
        DETECTIONS,
        "TaskAlignedDetectionLoss",
        variant="weight",
        options={"weight": torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)},
        own_module=True,
        exact_gradient=False,
    ),
    Case("crf_loss", "CRF", CHAINS, "CRF", own_module=True),
    Case("crf_loss", "CRF, masked", MASKED_CHAINS, "CRF", variant="mask", own_module=True),
    Case("crf_marginals", "CRF marginals", CHAINS_WITHOUT_TAGS, None),
    Case("minimum_risk_loss", "Minimum risk", CANDIDATES, "MinimumRiskLoss"),
    Case(
        "policy_gradient_loss",
        "Policy gradient",
        STEPS,
        "PolicyGradientLoss",
        options={"entropy_coefficient": 0.01},
    ),
    Case(
        "policy_gradient_loss",
        "Policy gradient, masked",
        MASKED_STEPS,
        "PolicyGradientLoss",
        variant="mask",
        options={"entropy_coefficient": 0.5},
    ),
    Case("selective_log_softmax", "Selective log-softmax", CHOSEN, None),
    Case("self_critical_loss", "Self-critical", REWARDED_TOKENS, "SelfCriticalLoss"),
    Case("ppo_loss", "PPO", TOKENS_WITH_ADVANTAGES, "PPOLoss"),
    Case("grpo_loss", "GRPO", TOKENS_OF_GROUPS, "GRPOLoss", options={"beta": 0.04}),
    Case("lsgan_discriminator_loss", "LSGAN D", REAL_AND_FAKE, "LSGANDiscriminatorLoss"),
    Case(
        "lsgan_discriminator_loss",
        "LSGAN D, a -1, b 0.9",
        REAL_AND_FAKE,
        "LSGANDiscriminatorLoss",
        variant="targets",
        options={"a": -1.0, "b": 0.9},
    ),
    Case("lsgan_generator_loss", "LSGAN G", FAKE, "LSGANGeneratorLoss"),
    Case(
        "lsgan_generator_loss",
        "LSGAN G, c 0.5",
        FAKE,
        "LSGANGeneratorLoss",
        variant="target",
        options={"c": 0.5},
    ),
    Case(
        "wasserstein_discriminator_loss",
        "Wasserstein D",
        REAL_AND_FAKE,
        "WassersteinDiscriminatorLoss",
    ),
    Case("wasserstein_generator_loss", "Wasserstein G", FAKE, "WassersteinGeneratorLoss"),
    Case(
        "non_saturating_discriminator_loss",
        "Non-saturating D",
        REAL_AND_FAKE,
        "NonSaturatingDiscriminatorLoss",
    ),
    Case(
        "non_saturating_discriminator_loss",
        "Non-saturating D, smoothing 0.1",
        REAL_AND_FAKE,
        "NonSaturatingDiscriminatorLoss",
        variant="label_smoothing",
        options={"label_smoothing": 0.1},
    ),
    Case("non_saturating_generator_loss", "Non-saturating G", FAKE, "NonSaturatingGeneratorLoss"),
    Case("hinge_discriminator_loss", "Hinge D", REAL_AND_FAKE, "HingeDiscriminatorLoss"),
    Case(
        "hinge_generator_loss",
        "Hinge G",
        FAKE,
        "HingeGeneratorLoss",
        "wasserstein_generator_loss",
    ),
    *(replace(row, float32=SATURATING) for row in _SEGMENTATION),
    Case("lambda_loss", "LambdaLoss", LISTS, "LambdaLoss", "lambda_loss/ndcg_loss2pp"),
    Case(
        "lambda_loss",
        "LambdaLoss of 6, masked",
        MASKED_LISTS,
        "LambdaLoss",
        "lambda_loss/ndcg_loss2pp",
        "k",
        {"k": 6, "sigma": 1.5, "mu": 5.0},
    ),
    *(
        Case(
            "lambda_loss",
            f"LambdaLoss {scheme}, masked",
            MASKED_LISTS,
            "LambdaLoss",
            f"lambda_loss/{scheme}",
            scheme,
            {"scheme": scheme},
        )
        for scheme in ("ndcg_loss1", "ndcg_loss2", "lambda_rank", "ranknet")
    ),
    Case(
        "lambda_loss",
        "NDCG-Loss1 of 4",
        LISTS,
        "LambdaLoss",
        "lambda_loss/ndcg_loss1",
        "ndcg_loss1_k",
        {"scheme": "ndcg_loss1", "k": 4, "sigma": 0.5},
    ),
    Case("ranknet_loss", "RankNet", LISTS, "RankNetLoss"),
    Case("ranknet_loss", "RankNet, masked", MASKED_LISTS, "RankNetLoss", variant="masked"),
    Case("approx_ndcg_loss", "ApproxNDCG", LISTS, "ApproxNDCGLoss"),
    Case(
        "approx_ndcg_loss",
        "ApproxNDCG, α 2.5, masked",
        MASKED_LISTS,
        "ApproxNDCGLoss",
        variant="alpha",
        options={"alpha": 2.5},
    ),
    Case("neural_ndcg_loss", "NeuralNDCG", SHORT_LISTS, "NeuralNDCGLoss", float32=A_ROUND_MORE),
    Case(
        "neural_ndcg_loss",
        "NeuralNDCG, τ 0.3, masked",
        SHORT_MASKED_LISTS,
        "NeuralNDCGLoss",
        variant="temperature",
        options={"temperature": 0.3},
        float32=A_ROUND_MORE,
    ),
    Case("list_net_loss", "ListNet", LISTS, "ListNetLoss"),
    Case("list_net_loss", "ListNet, masked", MASKED_LISTS, "ListNetLoss", variant="masked"),
    Case("list_mle_loss", "ListMLE", LISTS, "ListMLELoss"),
    Case("list_mle_loss", "ListMLE, masked", MASKED_LISTS, "ListMLELoss", variant="masked"),
    Case("margin_ranking_loss", "Margin ranking", TWO_SCORES, "MarginRankingLoss"),
    Case(
        "margin_ranking_loss",
        "Margin ranking, margin 0.5",
        TWO_SCORES,
        "MarginRankingLoss",
        variant="margin",
        options={"margin": 0.5},
    ),
    Case(
        "triplet_margin_loss",
        "Triplet margin",
        TRIPLETS,
        "TripletMarginLoss",
        "triplet_margin_loss/2",
    ),
    *(
        Case(
            "triplet_margin_loss",
            f"Triplet margin, {label}, swapped",
            TRIPLETS,
            "TripletMarginLoss",
            f"triplet_margin_loss/{norm}",
            variant,
            # (Without eps, by which equal distances would differ in a dtype and not in another.)
            {"p": p, "eps": 0.0, "swap": True, "margin": 0.5},
        )
        for label, norm, variant, p in (
            ("p 1", "1", "manhattan", 1.0),
            ("p 3", "p", "p_3", 3.0),
            ("p ∞", "inf", "maximum", math.inf),
        )
    ),
    Case(
        "batch_hard_triplet_loss",
        "Batch-hard triplet",
        LABELLED_BATCH,
        "BatchHardTripletLoss",
        "batch_hard_triplet_loss/hinge",
    ),
    Case(
        "batch_hard_triplet_loss",
        "Batch-hard triplet, soft margin",
        LABELLED_BATCH,
        "BatchHardTripletLoss",
        "batch_hard_triplet_loss/soft",
        "soft",
        {"margin": None},
    ),
    Case("graph_reconstruction_loss", "Graph autoencoder", GRAPH, "GraphReconstructionLoss"),
    Case(
        "variational_graph_kl_loss", "Graph autoencoder KL", DISTRIBUTIONS, "VariationalGraphKLLoss"
    ),
    Case("deep_graph_infomax_loss", "Graph infomax", DISCRIMINATED, "DeepGraphInfomaxLoss"),
    Case("scaled_cosine_error", "Scaled cosine error", X_AND_Y, "ScaledCosineError"),
    Case(
        "scaled_cosine_error",
        "Scaled cosine error, α 1.5",
        X_AND_Y,
        "ScaledCosineError",
        variant="alpha",
        options={"alpha": 1.5},
    ),
    Case("bootstrap_latent_loss", "Bootstrap latent", PREDICTED_ROWS, "BootstrapLatentLoss"),
    Case("info_nce_loss", "NT-Xent", VIEWS, "InfoNCELoss", "info_nce_loss/nt_xent"),
    Case(
        "info_nce_loss",
        "InfoNCE, one way",
        VIEWS,
        "InfoNCELoss",
        "info_nce_loss/cross",
        "cross",
        {"mode": "cross", "temperature": 0.2},
    ),
    Case(
        "info_nce_loss",
        "CLIP, learned temperature",
        LEARNED_TEMPERATURE,
        "InfoNCELoss",
        "info_nce_loss/clip",
        "clip",
        {"mode": "clip"},
    ),
    Case(
        "info_nce_loss",
        "NT-Xent of inner products",
        VIEWS,
        "InfoNCELoss",
        "info_nce_loss/nt_xent",
        "products",
        {"temperature": 4.0, "normalize": False},
    ),
)


# Functions without a gradient.
METRICS: tuple[Case, ...] = (
    Case("ndcg", "NDCG", _WITHOUT_GRADIENT, None),
    Case(
        "ndcg", "NDCG of 5, masked", _MASKED_WITHOUT_GRADIENT, None, variant="k", options={"k": 5}
    ),
)


# It returns tags, not a loss: no row of the table. test_sequence.py has its tests.
DECODING = Case("crf_decode", "CRF decoding", CHAINS_WITHOUT_TAGS, None)
# Its arguments are integers: no row either. test_bleu.py has its tests.
BLEU = Case("sentence_bleu", "Sentence BLEU", SENTENCES, None)
# Nor has it a gradient. test_matching.py has its tests.
MATCHING = Case("detr_matching_cost", "DETR matching cost", MATCHES, None)


def find_case(id: str) -> Case:
    """The row with this id."""
    return next(case for case in (*CASES, *METRICS) if case.id == id)
