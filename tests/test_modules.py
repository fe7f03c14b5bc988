# SPDX-License-Identifier: MIT
"""The modules: the functions' values, options, buffers, and the running mean of WIoU."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from cases import CASES, Arguments, Case, find_case
from support import each_case, gradients
from torch import Tensor, distributed, nn

import fastloss
import fastloss.functional as F


def build(case: Case, arguments: Arguments, **options: object) -> tuple[nn.Module, Arguments]:
    """The row's module, and what is left of the arguments for its call."""
    constructor = inspect.signature(getattr(fastloss, case.module)).parameters
    given = {name: value for name, value in arguments.items() if name in constructor}
    rest = {name: value for name, value in arguments.items() if name not in given}
    if case.module == "LinearCrossEntropyLoss":  # owns the layer
        weight, bias = rest.pop("linear_weight"), rest.pop("linear_bias")
        module = fastloss.LinearCrossEntropyLoss(
            weight.shape[1], weight.shape[0], bias=True, **given, **options
        )
        for name, value in (("weight", weight), ("bias", bias)):
            delattr(module.linear, name)  # the test's own tensor in the place of the parameter
            setattr(module.linear, name, value)
        return module.eval(), rest
    module = getattr(fastloss, case.module)(**given, **options)
    if "iou_mean" in rest:
        module.iou_mean.fill_(rest.pop("iou_mean"))
    if case.module == "WiseBoxIoULoss":
        module.version = arguments.get("version", 1)
    return module.eval(), rest


def follows_the_function(case: Case) -> bool:
    return case.module is not None and not case.own_module


@each_case(follows_the_function)
def test_module_gives_the_functions_values(case: Case, device: str) -> None:
    for reduction in case.family.reductions:
        arguments = case.arguments(33, device=device, requires_grad=True)
        expected = case.loss(arguments, reduction=reduction)
        expected_gradients = gradients(expected, arguments)
        module, inputs = build(case, arguments, reduction=reduction)
        loss = module.to(device)(**inputs)
        assert torch.equal(loss, expected)
        for name, gradient in gradients(loss, arguments).items():
            assert torch.equal(gradient, expected_gradients[name])


@each_case(follows_the_function)
def test_module_reduces_to_the_mean_by_default(case: Case) -> None:
    arguments = case.arguments(33)
    module, inputs = build(case, arguments)
    assert torch.equal(module(**inputs), case.loss(arguments, reduction="mean"))


@each_case(lambda case: case.module is not None and case.takes_weight)
def test_module_takes_weight_and_avg_factor_with_the_call(case: Case) -> None:
    arguments = case.arguments(33)
    weight = case.weights(33)[0]
    more: Arguments = {"avg_factor": 2.5}
    constructor = inspect.signature(getattr(fastloss, case.module)).parameters
    if "weight" in constructor:  # as torch's module: a buffer
        module, inputs = build(case, {**arguments, "weight": weight})
    else:
        module, inputs = build(case, arguments)
        more["weight"] = weight
    expected = case.loss(arguments, weight=weight, avg_factor=2.5, reduction="mean")
    assert torch.equal(module(**inputs, **more), expected)


@pytest.mark.parametrize("name", sorted({row.module for row in CASES if follows_the_function(row)}))
def test_module_can_be_copied_saved_and_shown(name: str) -> None:
    case = next(case for case in CASES if case.module == name)
    arguments = case.arguments(9)
    module, inputs = build(case, arguments)
    expected = module(**inputs)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(**inputs), expected)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    module.load_state_dict(torch.load(file))
    shown = repr(module)
    assert shown.startswith(f"{name}(")
    assert "reduction='mean'" in shown
    for option in inspect.signature(type(module)).parameters:
        given_once = ("in_features", "num_classes", "bias", "device", "dtype")  # to a layer
        if option not in ("weight", "pos_weight", "sigmas", "process_group", *given_once):
            assert f"{option}={getattr(module, option)!r}" in shown


def test_options_can_be_changed_later() -> None:
    case = find_case("scylla_box_iou_loss")
    module = fastloss.ScyllaBoxIoULoss()
    module.theta = 2.5
    module.reduction = "sum"
    arguments = case.arguments(9)
    assert torch.equal(
        module(**arguments), F.scylla_box_iou_loss(**arguments, theta=2.5, reduction="sum")
    )


def test_weights_of_bce_are_buffers() -> None:
    module = fastloss.BCEWithLogitsLoss(weight=torch.ones(3), pos_weight=torch.full((3,), 2.0))
    assert {name for name, _ in module.named_buffers()} == {"weight", "pos_weight"}
    assert module.double().weight.dtype == torch.float64
    assert list(fastloss.BCEWithLogitsLoss().state_dict()) == []
    theirs = nn.BCEWithLogitsLoss(pos_weight=torch.full((3,), 2.0))
    mine = fastloss.BCEWithLogitsLoss(pos_weight=torch.ones(3))
    mine.load_state_dict(theirs.state_dict())
    logits, targets = torch.randn(4, 3), torch.rand(4, 3)
    torch.testing.assert_close(mine(logits, targets), theirs(logits, targets))


