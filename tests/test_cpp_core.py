# SPDX-License-Identifier: MIT
"""The C++ unit test of csrc/core, compiled and run for each instruction set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# As CMakeLists.txt compiles the engines.
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c -mprefer-vector-width=512".split(),
}
RANK = {"AVX512": 2, "AVX2": 1}


def runs_here(name: str) -> bool:
    if name == "baseline":
        return True
    x86 = platform.machine() in ("x86_64", "AMD64")
    return x86 and list(FLAGS).index(name) <= RANK.get(torch.backends.cpu.get_cpu_capability(), 0)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"there is no C++ compiler ({compiler})")
    folder = tmp_path_factory.mktemp("core")
    results = {}
    for name, flags in FLAGS.items():
        if not runs_here(name):
            continue
        program = folder / name
        compilation = subprocess.run(
            [
                *compiler.split(), "-std=c++20", "-O2", "-DNDEBUG", "-Wall", "-Wextra", "-Werror",
                "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", *flags,
                f"-DFASTLOSS_TARGET={name}", f"-I{ROOT / 'csrc'}", str(ROOT / "tests/cpp/test_core.cpp"),
                "-o", str(program),
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        assert compilation.returncode == 0, compilation.stderr
        results[name] = subprocess.run([program], capture_output=True, text=True)
    return results


@pytest.mark.parametrize("name", FLAGS)
def test_every_check_passes(outputs: dict[str, subprocess.CompletedProcess[str]], name: str) -> None:
    if name not in outputs:
        pytest.skip(f"this processor does not run {name}")
    lines = outputs[name].stdout.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == []
    assert outputs[name].returncode == 0, outputs[name].stderr
    assert sum(line.startswith("ok") for line in lines) > 20


def test_every_instruction_set_computes_the_same_bits(
    outputs: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    if len(outputs) < 2:
        pytest.skip("this processor runs the baseline alone")
    checksums = {
        name: [line for line in run.stdout.splitlines() if line.startswith("checksum")] for name, run in outputs.items()
    }
    for name, lines in checksums.items():
        assert len(lines) > 5
        assert lines == checksums["baseline"], name
