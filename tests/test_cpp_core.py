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
    "avx512": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ],
}
RANK = {"AVX512": 2, "AVX2": 1}


def runs_here(name: str) -> bool:
    if name == "baseline":
        return True
    x86 = platform.machine() in ("x86_64", "AMD64")
    return x86 and list(FLAGS).index(name) <= RANK.get(torch.backends.cpu.get_cpu_capability(), 0)


def compile_and_run(
    name: str, contraction: str, compiler: list[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    program = folder / name
    compilation = subprocess.run(
        [
            *compiler, "-std=c++20", "-O2", "-DNDEBUG", "-Wall", "-Wextra", "-Werror",
            f"-ffp-contract={contraction}", "-fno-math-errno", "-fno-trapping-math", *FLAGS[name],
            f"-DFASTLOSS_TARGET={name}", f"-I{ROOT / 'csrc'}",
            str(ROOT / "tests/cpp/test_core.cpp"), "-o", str(program),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert compilation.returncode == 0, compilation.stderr
    return subprocess.run([program], capture_output=True, text=True)


@pytest.mark.parametrize("contraction", ["off", "fast"])
def test_every_check_passes(tmp_path: Path, contraction: str) -> None:
    """Both as the box engines and as the pointwise engine is compiled.

    Without fused multiply-adds every instruction set computes the same bits.
    """
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"there is no C++ compiler ({compiler[0]})")
    checksums = {}
    for name in filter(runs_here, FLAGS):
        run = compile_and_run(name, contraction, compiler, tmp_path)
        lines = run.stdout.splitlines()
        assert [line for line in lines if line.startswith("FAIL")] == [], name
        assert run.returncode == 0, run.stderr
        assert sum(line.startswith("ok") for line in lines) > 20
        checksums[name] = [line for line in lines if line.startswith("checksum")]
        assert len(checksums[name]) > 5
        if contraction == "off":
            assert checksums[name] == checksums["baseline"], name
