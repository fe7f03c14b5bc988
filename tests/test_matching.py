# SPDX-License-Identifier: MIT
"""The costs of matching: values, dtypes, layouts, degenerate input, errors, torch's machinery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from cases import DTYPES, MATCHING, TOLERANCES, Arguments
from support import as_float64, assert_close
from test_dtypes_and_layouts import FLOAT_IDS, LAYOUTS, operands, with_layout
from torch import Tensor

import fastloss.functional as F
from fastloss import reference

KINDS = ("softmax", "focal")
each_kind = pytest.mark.parametrize("kind", KINDS)


def check(arguments: Arguments, what: str = "", **options: Any) -> Tensor:
    """Compares with the oracle's numbers; nothing is connected to a graph."""
    found = MATCHING.loss(arguments, **options)
    expected = MATCHING.reference(as_float64(arguments), **options)
    assert_close(found, expected, TOLERANCES[found.dtype], f"{options} {what}")
    assert not found.requires_grad
    return found


@pytest.mark.table
@each_kind
@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 3, 0), (1, 1, 1), (17, 67, 21), (2, 2, 9, 5, 33)])
def test_values(kind: str, shape: tuple[int, ...], device: str) -> None:
    arguments = MATCHING.arguments(shape, device=device)
    found = check(arguments, kind=kind)
    assert found.dtype == torch.float32
    assert found.shape == (*shape[:-2], shape[-1])


@pytest.mark.table
@each_kind
def test_options(kind: str, device: str) -> None:
    arguments = MATCHING.arguments(9, device=device)
    check(arguments, kind=kind, class_cost=2.0, bbox_cost=0.5, giou_cost=0.0)
    check(arguments, kind=kind, class_cost=0.0, alpha=0.0)
    check(arguments, kind=kind, bbox_cost=-1, alpha=0.6, gamma=1.5)


@pytest.mark.table
@each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
def test_dtypes_and_degenerate_input(kind: str, dtype: torch.dtype, device: str) -> None:
    found = check(MATCHING.arguments(9, dtype, device=device), kind=kind)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    degenerate = MATCHING.arguments(dtype=dtype, device=device, degenerate=True)
    assert check(degenerate, kind=kind).isfinite().all()
    mixed = MATCHING.arguments(9, dtype, device=device, target_boxes=torch.float64)
    mixed["target_labels"] = mixed["target_labels"].to(torch.uint8)
    assert check(mixed, kind=kind).dtype == torch.float64


@pytest.mark.table
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides(layout: Any, device: str) -> None:
    dense = MATCHING.arguments(7, device=device)
    expected = MATCHING.loss(dense)
    for name in operands(dense):
        assert torch.equal(MATCHING.loss(with_layout(dense, layout, {name})), expected), name


@pytest.mark.table
@each_kind
def test_nan_stays_in_its_row_and_its_column(kind: str, device: str) -> None:
    arguments = MATCHING.arguments((9, 5, 20), device=device)
    arguments["logits"][2, int(arguments["target_labels"][0])] = torch.nan
    arguments["boxes"][4, 1] = arguments["target_boxes"][17, 3] = torch.nan
    bad = MATCHING.loss(arguments, kind=kind).isnan()
    assert bad[4].all()
    assert bad[:, 17].all()
    assert bad[2, 0]
    others = [row for row in range(9) if row not in (2, 4)]
    assert not bad[others][:, [column for column in range(20) if column != 17]].any()


def transformers_cost(
    logits: Tensor, boxes: Tensor, target_labels: Tensor, target_boxes: Tensor, kind: str
) -> Tensor:
    """As a matcher writes it: the logarithms of what is left of 1, boxes without eps."""
    if kind == "softmax":
        of_class = -logits.softmax(-1)[:, target_labels]
    else:
        p = logits.sigmoid()[:, target_labels]
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        of_class = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - negative
    corners, target_corners = (
        torch.cat((b[:, :2] - 0.5 * b[:, 2:], b[:, :2] + 0.5 * b[:, 2:]), -1)
        for b in (boxes, target_boxes)
    )
    similarity = reference.pairwise_box_iou(corners, target_corners, "giou", 0.0)
    return of_class + 5 * torch.cdist(boxes, target_boxes, p=1) - 2 * similarity


