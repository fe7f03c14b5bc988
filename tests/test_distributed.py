# SPDX-License-Identifier: MIT
"""Losses of two processes are those of one process that has everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import join_processes
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastloss
import fastloss.functional as F
from fastloss import reference
from fastloss.distributed import reduce_avg_factor

PROCESSES = 2
ROWS, CLASSES = 8, 7
Results = dict[Any, Any]


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# ---------------------------------------------------------------------------- models of all kinds


class Mixed(nn.Module):
    """A small model, and some losses of what it makes of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)
        self.cross_entropy = fastloss.CrossEntropyLoss(label_smoothing=0.1)
        self.focal = fastloss.SigmoidFocalLoss()
        self.boxes = fastloss.CompleteBoxIoULoss()
        self.dice = fastloss.DiceLoss()

    def forward(
        self, x: Tensor, labels: Tensor, boxes: Tensor, divisor: Callable[[Tensor], Tensor]
    ) -> Tensor:
        logits = self.layer(x)
        found = torch.cat((logits[:, :2], logits[:, :2] + logits[:, 2:4].exp()), 1)
        positive = torch.nn.functional.one_hot(labels, CLASSES).float()
        count = (labels > 2).sum()
        return (
            self.cross_entropy(logits, labels)
            + self.boxes(found, boxes)
            + self.dice(logits.unsqueeze(-1), labels.unsqueeze(-1))
            + self.focal(logits, positive, avg_factor=divisor(count))
        )


def model() -> Mixed:
    torch.manual_seed(1)
    return Mixed()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(ROWS, 5, generator=rng())
    labels = torch.arange(ROWS) % CLASSES
    corners = torch.rand(ROWS, 2, generator=rng())
    return x, labels, torch.cat((corners, corners + 1), 1)


def train(kind: str, rank: int) -> list[Tensor]:
    """The loss and the gradients of a step on this process's rows."""
    if kind == "DistributedDataParallel":
        wrapped: nn.Module = DistributedDataParallel(model())
    else:
        wrapped = fully_shard(model())
    rows = slice(rank * ROWS // PROCESSES, (rank + 1) * ROWS // PROCESSES)
    loss = wrapped(*(part[rows] for part in batch()), reduce_avg_factor)
    loss.backward()
    gradients = []
    for parameter in wrapped.parameters():
        gradient = parameter.grad
        gradients.append(gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient)
    return [loss.detach(), *gradients]


# ------------------------------------------------------------------------------- classes shared out

SHARED_OUT: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"reduction": "sum", "z_loss": 0.01},
    "none": {"reduction": "none", "logit_softcap": 3.0},
    "weight": {"weight": torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64), "z_loss": 0.1},
    "ignore": {"ignore_index": 2},
    "avg_factor": {"avg_factor": 3.5},
}


def whole_logits(dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(ROWS, CLASSES, 2, generator=rng(), dtype=torch.float64)).to(dtype)


def whole_labels(ignore_index: int = -100) -> Tensor:
    labels = torch.randint(0, CLASSES, (ROWS, 2), generator=rng())
    labels[0, 0] = ignore_index
    return labels


def own_classes(rank: int) -> slice:
    """Of unequal number."""
    return slice(0, 3) if rank == 0 else slice(3, CLASSES)


def with_gradient(loss: Tensor, of: Tensor) -> list[Tensor]:
    upstream = torch.linspace(1.0, 2.0, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return [loss.detach(), torch.autograd.grad(loss, of, upstream)[0]]


def shares_of_classes(rank: int, group: distributed.ProcessGroup) -> Results:
    found: Results = {}
    for name, options in SHARED_OUT.items():
        labels = whole_labels(options.get("ignore_index", -100))
        for package in (F, reference):
            share = whole_logits()[:, own_classes(rank)].clone().requires_grad_()
            loss = package.cross_entropy(share, labels, process_group=group, **options)
            found[package.__name__, name] = with_gradient(loss, share)
    labels = whole_labels()
    for dtype in (torch.float32, torch.bfloat16):
        share = whole_logits(dtype)[:, own_classes(rank)].clone().requires_grad_()
        loss = F.cross_entropy(share, labels, process_group=group)
        found[dtype] = with_gradient(loss, share)
    share = whole_logits()[:, own_classes(rank)].clone().requires_grad_()
    loss = fastloss.CrossEntropyLoss(process_group=group)(share, labels)
    found["again"] = [torch.autograd.grad(loss, share, retain_graph=True)[0] for _ in range(2)]
    far = torch.full((2, 3), -torch.inf) if rank == 0 else torch.tensor([[9e3, 0.0, -9e3]] * 2)
    share = far.requires_grad_()
    loss = F.cross_entropy(share, torch.tensor([3, 4]), reduction="none", process_group=group)
    found["far"] = with_gradient(loss, share)
    return found


# ------------------------------------------------------------------------------- samples shared out

REGIONS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "jaccard": {"jaccard": True, "reduction": "sum", "smooth_nr": 0.0, "smooth_dr": 1.0},
    "sigmoid": {"activation": "sigmoid", "squared_pred": True, "include_background": False},
    "weight": {"weight": torch.tensor([1.0, 0.0, 2.0, 0.5]), "ignore_index": 1},
    "none": {"reduction": "none", "include_background": False},
}
SAMPLES = 3  # one and two


