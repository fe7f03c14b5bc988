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
