# SPDX-License-Identifier: MIT
"""torch's machinery on the operators: opcheck, torch.compile, torch.export, torch.func, fake and
meta tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.testing
from cases import TOLERANCES, Arguments, Case, find_case
from support import assert_close, each_case, gradients, tolerance_of, upstream_for
from torch import Tensor, nn

ENGINES = (
    *("pointwise", "policy", "softmax", "linear_cross_entropy", "region", "ranked_region"),
    *("box_pair", "box_matrix", "box_crowd", "pairs", "triplet", "batch_hard"),
    *("row_pair", "edges", "contrastive"),
    *("task_aligned_assignment", "task_aligned_detection_loss"),
    *("crf", "crf_marginals", "crf_decode", "detr_matching_cost", "sentence_bleu"),
)
# One row per engine and shape of arguments, for what is too slow to do with every row.
FEW = (
    "complete_box_iou_loss",
    "wise_box_iou_loss-v3_tensor",
    "repulsion_loss-images",
    "pairwise_box_iou-ciou",
    "sigmoid_focal_loss-indices",
    "binary_cross_entropy_with_logits-pos_weight",
    "lambda_loss-k",
    "margin_ranking_loss",
    "triplet_margin_loss",
    "batch_hard_triplet_loss",
    "graph_reconstruction_loss",
    "scaled_cosine_error",
    "cross_entropy-weight",
    "linear_cross_entropy-smoothing",
    "cross_entropy-probabilities",
    "distribution_focal_loss",
    "dice_loss",
    "dice_cross_entropy_loss-smoothing",
    "lovasz_softmax_loss-images",
    "quantile_loss-several",
    "rmse_loss",
    "lsgan_discriminator_loss",
    "lsgan_generator_loss",
    "crf_loss-mask",
    "info_nce_loss",
    "info_nce_loss-clip",
    "task_aligned_detection_loss-weight",
    "policy_gradient_loss-mask",
    "grpo_loss",
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operator_call(case: Case, arguments: Arguments, **more: Any) -> tuple[str, tuple[Any, ...]]:
    """The operator and the arguments that a call of the function leads to."""
    calls = []

    class Recorder:
        def __getattr__(self, engine: str) -> Any:
            def record(*values: Any) -> Tensor:
                calls.append((engine, values))
                return torch.empty(0)

            return record

    with (
        mock.patch.object(torch.compiler, "is_compiling", return_value=True),
        mock.patch.object(torch.ops, "fastloss", Recorder()),
    ):
        case.loss(arguments, **more)
    ((engine, values),) = calls
    return engine, tuple(list(value) if isinstance(value, tuple) else value for value in values)


def variants(case: Case) -> Iterator[Arguments]:
    """The keyword arguments whose calls take different ways through the operator."""
    yield from case.reductions
    if case.takes_weight:
        yield {"reduction": "mean", "weight": case.weights(17)[-1]}
        yield {"reduction": "mean", "avg_factor": 2.5}
        yield {"reduction": "mean", "avg_factor": torch.tensor(2.5)}


# opcheck looks at the gradients of all it meets, the entry's own views among them.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@each_case()
def test_entry_passes_opcheck(case: Case) -> None:
    for more in variants(case):
        engine, values = operator_call(case, case.arguments(17, requires_grad=True), **more)
        torch.library.opcheck(getattr(torch.ops.fastloss, engine).default, values)


@each_case()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_forward_passes_opcheck(case: Case, dtype: torch.dtype) -> None:
    """The operators with kernels: schema, meta function and real function agree in shapes, strides
    and dtypes.
    """
    tests = ("test_schema", "test_faketensor")
    for more in variants(case):
        engine, values = operator_call(case, case.arguments(17, dtype), **more)
        forward = getattr(torch.ops.fastloss, f"{engine}_forward").default
        if engine == "box_matrix":
            torch.library.opcheck(forward, values, test_utils=tests)
            kind, first, second, parameters = values
            upstream = torch.randn(*first.shape[:-1], second.shape[-2])
            backward = torch.ops.fastloss.box_matrix_backward.default
            for needs in ([True, True], [True, False], [False, True]):
                torch.library.opcheck(
                    backward, (kind, upstream, first, second, parameters, needs), test_utils=tests
                )
        elif engine == "linear_cross_entropy":
            for needs in ([True, True, True], [True, False, False], [False, True, False]):
                torch.library.opcheck(forward, (*values, None, needs), test_utils=tests)
        elif engine == "contrastive":
            for needs in ([True, True, True], [False, True, False], [False, False, False]):
                torch.library.opcheck(forward, (*values, None, needs), test_utils=tests)
        elif engine == "crf":
            for needs in ([True] * 4, [False, True, False, True]):
                torch.library.opcheck(forward, (*values, None, needs), test_utils=tests)
        elif engine == "crf_marginals":
            torch.library.opcheck(forward, values, test_utils=tests)
        elif engine == "task_aligned_detection_loss":
            torch.library.opcheck(forward, values, test_utils=tests)
            backward = torch.ops.fastloss.task_aligned_detection_loss_backward.default
            for needs in ([True, True], [True, False], [False, True]):
                upstream_and_total = forward(*values)
                torch.library.opcheck(
                    backward, (*upstream_and_total, *values, needs), test_utils=tests
                )
        elif engine == "region":
            torch.library.opcheck(forward, values, test_utils=tests)
            loss, slopes = forward(*values)
            backward = torch.ops.fastloss.region_backward.default
            torch.library.opcheck(backward, (loss, slopes, *values), test_utils=tests)
        elif engine == "ranked_region":
            for needs_gradient in (True, False):
                torch.library.opcheck(forward, (*values, needs_gradient), test_utils=tests)
            loss, steps, slopes = forward(*values, True)
            *_, per_image, ignore_index, reduction = values
            backward = torch.ops.fastloss.ranked_region_backward.default
            rest = (per_image, ignore_index is not None, reduction)
            torch.library.opcheck(
                backward, (loss, steps, slopes, values[1], *rest), test_utils=tests
            )
        elif engine == "policy":
            for needs_gradient in (True, False):
                torch.library.opcheck(forward, (*values, needs_gradient), test_utils=tests)
        elif engine in ("box_crowd", "edges"):
            torch.library.opcheck(forward, (*values, None, True), test_utils=tests)
            torch.library.opcheck(forward, (*values, None, False), test_utils=tests)
        elif engine == "triplet":
            for needs in ([True, True, True], [False, True, False], [False, False, False]):
                torch.library.opcheck(forward, (*values, needs), test_utils=tests)
        elif engine == "batch_hard":
            torch.library.opcheck(forward, values, test_utils=tests)
            loss, *mined = forward(*values)
            backward = torch.ops.fastloss.batch_hard_backward.default
            rest = (values[1], values[-1])
            torch.library.opcheck(backward, (loss, *mined, *rest), test_utils=tests)
        else:
            for needs in ([True, True], [True, False], [False, False]):
                if needs[1] and len(case.family.differentiable) < 2:
                    continue
                torch.library.opcheck(forward, (*values, needs), test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scale_passes_opcheck(dtype: torch.dtype) -> None:
    for upstream in (torch.tensor(2.0), torch.randn(5, 1), torch.randn(5, 4)):
        gradient = torch.randn(5, 4).to(dtype)
        torch.library.opcheck(
            torch.ops.fastloss.scale_.default,
            (gradient, upstream),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_label_total_passes_opcheck() -> None:
    labels, weight = torch.tensor([[3, 0, -100], [1, 1, 2]]), torch.rand(5)
    for ignore_index, class_weight in ((-100, None), (1, weight), (None, weight)):
        values = labels.clamp(min=0) if ignore_index != -100 else labels
        arguments = ("nll_loss", "target", values, ignore_index, False, 4, class_weight)
        torch.library.opcheck(torch.ops.fastloss.label_total.default, (*arguments, torch.float32))


# ------------------------------------------------------------------------------------ torch.compile


def check_compiled(case: Case, compiled: Any, size: int, **more: Any) -> None:
    arguments = case.arguments(size, requires_grad=True)
    expected = case.loss(arguments, **more)
    upstream = upstream_for(expected)
    expected_gradients = gradients(expected, arguments, upstream)
    loss = compiled(arguments, **more)
    assert_close(loss, expected, tolerance_of(case, torch.float32), "compiled loss")
    for name, gradient in gradients(loss, arguments, upstream).items():
        assert gradient.dtype == expected_gradients[name].dtype
        assert_close(
            gradient,
            expected_gradients[name],
            tolerance_of(case, torch.float32),
            f"compiled gradient of {name}",
        )


@each_case()
def test_compiled_equals_eager(case: Case) -> None:
    """Without a graph break. The tracing is torch.compile's own; only its code generation is left
    out.
    """
    more = case.reductions[-1]
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    check_compiled(case, compiled, 17, **more)


@each_case(lambda case: case.id in FEW)
def test_compiled_by_inductor(case: Case) -> None:
    compiled = torch.compile(case.loss, fullgraph=True)
    check_compiled(case, compiled, 17, **case.reductions[-1])


@each_case(lambda case: case.id in FEW)
def test_compiled_with_dynamic_sizes(case: Case) -> None:
    """One graph serves every number of boxes or rows."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.loss, fullgraph=True, dynamic=True, backend=counter)
    check_compiled(case, compiled, 33, **case.reductions[-1])
    compilations = counter.frame_count
    assert compilations > 0
    for size in (18, 130):
        check_compiled(case, compiled, size, **case.reductions[-1])
    assert counter.frame_count == compilations


