# SPDX-License-Identifier: MIT
"""Dense detectors: which box each anchor is to predict, and what the rows of the table do not show
of the losses.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import DTYPES, find_case
from torch import Tensor

import fastloss
import fastloss.functional as F
from fastloss import reference

SIDE = 96  # of an image, in pixels
NAMES = ("logits", "distances", "anchors", "strides", "target_labels", "target_boxes")


def scene(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    batch: int = 2,
    classes: int = 4,
    bins: int = 8,
    boxes: int = 6,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A pyramid of three levels, and boxes that meet; the last one of each image is padding."""
    generator = torch.Generator().manual_seed(seed)
    points, strides = [], []
    for stride in (8, 16, 32):
        steps = torch.arange(SIDE // stride) + 0.5
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        points.append(torch.stack((x, y), dim=-1).view(-1, 2))
        strides.append(torch.full((len(steps) ** 2,), float(stride)))
    anchors = torch.cat(points)
    count = len(anchors)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    center, half = uniform(batch, boxes, 2) * SIDE, (0.03 + 0.3 * uniform(batch, boxes, 2)) * SIDE
    labels = torch.randint(classes, (batch, boxes), generator=generator)
    labels[:, -1] = -1
    tensors = {
        "logits": 2 * normal(batch, classes, count) - 2,
        "distances": normal(batch, 4 * bins, count),
        "anchors": anchors,
        "strides": torch.cat(strides),
        "target_labels": labels,
        "target_boxes": torch.cat((center - half, center + half), dim=-1).clamp(0, SIDE),
    }
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def wide(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64, on the CPU."""
    return {
        name: value.cpu().double()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value.cpu()
        if isinstance(value, Tensor)
        else value
        for name, value in tensors.items()
    }


def check(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The kernels choose what the oracle chooses."""
    indices, scores = F.task_aligned_assignment(**arguments)
    expected = reference.task_aligned_assignment(**wide(arguments))
    assert torch.equal(indices.cpu(), expected[0])
    torch.testing.assert_close(scores.cpu().double(), expected[1], rtol=3e-5, atol=1e-7)
    return indices, scores


# ----------------------------------------------------------------------------------- the assignment


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.table
def test_assignment(dtype: torch.dtype, device: str) -> None:
    indices, scores = check(scene(dtype, device))
    assert indices.dtype == torch.int64
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (indices >= 0).sum() > 20
    assert torch.equal(indices >= 0, scores > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 1},
        {"topk": 3, "topk2": 1},
        {"topk2": 2},
        {"topk": 1000},
        {"alpha": 0.0, "beta": 1.0},
        {"alpha": 1.0, "beta": 2.0},
    ],
    ids=str,
)
@pytest.mark.table
def test_options_of_the_assignment(options: dict[str, Any], device: str) -> None:
    indices, _ = check({**scene(device=device), **options})
    if "topk2" in options:
        for image in indices:
            assert image[image >= 0].bincount().max() == options["topk2"]


@pytest.mark.table
def test_contested_anchors_go_to_the_box_they_overlap_most(device: str) -> None:
    """Boxes one in the other, all of whose anchors suit all of them."""
    arguments = scene(device=device, boxes=9)
    around = torch.tensor([8.0, 8.0, 88.0, 88.0])
    step = torch.tensor([1.0, 1.0, -1.0, -1.0])
    for i in range(8):
        arguments["target_boxes"][:, i] = (around + 2 * i * step).to(device)
    before = F.task_aligned_assignment(**{**arguments, "topk": 10})[0]
    assert len(before[0].unique()) > 4
    check(arguments)


@pytest.mark.table
def test_boxes_look_for_anchors_elsewhere(device: str) -> None:
    """A box of 6 pixels between anchors, beside which boxes of 14 pixels are predicted."""
    arguments = scene(device=device)
    arguments["target_boxes"][:, 0] = torch.tensor([29.0, 29.0, 35.0, 35.0])
    bins = arguments["distances"].unflatten(1, (4, -1))
    bins.fill_(-30.0)[:, :, :2] = torch.tensor([0.1, 0.9]).log()[:, None]  # of the distances 0, 1
    without, _ = check(arguments)
    assert not (without == 0).any()
    larger = arguments["target_boxes"] + torch.tensor([-5.0, -5.0, 5.0, 5.0], device=device)
    with_candidates, _ = check({**arguments, "candidate_boxes": larger})
    assert (with_candidates == 0).any()


