# SPDX-License-Identifier: MIT
"""fastloss.patch("torch"): whatever torch's losses are given, they answer as without it."""

from __future__ import annotations

import inspect
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from support import without_places
from torch import Tensor, distributions, fx, nn
from torch.nn import functional as torch_functional

import fastloss
from fastloss.integrations import patching
from fastloss.integrations.torch import TORCH

Function = Callable[..., Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]

LOSSES = sorted(replacement.name for replacement in TORCH.replacements)
ELEMENT_LOSSES = [name for name in LOSSES if name not in ("cross_entropy", "nll_loss")]
ORIGINALS: dict[str, Function] = {name: getattr(torch_functional, name) for name in LOSSES}
MODULES = {
    "binary_cross_entropy": nn.BCELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "huber_loss": nn.HuberLoss,
    "l1_loss": nn.L1Loss,
    "mse_loss": nn.MSELoss,
    "nll_loss": nn.NLLLoss,
    "smooth_l1_loss": nn.SmoothL1Loss,
}


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    assert not patching._exchanges
    assert {name: getattr(torch_functional, name) for name in LOSSES} == ORIGINALS


@pytest.fixture
def patched() -> Iterator[dict[str, Function]]:
    with fastloss.patch("torch"):
        yield {name: getattr(torch_functional, name) for name in LOSSES}