@each_case(lambda case: case.takes_weight and case.id in FEW)
def test_compiled_with_weight_and_avg_factor(case: Case) -> None:
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    check_compiled(case, compiled, 17, reduction="mean", weight=case.weights(17)[0])
    check_compiled(case, compiled, 17, reduction="mean", avg_factor=torch.tensor(2.5))
    check_compiled(case, compiled, 17, reduction="mean", avg_factor=2.5)


def test_compiled_training_step() -> None:
    """A model, the loss behind it and its gradients in one graph; float16 activations through the
    deferred mean.
    """
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    twin = copy.deepcopy(model)
    case = find_case("generalized_box_iou_loss")
    features, targets = torch.randn(32, 6), case.arguments(32)["boxes2"]

    def step(model: nn.Module, features: Tensor) -> Tensor:
        corners = model(features).half().unflatten(-1, (2, 2)).float().sort(-2).values.flatten(-2)
        return case.loss({"boxes1": corners.half(), "boxes2": targets}, reduction="mean")

    loss = step(model, features)
    loss.backward()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(twin, features)
    compiled.backward()
    torch.testing.assert_close(compiled, loss)
    assert model.weight.grad is not None
    torch.testing.assert_close(twin.weight.grad, model.weight.grad, rtol=2e-3, atol=1e-7)


