# SPDX-License-Identifier: MIT
"""Every instruction set in a process of its own: the same numbers, most of them to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import CASES, Case
from support import each_case, gradients

BASELINE = "baseline"
OTHERS = ("avx2", "avx512")


def compute() -> dict[str, dict[str, torch.Tensor]]:
    """Losses and gradients of every row in several dtypes and sizes."""
    results = {}
    for case in CASES:
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            for size in (7, 67):
                for reduction in case.reductions[:2]:
                    arguments = case.arguments(size, dtype, requires_grad=True)
                    loss = case.loss(arguments, **reduction)
                    numbers = {"loss": loss.detach(), **gradients(loss, arguments)}
                    results[f"{case.id} {dtype} {size} {reduction.get('reduction', 'none')}"] = (
                        numbers
                    )
        degenerate = case.arguments(degenerate=True, requires_grad=True)
        loss = case.loss(degenerate, **case.reductions[0])
        results[f"{case.id} degenerate none"] = {
            "loss": loss.detach(),
            **gradients(loss, degenerate),
        }
    return results


def environment(instruction_set: str) -> dict[str, str]:
    return {**os.environ, "FASTLOSS_CPU_ISA": instruction_set}


@pytest.fixture(scope="module")
def by_instruction_set(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    """The results of every instruction set that this processor runs and that is built."""
    results = {}
    for name in (BASELINE, *OTHERS):
        path = tmp_path_factory.mktemp("isa") / f"{name}.pt"
        run = subprocess.run(
            [sys.executable, __file__, str(path)],
            env=environment(name),
            capture_output=True,
            text=True,
        )
        if run.returncode == 0:
            results[name] = torch.load(path)
        else:
            assert "FASTLOSS_CPU_ISA" in run.stderr, run.stderr
    return results


def is_rounded_otherwise(case: Case, key: str, what: str) -> bool:
    """Whether bits may differ: fused multiply-adds, or lanes added up in another order."""
    contracted = (
        *("pointwise", "softmax", "linear_cross_entropy", "region", "ranked_region"),
        *("pairs", "triplet", "batch_hard", "contrastive", "sequence", "row_pair", "edges"),
        "detection",
    )
    if case.family.engine in contracted:
        return True  # compiled with contraction, where the instruction set has it
    if case.family.engine == "box_crowd":
        return True  # of what the neighbours do to a box
    if case.family.engine == "box_matrix":
        return what != "loss"  # of a row or a column
    return what == "loss" and not key.endswith("none")


@each_case()
@pytest.mark.parametrize("name", OTHERS)
def test_same_numbers_as_the_baseline(
    case: Case, by_instruction_set: dict[str, dict], name: str
) -> None:
    if name not in by_instruction_set or BASELINE not in by_instruction_set:
        pytest.skip(f"this build or this processor has no {name} beside {BASELINE}")
    mine = [key for key in by_instruction_set[BASELINE] if key.split()[0] == case.id]
    assert mine
    for key in mine:
        for what, expected in by_instruction_set[BASELINE][key].items():
            found = by_instruction_set[name][key][what]
            if is_rounded_otherwise(case, key, what):
                rounding = max(case.float32.absolute / 2, torch.finfo(expected.dtype).eps)
                allowed = rounding * expected.abs().max().item() if expected.numel() else 0.0
                torch.testing.assert_close(
                    found, expected, rtol=4 * rounding, atol=allowed, msg=f"{what} of {key}"
                )
            else:
                assert torch.equal(found, expected), f"{what} of {key}"


def test_the_fastest_one_is_chosen() -> None:
    """Without the variable: what the processor has, as torch sees it."""
    automatic = {key: value for key, value in os.environ.items() if not key.startswith("FASTLOSS_")}
    found = instruction_set_of(automatic)
    if found == "cuda_emulation":
        pytest.skip("a build for the emulation has no other")
    capability = torch.backends.cpu.get_cpu_capability()
    expected = {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, BASELINE)
    assert found == expected


def instruction_set_of(environment: dict[str, str]) -> str:
    code = "import fastloss; print(fastloss.build_info()['instruction_set'])"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_variable_forces_one() -> None:
    assert instruction_set_of(environment(BASELINE)) == BASELINE


def test_an_unknown_name_is_an_error_at_import() -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import fastloss"],
        env=environment("sse9"),
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "FASTLOSS_CPU_ISA must be one of" in run.stderr
    assert BASELINE in run.stderr
    assert "got sse9" in run.stderr


if __name__ == "__main__":
    torch.save(compute(), sys.argv[1])
