# SPDX-License-Identifier: MIT
"""What the tests share: the float64 oracle, comparisons, and the decorator that turns rows into
tests.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import CASES, TOLERANCES, Arguments, Case, Tolerance
from torch import Tensor, distributed


def each_case(
    select: Callable[[Case], bool] = lambda case: True,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test with every row that is selected, as ``case``."""
    chosen = [case for case in CASES if select(case)]
    rows = pytest.mark.parametrize("case", chosen, ids=[case.id for case in chosen])
    return lambda test: pytest.mark.table(rows(test))


def floating(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    """The floating tensors among the arguments."""
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield name, value


def as_float64(arguments: Arguments) -> Arguments:
    """The same numbers in float64, with the same tensors requiring gradients."""
    result = dict(arguments)
    for name, tensor in floating(arguments):
        result[name] = tensor.detach().double().requires_grad_(tensor.requires_grad)
    return result


def upstream_for(loss: Tensor, seed: int = 7) -> Tensor:
    """An upstream gradient that is not 1, exact in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-12, 13, loss.shape, generator=generator, dtype=torch.float64) / 8
    return torch.where(numbers == 1, 1.5, numbers).to(loss.device, loss.dtype)


def gradients(
    loss: Tensor, arguments: Arguments, upstream: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    """The gradient of every argument that requires one."""
    names = [name for name, tensor in floating(arguments) if tensor.requires_grad]
    upstream = upstream_for(loss) if upstream is None else upstream.to(loss)
    found = torch.autograd.grad(loss, [arguments[name] for name in names], upstream, **options)
    return dict(zip(names, found, strict=True))


def tolerance_of(case: Case, dtype: torch.dtype) -> Tolerance:
    """That of the dtype; what is in half precision has been computed in float32."""
    own = TOLERANCES[dtype]
    if dtype == torch.float64:
        return own
    return Tolerance(
        max(own.relative, case.float32.relative), max(own.absolute, case.float32.absolute)
    )


def assert_close(found: Tensor, expected: Tensor, tolerance: Tolerance, what: str) -> None:
    """Compares with the oracle's float64 numbers; shapes must agree, and NaN only equals NaN."""
    assert found.shape == expected.shape, (
        f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    )
    if expected.numel() == 0:
        return
    wide, expected = found.detach().double(), expected.detach().double().to(found.device)
    # Below it a dtype has no numbers to tell apart.
    floor = 4 * torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    largest = expected.nan_to_num(0.0).abs().max()
    allowed = tolerance.relative * expected.abs() + tolerance.absolute * largest + floor
    wrong = ~(
        ((wide - expected).abs() <= allowed)
        | (wide == expected)
        | (wide.isnan() & expected.isnan())
    )
    if wrong.any():
        worst = ((wide - expected).abs() / allowed).nan_to_num(torch.inf).where(wrong, 0.0).argmax()
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} numbers are wrong; the worst is number "
            f"{int(worst)}: "
            f"{wide.flatten()[worst].item()!r}, expected {expected.flatten()[worst].item()!r} "
            f"± {allowed.flatten()[worst].item():.3g}"
        )


def check_against_oracle(case: Case, arguments: Arguments, what: str = "", **more: Any) -> Tensor:
    """Compares loss and gradients of one call with the oracle's, and returns the loss.

    Half-precision gradients get half precision's tolerance; the loss never is in half precision.
    """
    loss = case.loss(arguments, **more)
    wide = as_float64(arguments)
    expected = case.reference(wide, **{name: _widen(value) for name, value in more.items()})
    assert_close(loss, expected, tolerance_of(case, loss.dtype), f"loss {what}")
    if loss.requires_grad:
        upstream = upstream_for(loss)
        expected_gradients = gradients(expected, wide, upstream)
        for name, gradient in gradients(loss, arguments, upstream).items():
            assert gradient.dtype == arguments[name].dtype
            tolerance = tolerance_of(
                case, gradient.dtype if gradient.dtype.itemsize < 4 else loss.dtype
            )
            tolerance = max(tolerance, tolerance_of(case, gradient.dtype), key=lambda t: t.relative)
            assert_close(
                gradient, expected_gradients[name], tolerance, f"gradient of {name} {what}"
            )
    return loss


def _widen(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def without_places(graph: torch.Graph) -> str:
    """A graph of TorchScript as text, without the files and lines it came from: their folders may
    have any name.
    """
    return re.sub(r" # \S+:\d+:\d+", "", str(graph))


def join_processes(rank: int, processes: int, folder: str) -> distributed.ProcessGroup:
    """Makes this the process of a rank, among those that meet in a folder."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=datetime.timedelta(seconds=120),
    )
    group: distributed.ProcessGroup = distributed.group.WORLD
    return group