# ------------------------------------------------------------------------------------------- export


class AsModule(nn.Module):
    """A row as a module of its tensors, the form that torch.export takes."""

    def __init__(self, case: Case, options: Arguments) -> None:
        super().__init__()
        self.case = case
        self.options = options

    def forward(self, **tensors: Tensor) -> Tensor:
        return self.case.loss({**tensors, **self.options})


@each_case()
def test_export(case: Case) -> None:
    arguments = case.arguments(17)
    tensors = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and name not in case.options
    }
    options = {name: value for name, value in arguments.items() if name not in tensors}
    module = AsModule(case, {**options, **case.reductions[0]})
    program = torch.export.export(module, (), tensors)
    assert any("fastloss" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(**tensors), module(**tensors))


# --------------------------------------------------------------------------------------- torch.func


def of_prediction(case: Case, arguments: Arguments, more: Arguments) -> Any:
    def function(prediction: Tensor) -> Tensor:
        result = case.loss({**arguments, case.prediction: prediction}, **more)
        # (Probabilities add up to a constant.)
        return (result if case.family.reduces else result.square()).sum()

    return function


@each_case()
def test_functional_gradient(case: Case) -> None:
    arguments = case.arguments(9, torch.float64)
    prediction = arguments[case.prediction]
    found = torch.func.grad(of_prediction(case, arguments, case.reductions[-1]))(prediction)
    tracked = case.arguments(9, torch.float64, requires_grad=[case.prediction])
    function = of_prediction(case, tracked, case.reductions[-1])
    (expected,) = torch.autograd.grad(function(tracked[case.prediction]), tracked[case.prediction])
    assert_close(found, expected, TOLERANCES[torch.float64], "functional gradient")


