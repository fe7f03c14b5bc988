# SPDX-License-Identifier: MIT
"""The CUDA kernels without a GPU: compiled for the CPU, run under sanitizers.

The emulated extension is one more build of the package, kept in ``build/``. Its CUDA kernels serve
CPU tensors, so the tests of the table run on them as they are, in a process of their own.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cases import CASES
from setup_script import setup_script

ROOT = Path(__file__).parent.parent
EMULATION = ROOT / "tests" / "cuda_emulation"
BUILD = ROOT / "build" / f"cuda_emulation-{sys.implementation.cache_tag}-torch{torch.__version__}"

COMPILER = os.environ.get("CXX", "g++").split()


@functools.cache
def address_sanitizer() -> str | None:
    """The library to load before Python; None where the compiler has none or is not GCC."""
    try:
        found = subprocess.run(
            [*COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    path = found.stdout.strip()
    return path if os.path.isabs(path) else None


pytestmark = pytest.mark.skipif(
    address_sanitizer() is None, reason=f"{COMPILER[0]} has no AddressSanitizer of GCC's"
)


@pytest.fixture(scope="module")
def build() -> Path:
    """The folder with the emulated extension and the emulation's own test, up to date."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the test run may be building
        options = [
            "-DFASTLOSS_CUDA_EMULATION=ON",
            "-DFASTLOSS_SANITIZE=address,undefined",
            "-DFASTLOSS_WERROR=ON",
        ]
        setup_script().build_with_cmake(torch, BUILD, options)
    return BUILD


