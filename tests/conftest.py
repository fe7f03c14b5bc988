# SPDX-License-Identifier: MIT
"""Where the tests run. A row of the table becomes a test by :func:`support.each_case`."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

import fastloss


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "table: iterates over the table of losses; fit for another build of the extension",
    )


# Tests of minutes each, which compile or run other builds.
_SLOW = ("test_cuda_emulation.py", "test_cuda_compile.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that no process is alone with one at the end.

    pytest-xdist's two processes begin with a half of the list each: one compiles the emulation
    while the other one runs nvcc, and the emulated tests are shared out.
    """
    emulated, compiled = ([item for item in items if item.path.name == name] for name in _SLOW)
    quick = [item for item in items if item.path.name not in _SLOW]
    first, second = emulated[::2], compiled + emulated[1::2]
    half = max(len(items) // 2 - len(first), 0)
    items[:] = [*first, *quick[:half], *second, *quick[half:]]


@pytest.fixture
def gpu() -> str:
    """A GPU, for what is asked of no other device."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if not fastloss.build_info()["cuda"]:
        pytest.skip("the extension is built without CUDA kernels")
    return "cuda"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device with kernels."""
    return request.param if request.param == "cpu" else request.getfixturevalue("gpu")


# Dropping it would take the operators back.
_operators = torch.library.Library("torchvision", "FRAGMENT")


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also one that was built for another torch.

    torch's builds for CPUs have no matching torchvision. Its extension cannot be loaded then, but
    its Python code works, once the two operators it asks for by name are declared.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision.models.detection")
    return importlib.import_module("torchvision")
