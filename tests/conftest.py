# SPDX-License-Identifier: MIT
"""Where the tests run. A row of the table becomes a test by :func:`support.each_case`."""

from __future__ import annotations

import pytest
import torch

import fastloss


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "table: iterates over the table of losses; fit for another build of the extension or another backend"
    )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device with kernels."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")
        if not fastloss.build_info()["cuda"]:
            pytest.skip("the extension is built without CUDA kernels")
    return request.param