def run_python(build: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs Python with the emulated extension within reach (see ``emulated.py``)."""
    # Neither this test run's options nor its choice of an instruction set are meant for the other.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "FASTLOSS_"))
    }
    library = address_sanitizer()
    assert library is not None
    environment |= {
        "LD_PRELOAD": library,
        # Python and torch keep memory until the process ends, which is no leak of ours.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(EMULATION),
        "FASTLOSS_EMULATED_EXTENSION": str(build / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_emulation_itself(build: Path) -> None:
    done = subprocess.run([build / "test_emulation"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all tests passed" in done.stdout


# For each file: the tests of the table to leave out (how their names begin), and how many must pass
# at least for each row. Left out are tests whose work is the oracle's, as second derivatives, and
# repetitions that lead to no other path through the kernels.
TABLE: dict[str, tuple[tuple[str, ...], float]] = {
    "test_values.py": (
        (
            "test_avg_factor",
            "test_loss_and_gradients[cpu-1031-pairwise",
            *(f"test_loss_and_gradients[cpu-{size}-" for size in (15, 16)),  # widths of a CPU's
        ),
        7,
    ),
    "test_dtypes_and_layouts.py": (
        (
            # test_packs_and_blocks.py has every dtype too.
            "test_dtype[",
            *(
                f"test_prediction_of_another_dtype_than_the_rest[cpu-{dtype}"
                for dtype in ("bfloat16", "float64")
            ),
            *(
                f"test_strides_of_{what}[cpu-{layout}"
                for what in ("every_operand", "weight")
                for layout in ("offset_2", "offset_3", "offset_4", "chunk", "leading_swapped")
            ),
            *(
                f"test_strides_in_half_precision[cpu-{layout}-bfloat16"
                for layout in ("offset_1", "offset_3", "spread", "transposed")
            ),
            *(f"test_strides_in_half_precision[cpu-{layout}" for layout in ("offset_3", "spread")),
        ),
        12,
    ),
    "test_degenerate.py": (
        (
            "test_mean_over_many_elements",
            "test_nothing_is_mutated",
            # float64's is a compilation of its own, that of half precision is float32's.
            "test_degenerate_input_is_finite[cpu-bfloat16",
            "test_degenerate_input_is_finite[cpu-float16",
            *(
                f"test_nan_stays_in_its_element[cpu-{size}-{dtype}"
                for size in (5, 67)
                for dtype in ("float16", "bfloat16")
            ),
        ),
        8,
    ),
    # (Finite differences are hundreds of launches a row, of what the oracle judges elsewhere.)
    "test_gradients.py": (
        ("test_second_derivative", "test_gradient_is_that_of", "test_weighted_gradient_is_that_of"),
        1,
    ),
    "test_packs_and_blocks.py": (
        tuple(
            f"test_whole_packs_in_memory_without[cpu-{layout}" for layout in ("offset_2", "chunk")
        ),
        5,
    ),
    "test_segmentation.py": (("test_a_step_allocates",), 1.1),
    "test_softmax.py": ((), 0.2),
    # Threads, memory, exceptions and what is traced are not the kernels'.
    "test_metrics.py": (("test_same_bits", "test_compiled", "test_errors"), 0.25),
    "test_ranking.py": (
        ("test_extra_memory", "test_long_lists[300-", "test_long_lists[1300-"),
        1.8,
    ),
    "test_metric_learning.py": (("test_no_matrix",), 0.1),
    "test_sequence.py": ((), 0.2),
    "test_graph.py": ((), 0.05),
    "test_contrastive.py": ((), 0.1),
    "test_detection.py": ((), 0.04),
    "test_matching.py": ((), 0.1),
    "test_bleu.py": (("test_lengths[cpu-31", "test_lengths[cpu-64"), 0.05),
    "test_policy.py": ((), 0.19),
}


@pytest.mark.parametrize("file", TABLE)
def test_table(build: Path, file: str) -> None:
    left_out, at_least = TABLE[file]
    # A process that a sanitizer stops loses what pytest captured of its output.
    plain = ["--capture=sys", *("-p", "no:xdist"), *("-p", "no:cacheprovider")]
    chosen = ["-m", "table and not gpu", f"tests/{file}"]
    for name in left_out:
        chosen += ["--deselect", f"tests/{file}::{name}"]
    done = run_python(build, ["-m", "pytest", "-p", "emulated", "-o", "addopts=", *plain, *chosen])
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-20000:]
    closing_line = done.stdout.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", closing_line)
    assert passed is not None, closing_line
    assert int(passed.group(1)) >= at_least * len(CASES), closing_line


def test_address_sanitizer_watches_the_memory_of_tensors(build: Path) -> None:
    """So that a kernel which leaves a tensor is caught."""
    program = """
import ctypes, emulated, torch
is_poisoned = ctypes.CDLL(None).__asan_address_is_poisoned
is_poisoned.argtypes = [ctypes.c_void_p]
numbers = torch.zeros(5)
end = numbers.data_ptr() + numbers.nbytes
print(bool(is_poisoned(end - 1)), bool(is_poisoned(end)))
"""
    done = run_python(build, ["-c", program])
    assert done.stdout.strip() == "False True", done.stderr


CHAIN = (
    "x, transitions, tags = torch.zeros(2, 3, 4), torch.zeros(4, 4), torch.ones(2, 3).long(); "
    "mask = torch.tensor([[True, True, True], [True, True, False]])"
)


@pytest.mark.parametrize(
    ("fine", "wrong", "message"),
    [
        (
            "F.sigmoid_focal_loss(torch.zeros(5, 3), torch.tensor([0, 3, -1, 2, 2]))",
            "F.sigmoid_focal_loss(torch.zeros(5, 3), torch.tensor([0, 3, -1, 4, 2]))",
            "fastloss: a label is larger than the number of classes",
        ),
        (
            "F.binary_cross_entropy(torch.tensor([0.0, 1.0, torch.nan]), torch.zeros(3))",
            "F.binary_cross_entropy(torch.tensor([0.0, 1.0, 1.0001]), torch.zeros(3))",
            "fastloss: an input is out of the range of its loss",
        ),
        (
            f"{CHAIN}; tags[1, 2] = 99; F.crf_loss(x, tags, transitions, mask=mask)",
            "tags[1, 1] = 4; F.crf_loss(x, tags, transitions, mask=mask)",
            "fastloss: a tag is out of range",
        ),
        (
            f"{CHAIN}; F.crf_decode(x, transitions, mask=mask)",
            "mask[1, 0] = False; F.crf_marginals(x, transitions, mask=mask)",
            "fastloss: a mask does not count the first step of a sequence",
        ),
        (
            f"{CHAIN}; F.crf_marginals(x, transitions, mask=mask)",
            "mask[0, 1] = False; F.crf_decode(x, transitions, mask=mask)",
            "fastloss: a mask counts a step after one it does not count",
        ),
        (
            "z, edges = torch.zeros(3, 2), torch.tensor([[0, 1], [2, 2]]); "
            "F.graph_reconstruction_loss(z, edges, edges)",
            "F.graph_reconstruction_loss(z, edges, edges + 1)",
            "fastloss: an end of an edge is not a node",
        ),
    ],
)
def test_numbers_out_of_range_stop_the_kernel(
    build: Path, fine: str, wrong: str, message: str
) -> None:
    """A kernel cannot raise an exception: it stops the process, and says why."""
    program = f"""
import emulated, torch
import fastloss.functional as F
{fine}
print("numbers in range are fine", flush=True)
{wrong}
"""
    done = run_python(build, ["-c", program])
    assert done.stdout.strip() == "numbers in range are fine", done.stderr
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert message in done.stderr


def test_label_of_a_voxel_out_of_range_stops_the_kernel(build: Path) -> None:
    program = """
import emulated, torch
import fastloss.functional as F
labels = torch.tensor([[0, 255, 2, 1]])
F.dice_loss(torch.zeros(1, 3, 4), labels, ignore_index=255)
print("labels in range are fine", flush=True)
F.dice_loss(torch.zeros(1, 3, 4), labels)
"""
    done = run_python(build, ["-c", program])
    assert done.stdout.strip() == "labels in range are fine", done.stderr
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert "fastloss: a label is not one of the classes" in done.stderr