def tensors(loss: str, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """What the loss takes: labels 0 to C - 1 and ignored ones, probabilities, numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    if loss in ("cross_entropy", "nll_loss"):
        rows = (
            numbers[0]
            if loss == "cross_entropy"
            else numbers[0].log_softmax(min(1, len(shape) - 1))
        )
        classes = shape[1] if len(shape) > 1 else shape[0]
        of_rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
        labels = torch.randint(classes, of_rows, generator=generator)
        ignored = torch.rand(of_rows, generator=generator) < (0.2 if len(shape) > 1 else 0)
        return rows.to(dtype), torch.where(ignored, -100, labels)
    if loss == "binary_cross_entropy":
        return (0.02 + 0.96 * numbers[0].sigmoid()).to(dtype), numbers[1].sigmoid().round().to(
            dtype
        )
    if loss == "binary_cross_entropy_with_logits":
        return 3 * numbers[0].to(dtype), numbers[1].sigmoid().to(dtype)
    return numbers[0].to(dtype), numbers[1].to(dtype)


def is_ours(loss: Tensor) -> bool:
    """Whether a kernel of fastloss is behind it."""
    waiting, names = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting.extend(parent for parent, _ in node.next_functions)
    return any("PointwiseLoss" in name or "SoftmaxLoss" in name for name in names)


def outcome(function: Function, *arguments: Any, **options: Any) -> list[Any]:
    """The loss and its gradients, or the error; and the warnings, without where they come from."""
    arguments = tuple(
        argument.detach().clone().requires_grad_(argument.requires_grad)
        if isinstance(argument, Tensor)
        else argument
        for argument in arguments
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found: list[Any] = [function(*arguments, **options)]
            found.extend(gradients(found[0], arguments))
        except Exception as error:
            return [type(error), str(error)]
    return [*found, *sorted(str(warning.message) for warning in caught)]


def gradients(loss: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The gradients of the arguments that require one, for upstream gradients that are not 1."""
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    if not leaves or not loss.requires_grad:
        return ()
    upstream = torch.linspace(0.5, 2, loss.numel()).view(loss.shape).to(loss.dtype)
    return torch.autograd.grad(loss, leaves, upstream)


def assert_same(found: list[Any], expected: list[Any], **tolerance: float) -> None:
    assert len(found) == len(expected), (found, expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, equal_nan=True, **tolerance)
        else:
            assert one == other


TOLERANCES = {
    torch.float16: {"rtol": 1e-2, "atol": 2e-3},  # torch computes in it
    torch.bfloat16: {"rtol": 6e-2, "atol": 2e-2},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "smooth_l1_loss": [{"beta": 0.4}, {"beta": 0}, {"beta": 2}],
    "huber_loss": [{"delta": 0.4}, {"delta": 2}],
    "cross_entropy": [{"label_smoothing": 0.1}, {"ignore_index": 1}],
    "nll_loss": [{"ignore_index": 1}],
}


def reignored(target: Tensor, options: dict[str, Any]) -> Tensor:
    """The labels, with the ones to ignore as the options have it."""
    return target.where(target != -100, options.get("ignore_index", -100))


# ------------------------------------------------------------------------------------ the exchange


def test_every_loss_is_replaced_and_restored() -> None:
    with fastloss.patch("torch"):
        for name in LOSSES:
            stand_in = getattr(torch_functional, name)
            assert stand_in is not ORIGINALS[name]
            assert stand_in.__wrapped__ is ORIGINALS[name]
    # The fixture looks for the rest.


def test_what_is_not_torch_nn_is_left_alone() -> None:
    """Distributions compute densities: they compare and cache functions of their own."""
    holders = [
        module
        for module in sys.modules.values()
        if getattr(module, "binary_cross_entropy_with_logits", None)
        is ORIGINALS["binary_cross_entropy_with_logits"]
        and module is not torch_functional
    ]
    assert distributions.bernoulli in holders
    with fastloss.patch("torch"):
        for module in holders:
            assert module.binary_cross_entropy_with_logits in ORIGINALS.values()


def test_stand_ins_look_like_the_originals(patched: dict[str, Function]) -> None:
    for name, stand_in in patched.items():
        original = ORIGINALS[name]
        written = inspect.signature(stand_in, follow_wrapped=False).parameters
        assert [(p.name, p.default, p.kind) for p in written.values()] == [
            (p.name, p.default, p.kind) for p in inspect.signature(original).parameters.values()
        ]
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(stand_in, attribute) == getattr(original, attribute)


def test_a_signature_fastloss_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def mse_loss(input: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
        return input

    with monkeypatch.context() as changed:
        changed.setattr(torch_functional, "mse_loss", mse_loss)
        with pytest.raises(ImportError, match=r"mse_loss takes .*temperature.*nothing was patched"):
            fastloss.patch("torch")
        assert torch_functional.l1_loss is ORIGINALS["l1_loss"]


def test_two_frameworks_at_once(torchvision: Any) -> None:
    with fastloss.patch("torch"), fastloss.patch("torchvision"):
        assert torch_functional.mse_loss is not ORIGINALS["mse_loss"]
        assert hasattr(torchvision.ops.sigmoid_focal_loss, "__wrapped__")


def test_supported_versions() -> None:
    status = fastloss.patch.available()["torch"]
    assert status.usable
    assert status.supported == "2.10 to 2.13"


# ---------------------------------------------------------------------------------- values it takes


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients(
    loss: str, reduction: str, dtype: torch.dtype, patched: dict[str, Function]
) -> None:
    for shape in ((3,), (37, 5), (4, 6, 7), (2, 3, 5, 4)):
        input, target = tensors(loss, *shape, dtype=dtype)
        input.requires_grad_()
        if loss in ELEMENT_LOSSES and loss != "binary_cross_entropy":
            target.requires_grad_()
        for options in ({}, *OPTIONS.get(loss, [])):
            more = {"reduction": reduction, **options}
            arguments = (input, reignored(target, options))
            expected = outcome(ORIGINALS[loss], *arguments, **more)
            if expected[0] is NotImplementedError or expected[0] is RuntimeError:
                assert dtype == torch.float16  # torch has no such kernel for a CPU
                assert "Half" in expected[1]
                continue
            assert_same(outcome(patched[loss], *arguments, **more), expected, **TOLERANCES[dtype])
            assert is_ours(patched[loss](*arguments, **more))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
def test_weights_of_elements(loss: str, reduction: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 6, 5)
    input.requires_grad_()
    for shape in ((6, 5), (5,), (6, 1), (1,), ()):
        weight = torch.rand(shape)
        names = ["weight"] if loss == "binary_cross_entropy" else ["weight", "pos_weight"]
        for name in names:
            more = {"reduction": reduction, name: weight}
            assert_same(
                outcome(patched[loss], input, target, **more),
                outcome(ORIGINALS[loss], input, target, **more),
                **TOLERANCES[torch.float32],
            )
            assert is_ours(patched[loss](input, target, **more))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_weights_of_classes(loss: str, reduction: str, patched: dict[str, Function]) -> None:
    for shape in ((37, 5), (2, 5, 5, 4), (5,)):
        input, target = tensors(loss, *shape)
        input.requires_grad_()
        weight = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
        for options in ({}, *OPTIONS[loss]):
            more = {"reduction": reduction, "weight": weight, **options}
            labels = reignored(target, options)
            assert_same(
                outcome(patched[loss], input, labels, **more),
                outcome(ORIGINALS[loss], input, labels, **more),
                **TOLERANCES[torch.float32],
            )
        assert is_ours(patched[loss](input, target, weight=1 + weight, reduction=reduction))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy_of_probabilities(reduction: str, patched: dict[str, Function]) -> None:
    for shape in ((37, 5), (2, 5, 5, 4), (5,)):
        input, _ = tensors("cross_entropy", *shape)
        target = torch.rand(shape).softmax(min(1, len(shape) - 1))
        input.requires_grad_()
        for options in ({}, {"label_smoothing": 0.1}, {"weight": torch.rand(5)}):
            more = {"reduction": reduction, **options}
            assert_same(
                outcome(patched["cross_entropy"], input, target, **more),
                outcome(ORIGINALS["cross_entropy"], input, target, **more),
                **TOLERANCES[torch.float32],
            )
            assert is_ours(patched["cross_entropy"](input, target, **more))


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_labels_of_every_integer_dtype(loss: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 37, 5)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool):
        labels = target.clamp(min=0).to(dtype)
        assert_same(
            outcome(patched[loss], input, labels),
            outcome(ORIGINALS[loss], input, labels),
            **TOLERANCES[torch.float32],
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_modules(loss: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 37, 5)
    input.requires_grad_()
    found = MODULES[loss]()(input, target)
    assert is_ours(found)
    torch.testing.assert_close(found, ORIGINALS[loss](input, target))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_result_dtype(
    loss: str, autocast: torch.dtype | None, patched: dict[str, Function]
) -> None:
    for first, second in itertools.product(TOLERANCES, TOLERANCES):
        input, target = tensors(loss, 4, 3)
        input = input.to(first)
        if target.is_floating_point():
            target = target.to(second)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            expected = outcome(ORIGINALS[loss], input, target)
            found = outcome(patched[loss], input, target)
            if isinstance(expected[0], Tensor):
                assert found[0].dtype == expected[0].dtype, (first, second)
            elif "not implemented for" not in str(expected[1]):
                assert found == expected


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_precision_takes_the_kernels(loss: str, patched: dict[str, Function]) -> None:
    """Half-precision predictions against float32 targets: what a model under autocast gives."""
    input, target = tensors(loss, 37, 5, dtype=torch.bfloat16)
    if target.is_floating_point():
        target = target.float()
    input.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = patched[loss](input, target)
        expected = ORIGINALS[loss](input, target)
    assert is_ours(found) == (loss != "binary_cross_entropy")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------ what stays torch's affair


class Marked(Tensor):
    """A subclass that says which functions it meets."""

    met: ClassVar[list[Function]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.met.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def calls_only_torch_takes(loss: str) -> Iterator[Call]:
    input, target = tensors(loss, 6, 4)
    yield (input, target), {"reduction": "average"}
    yield (input, target), {"reduction": None}
    yield (input, target[:2]), {}
    yield (input[:, :3], target), {}
    yield (input[0], target), {}
    yield (input[:0], target[:0]), {}
    yield (input[:0], target[:0]), {"reduction": "sum"}
    yield (input.int(), target), {}
    yield (input.to(torch.complex64), target), {}
    yield (input.tolist(), target), {}
    yield (input, target.tolist()), {}
    yield (input, None), {}
    yield (input.as_subclass(Marked), target), {}
    yield (input.to_sparse(), target), {}
    yield (input.to("meta"), target), {}
    yield (input.requires_grad_(), target), {"reduction": "sum"}
    if "size_average" in inspect.signature(ORIGINALS[loss]).parameters:
        for size_average, reduce in itertools.product((None, True, False), repeat=2):
            yield (input, target), {"size_average": size_average, "reduce": reduce}
    if loss in ("mse_loss", "l1_loss", "huber_loss"):
        for weight in (torch.rand(6, 4), torch.rand(4), torch.zeros(6, 4), [1.0]):
            yield (input, target), {"weight": weight}
    if loss in ELEMENT_LOSSES:
        yield (input, target.int()), {}
        yield (input, target.bool()), {}
        yield (input, target.double()), {}
        yield (input, target[:, :1]), {}
    if loss == "smooth_l1_loss":
        for beta in (-1.0, "x", None, torch.tensor(0.5)):
            yield (input, target), {"beta": beta}
    if loss == "huber_loss":
        for delta in (-1.0, 0.0, "x", None):
            yield (input, target), {"delta": delta}
    if loss.startswith("binary"):
        for weight in (torch.rand(6), torch.rand(2, 6, 4), torch.rand(4).double(), [1.0], 2.0):
            yield (input, target), {"weight": weight}
        yield (input, target), {"weight": torch.rand(4, requires_grad=True)}
        yield (input, target.clone().requires_grad_()), {}
    if loss == "binary_cross_entropy_with_logits":
        for weight in (torch.rand(6), torch.rand(2, 6, 4), torch.rand(4).double()):
            yield (input, target), {"pos_weight": weight}
    if loss == "binary_cross_entropy":
        for value in (1.5, -0.5, torch.nan):
            for reduction in ("none", "mean"):
                wrong = input.detach().clone()
                wrong[2, 1] = value
                yield (wrong, target), {"reduction": reduction}
        certain = target.detach().clone()
        yield (certain, 1 - target.clone().requires_grad_()), {}
    if loss in ("cross_entropy", "nll_loss"):
        for labels in (target.fill_(-100), target.fill_(7), target.clone().fill_(-1)):
            for weight in (None, torch.rand(4)):
                for reduction in ("none", "mean", "sum"):
                    yield (input, labels.clone()), {"reduction": reduction, "weight": weight}
        good = torch.tensor([0, 1, 2, 3, 0, 1])
        yield (input, good), {"weight": torch.zeros(4)}
        yield (input, good), {"weight": torch.rand(3)}
        yield (input, good), {"weight": torch.rand(4).double()}
        yield (input, good), {"weight": torch.rand(4, requires_grad=True)}
        yield (input, good), {"ignore_index": None}
        yield (input, good), {"ignore_index": 1.5}
        yield (input, good[:, None]), {}
        yield (input[:, :0], good), {}
        yield (torch.tensor([[1000.0, 0.0, 0.0, 0.0]]), torch.tensor([0])), {}  # a loss of 0
    if loss == "cross_entropy":
        shares = torch.rand(6, 4).softmax(1)
        yield (input, good), {"label_smoothing": 1.5}
        yield (input, good), {"label_smoothing": -0.1}
        yield (input, good), {"label_smoothing": "x"}
        yield (input, shares), {"ignore_index": 2}
        yield (input, shares.double()), {}
        yield (input, shares.half()), {}
        yield (input, shares.requires_grad_()), {}


@pytest.mark.parametrize("loss", LOSSES)
def test_calls_only_torch_takes(loss: str, patched: dict[str, Function]) -> None:
    for arguments, options in calls_only_torch_takes(loss):
        expected = outcome(ORIGINALS[loss], *arguments, **options)
        found = outcome(patched[loss], *arguments, **options)
        assert_same(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_subclasses_meet_torchs_function(loss: str, patched: dict[str, Function]) -> None:
    """Tables of theirs are made with it, not with a stand-in."""
    input, target = tensors(loss, 6, 4)
    Marked.met.clear()
    found = patched[loss](input.as_subclass(Marked), target)
    assert Marked.met[0] is ORIGINALS[loss]
    assert type(found) is Marked


@pytest.mark.parametrize("loss", LOSSES)
def test_symbolic_trace_records_torchs_function(loss: str, patched: dict[str, Function]) -> None:
    traced = fx.symbolic_trace(MODULES[loss]())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [ORIGINALS[loss]]


@pytest.mark.parametrize("loss", LOSSES)
def test_transforms(loss: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 6, 4, dtype=torch.float64)
    target = target.clamp(min=0) if loss in ("cross_entropy", "nll_loss") else target
    found = torch.func.vmap(torch.func.grad(patched[loss]))(input, target)
    expected = torch.func.vmap(torch.func.grad(ORIGINALS[loss]))(input, target)
    torch.testing.assert_close(found, expected)
    found = torch.func.vmap(patched[loss])(input, target)
    torch.testing.assert_close(found, torch.func.vmap(ORIGINALS[loss])(input, target))


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivative(loss: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 6, 4, dtype=torch.float64)
    results = []
    for function in (patched[loss], ORIGINALS[loss]):
        leaf = input.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf.square(), target), leaf, create_graph=True)
        results.append(torch.autograd.grad(slope.sin().sum(), leaf)[0])
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("loss", LOSSES)
def test_torchscript(loss: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 6, 4)
    for scripted in (torch.jit.script(MODULES[loss]()), torch.jit.script(patched[loss])):
        assert "fastloss" not in without_places(scripted.graph)
        assert torch.equal(scripted(input, target), ORIGINALS[loss](input, target))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace")
@pytest.mark.parametrize("loss", LOSSES)
def test_trace(loss: str, patched: dict[str, Function]) -> None:
    input, target = tensors(loss, 6, 4)
    traced = torch.jit.trace(MODULES[loss](), (input, target))
    assert "fastloss" not in without_places(traced.graph)
    assert torch.equal(traced(input, target), ORIGINALS[loss](input, target))


# ------------------------------------------------------------------------------------ torch.compile


class Training(nn.Module):
    """A model with its loss."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5).double()
        self.loss = MODULES[loss]()
        self.activation = {
            "binary_cross_entropy": torch.sigmoid,
            "nll_loss": lambda x: torch.log_softmax(x, 1),
        }.get(loss, lambda x: x)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.activation(self.layer(features)), target)


def gradients_of(module: nn.Module, step: Function, *arguments: Tensor) -> list[Tensor]:
    module.zero_grad()
    loss = step(*arguments)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in module.parameters())]


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_training_step(loss: str) -> None:
    """Patched, undone and patched again: each time it is compiled anew, and into one graph."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = Training(loss)
    features = torch.randn(7, 3, dtype=torch.float64)
    _, target = tensors(loss, 7, 5, dtype=torch.float64)
    expected = gradients_of(module, module, features, target)
    graphs: list[str] = []

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    for with_patch in (True, False, True):
        patch = fastloss.patch("torch") if with_patch else None
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        found = gradients_of(module, compiled, features, target)
        if patch is not None:
            patch.undo()
        torch.testing.assert_close(found, expected)
    assert ["fastloss" in graph for graph in graphs] == [True, False, True][: len(graphs)]
    assert len(graphs) >= 2
    torch._dynamo.reset()


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_compiled_mean_over_ignored_rows_is_nan(loss: str, patched: dict[str, Function]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(patched[loss], fullgraph=True, backend="aot_eager")
    input, target = tensors(loss, 6, 4)
    input.requires_grad_()
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    for labels, options in (
        (target, {}),
        (torch.full((6,), -100), {}),
        (torch.zeros(6, dtype=torch.int64), {"weight": weight}),
        (torch.ones(6, dtype=torch.int64), {"weight": weight}),
    ):
        found = outcome(compiled, input, labels, **options)
        expected = outcome(ORIGINALS[loss], input, labels, **options)
        if expected[1].isnan().any():  # of labels without weight: torch's gradient is NaN too
            assert not found.pop().any()
            expected.pop()
        assert_same(found, expected, **TOLERANCES[torch.float32])
    torch._dynamo.reset()


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_patched_before_anything_else() -> None:
    """torch.compile looks functions up in a table that is made when it is imported."""
    program = """
import sys, torch, fastloss
assert "torch._dynamo" not in sys.modules
from torch.nn import functional as F
original = F.mse_loss
graphs = []
def backend(graph, inputs):
    graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
    return graph
x, t = torch.randn(2, 5, 3)
with fastloss.patch("torch"):
    torch.compile(torch.nn.MSELoss(), fullgraph=True, backend=backend)(x, t)
torch._dynamo.reset()
torch.compile(torch.nn.MSELoss(), fullgraph=True, backend=backend)(x, t)
assert str(graphs[0][-1]) == "fastloss.pointwise", graphs
assert graphs[1] == [original], graphs
print("fine")
"""
    assert run(program) == "fine\n"