@pytest.mark.table
def test_equally_good_anchors_are_taken_in_their_order(device: str) -> None:
    arguments = scene(device=device, batch=1, boxes=2)
    arguments["logits"].fill_(1.0)
    arguments["distances"].fill_(0.0)
    arguments["anchors"].fill_(2.0)
    arguments["strides"].fill_(8.0)
    arguments["target_boxes"][:, 0] = torch.tensor([1.0, 1.0, 40.0, 40.0])
    indices, _ = check({**arguments, "topk": 5})
    assert (indices[0] >= 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.table
def test_no_boxes_no_anchors_no_images(device: str) -> None:
    for changes in ({"boxes": 1}, {"boxes": 3, "batch": 0}):
        indices, scores = check(scene(device=device, **changes))
        assert (indices == -1).all()
        assert (scores == 0).all()
    arguments = scene(device=device)
    nothing = {
        **arguments,
        "target_labels": arguments["target_labels"][:, :0],
        "target_boxes": arguments["target_boxes"][:, :0],
    }
    indices, scores = check(nothing)
    loss = F.task_aligned_detection_loss(**nothing, target_indices=indices, target_scores=scores)
    assert loss[0] == loss[2] == 0
    assert loss[1] > 0
    no_anchors = {
        **arguments,
        "logits": arguments["logits"][..., :0],
        "distances": arguments["distances"][..., :0],
        "anchors": arguments["anchors"][:0],
        "strides": arguments["strides"][:0],
    }
    assert F.task_aligned_assignment(**no_anchors)[0].shape == (2, 0)


@pytest.mark.table
def test_strides_of_predictions(device: str) -> None:
    """As (B, A, C), in a larger tensor, and expanded."""
    arguments = scene(device=device)
    expected = check(arguments)
    for name in ("logits", "distances"):
        swapped = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
        spread = arguments[name].repeat_interleave(2, dim=2)[..., ::2]
        for other in (swapped, spread):
            found = F.task_aligned_assignment(**{**arguments, name: other})
            assert all(map(torch.equal, found, expected))


@pytest.mark.table
def test_nan_is_chosen_and_seen(device: str) -> None:
    """A prediction of NaN inside a box must not go unnoticed."""
    arguments = scene(device=device, batch=1, boxes=2)
    inside = arguments["anchors"] * arguments["strides"][:, None]
    box = arguments["target_boxes"][0, 0]
    anchor = ((inside > box[:2]) & (inside < box[2:])).all(-1).nonzero()[0, 0]
    arguments["distances"][:, :, anchor] = torch.nan
    indices, scores = F.task_aligned_assignment(**arguments)
    assert indices[0, anchor] == 0
    assert scores[0, anchor].isnan()


def test_nothing_flows_back_through_the_assignment(device: str) -> None:
    arguments = scene(device=device)
    arguments["logits"].requires_grad_()
    _, scores = F.task_aligned_assignment(**arguments)
    assert not scores.requires_grad
    before = {name: tensor.detach().clone() for name, tensor in arguments.items()}
    F.task_aligned_assignment(**arguments)
    assert all(torch.equal(arguments[name], before[name]) for name in before)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_assignment_under_torch(device: str) -> None:
    arguments = scene(device=device)
    values = (*(arguments[name] for name in NAMES), 3, None, 0.5, 6.0, None)
    if device == "cpu":
        torch.library.opcheck(torch.ops.fastloss.task_aligned_assignment.default, values)
    expected = F.task_aligned_assignment(**arguments)
    compiled = torch.compile(F.task_aligned_assignment, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(**arguments), expected))


# ------------------------------------------------------------------------------------------- module


def test_module_assigns_and_computes(device: str) -> None:
    arguments = scene(device=device)
    for name in ("logits", "distances"):
        arguments[name].requires_grad_()
    weight = torch.rand(4, device=device)
    module = fastloss.TaskAlignedDetectionLoss(topk=4, beta=2.0, weight=weight)
    assigned = F.task_aligned_assignment(**arguments, topk=4, beta=2.0)
    expected = F.task_aligned_detection_loss(
        *(arguments[name] for name in NAMES), *assigned, weight=weight
    )
    assert torch.equal(module(**arguments), expected)
    assert repr(module) == "TaskAlignedDetectionLoss(topk=4, topk2=None, alpha=0.5, beta=2.0)"
    assert "weight" in module.state_dict()