# --------------------------------------------------------------------------------------------- WIoU


def boxes(seed: int = 0) -> tuple[Tensor, Tensor]:
    arguments = find_case("wise_box_iou_loss").arguments(20, seed=seed)
    return arguments["boxes1"], arguments["boxes2"]


@pytest.mark.parametrize("version", [2, 3])
def test_running_mean_moves_before_it_is_used(version: int) -> None:
    module = fastloss.WiseBoxIoULoss(version=version, momentum=0.1)
    mean = 1.0
    for seed in range(4):
        pair = boxes(seed)
        mean += 0.1 * (F.box_iou_loss(*pair, reduction="mean").item() - mean)
        loss = module(*pair)
        assert module.iou_mean.item() == pytest.approx(mean, rel=1e-6)
        expected = F.wise_box_iou_loss(*pair, version=version, iou_mean=mean, reduction="mean")
        torch.testing.assert_close(loss, expected)


def test_running_mean_stands_still_in_evaluation_and_in_version_1() -> None:
    module = fastloss.WiseBoxIoULoss().eval()
    module(*boxes())
    assert module.iou_mean.item() == 1
    module = fastloss.WiseBoxIoULoss(version=1)
    module(*boxes())
    assert module.iou_mean.item() == 1


def test_running_mean_ignores_what_is_no_mean() -> None:
    module = fastloss.WiseBoxIoULoss(momentum=0.5)
    assert module(torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0
    assert module.iou_mean.item() == 1
    broken = torch.full((3, 4), torch.nan)
    assert module(broken, broken).isnan()
    assert module.iou_mean.item() == 1


def test_running_mean_counts_the_boxes_with_a_weight() -> None:
    module = fastloss.WiseBoxIoULoss(momentum=1.0)
    first, second = boxes()
    weight = torch.zeros(len(first))
    weight[:5] = torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0])
    module(first, second, weight=weight)
    expected = F.box_iou_loss(first[:5], second[:5], reduction="mean")
    torch.testing.assert_close(module.iou_mean, expected)
    module(first, second, weight=torch.zeros(len(first)))
    torch.testing.assert_close(module.iou_mean, expected)


def test_running_mean_is_state_without_a_gradient() -> None:
    module = fastloss.WiseBoxIoULoss(momentum=0.5)
    first, second = boxes()
    first.requires_grad_()
    module(first, second).backward()
    assert not module.iou_mean.requires_grad
    assert list(module.parameters()) == []
    fresh = fastloss.WiseBoxIoULoss()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh.iou_mean, module.iou_mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_calls_before_their_backward_keep_their_own_means(dtype: torch.dtype) -> None:
    """Siamese heads call one module twice: the second call moves the mean, the first one's gradient
    must not change.
    """
    pairs = [tuple(tensor.to(dtype) for tensor in boxes(seed)) for seed in (1, 2)]
    expected = []
    module = fastloss.WiseBoxIoULoss(momentum=0.5)
    for first, second in pairs:
        leaf = first.clone().requires_grad_()
        module(leaf, second).backward()
        expected.append(leaf.grad)
    module = fastloss.WiseBoxIoULoss(momentum=0.5)
    leaves = [first.clone().requires_grad_() for first, _ in pairs]
    losses = [module(leaf, second) for leaf, (_, second) in zip(leaves, pairs, strict=True)]
    sum(losses).backward()
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, wanted)


def test_running_mean_is_taken_over_a_process_group(tmp_path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        alone, grouped = (
            fastloss.WiseBoxIoULoss(),
            fastloss.WiseBoxIoULoss(process_group=distributed.group.WORLD),
        )
        assert torch.equal(alone(*boxes()), grouped(*boxes()))
        assert torch.equal(alone.iou_mean, grouped.iou_mean)
    finally:
        distributed.destroy_process_group()


def _train_one_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/two", rank=rank, world_size=2
    )
    module = fastloss.WiseBoxIoULoss(momentum=1.0, process_group=distributed.group.WORLD)
    first, second = boxes()
    share = slice(0, 5) if rank == 0 else slice(5, 20)
    module(first[share], second[share])
    torch.save(module.iou_mean, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_running_mean_is_the_same_in_two_processes(tmp_path) -> None:
    """Each box counts once, however the boxes are shared out."""
    context = torch.multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_train_one_of_two, args=(rank, str(tmp_path))) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    means = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(means[0], means[1])
    torch.testing.assert_close(means[0], F.box_iou_loss(*boxes(), reduction="mean"))


def test_compiled_module_keeps_its_mean() -> None:
    torch._dynamo.reset()
    eager, module = fastloss.WiseBoxIoULoss(momentum=0.2), fastloss.WiseBoxIoULoss(momentum=0.2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        torch.testing.assert_close(compiled(*boxes(seed)), eager(*boxes(seed)))
    torch.testing.assert_close(module.iou_mean, eager.iou_mean)
    assert module.iou_mean.item() < 1
