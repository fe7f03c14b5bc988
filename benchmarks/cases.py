# SPDX-License-Identifier: MIT
"""What is measured: rows of ``tests/cases.py``, each at a size, and what is to be reached there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

from torch import Tensor

import fastloss
from benchmarks import detectors
from benchmarks.baselines import CALL_YARDSTICK, Baseline, LossFunction, baseline_of
from tests.cases import BLEU, CASES, DECODING, MATCHING, Arguments, Case, Shape, find_case


class Work(str, Enum):
    """What one step does."""

    STEP = "forward + backward"  # drops the last gradient, makes a new graph and gradient
    GRAPH = "forward, recording"  # the forward half of that
    FORWARD = "forward"  # nothing requires a gradient


@dataclass(frozen=True)
class Goal:
    """What is to be reached in one run; None where nothing is asked.

    Attributes:
        eager: At least this many times as fast as eager PyTorch.
        compiled: At least this many times as fast as ``torch.compile``.
        limit: At most this many times the streaming limit.
        memory_of_eager: Headlines take no memory but that of the gradient; where this is set, no
            more than eager PyTorch does.
    """

    eager: float | None = None
    compiled: float | None = None
    limit: float | None = None
    memory_of_eager: bool = False


@dataclass(frozen=True)
class BenchmarkCase:
    """One line of the benchmarks.

    Attributes:
        name: What selects it on the command line.
        title: What tables and plots call it.
        row: The loss and its inputs.
        shape: The shape the row's inputs are built for.
        work: What one step does.
        goal: What is to be reached.
        headline: Whether it belongs to the README's main table.
        yardstick: The opponent, where it is not the loss's own baseline.
        patched: What runs on fastloss, where it is not the function of the row.
    """

    name: str
    title: str
    row: Case
    shape: Shape
    work: Work = Work.STEP
    goal: Goal = field(default_factory=Goal)
    headline: bool = True
    yardstick: Baseline | None = None
    patched: LossFunction | None = None

    @property
    def function(self) -> LossFunction:
        """What is measured."""
        return self.patched or getattr(fastloss.functional, self.row.function)

    @property
    def baseline(self) -> Baseline:
        """The opponents."""
        return self.yardstick or baseline_of(self.row.function)

    @property
    def with_gradient(self) -> tuple[str, ...]:
        """The arguments that get a gradient; none where only the forward is measured."""
        if self.work is Work.FORWARD:
            return ()
        return self.row.family.differentiable[: self.row.family.trained]

    def inputs(self, device: str) -> Arguments:
        """The arguments of a call, fresh."""
        arguments = self.row.arguments(self.shape, device=device, requires_grad=self.with_gradient)
        for name in self.row.family.integers:
            # No ignored rows: that all rows count is the cheapest case for the baselines.
            arguments[name].clamp_(min=0)
        if self.row.family.reduces:
            arguments["reduction"] = "mean"
        return arguments

    def compulsory_bytes(self, arguments: Arguments) -> tuple[int, int]:
        """The bytes that any implementation reads, and those that it writes."""
        read = sum(value.nbytes for value in arguments.values() if isinstance(value, Tensor))
        writes_gradient = self.work is Work.STEP
        moved = self.row.compulsory_bytes(arguments, gradient=writes_gradient)
        return read, moved - read


def _boxes(name: str, title: str, row: str, count: int, goal: Goal) -> BenchmarkCase:
    return BenchmarkCase(name, title, find_case(row), (count,), goal=goal)


def _elements(name: str, title: str, row: str, shape: Shape, goal: Goal) -> BenchmarkCase:
    return BenchmarkCase(name, title, find_case(row), shape, goal=goal)


_CIOU, _SIOU, _GIOU = "complete_box_iou_loss", "scylla_box_iou_loss", "generalized_box_iou_loss"
_MILLION = 1 << 20
_DETECTOR = (67200, 80)  # the predictions of 8 images of 640 × 640, 80 classes
_PICTURES = (4, 1024, 1024)
_SEGMENTATION = (4, 20, 256, 256)
_TAGGER = (32, 128, 32)

# The criteria of frameworks, where those are installed.
_CRITERIA = {
    "torchvision": BenchmarkCase(
        "retinanet",
        "RetinaNet, 2 images of 800 × 1344",
        detectors.RETINANET,
        (2, 1, 91, 15),
        goal=Goal(eager=5, memory_of_eager=True),
        yardstick=detectors.STOCK_RETINANET,
        patched=detectors.patched_retinanet_loss,
    ),
    "ultralytics": BenchmarkCase(
        "v8-criterion",
        "v8 detection, 16 images of 640², 80 classes",
        detectors.V8_CRITERION,
        (16, 80, 640, 16, 12),
        goal=Goal(eager=4, memory_of_eager=True),
        yardstick=detectors.STOCK_V8,
        patched=detectors.fused_v8_loss,
    ),
}

_WITH_GOALS = (
    _boxes("ciou-8192", "CIoU, 8192", _CIOU, 8192, Goal(eager=25, compiled=8)),
    _boxes("siou-8192", "SIoU, 8192", _SIOU, 8192, Goal(eager=25, compiled=8)),
    _boxes("giou-8192", "GIoU, 8192", _GIOU, 8192, Goal(eager=25, compiled=5)),
    _boxes("ciou-1m", "CIoU, 1 M", _CIOU, _MILLION, Goal(eager=25, compiled=12, limit=2.5)),
    _boxes("siou-1m", "SIoU, 1 M", _SIOU, _MILLION, Goal(eager=25, compiled=12, limit=3)),
    _boxes("giou-1m", "GIoU, 1 M", _GIOU, _MILLION, Goal(eager=25, compiled=5, limit=2.5)),
    _boxes("probiou", "ProbIoU, 100 000", "probabilistic_iou_loss", 100_000, Goal(eager=10)),
    _boxes(
        "oks",
        "OKS, 8192 × 5",
        "object_keypoint_similarity_loss",
        8192,
        Goal(eager=1, memory_of_eager=True),
    ),
    _elements(
        "focal",
        "Focal, 67200 × 80",
        "sigmoid_focal_loss",
        _DETECTOR,
        Goal(eager=15, compiled=3.5, limit=2.5),
    ),
    _elements(
        "focal-indices",
        "Focal, class indices, 67200 × 80",
        "sigmoid_focal_loss-indices",
        _DETECTOR,
        Goal(eager=16, limit=3),
    ),
    _elements(
        "bce",
        "BCE with logits, 4 M",
        "binary_cross_entropy_with_logits",
        _PICTURES,
        Goal(eager=4, compiled=2.5, limit=2.5),
    ),
    _elements("mse", "MSE, 4 M", "mse_loss", _PICTURES, Goal(eager=2.2, limit=1.5)),
    _elements("huber", "Huber, 4 M", "huber_loss", _PICTURES, Goal(eager=2.2, limit=1.6)),
    _elements(
        "ce-1000",
        "Cross-entropy, 4096 × 1000",
        "cross_entropy",
        (4096, 1000),
        Goal(eager=3, compiled=3, limit=2.5),
    ),
    _elements(
        "ce-32000",
        "Cross-entropy, 1024 × 32000",
        "cross_entropy",
        (1024, 32_000),
        Goal(eager=6, compiled=3, limit=2.5),
    ),
    _elements(
        "ce-128000",
        "Cross-entropy, 256 × 128000",
        "cross_entropy",
        (256, 128_000),
        Goal(eager=6, compiled=3, limit=2.5),
    ),
    _elements(
        "ce-pixels",
        "Cross-entropy, 4 × 20 × 256²",
        "cross_entropy-pixels",
        _SEGMENTATION,
        Goal(eager=5, compiled=2, limit=3),
    ),
    _elements(
        "dfl",
        "DFL, 32768 × 16",
        "distribution_focal_loss",
        (32_768, 16),
        Goal(eager=8, compiled=8),
    ),
    _elements(
        "linear-ce",
        "Linear + cross-entropy, 2048 × 1024 → 32000",
        "linear_cross_entropy",
        (2048, 1024, 32_000),
        Goal(eager=1.2, memory_of_eager=True),
    ),
    _elements(
        "dice",
        "Dice, 4 × 20 × 256²",
        "dice_loss",
        _SEGMENTATION,
        Goal(eager=6, compiled=3, limit=4),
    ),
    _elements(
        "dice-ce",
        "Dice + cross-entropy, 4 × 20 × 256²",
        "dice_cross_entropy_loss",
        _SEGMENTATION,
        Goal(eager=7, compiled=3),
    ),
    _elements(
        "policy-gradient",
        "Policy gradient, 4096 × 32000",
        "policy_gradient_loss",
        (4096, 32_000),
        Goal(eager=20, compiled=6, limit=3),
    ),
    _elements("lambda", "LambdaLoss, 128 lists of 200", "lambda_loss", (128, 200), Goal(eager=40)),
    _elements(
        "triplet",
        "Triplet margin, 8192 × 256",
        "triplet_margin_loss",
        (8192, 256),
        Goal(eager=3.5, limit=2),
    ),
    _elements(
        "batch-hard",
        "Batch-hard triplet, 1024 × 128",
        "batch_hard_triplet_loss",
        (1024, 128),
        Goal(eager=3),
    ),
    _elements(
        "nt-xent",
        "NT-Xent, 2048 × 128",
        "info_nce_loss",
        (2048, 128),
        Goal(eager=2, compiled=2, memory_of_eager=True),
    ),
    _elements(
        "clip",
        "CLIP, 1024 × 512",
        "info_nce_loss-clip",
        (1024, 512),
        Goal(eager=1, memory_of_eager=True),
    ),
    BenchmarkCase(
        "graph-reconstruction",
        "Graph autoencoder, 1 M edges × 64",
        find_case("graph_reconstruction_loss"),
        (1_000_000, 100_000, 64),
        goal=Goal(eager=3, memory_of_eager=True),
    ),
    BenchmarkCase(
        "crf",
        "CRF, 32 × 128, 32 tags",
        find_case("crf_loss"),
        _TAGGER,
        goal=Goal(eager=60),
    ),
    BenchmarkCase(
        "crf-decode",
        "CRF decoding, 32 × 128, 32 tags",
        DECODING,
        _TAGGER,
        Work.FORWARD,
        Goal(eager=50),
    ),
    BenchmarkCase(
        "sentence-bleu",
        "Sentence BLEU, 4096 × 32",
        BLEU,
        (4096, 32),
        Work.FORWARD,
        Goal(eager=50),
    ),
    BenchmarkCase(
        "pairwise-ciou",
        "Pairwise CIoU, 16 × 60 × 8400, forward",
        find_case("pairwise_box_iou-ciou"),
        (16, 60, 8400),
        Work.FORWARD,
        Goal(eager=20),
    ),
    *(
        case
        for framework, case in _CRITERIA.items()
        if fastloss.patch.available()[framework].usable
    ),
    BenchmarkCase(
        "detr-matching",
        "DETR matching cost, 16 · 300 × 200",
        MATCHING,
        (16 * 300, 92, 200),
        Work.FORWARD,
        Goal(eager=8),
    ),
    BenchmarkCase(
        "call-forward",
        "CIoU of 16 against smooth L1, forward",
        find_case(_CIOU),
        (16,),
        Work.GRAPH,
        Goal(eager=1),
        yardstick=CALL_YARDSTICK,
    ),
    BenchmarkCase(
        "call-step",
        "CIoU of 16 against smooth L1, step",
        find_case(_CIOU),
        (16,),
        Work.STEP,
        Goal(eager=1),
        yardstick=CALL_YARDSTICK,
    ),
)


# The sizes of the losses without a goal, by engine: large enough to hide what a call costs.
ENGINE_SHAPES: dict[str, Shape] = {
    "box_pair": (1 << 16,),
    "box_matrix": (16, 60, 2100),
    "box_crowd": (1024, 64),
    "pairs": (64, 100),
    "triplet": (1 << 11, 64),
    "batch_hard": (1 << 8, 64),
    "row_pair": (1 << 14, 64),
    "edges": (1 << 14, 1 << 11, 64),
    "detection": (4, 3, 2100, 16, 12),
    "contrastive": (1 << 9, 64),
    "pointwise": (1 << 14, 64),
    "softmax": (1 << 14, 64),
    "linear_cross_entropy": (1 << 11, 64, 1 << 12),
    "region": (4, 20, 128, 128),
    "ranked_region": (2, 20, 128, 128),
    "sequence": (32, 64, 16),
}
SCORES: Shape = (16, 30, 30)  # what a discriminator says of the patches of 16 images


def _others(measured: Sequence[BenchmarkCase]) -> tuple[BenchmarkCase, ...]:
    """One case for every function and formula that has none yet; variants of one cost the same."""
    kernels = {(case.row.function, case.row.kernel_name) for case in measured}
    others = []
    for row in CASES:
        kernel = (row.function, row.kernel_name)
        if kernel in kernels:
            continue
        kernels.add(kernel)
        of_scores = "fake" in row.family.differentiable
        shape = SCORES if of_scores else ENGINE_SHAPES[row.family.engine]
        others.append(
            BenchmarkCase(
                row.id,
                f"{row.label}, {' × '.join(map(str, shape))}",
                row,
                shape,
                Work.STEP if row.family.reduces else Work.FORWARD,
                headline=False,
            )
        )
    return tuple(others)


BENCHMARKS: tuple[BenchmarkCase, ...] = (*_WITH_GOALS, *_others(_WITH_GOALS))


def select_cases(patterns: Sequence[str]) -> list[BenchmarkCase]:
    """The cases whose name or loss matches one of the patterns; all cases without any.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    chosen = []
    for pattern in patterns or ("*",):
        found = [
            case
            for case in BENCHMARKS
            if fnmatchcase(case.name, pattern) or fnmatchcase(case.row.function, pattern)
        ]
        if not found:
            raise ValueError(f"no benchmark is called {pattern!r}; --list shows them")
        chosen.extend(found)
    return [case for case in BENCHMARKS if case in chosen]
