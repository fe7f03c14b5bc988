# SPDX-License-Identifier: MIT
"""nvcc compiles every kernel without a warning, and finds room for all it holds in registers.

A kernel that spills, or keeps an array in local memory, still gives the right numbers, only several
times slower: no other test would tell.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from setup_script import setup_script

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = [*sorted(CSRC.glob("engines/*_cuda.cu")), CSRC / "core" / "cuda_counters.cu"]
ARCHITECTURES = ("sm_80", "sm_90")
NVCC = setup_script().find_nvcc()


@dataclass(frozen=True)
class Function:
    """What ptxas reports of one function: a kernel, or one that a kernel calls."""

    name: str
    architecture: str
    stack: int
    spilled_stores: int
    spilled_loads: int

    @property
    def stays_in_registers(self) -> bool:
        return self.stack == self.spilled_stores == self.spilled_loads == 0


REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'"
    r"|Function properties for (?P<name>\S+)\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads"
)


def read_report(report: str) -> Iterator[Function]:
    """Reads what ``ptxas -v`` prints."""
    architecture, properties = "", 0
    for match in REPORT.finditer(report):
        if match["architecture"]:
            architecture = match["architecture"]
            continue
        properties += 1
        numbers = (int(match[field]) for field in ("stack", "stores", "loads"))
        yield Function(match["name"], architecture, *numbers)
    assert properties == report.count("Function properties"), "a report in another format"


def kernels_of(source: Path) -> set[str]:
    """The names of the kernels that a file defines."""
    kernel = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("
    text = source.read_text()
    names = set(re.findall(kernel, text))
    assert len(names) == text.count("__global__"), "a kernel declared in another way"
    return names


def compile_with_nvcc(source: Path) -> str:
    """What nvcc and ptxas say of a file. The same files are not compiled twice."""
    # No kernel asks for its architecture: PTX for the oldest serves all, and nvcc's front end runs
    # once.
    oldest = ARCHITECTURES[0].replace("sm", "compute")
    command = [
        *(str(NVCC), "-std=c++20", f"-gencode=arch={oldest},code=[{','.join(ARCHITECTURES)}]"),
        *("-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings", "-Xptxas=-v"),
        *("-DFASTLOSS_TARGET=cuda", "-DFASTLOSS_TARGET_IS_CUDA", f"-I{CSRC}", "-c", str(source)),
    ]
    version = subprocess.run([str(NVCC), "--version"], capture_output=True, check=True).stdout
    key = hashlib.sha256(version + repr(command).encode())
    for file in [source, *sorted(CSRC.rglob("*.h"))]:
        key.update(file.read_bytes())
    folder = ROOT / "build" / "cuda_compile"
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / f"{source.stem}-{key.hexdigest()[:16]}.txt"
    if not known.exists():
        output = folder / f"{source.stem}.o"
        done = subprocess.run(
            [*command, "-o", str(output)], capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for outdated in folder.glob(f"{source.stem}-*.txt"):
            outdated.unlink()
        known.write_text(done.stdout + done.stderr)
    return known.read_text()


def test_no_kernel_asks_for_its_architecture() -> None:
    for source in [*CSRC.rglob("*.h"), *CSRC.rglob("*.cu")]:
        for line in source.read_text().splitlines():
            assert "__CUDA_ARCH__" not in line or "defined(__CUDA_ARCH__)" in line, source


@pytest.mark.skipif(NVCC is None, reason="nvcc was not found")
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_kernels_compile_and_stay_in_registers(source: Path) -> None:
    functions = list(read_report(compile_with_nvcc(source)))
    bad = [function for function in functions if not function.stays_in_registers]
    assert not bad, bad
    for kernel in kernels_of(source):
        for architecture in ARCHITECTURES:
            found = [
                function
                for function in functions
                if f"{len(kernel)}{kernel}" in function.name  # as it stands in a mangled name
                and function.architecture == architecture
            ]
            assert found, f"{kernel} was not compiled for {architecture}"


def test_kernels_are_found_in_the_sources() -> None:
    assert {source.stem for source in SOURCES if kernels_of(source)} == {
        *("box_crowd_cuda", "box_matrix_cuda", "box_pair_cuda", "pointwise_cuda", "scale_cuda"),
        *("label_total_cuda", "ranked_region_cuda", "region_cuda", "softmax_cuda"),
        *("pairs_cuda", "triplet_cuda", "batch_hard_cuda", "sequence_cuda", "contrastive_cuda"),
        *("row_pair_cuda", "edges_cuda", "matching_cuda", "ngrams_cuda", "detection_cuda"),
    }


def test_report_is_read() -> None:
    report = """\
ptxas info    : 0 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 125.761 ms
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    16 bytes stack frame, 12 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 16 bytes cumulative stack size
ptxas info    : Function properties for __internal_slow_path
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
    good, bad, called = read_report(report)
    assert good == Function("_Z4goodPf", "sm_80", 0, 0, 0)
    assert bad == Function("_Z3badPf", "sm_90", 16, 12, 24)
    assert called == Function("__internal_slow_path", "sm_90", 40, 0, 0)
    assert [function.stays_in_registers for function in (good, bad, called)] == [True, False, False]