def whole_pictures() -> tuple[Tensor, Tensor]:
    logits = torch.randn(SAMPLES, 4, 6, generator=rng(), dtype=torch.float64)
    return logits, torch.randint(0, 3, (SAMPLES, 6), generator=rng())  # class 3 is absent


def own_samples(rank: int) -> slice:
    return slice(0, 1) if rank == 0 else slice(1, SAMPLES)


def shares_of_samples(rank: int, group: distributed.ProcessGroup) -> Results:
    found: Results = {}
    for name, options in REGIONS.items():
        for package in (F, reference):
            logits, labels = (part[own_samples(rank)] for part in whole_pictures())
            own = logits.clone().requires_grad_()
            loss = package.dice_loss(own, labels, batch=True, process_group=group, **options)
            found[package.__name__, name] = with_gradient(loss, own)
    logits, labels = (part[own_samples(rank)] for part in whole_pictures())
    module = fastloss.DiceLoss(batch=True, process_group=group)
    found["float32"] = [module(logits.float(), labels)]
    return found


# --------------------------------------------------------------------------------------- bad input


def mistakes(rank: int, group: distributed.ProcessGroup) -> Results:
    share, labels = torch.randn(4, 3, generator=rng()), torch.arange(4)
    wrong: dict[str, Callable[[], Tensor]] = {
        "label": lambda: F.cross_entropy(share, labels + 3, process_group=group),
        "rows": lambda: F.cross_entropy(share[: 3 + rank], labels[: 3 + rank], process_group=group),
        "weight": lambda: F.cross_entropy(share, labels, torch.ones(3), process_group=group),
        "shape": lambda: F.cross_entropy(share, labels[:3], process_group=group),
        "smoothing": lambda: F.cross_entropy(
            share, labels, label_smoothing=0.1, process_group=group
        ),
        "probabilities": lambda: F.cross_entropy(share, share.softmax(1), process_group=group),
        "reduction": lambda: F.cross_entropy(
            share, labels, reduction="median", process_group=group
        ),
        "batch": lambda: F.dice_loss(share, labels, process_group=group),
        "class weight": lambda: F.dice_loss(
            share, labels % 3, batch=True, weight=torch.ones(2), process_group=group
        ),
        "count": lambda: reduce_avg_factor(torch.ones(2), group),
    }
    found: Results = {}
    for name, call in wrong.items():
        try:
            call()
            found[name] = "no error"
        except (ValueError, IndexError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def process(rank: int, folder: str) -> None:
    """One of the processes: what it finds goes to a file."""
    group = join_processes(rank, PROCESSES, folder)
    results: Results = {
        "DistributedDataParallel": train("DistributedDataParallel", rank),
        "fully_shard": train("fully_shard", rank),
        "classes": shares_of_classes(rank, group),
        "samples": shares_of_samples(rank, group),
        "mistakes": mistakes(rank, group),
        "counts": [reduce_avg_factor(float(rank)), reduce_avg_factor(torch.tensor(rank), group)],
    }
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def by_process(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    folder: Path = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(process, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("kind", ["DistributedDataParallel", "fully_shard"])
def test_wrapped_models_train_as_one_process(by_process: list[Results], kind: str) -> None:
    alone = model()
    loss = alone(*batch(), lambda count: count)
    loss.backward()
    losses = torch.stack([results[kind][0] for results in by_process])
    torch.testing.assert_close(losses.mean(), loss.detach())
    for results in by_process:
        for found, parameter in zip(results[kind][1:], alone.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad)


def test_avg_factor_is_the_mean_of_the_counts(by_process: list[Results]) -> None:
    for results in by_process:
        assert results["counts"] == [torch.tensor(0.5), torch.tensor(0.5)]
    assert torch.equal(reduce_avg_factor(torch.tensor(3)), torch.tensor(3.0))


@pytest.mark.parametrize("name", SHARED_OUT)
@pytest.mark.parametrize("package", ["fastloss.functional", "fastloss.reference"])
def test_classes_may_be_shared_out(by_process: list[Results], package: str, name: str) -> None:
    whole = whole_logits().requires_grad_()
    options = SHARED_OUT[name]
    labels = whole_labels(options.get("ignore_index", -100))
    loss = reference.cross_entropy(whole, labels, **options)
    loss, gradient = with_gradient(loss, whole)
    for rank, results in enumerate(by_process):
        found, own = results["classes"][package, name]
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(own, gradient[:, own_classes(rank)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_out_classes_of_less_precision(
    by_process: list[Results], dtype: torch.dtype
) -> None:
    whole = whole_logits(dtype).double().requires_grad_()
    loss, gradient = with_gradient(reference.cross_entropy(whole, whole_labels()), whole)
    for rank, results in enumerate(by_process):
        found, own = results["classes"][dtype]
        torch.testing.assert_close(found, loss.float(), rtol=2e-6, atol=0)
        expected = gradient[:, own_classes(rank)].to(dtype)
        tolerance = {"rtol": 2e-2, "atol": 1e-9} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(own, expected, **tolerance)


def test_graph_of_shared_out_classes_can_be_walked_again(by_process: list[Results]) -> None:
    for results in by_process:
        first, second = results["classes"]["again"]
        assert torch.equal(first, second)


def test_shared_out_logits_may_be_far_apart(by_process: list[Results]) -> None:
    """A process without a finite logit, and logits beyond any exponential."""
    for rank, results in enumerate(by_process):
        loss, gradient = results["classes"]["far"]
        assert torch.equal(loss, torch.tensor([0.0, 9e3]))
        expected = [[0.0] * 3] * 2 if rank == 0 else [[0.0] * 3, [2.0, -2.0, 0.0]]
        assert torch.equal(gradient, torch.tensor(expected))


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("package", ["fastloss.functional", "fastloss.reference"])
def test_dice_of_a_batch_in_two_processes(
    by_process: list[Results], package: str, name: str
) -> None:
    """The gradients, too: as their mean over the processes."""
    logits, labels = whole_pictures()
    logits.requires_grad_()
    loss = reference.dice_loss(logits, labels, batch=True, **REGIONS[name])
    loss, gradient = with_gradient(loss, logits)
    for rank, results in enumerate(by_process):
        found, own = results["samples"][package, name]
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(own / PROCESSES, gradient[own_samples(rank)])


def test_dice_in_single_precision(by_process: list[Results]) -> None:
    expected = reference.dice_loss(*whole_pictures(), batch=True)
    for results in by_process:
        torch.testing.assert_close(results["samples"]["float32"][0], expected.float())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("label", "IndexError: cross_entropy: target must be a class index below 6, the classes"),
        ("rows", "ValueError: cross_entropy: input must have the same rows in all processes"),
        ("weight", "ValueError: cross_entropy: weight must have one number per class, (6, the"),
        ("shape", "ValueError: cross_entropy: target must have one class index per row of input"),
        ("smoothing", "ValueError: cross_entropy: label_smoothing must be 0 with a process_group"),
        ("probabilities", "ValueError: cross_entropy: target must be indices with"),
        ("reduction", "ValueError: cross_entropy: reduction must be 'none', 'mean' or 'sum'"),
        ("batch", "ValueError: dice_loss: batch must be True with a process_group, got False"),
        ("class weight", "ValueError: dice_loss: weight must have one number per class"),
        ("count", "ValueError: reduce_avg_factor: count must be a number or a 0-d tensor"),
    ],
)
def test_mistakes_are_told_in_every_process(
    by_process: list[Results], name: str, message: str
) -> None:
    for results in by_process:
        assert results["mistakes"][name].startswith(message)