@each_kind
def test_agrees_with_the_formula_of_matchers(kind: str) -> None:
    arguments = MATCHING.arguments((40, 11, 30), torch.float64)
    expected = transformers_cost(**arguments, kind=kind)
    torch.testing.assert_close(F.detr_matching_cost(**arguments, kind=kind), expected)


@each_kind
def test_same_bits_with_any_number_of_threads_and_nothing_is_changed(kind: str) -> None:
    threads = torch.get_num_threads()
    arguments = MATCHING.arguments((300, 91, 40))
    before = {name: value.clone() for name, value in arguments.items()}
    try:
        runs = []
        for count in (2, 1, 3):
            torch.set_num_threads(count)
            runs.append(MATCHING.loss(arguments, kind=kind))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(run, runs[0]) for run in runs)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


@each_kind
def test_torchs_machinery(kind: str) -> None:
    arguments = MATCHING.arguments((2, 5, 7, 6))
    expected = MATCHING.loss(arguments, kind=kind)
    for name in ("logits", "boxes", "target_boxes"):
        arguments[name].requires_grad_()
    assert not MATCHING.loss(arguments, kind=kind).requires_grad
    torch._dynamo.reset()
    compiled = torch.compile(F.detr_matching_cost, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**arguments, kind=kind), expected)
    values = (*(value.detach() for value in arguments.values()), 1.0, 5.0, 2.0, 0.25, 2.0, kind)
    torch.library.opcheck(
        torch.ops.fastloss.detr_matching_cost_forward.default,
        values,
        test_utils=("test_schema", "test_faketensor"),
    )
    mapped = torch.func.vmap(lambda *given: F.detr_matching_cost(*given, kind=kind))(*values[:4])
    torch.testing.assert_close(mapped, expected)
    on_meta = F.detr_matching_cost(*(value.to("meta") for value in values[:4]), kind=kind)
    assert on_meta.is_meta
    assert on_meta.shape == expected.shape


@pytest.mark.parametrize(
    ("error", "message", "changed"),
    [
        (TypeError, "logits must be float16", {"logits": torch.zeros(2, 3).int()}),
        (ValueError, r"logits must have shape \(\.\.\., N, C\)", {"logits": torch.zeros(3)}),
        (ValueError, r"boxes must have shape \(\.\.\., N, 4\)", {"boxes": torch.zeros(3, 4)}),
        (ValueError, r"boxes must have shape \(\.\.\., 4\)", {"boxes": torch.zeros(2, 3)}),
        (TypeError, "target_labels must be uint8", {"target_labels": torch.zeros(4)}),
        (
            ValueError,
            r"target_labels must have shape \(\.\.\., M\)",
            {"target_labels": torch.zeros(1, 4).long()},
        ),
        (
            ValueError,
            r"target_boxes must have shape \(\.\.\., M, 4\)",
            {"target_boxes": torch.zeros(3, 4)},
        ),
        (IndexError, r"target_labels must be in \[0, 3\), got 3", {"target_labels": [0, 1, 2, 3]}),
        (
            IndexError,
            r"target_labels must be in \[0, 3\), got -1",
            {"target_labels": [0, 1, 2, -1]},
        ),
        (ValueError, "kind must be", {"kind": "sigmoid"}),
        (TypeError, "kind must be", {"kind": None}),
        (ValueError, "class_cost must be finite", {"class_cost": float("inf")}),
        (TypeError, "bbox_cost must be a number", {"bbox_cost": "5"}),
        (ValueError, r"alpha must be in \[0, 1\]", {"alpha": 1.5}),
        (ValueError, "gamma must be at least 0", {"gamma": -1.0}),
    ],
)
def test_errors(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = MATCHING.arguments((2, 3, 4))
    labels = changed.get("target_labels")
    if isinstance(labels, list):
        changed = {"target_labels": torch.tensor(labels)}
    with pytest.raises(error, match=f"^detr_matching_cost: {message}"):
        F.detr_matching_cost(**{**arguments, **changed})
