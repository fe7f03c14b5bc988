# SPDX-License-Identifier: MIT
"""InfoNCE: the formulas of its sources, the peer's numbers, small temperatures, learned ones, what
takes several sweeps, bad input, and several processes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, TOLERANCES, Arguments, Case, find_case
from support import assert_close, join_processes
from test_memory import allocations
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy, normalize

import fastloss
import fastloss.functional as F
from fastloss import _ops, reference

MODES = ("nt_xent", "cross", "clip")
PROCESSES = 2


def views(rows: int, features: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    arguments = find_case("info_nce_loss").arguments((rows, features), dtype, requires_grad=True)
    return arguments["z1"], arguments["z2"]


def with_gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def check_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_close(a, b, TOLERANCES[torch.float64], f"number {i}")


# ---------------------------------------------------------------------------------- other people's


def simclr(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Chen et al. 2020, Algorithm 1: the rows of a pair one after the other."""
    z = torch.stack((z1, z2), 1).flatten(0, 1)
    count = len(z)
    losses = []
    for i in range(count):
        j = i + 1 if i % 2 == 0 else i - 1
        exponentials = [
            torch.exp(z[i] @ z[k] / (z[i].norm() * z[k].norm()) / temperature) for k in range(count)
        ]
        others = sum(e for k, e in enumerate(exponentials) if k != i)
        losses.append(-torch.log(exponentials[j] / others))
    return torch.stack(losses).mean()


def test_nt_xent_is_simclrs() -> None:
    z1, z2 = views(7, 5)
    found = with_gradients(F.info_nce_loss(z1, z2, 0.3), z1, z2)
    expected = with_gradients(simclr(z1, z2, 0.3), z1, z2)
    check_same(found, expected)


