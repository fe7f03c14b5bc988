# SPDX-License-Identifier: MIT
"""What only a GPU can show: no synchronisation, capture into CUDA graphs, streams."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import Arguments, Case
from support import each_case, gradients, upstream_for
from torch import Tensor

pytestmark = pytest.mark.gpu

SIZE = 257


def variants(case: Case, gpu: str) -> list[Arguments]:
    """The keyword arguments whose calls take different ways through the operator."""
    result = list(case.reductions)
    if case.takes_weight:
        result.append({"reduction": "mean", "weight": case.weights(SIZE, device=gpu)[0]})
        result.append({"reduction": "mean", "avg_factor": torch.tensor(2.5, device=gpu)})
    return result


def step(case: Case, arguments: Arguments, upstream: Tensor, more: Arguments) -> list[Tensor]:
    loss = case.loss(arguments, **more)
    return [loss.detach(), *gradients(loss, arguments, upstream).values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@each_case()
def test_nothing_waits_for_the_device(case: Case, dtype: torch.dtype, gpu: str) -> None:
    for more in variants(case, gpu):
        arguments = case.arguments(SIZE, dtype, device=gpu, requires_grad=True)
        upstream = upstream_for(case.loss(arguments, **more))
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(case, arguments, upstream, more)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@each_case()
def test_capture_into_a_graph(case: Case, dtype: torch.dtype, gpu: str) -> None:
    """The captured step, replayed on other numbers, gives those numbers' loss and gradients."""
    for more in variants(case, gpu):
        arguments = case.arguments(SIZE, dtype, device=gpu, requires_grad=True)
        upstream = upstream_for(case.loss(arguments, **more))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what happens once only must not be captured
            for _ in range(2):
                step(case, arguments, upstream, more)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(case, arguments, upstream, more)

        fresh = case.arguments(SIZE, dtype, device=gpu, seed=1, requires_grad=True)
        with torch.no_grad():
            for name, value in fresh.items():
                if isinstance(value, Tensor) and name not in case.options:
                    arguments[name].copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        expected = step(case, fresh, upstream, more)
        for found, wanted in zip(captured, expected, strict=True):
            assert torch.equal(found, wanted), more


@each_case()
def test_work_is_queued_on_the_current_stream(case: Case, gpu: str) -> None:
    """Behind a long wait on a stream of its own: another stream would see the old numbers."""
    more = case.reductions[-1]
    expected_arguments = case.arguments(SIZE, device=gpu, requires_grad=True)
    upstream = upstream_for(case.loss(expected_arguments, **more))
    expected = step(case, expected_arguments, upstream, more)
    arguments = case.arguments(SIZE, device=gpu, seed=1, requires_grad=True)
    step(case, arguments, upstream, more)  # warm up
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for name, value in expected_arguments.items():
                if isinstance(value, Tensor) and name not in case.options:
                    arguments[name].copy_(value)
        found = step(case, arguments, upstream, more)
    side.synchronize()
    for number, wanted in zip(found, expected, strict=True):
        assert torch.equal(number, wanted)


@pytest.mark.usefixtures("gpu")
def test_a_label_out_of_range_stops_the_kernel() -> None:
    """In a process of its own: the assertion leaves the device unusable."""
    code = (
        "import torch, fastloss.functional as F; "
        "F.sigmoid_focal_loss(torch.zeros(4, 3, device='cuda'), "
        "torch.tensor([0, 9, 1, 2], device='cuda')); torch.cuda.synchronize()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert "assert" in run.stderr