@pytest.mark.table
def test_background_scores_and_padding_do_not_count(device: str) -> None:
    case = find_case("task_aligned_detection_loss")
    arguments = case.arguments(67, device=device, requires_grad=True)
    expected = case.loss(arguments)
    noise = torch.where(arguments["target_indices"] < 0, 7.0, arguments["target_scores"])
    changed = {**arguments, "target_scores": noise}
    assert torch.equal(case.loss(changed), expected)
    # What points at padding is background.
    moved = torch.where(arguments["target_indices"] < 0, 2, arguments["target_indices"])
    assert (arguments["target_labels"][:, 2] < 0).all()
    assert torch.equal(case.loss({**arguments, "target_indices": moved}), expected)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits": torch.zeros(2, 4)}, ValueError, r"logits must have shape \(B, C, A\)"),
        ({"distances": torch.zeros(2, 30, 189)}, ValueError, r"distances must have shape \(B, 4"),
        ({"distances": torch.zeros(2, 4, 189)}, ValueError, "at least 2 bins"),
        ({"anchors": torch.zeros(3, 2)}, ValueError, r"anchors must have shape \(A, 2\)"),
        ({"strides": torch.zeros(189, 1)}, ValueError, r"strides must have shape \(A,\)"),
        ({"target_labels": torch.zeros(2, 6)}, TypeError, "target_labels must be uint8, int16"),
        ({"target_labels": torch.zeros(3, 6).long()}, ValueError, "target_labels must have shape"),
        ({"target_boxes": torch.zeros(2, 5, 4)}, ValueError, "target_boxes must have shape"),
        ({"logits": torch.zeros(2, 4, 189).long()}, TypeError, "logits must be float16"),
        ({"logits": [1.0]}, TypeError, "logits must be a Tensor, got list"),
    ],
)
def test_bad_detections(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = scene()
    if "anchors" not in changes:
        assert arguments["anchors"].shape == (189, 2)
    for function, more in (
        (F.task_aligned_assignment, {}),
        (
            F.task_aligned_detection_loss,
            {"target_indices": torch.zeros(2, 189).long(), "target_scores": torch.zeros(2, 189)},
        ),
    ):
        with pytest.raises(error, match=f"^{function.__name__}: {message}|{message}"):
            function(**{**arguments, **more, **changes})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"topk": 0}, ValueError, "topk must be at least 1, got 0"),
        ({"topk2": 0}, ValueError, "topk2 must be at least 1 or None, got 0"),
        ({"topk": 2.5}, TypeError, "topk must be an int of 64 bits, got float"),
        ({"alpha": -1.0}, ValueError, "alpha must be at least 0 and finite"),
        ({"beta": 0.0}, ValueError, "beta must be above 0 and finite"),
        ({"candidate_boxes": torch.zeros(2, 5, 4)}, ValueError, "candidate_boxes must have shape"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^task_aligned_assignment: {message}"):
        F.task_aligned_assignment(**{**scene(), **options})


def test_labels_and_indices_out_of_range(device: str) -> None:
    if device != "cpu":
        pytest.skip("a device-side assertion ends the process's use of the GPU")
    arguments = scene()
    assigned = dict(
        zip(
            ("target_indices", "target_scores"),
            F.task_aligned_assignment(**arguments),
            strict=True,
        )
    )
    labels = arguments["target_labels"].clone()
    labels[1, 2] = 4
    wrong = {**arguments, "target_labels": labels}
    message = r"target_labels must be a class index in \[0, 3\].* got 4 at position \[1, 2\]"
    with pytest.raises(IndexError, match=f"^task_aligned_assignment: {message}"):
        F.task_aligned_assignment(**wrong)
    with pytest.raises(IndexError, match=f"^task_aligned_detection_loss: {message}"):
        F.task_aligned_detection_loss(**wrong, **assigned)
    assigned["target_indices"][0, 5] = 6
    with pytest.raises(IndexError, match=r"target_indices must .* got 6 at position \[0, 5\]"):
        F.task_aligned_detection_loss(**arguments, **assigned)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target_indices": torch.zeros(2, 189)}, TypeError, "target_indices must be uint8"),
        (
            {"target_indices": torch.zeros(2, 3).long()},
            ValueError,
            "target_indices must have shape",
        ),
        ({"target_scores": torch.zeros(2, 3)}, ValueError, "target_scores must have shape"),
        ({"target_scores": torch.zeros(2, 189).long()}, TypeError, "target_scores must be float16"),
        ({"weight": torch.zeros(3)}, ValueError, r"weight must have shape \(C,\)"),
    ],
)
def test_bad_assignment(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = scene()
    indices, scores = F.task_aligned_assignment(**arguments)
    assigned = {"target_indices": indices, "target_scores": scores}
    with pytest.raises(error, match=f"^task_aligned_detection_loss: {message}"):
        F.task_aligned_detection_loss(**{**arguments, **assigned, **changes})