def open_clip(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """open_clip's loss of normalised features and of a scale."""
    logits_per_image = logit_scale * image @ text.T
    logits_per_text = logit_scale * text @ image.T
    labels = torch.arange(len(image))
    return (cross_entropy(logits_per_image, labels) + cross_entropy(logits_per_text, labels)) / 2


@pytest.mark.parametrize("start", [1 / 0.07, 100.0])
def test_clip_is_open_clips(start: float) -> None:
    """With its learned scale, too."""
    z1, z2 = views(9, 6)
    scale = torch.tensor(math.log(start), dtype=torch.float64, requires_grad=True)
    inputs = (z1, z2, scale)
    found = with_gradients(F.info_nce_loss(z1, z2, torch.exp(-scale), mode="clip"), *inputs)
    features = normalize(z1, dim=-1), normalize(z2, dim=-1)
    expected = with_gradients(open_clip(*features, scale.exp()), *inputs)
    check_same(found, expected)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent_is_pytorch_metric_learnings(temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z1, z2 = views(13, 5)
    labels = torch.arange(13).repeat(2)
    peer = losses.NTXentLoss(temperature=temperature)(torch.cat((z1, z2)), labels)
    found = with_gradients(F.info_nce_loss(z1, z2, temperature), z1, z2)
    check_same(found, with_gradients(peer, z1, z2))


# ------------------------------------------------------------------------------- all kinds of input


def check(mode: str, z1: Tensor, z2: Tensor, temperature: float, **options: Any) -> None:
    """Values and gradients of an unreduced loss against the oracle in float64."""
    upstream = torch.linspace(-1, 2, (2 if mode == "nt_xent" else 1) * len(z1))
    wide = [z.detach().double().requires_grad_() for z in (z1, z2)]
    results = []
    for function, inputs in ((F.info_nce_loss, (z1, z2)), (reference.info_nce_loss, wide)):
        loss = function(*inputs, temperature, mode=mode, reduction="none", **options)
        results.append([loss, *torch.autograd.grad((loss * upstream).sum(), inputs)])
    for name, a, b in zip(("loss", "z1", "z2"), *results, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error < (1e-12 if z1.dtype == torch.float64 else 2e-5), (mode, name, error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperatures(mode: str, temperature: float, dtype: torch.dtype) -> None:
    """Similarities of ±200, for which no two rows share a largest one, and some near 0."""
    check(mode, *views(300, 5, dtype), temperature)


@pytest.mark.table
@pytest.mark.parametrize("mode", MODES)
def test_products_of_any_size(mode: str) -> None:
    z1, z2 = views(40, 4)
    length = torch.logspace(-3, 2, 40, dtype=torch.float64).unsqueeze(1)
    z1, z2 = (z1 * length).detach().requires_grad_(), (z2 * length).detach().requires_grad_()
    check(mode, z1, z2, 1.0, normalize=False)


@pytest.mark.parametrize(("mode", "rows"), [("nt_xent", 1200), ("cross", 1600), ("clip", 1700)])
def test_more_similarities_than_are_kept(mode: str, rows: int) -> None:
    """Several chunks, some of which are computed a second time."""
    check(mode, *views(rows, 3, torch.float32), 0.5)


@pytest.mark.parametrize("mode", MODES)
def test_similarities_are_never_all_in_memory(mode: str) -> None:
    z1, z2 = views(3000, 8, torch.float32)

    def step() -> None:
        F.info_nce_loss(z1, z2, mode=mode).backward()

    step()
    # A few MiB of similarities, and some copies of the rows; the matrix has 34 MiB, or 137.
    assert allocations(step) < 8 * 2**20 + 40 * z1.nbytes


@pytest.mark.table
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pair(mode: str, dtype: torch.dtype) -> None:
    """There is nothing it could be taken for."""
    z1, z2 = views(1, 4, dtype)
    loss, *gradients = with_gradients(F.info_nce_loss(z1, z2, mode=mode), z1, z2)
    assert loss == 0
    for gradient in gradients:
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_pair(mode: str, reduction: str) -> None:
    z1, z2 = views(0, 4)
    loss = F.info_nce_loss(z1, z2, mode=mode, reduction=reduction)
    loss.sum().backward()
    assert loss.sum() == 0
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert z1.grad is not None
    assert z1.grad.shape == (0, 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_direction(mode: str, dtype: torch.dtype) -> None:
    z1, z2 = (z.detach().clone() for z in views(5, 4, dtype))
    z1[1] = z2[3] = 0
    z1.requires_grad_()
    z2.requires_grad_()
    for number in with_gradients(F.info_nce_loss(z1, z2, mode=mode), z1, z2):
        assert number.isfinite().all()


def test_half_precision_is_compared_in_float32() -> None:
    """Rounded to bfloat16, similarities over a small temperature would tell rows apart no more."""
    z1, z2 = views(40, 16, torch.bfloat16)
    found = F.info_nce_loss(z1, z2, 0.01, mode="clip")
    expected = reference.info_nce_loss(z1.double(), z2.double(), 0.01, mode="clip")
    assert found.dtype == torch.float32
    assert abs(found.item() - expected.item()) < 1e-4 * expected.item()


@pytest.mark.parametrize("mode", MODES)
def test_only_what_needs_a_gradient_has_one(mode: str) -> None:
    """For example against another model's rows; a temperature alone, too."""
    z1, z2 = views(6, 4)
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    inputs = (z1, z2, temperature)
    expected = with_gradients(F.info_nce_loss(*inputs, mode=mode), *inputs)[1:]
    for i, wanted in enumerate(inputs):
        given = [x if x is wanted else x.detach() for x in inputs]
        (found,) = torch.autograd.grad(F.info_nce_loss(*given, mode=mode), wanted)
        check_same([found], [expected[i]])


def test_learned_temperature_of_the_module() -> None:
    tau = nn.Parameter(torch.tensor(0.3))
    loss = fastloss.InfoNCELoss(tau, mode="clip")
    assert list(loss.parameters()) == [tau]
    loss(*views(5, 4, torch.float32)).backward()
    assert tau.grad is not None
    assert tau.grad != 0


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("temperature", [0, -0.5, math.nan, math.inf, torch.tensor(-0.1)])
def test_temperature_is_above_0(temperature: float | Tensor) -> None:
    with pytest.raises(ValueError, match=r"^info_nce_loss: temperature must be .*above 0"):
        F.info_nce_loss(*views(3, 2), temperature)


def test_temperature_is_a_number() -> None:
    z1, z2 = views(3, 2)
    with pytest.raises(ValueError, match=r"^info_nce_loss: temperature must be .* 0-d tensor"):
        F.info_nce_loss(z1, z2, torch.ones(1))
    with pytest.raises(TypeError, match=r"^info_nce_loss: temperature must be .*float16.*Long"):
        F.info_nce_loss(z1, z2, torch.tensor(1))
    with pytest.raises(TypeError, match=r"^info_nce_loss: temperature must be a number.*got str"):
        F.info_nce_loss(z1, z2, "cold")  # type: ignore[arg-type]


def test_bad_arguments() -> None:
    z1, z2 = views(3, 2)
    for error, message, call in (
        (ValueError, "z2 must have the shape of z1", lambda: F.info_nce_loss(z1, z2[:2])),
        (ValueError, "z2 must have the shape", lambda: F.info_nce_loss(z1, z2[:, :1], mode="clip")),
        (ValueError, "z2 must have the feat", lambda: F.info_nce_loss(z1, z2[:, :1], mode="cross")),
        (ValueError, "z2 must have a pos", lambda: F.info_nce_loss(z1, z2[:2], mode="cross")),
        (ValueError, "z1 must have shape", lambda: F.info_nce_loss(z1[0], z2[0])),
        (TypeError, "z1 must be float16", lambda: F.info_nce_loss(z1.long(), z2)),
        (TypeError, "z2 must be a Tensor", lambda: F.info_nce_loss(z1, None)),  # type: ignore[arg-type]
        (ValueError, "mode must be 'nt_xent'", lambda: F.info_nce_loss(z1, z2, mode="rows")),
        (TypeError, "normalize must be a bool", lambda: F.info_nce_loss(z1, z2, normalize=1)),  # type: ignore[arg-type]
        (ValueError, "reduction must be", lambda: F.info_nce_loss(z1, z2, reduction="max")),
    ):
        with pytest.raises(error, match=f"^info_nce_loss: {message}"):
            call()


# -------------------------------------------------------------------------------- several processes


def rows_of(arguments: Arguments, process: int) -> Arguments:
    """The rows that one of the processes has."""
    count = arguments["z1"].shape[0] // PROCESSES
    return {
        name: value.detach()[process * count : (process + 1) * count].clone().requires_grad_()
        if name in ("z1", "z2")
        else value.detach().clone().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor)
    }


def distributed_arguments(case: Case) -> Arguments:
    return case.arguments((6, 4), torch.float64, requires_grad=True)


DISTRIBUTED = [
    (id, reduction)
    for id in ("info_nce_loss", "info_nce_loss-cross", "info_nce_loss-clip")
    for reduction in ("mean", "sum")
]


def process(rank: int, folder: str) -> None:
    """One of the processes: what it finds goes to a file."""
    group = join_processes(rank, PROCESSES, folder)
    results: dict[Any, Any] = {}
    for id, reduction in DISTRIBUTED:
        case = find_case(id)
        own = rows_of(distributed_arguments(case), rank)
        more = {**case.options, "reduction": reduction, "process_group": group}
        for name, package in (("functional", F), ("reference", reference)):
            loss = package.info_nce_loss(**own, **more)
            gradients = torch.autograd.grad(loss, list(own.values()))
            results[name, id, reduction] = [loss.detach(), *gradients]
    z1, z2 = views(4, 3, torch.float32)
    for what, call in {
        "rows": lambda: F.info_nce_loss(z1[: 3 + rank], z2[: 3 + rank], process_group=group),
        "features": lambda: F.info_nce_loss(
            z1, z2[:, : 3 - rank], mode="cross", process_group=group
        ),
        "dtype": lambda: F.info_nce_loss(
            z1.double() if rank else z1, z2.double() if rank else z2, process_group=group
        ),
        "shape": lambda: F.info_nce_loss(z1, z2[:3], process_group=group),
        "none": lambda: F.info_nce_loss(z1, z2, reduction="none", process_group=group),
    }.items():
        try:
            call()
            results[what] = "no error"
        except ValueError as error:
            results[what] = str(error)
    nothing = F.info_nce_loss(z1[:0], z2[:0], process_group=group)
    nothing.backward()
    results["nothing"] = nothing.detach()
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_process(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize(("id", "reduction"), DISTRIBUTED)
@pytest.mark.parametrize("package", ["functional", "reference"])
def test_processes_have_the_loss_of_the_whole_batch(
    by_process: list[dict[Any, Any]], package: str, id: str, reduction: str
) -> None:
    """The gradients, too: as their mean over the processes."""
    case = find_case(id)
    arguments = distributed_arguments(case)
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    loss, *gradients = with_gradients(case.loss(arguments, reduction=reduction), *tensors)
    found = [results[package, id, reduction] for results in by_process]
    for rank, (own_loss, *own) in enumerate(found):
        check_same([own_loss], [loss])
        count = 6 // PROCESSES
        for gradient, all_rows in zip(own[:2], gradients[:2], strict=True):
            expected = all_rows[rank * count : (rank + 1) * count]
            check_same([gradient / PROCESSES], [expected])
    if len(gradients) > 2:
        mean = sum(own[2] for _, *own in found) / PROCESSES
        check_same([mean], [gradients[2]])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("rows", "z1 must have one shape .* (3, 3) in process 0 and float32 (4, 3) in process 1"),
        ("features", "z2 must have one shape .* (4, 3) in process 0 and float32 (4, 2) in process"),
        ("dtype", "z1 must have one shape .* float32 (4, 3) in process 0 and float64 (4, 3) in"),
        ("shape", "z2 must have the shape of z1"),
        ("none", "reduction must be 'mean' or 'sum' with a process_group"),
    ],
)
def test_every_process_reports_what_does_not_fit(
    by_process: list[dict[Any, Any]], what: str, message: str
) -> None:
    pattern = re.escape(f"info_nce_loss: {message}").replace(re.escape(".*"), ".*")
    for results in by_process:
        assert re.match(pattern, results[what]), results[what]


def test_processes_without_rows(by_process: list[dict[Any, Any]]) -> None:
    assert [results["nothing"] for results in by_process] == [0, 0]


@pytest.mark.table
def test_rows_against_more_columns() -> None:
    """What a process computes, from the other end: parts of the whole are the whole."""
    z1, z2 = views(6, 4)
    both = torch.cat((z1, z2))
    options: Arguments = {"mode": "rows", "normalize": True, "reduction": "none"}
    parts = [
        _ops.contrastive(z1[2:5], both, 0.5, positive=8, itself=2, **options),
        _ops.contrastive(z2[2:5], both, 0.5, positive=2, itself=8, **options),
    ]
    whole = F.info_nce_loss(z1, z2, reduction="none")
    check_same([torch.cat(parts)], [torch.cat((whole[2:5], whole[8:11]))])