@each_case()
def test_vectorised_map(case: Case) -> None:
    """Losses and gradients of several predictions against one target, as ensembles need them."""
    arguments = case.arguments(9, torch.float64)
    prediction = arguments[case.prediction]
    ensemble = torch.stack((prediction, 0.9 * prediction, prediction.flip(0)))
    function = of_prediction(case, arguments, case.reductions[-1])
    losses = torch.func.vmap(function)(ensemble)
    slopes = torch.func.vmap(torch.func.grad(function))(ensemble)
    for member, loss, slope in zip(ensemble, losses, slopes, strict=True):
        assert_close(loss, function(member), TOLERANCES[torch.float64], "mapped loss")
        assert_close(
            slope, torch.func.grad(function)(member), TOLERANCES[torch.float64], "mapped gradient"
        )


@each_case()
def test_forward_mode(case: Case) -> None:
    """The derivative along a direction equals the gradient times the direction."""
    arguments = case.arguments(9, torch.float64)
    prediction = arguments[case.prediction]
    direction = torch.randn(
        prediction.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    function = of_prediction(case, arguments, case.reductions[-1])
    expected = (torch.func.grad(function)(prediction) * direction).sum()
    _, by_transform = torch.func.jvp(function, (prediction,), (direction,))
    assert_close(by_transform, expected, TOLERANCES[torch.float64], "torch.func.jvp")
    for requires_grad in (False, True):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(
                prediction.clone().requires_grad_(requires_grad), direction
            )
            tangent = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
        assert tangent is not None, "the derivative was lost without a word"
        assert_close(tangent, expected, TOLERANCES[torch.float64], "forward mode")


def test_hessian() -> None:
    case = find_case("huber_loss")
    arguments = case.arguments(4, torch.float64)
    function = of_prediction(case, arguments, {"reduction": "sum"})
    inside = (arguments["input"] - arguments["target"]).abs() <= 1
    torch.testing.assert_close(
        torch.func.hessian(function)(arguments["input"]), torch.diag(inside.double())
    )


# ------------------------------------------------------------------------------------- meta tensors


@each_case()
def test_meta_tensors(case: Case) -> None:
    """Shapes and dtypes without data; forward and backward."""
    for reduction in case.reductions:
        real_arguments = case.arguments(17, requires_grad=True)
        real = case.loss(real_arguments, **reduction)
        arguments = case.arguments(17, device="meta", requires_grad=True)
        loss = case.loss(arguments, **reduction)
        assert loss.is_meta
        assert (loss.shape, loss.dtype, loss.stride()) == (real.shape, real.dtype, real.stride())
        loss.sum().backward()
        real.sum().backward()
        for name in case.family.differentiable:
            assert arguments[name].grad.shape == real_arguments[name].grad.shape
            assert arguments[name].grad.dtype == real_arguments[name].grad.dtype
            assert arguments[name].grad.stride() == real_arguments[name].grad.stride()


def test_every_operator_is_registered() -> None:
    """Nothing in the library is without a test here."""
    registered = {
        name.removeprefix("fastloss::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastloss::")
    }
    expected = {"scale_", "label_total"}
    backward = (
        *("box_matrix", "region", "ranked_region", "batch_hard"),
        "task_aligned_detection_loss",
    )
    expected |= {f"{name}_backward" for name in backward}
    expected |= {
        f"{engine}{suffix}" for engine in ENGINES for suffix in ("", "_reference", "_forward")
    }
    assert registered == expected
