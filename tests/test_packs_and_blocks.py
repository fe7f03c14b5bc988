# SPDX-License-Identifier: MIT
"""Work that CUDA kernels share out: packs of elements that one thread takes at once, and blocks."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, Case, Shape
from support import check_against_oracle, each_case, gradients
from test_dtypes_and_layouts import FLOAT_IDS, LAYOUTS, operands, with_layout


def several_blocks(case: Case) -> Shape:
    """A shape of whole packs that needs several blocks, and of boxes that needs more than there is
    room for at a time on the small device of the CUDA emulation (16 blocks).
    """
    return {
        "pointwise": (1050, 4),
        "softmax": (150, 8) if len(case.family.shape_of(3)) == 2 else (3, 4, 1400),
        "linear_cross_entropy": (150, 8),
        "region": (3, 4, 1100),  # and several slices of a sample
        "ranked_region": (2, 3, 90),
        "sequence": (37, 5, 4),
        "box_pair": (2100,),
        "box_matrix": (5, 9, 130),
        "box_crowd": (131, 40),
        "pairs": (35, 21),
        "triplet": (70, 24),
        "batch_hard": (150, 12),
        "row_pair": (70, 24),
        "edges": (300, 20, 70),  # more features than a warp takes at a time
        "contrastive": (70, 12),
        "detection": (3, 3, 701, 2, 3),
    }[case.family.engine]


@each_case(lambda case: not case.family.rounds_inside)
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOAT_IDS)
def test_several_blocks(case: Case, dtype: torch.dtype, device: str) -> None:
    shape = several_blocks(case)
    for reduction in case.reductions:
        arguments = case.arguments(shape, dtype, device=device, requires_grad=True)
        check_against_oracle(case, arguments, str(reduction), **reduction)
    for weight in case.weights(shape, dtype, device=device):
        arguments = case.arguments(shape, dtype, device=device, requires_grad=True)
        what = f"weight {tuple(weight.shape)}"
        check_against_oracle(case, arguments, what, weight=weight, reduction="mean")


@each_case()
def test_order_of_blocks_does_not_matter(case: Case, device: str) -> None:
    """A device runs the blocks in whatever order; not a bit of the results may change."""
    for reduction in case.reductions:
        results = []
        for _ in range(3):
            arguments = case.arguments(several_blocks(case), device=device, requires_grad=True)
            loss = case.loss(arguments, **reduction)
            results.append([loss, *gradients(loss, arguments).values()])
        for repeated in results[1:]:
            assert all(torch.equal(*pair) for pair in zip(results[0], repeated, strict=True))


@each_case(lambda case: case.family.engine in ("pointwise", "region", "ranked_region"))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["float16", "float32"])
@pytest.mark.parametrize("layout", ["offset_1", "offset_2", "spread", "chunk", "transposed"])
def test_whole_packs_in_memory_without(
    case: Case, layout: str, dtype: torch.dtype, device: str
) -> None:
    """A shape that divides into packs, and one operand whose memory does not."""
    shape = (6, 8) if case.family.engine == "pointwise" else (2, 3, 2, 8)
    dense = case.arguments(shape, dtype, device=device, requires_grad=True)
    names = operands(dense)
    for chosen in [{name} for name in sorted(names)] + [names]:
        arguments = with_layout(dense, LAYOUTS[layout], chosen)
        check_against_oracle(case, arguments, str(sorted(chosen)), **case.reductions[0])
    for weight in case.weights(shape, dtype, device=device):
        arguments = with_layout({**dense, "weight": weight}, LAYOUTS[layout], {"weight"})
        what = f"weight {tuple(weight.shape)}"
        check_against_oracle(case, dense, what, weight=arguments["weight"], reduction="mean")
