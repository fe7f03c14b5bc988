# SPDX-License-Identifier: MIT
"""Where the tests run. A row of the table becomes a test by :func:`support.each_case`."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from peers import import_torchvision

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


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    """torchvision, also one that was built for another torch."""
    try:
        import_torchvision("models.detection")
    except ImportError as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    module: ModuleType = import_torchvision()
    return module
