# SPDX-License-Identifier: MIT
"""Bad input: the error's type, and a message that names function and argument, what was expected
and what came.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Arguments, Case, find_case
from support import each_case

import fastloss
import fastloss.functional as F

ONE_PER_FUNCTION = {case.function: case for case in reversed(CASES)}
FUNCTIONS = sorted(ONE_PER_FUNCTION)
NAN = float("nan")


def each_function(select: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    chosen = [ONE_PER_FUNCTION[name] for name in FUNCTIONS if select(ONE_PER_FUNCTION[name])]
    return pytest.mark.parametrize("case", chosen, ids=[case.function for case in chosen])


def expect(
    error: type[Exception], case: Case, argument: str, arguments: Arguments, **more: Any
) -> str:
    """The call fails with a message that begins with the function's name and has the argument's in
    it.
    """
    assert argument in inspect.signature(getattr(F, case.function)).parameters
    with pytest.raises(error) as caught:
        case.loss(arguments, **more)
    message = str(caught.value).partition("\n")[0]
    assert type(caught.value) is error, f"{type(caught.value)}: {message}"
    assert message.startswith(f"{case.function}: "), message
    assert re.search(rf"\b{argument}\b", message), f"{argument} is not named: {message}"
    return message


def shape_text(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


# --------------------------------------------------------------------------------------- every loss


@each_function(lambda case: case.family.reduces)
@pytest.mark.parametrize("reduction", ["xyz", "", "Mean", "batchmean"])
def test_unknown_reduction(case: Case, reduction: str) -> None:
    message = expect(ValueError, case, "reduction", case.arguments(), reduction=reduction)
    assert f'"{reduction}"' in message
    for choice in ("none", "mean", "sum"):
        assert choice in message


@each_function(lambda case: case.family.reduces)
@pytest.mark.parametrize("reduction", [None, 1, ("mean",)])
def test_reduction_that_is_no_string(case: Case, reduction: object) -> None:
    message = expect(TypeError, case, "reduction", case.arguments(), reduction=reduction)
    assert type(reduction).__name__ in message


@each_function()
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.int32, torch.bool])
def test_dtype_of_the_prediction(case: Case, dtype: torch.dtype) -> None:
    arguments = case.arguments()
    arguments[case.prediction] = arguments[case.prediction].to(dtype)
    message = expect(TypeError, case, case.prediction, arguments)
    assert "float32" in message
    assert "got" in message


@each_function(lambda case: len(case.family.differentiable) > 1)
def test_dtype_of_the_target(case: Case) -> None:
    name = case.family.differentiable[1]
    dtypes = (
        [torch.complex64] if case.family.engine == "pointwise" else [torch.complex64, torch.int64]
    )
    for dtype in dtypes:
        arguments = case.arguments()
        arguments[name] = arguments[name].to(dtype)
        expect(TypeError, case, name, arguments)


@each_function()
def test_arguments_that_are_no_tensors(case: Case) -> None:
    for name in case.family.build((1, 1), torch.Generator()):
        arguments = case.arguments((1, 1))
        arguments[name] = [[1.0, 2.0, 3.0, 4.0]]
        assert "list" in expect(TypeError, case, name, arguments)


@each_function()
def test_devices_that_differ(case: Case) -> None:
    _, *others = case.family.build((1, 1), torch.Generator())
    for name in others:
        arguments = case.arguments((1, 1))
        arguments[name] = arguments[name].to("meta")
        message = expect(ValueError, case, name, arguments)
        assert "meta" in message
        assert "cpu" in message


@each_function(lambda case: case.family.engine in ("pointwise", "box_pair"))
def test_shapes_that_differ(case: Case) -> None:
    name = case.family.differentiable[-1]
    for shape in ((3, 6), (1, 4), (4,), (2, 3, 4)):
        arguments = case.arguments((3, 4) if case.family.engine == "pointwise" else (3,))
        arguments[name] = torch.zeros(shape)
        if name == case.prediction:
            continue
        message = expect(ValueError, case, name, arguments, reduction="none")
        assert shape_text(arguments[name]) in message


def test_nothing_broadcasts_silently() -> None:
    """(N, 1) against (N,) is the classical way to an N × N loss."""
    with pytest.raises(
        ValueError, match=r"mse_loss: target must have the shape of input, \[5, 1\], got \[5\]"
    ):
        F.mse_loss(torch.zeros(5, 1), torch.zeros(5))


@each_function(lambda case: case.takes_weight)
def test_weight(case: Case) -> None:
    arguments = case.arguments(5)
    shape = case.weights(5)[0].shape
    for wrong in ((*shape[:-1], shape[-1] + 1), (2, *shape), (7, 5, 3)):
        message = expect(ValueError, case, "weight", arguments, weight=torch.ones(wrong))
        assert shape_text(torch.ones(wrong)) in message
    expect(TypeError, case, "weight", arguments, weight=2.0)
    expect(TypeError, case, "weight", arguments, weight=torch.ones(shape, dtype=torch.complex64))
    expect(ValueError, case, "weight", arguments, weight=torch.ones(shape, device="meta"))


@each_function(lambda case: case.takes_weight)
def test_avg_factor(case: Case) -> None:
    arguments = case.arguments(5)
    for reduction in ("none", "sum"):
        message = expect(
            ValueError, case, "avg_factor", arguments, avg_factor=2.0, reduction=reduction
        )
        assert "mean" in message
        assert reduction in message
        expect(
            ValueError,
            case,
            "avg_factor",
            arguments,
            avg_factor=torch.tensor(2.0),
            reduction=reduction,
        )
    expect(ValueError, case, "avg_factor", arguments, avg_factor=torch.ones(1), reduction="mean")
    expect(ValueError, case, "avg_factor", arguments, avg_factor=torch.ones(5), reduction="mean")
    expect(TypeError, case, "avg_factor", arguments, avg_factor="many", reduction="mean")
    expect(TypeError, case, "avg_factor", arguments, avg_factor=torch.tensor(1j), reduction="mean")


# -------------------------------------------------------------------------------------------- boxes


@each_function(lambda case: "box" in case.prediction)
@pytest.mark.parametrize("shape", [(3, 6), (3, 3), (4, 3), (0,), ()])
def test_last_dimension_of_boxes(case: Case, shape: tuple[int, ...]) -> None:
    names = [name for name in case.arguments() if "boxes" in name]
    numbers = case.arguments(1)[case.prediction].shape[-1]
    for name in names:
        arguments = case.arguments((3, 4) if case.family.engine != "box_pair" else (3,))
        arguments[name] = torch.zeros(shape)
        message = expect(ValueError, case, name, arguments)
        assert f"{numbers})" in message
        assert shape_text(arguments[name]) in message


def test_pairwise_rank_and_batch() -> None:
    case = find_case("pairwise_box_iou-giou")
    arguments = case.arguments((2, 3))
    for name in ("boxes1", "boxes2"):
        expect(ValueError, case, name, {**arguments, name: torch.zeros(4)})
    message = expect(
        ValueError,
        case,
        "boxes2",
        {**arguments, "boxes1": torch.zeros(2, 3, 4), "boxes2": torch.zeros(3, 3, 4)},
    )
    assert "[2, 3, 4]" in message
    assert "[3, 3, 4]" in message


def test_pairwise_kind() -> None:
    case = find_case("pairwise_box_iou-giou")
    message = expect(ValueError, case, "kind", {**case.arguments((2, 3)), "kind": "jiou"})
    assert "'jiou'" in message
    for kind in ("iou", "giou", "diou", "ciou", "eiou", "siou", "nwd"):
        assert f"'{kind}'" in message


# function, argument, values that it does not take, what the message says that it takes
CHOICES: list[tuple[str, str, list[Any], str]] = [
    ("info_nce_loss", "mode", ["rows", "simclr", None, ["clip"]], "'nt_xent', 'cross' or 'clip'"),
    ("box_iou_loss", "mode", ["cubic", "", None, ["log"]], "'linear', 'square' or 'log'"),
    ("probabilistic_iou_loss", "eps", [0.0, -1e-7, NAN], "above 0"),
    ("probabilistic_iou_loss", "floor", [-0.01, NAN, math.inf], "at least 0 and finite"),
    ("wise_box_iou_loss", "version", [0, 4, "3", None], "1, 2 or 3"),
    (
        "normalized_wasserstein_loss",
        "mode",
        ["linear", None, ["exp"]],
        "'exp', 'sqrt', 'log' or 'w2'",
    ),
    (
        "generalized_dice_loss",
        "w_type",
        ["cubic", "", None],
        "'square', 'simple' or 'uniform'",
    ),
    ("dice_cross_entropy_loss", "activation", [None, "tanh"], "'softmax' or 'sigmoid'"),
    ("lovasz_softmax_loss", "classes", ["absent", None], "'present' or 'all'"),
    (
        "lambda_loss",
        "scheme",
        ["ndcg", "", None],
        "'ndcg_loss1', 'ndcg_loss2', 'ndcg_loss2pp', 'lambda_rank' or 'ranknet'",
    ),
]
RANGES: list[tuple[str, str, list[Any], str]] = [
    ("complete_box_iou_loss", "aspect_threshold", [-0.1, 1.5, NAN], "in [0, 1]"),
    ("efficient_box_iou_loss", "gamma", [-1.0, NAN], "at least 0"),
    ("scylla_box_iou_loss", "theta", [0.0, -2, NAN], "above 0"),
    ("wise_box_iou_loss", "alpha", [0.5, NAN], "at least 1"),
    ("wise_box_iou_loss", "delta", [0.0, -1.0, NAN], "above 0"),
    ("wise_box_iou_loss", "gamma", [-0.5, NAN], "at least 0"),
    ("normalized_wasserstein_loss", "constant", [0.0, -1.0, NAN], "above 0"),
    ("repulsion_loss", "sigma_gt", [1.0, -0.1, NAN], "in [0, 1)"),
    ("repulsion_loss", "sigma_box", [1.0, -0.1, NAN], "in [0, 1)"),
    ("sigmoid_focal_loss", "alpha", [-0.5, 1.5, NAN], "in [0, 1] or -1"),
    ("sigmoid_focal_loss", "gamma", [-1.0, NAN], "at least 0"),
    ("cross_entropy", "label_smoothing", [-0.1, 1.5, NAN], "in [0, 1]"),
    ("cross_entropy", "z_loss", [-1e-4, NAN], "at least 0"),
    ("cross_entropy", "logit_softcap", [0.0, -1.0, NAN], "above 0 or None"),
    ("softmax_focal_loss", "gamma", [-1.0, NAN], "at least 0"),
    ("softmax_focal_loss", "alpha", [-0.5, 1.5, NAN], "in [0, 1], a Tensor or None"),
    ("poly_cross_entropy", "epsilon", [-1.5, NAN], "at least -1"),
    ("smooth_l1_loss", "beta", [-1.0, NAN], "at least 0"),
    ("huber_loss", "delta", [0.0, -1.0, NAN], "above 0"),
    ("rmse_loss", "eps", [-1e-3, NAN], "at least 0"),
    ("hinge_loss", "margin", [-1.0, NAN], "at least 0"),
    ("quality_focal_loss", "beta", [-1.0, NAN], "at least 0"),
    ("varifocal_loss", "alpha", [-1.0, NAN], "at least 0"),
    ("varifocal_loss", "gamma", [-1.0, NAN], "at least 0"),
    ("asymmetric_loss", "gamma_neg", [-1.0, NAN], "at least 0"),
    ("asymmetric_loss", "gamma_pos", [-1.0, NAN], "at least 0"),
    ("asymmetric_loss", "clip", [-0.1, 1.0, NAN], "in [0, 1)"),
    ("dice_loss", "smooth_nr", [-1e-5, NAN], "at least 0"),
    ("dice_loss", "smooth_dr", [-1e-5, NAN], "at least 0"),
    ("tversky_loss", "alpha", [-0.1, NAN], "at least 0"),
    ("tversky_loss", "beta", [-0.1, NAN], "at least 0"),
    ("focal_tversky_loss", "alpha", [-0.1, NAN], "at least 0"),
    ("focal_tversky_loss", "gamma", [0.0, -1.0, NAN], "above 0"),
    ("generalized_dice_loss", "smooth_dr", [-1.0], "at least 0"),
    ("dice_cross_entropy_loss", "lambda_dice", [-1.0, NAN], "at least 0"),
    ("dice_cross_entropy_loss", "lambda_ce", [-1.0, NAN], "at least 0"),
    ("dice_cross_entropy_loss", "label_smoothing", [-0.1, 1.5, NAN], "in [0, 1]"),
    ("dice_focal_loss", "alpha", [-0.5, 1.5, NAN], "in [0, 1] or -1"),
    ("dice_focal_loss", "gamma", [-1.0, NAN], "at least 0"),
    ("dice_focal_loss", "lambda_dice", [-1.0, NAN], "at least 0"),
    ("dice_focal_loss", "lambda_focal", [-1.0, NAN], "at least 0"),
    ("non_saturating_discriminator_loss", "label_smoothing", [-0.1, 1.1, NAN], "in [0, 1]"),
    ("lambda_loss", "k", [0, -3, NAN], "at least 1 or None"),
    ("lambda_loss", "sigma", [0.0, -1.0, NAN, math.inf], "above 0 and finite"),
    ("lambda_loss", "mu", [-1.0, NAN, math.inf], "at least 0 and finite"),
    ("approx_ndcg_loss", "alpha", [0.0, -1.0, NAN, math.inf], "above 0 and finite"),
    ("triplet_margin_loss", "margin", [0.0, -1.0, NAN], "above 0"),
    ("triplet_margin_loss", "p", [0.0, -1.0, NAN], "above 0"),
    ("triplet_margin_loss", "eps", [-1e-6, NAN], "at least 0"),
    ("batch_hard_triplet_loss", "margin", [-0.5, NAN], "at least 0 or None"),
    ("scaled_cosine_error", "alpha", [0.0, -1.0, NAN, math.inf], "above 0 and finite"),
    ("neural_ndcg_loss", "temperature", [0.0, -1.0, NAN, math.inf], "above 0 and finite"),
    ("info_nce_loss", "temperature", [0.0, -1.0, NAN, math.inf], "above 0 and finite"),
]


@pytest.mark.parametrize(("function", "argument", "values", "expected"), CHOICES + RANGES)
def test_option_out_of_range(
    function: str, argument: str, values: list[Any], expected: str
) -> None:
    case = ONE_PER_FUNCTION[function]
    for value in values:
        message = expect(ValueError, case, argument, {**case.arguments(), argument: value})
        assert expected in message
        assert repr(value) in message


@pytest.mark.parametrize(
    ("function", "argument", "expected"),
    [(function, argument, expected) for function, argument, _, expected in RANGES],
)
@pytest.mark.parametrize(
    "value",
    ["x", None, [1.0], 1j, torch.zeros(2), np.zeros(2)],
    ids=lambda value: type(value).__name__,
)
def test_option_that_is_no_number(
    function: str, argument: str, expected: str, value: object
) -> None:
    case = ONE_PER_FUNCTION[function]
    annotation = inspect.signature(getattr(F, function)).parameters[argument].annotation
    if type(value).__name__.removesuffix("Type") in annotation:
        return  # a tensor, or none, is as good
    message = expect(TypeError, case, argument, {**case.arguments(), argument: value})
    assert message.endswith(f"must be a number {expected}, got {type(value).__name__}")


@pytest.mark.parametrize("id", ["lsgan_discriminator_loss", "lsgan_generator_loss"])
def test_parameter_without_a_range_that_is_no_number(id: str) -> None:
    case = find_case(id)
    for name in {"a", "b", "c"}.intersection(inspect.signature(getattr(F, id)).parameters):
        message = expect(TypeError, case, name, {**case.arguments(), name: "x"})
        assert message.endswith("must be a number, got str")


def test_quantiles() -> None:
    case = find_case("quantile_loss-several")
    arguments = case.arguments((5, 3))
    for wrong in (-0.1, 1.5, NAN, (0.1, 0.5, 1.5), [0.1, NAN, 0.9]):
        message = expect(ValueError, case, "quantiles", {**arguments, "quantiles": wrong})
        assert "in [0, 1]" in message
    for wrong in ((0.1, 0.5), [], torch.zeros(2), torch.zeros(5, 3)):
        message = expect(ValueError, case, "quantiles", {**arguments, "quantiles": wrong})
        assert "(5, 3)" in message
    for wrong in ("x", None, 1j, (0.1, "x", 0.2), torch.zeros(3, dtype=torch.complex64)):
        expect(TypeError, case, "quantiles", {**arguments, "quantiles": wrong})
    expect(ValueError, case, "quantiles", {**arguments, "quantiles": torch.zeros(3, device="meta")})
    for wrong in (torch.zeros(3), torch.zeros(5, 2), torch.zeros(5, 1)):
        expect(ValueError, case, "target", {**arguments, "target": wrong})


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_probability_out_of_range(reduction: str) -> None:
    case = find_case("binary_cross_entropy")
    for size in ((2, 4), (300, 40)):
        for value in (1.5, -0.25, float("inf")):
            for layout in (lambda x: x, lambda x: x.t().contiguous().t(), lambda x: x.half()):
                arguments = case.arguments(size)
                arguments["input"][1, 2] = value
                arguments["input"][1, 3] = -7
                arguments["input"] = layout(arguments["input"])
                message = expect(ValueError, case, "input", arguments, reduction=reduction)
                assert f"in [0, 1], got {value:g} at position {size[1] + 2}" in message


def test_fake_scores_are_floating_and_shaped_as_the_real_ones() -> None:
    for case in CASES:
        if "real" in case.arguments():
            arguments = case.arguments(4)
            expect(TypeError, case, "fake", {**arguments, "fake": arguments["fake"].long()})
            other = {**arguments, "fake": torch.zeros(3)}
            assert case.loss(other).isfinite()
            message = expect(ValueError, case, "fake", other, reduction="none")
            assert "[4]" in message
            assert "[3]" in message
            for name in ("real", "fake"):
                expect(TypeError, case, name, {**other, name: other[name].long()})
            expect(ValueError, case, "fake", {**other, "fake": torch.zeros(3, device="meta")})
            expect(ValueError, case, "reduction", other, reduction="batchmean")


@pytest.mark.parametrize("version", [2, 3])
def test_wise_box_iou_needs_its_mean(version: int) -> None:
    case = find_case("wise_box_iou_loss")
    arguments = {**case.arguments(), "version": version}
    expect(ValueError, case, "iou_mean", arguments)
    expect(ValueError, case, "iou_mean", arguments, iou_mean=torch.ones(2))
    expect(TypeError, case, "iou_mean", arguments, iou_mean=torch.tensor(1j))


# ------------------------------------------------------------------------------------------ indices


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_class_index_out_of_range(dtype: torch.dtype) -> None:
    case = find_case("sigmoid_focal_loss-indices")
    arguments = case.arguments((6, 4))
    arguments["targets"] = torch.tensor([0, 3, 4, 9, 1, 12], dtype=dtype)
    for reduction in ("none", "mean", "sum"):
        message = expect(IndexError, case, "targets", arguments, reduction=reduction)
        assert "[0, 4]" in message
        assert "got 9 at position [3]" in message


def test_class_index_out_of_range_deep_in_a_large_tensor() -> None:
    case = find_case("sigmoid_focal_loss-indices")
    arguments = case.arguments((40, 300, 7))
    arguments["targets"][31, 123] = 8
    message = expect(IndexError, case, "targets", arguments, reduction="sum")
    assert "got 8 at position [31, 123]" in message


def test_class_index_dtype_and_shape() -> None:
    case = find_case("sigmoid_focal_loss-indices")
    arguments = case.arguments((6, 4))
    expect(TypeError, case, "targets", {**arguments, "targets": torch.zeros(6, dtype=torch.bool)})
    for wrong in (
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(6),
    ):
        expect(ValueError, case, "targets", {**arguments, "targets": wrong})


@pytest.mark.parametrize("bad", [-1, 5])
def test_target_index_out_of_range(bad: int) -> None:
    case = find_case("repulsion_loss")
    arguments = case.arguments((7, 5))
    arguments["target_index"][4] = bad
    message = expect(IndexError, case, "target_index", arguments)
    assert "[0, 5)" in message
    assert f"got {bad} at position 4" in message


def test_repulsion_without_targets() -> None:
    case = find_case("repulsion_loss")
    expect(
        IndexError,
        case,
        "target_index",
        {**case.arguments((3, 2)), "target_boxes": torch.zeros(0, 4)},
    )


@pytest.mark.parametrize("name", ["target_index", "batch_index", "target_batch_index"])
def test_index_tensors(name: str) -> None:
    case = find_case("repulsion_loss-images")
    arguments = case.arguments((6, 4))
    expect(TypeError, case, name, {**arguments, name: arguments[name].float()})
    expect(ValueError, case, name, {**arguments, name: arguments[name][:-1]})
    expect(ValueError, case, name, {**arguments, name: arguments[name][None]})


def test_batch_indices_come_together() -> None:
    case = find_case("repulsion_loss-images")
    for name in ("batch_index", "target_batch_index"):
        expect(ValueError, case, "batch_index", {**case.arguments((6, 4)), name: None})


def test_repulsion_takes_a_list_of_boxes() -> None:
    case = find_case("repulsion_loss")
    for name in ("boxes", "target_boxes"):
        expect(ValueError, case, name, {**case.arguments((6, 4)), name: torch.zeros(2, 3, 4)})


# ------------------------------------------------------------------------------------- segmentation

SEGMENTATION = ("region", "ranked_region")


@each_function(lambda case: case.family.engine in SEGMENTATION)
def test_shapes_of_voxels_and_labels(case: Case) -> None:
    logits, labels = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
    expect(ValueError, case, "input", {"input": torch.zeros(4), "target": torch.zeros(4)})
    no_class = {"input": torch.zeros(2, 0, 4), "target": torch.zeros(2, 4, dtype=torch.int64)}
    expect(ValueError, case, "input", no_class)
    for shape in ((2, 4), (2, 5, 4), (3, 4, 5), (2, 1, 4, 5), (2, 3, 5, 4), (2, 3, 4, 5, 1)):
        wrong = torch.zeros(shape, dtype=torch.int64)
        message = expect(ValueError, case, "target", {"input": logits, "target": wrong})
        assert shape_text(wrong) in message
        assert shape_text(logits) in message
    for dtype in (torch.float32, torch.bool, torch.int8):
        expect(TypeError, case, "target", {"input": logits, "target": labels.to(dtype)})
    dense = {"input": logits, "target": torch.zeros(logits.shape, dtype=torch.complex64)}
    if case.family.engine == "region":
        expect(TypeError, case, "target", dense)
    else:
        expect(ValueError, case, "target", {**dense, "target": torch.zeros(logits.shape)})


@each_function(lambda case: case.family.engine in SEGMENTATION)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_label_of_a_voxel_out_of_range(case: Case, dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 4, 50, 60).to(memory_format=torch.channels_last)
    labels = torch.zeros(3, 50, 60, dtype=dtype)
    labels[2, 31, 7] = 4
    labels[2, 31, 9] = 100
    message = expect(IndexError, case, "target", {"input": logits, "target": labels})
    assert "[0, 3]" in message
    assert "got 4 at position [2, 31, 7]" in message
    arguments = {"input": logits, "target": labels, "ignore_index": 4}
    message = expect(IndexError, case, "target", arguments)
    assert "ignore_index 4" in message
    assert "got 100 at position [2, 31, 9]" in message
    if dtype != torch.uint8:
        labels[1, 49, 59] = -1
        message = expect(IndexError, case, "target", arguments)
        assert "got -1 at position [1, 49, 59]" in message


@each_function(lambda case: case.family.engine == "region" and not case.kernel.endswith("softmax"))
def test_unknown_activation(case: Case) -> None:
    message = expect(ValueError, case, "activation", {**case.arguments(), "activation": "tanh"})
    assert '"tanh"' in message
    for choice in ('"softmax"', '"sigmoid"', "None"):
        assert choice in message
    expect(TypeError, case, "activation", {**case.arguments(), "activation": 3})


WEIGHTED = ("dice_loss", "tversky_loss", "focal_tversky_loss", "dice_focal_loss")


@pytest.mark.parametrize("function", [*WEIGHTED, "dice_cross_entropy_loss"])
def test_weight_of_classes(function: str) -> None:
    case = ONE_PER_FUNCTION[function]
    arguments = case.arguments((2, 4, 5))
    for wrong in ((3,), (5,), (), (1, 4), (2, 4)):
        message = expect(ValueError, case, "weight", arguments, weight=torch.ones(wrong))
        assert shape_text(torch.ones(wrong)) in message
        assert "(4)" in message
    expect(TypeError, case, "weight", arguments, weight=2.0)
    expect(TypeError, case, "weight", arguments, weight=torch.ones(4, dtype=torch.complex64))
    expect(ValueError, case, "weight", arguments, weight=torch.ones(4, device="meta"))
    arguments["include_background"] = False
    # The cross-entropy takes in the background, and so does its weight.
    fits = 4 if function == "dice_cross_entropy_loss" else 3
    assert case.loss(arguments, weight=torch.ones(fits)).isfinite()
    message = expect(ValueError, case, "weight", arguments, weight=torch.ones(7 - fits))
    assert f"({fits})" in message


@each_function(lambda case: case.family.engine == "region")
def test_no_class_beside_the_background(case: Case) -> None:
    arguments = {"input": torch.zeros(2, 1, 5), "target": torch.zeros(2, 5, dtype=torch.int64)}
    message = expect(ValueError, case, "input", arguments, include_background=False)
    assert "[2, 1, 5]" in message


@each_function(lambda case: case.family.engine in SEGMENTATION)
def test_options_of_the_wrong_type(case: Case) -> None:
    arguments = case.arguments()
    expect(TypeError, case, "ignore_index", {**arguments, "ignore_index": 1.5})
    expect(TypeError, case, "ignore_index", {**arguments, "ignore_index": 1 << 70})
    for argument in ("include_background", "batch", "per_image", "squared_pred"):
        if argument in inspect.signature(getattr(F, case.function)).parameters:
            expect(TypeError, case, argument, {**arguments, argument: 1})


@pytest.mark.parametrize("function", ["dice_cross_entropy_loss", "dice_focal_loss"])
def test_regions_and_voxels_are_always_reduced(function: str) -> None:
    case = ONE_PER_FUNCTION[function]
    message = expect(ValueError, case, "reduction", case.arguments(), reduction="none")
    assert '"none"' in message


def test_label_smoothing_is_of_the_softmax() -> None:
    case = ONE_PER_FUNCTION["dice_cross_entropy_loss"]
    options = {"activation": "sigmoid", "label_smoothing": 0.1}
    message = expect(ValueError, case, "label_smoothing", {**case.arguments(), **options})
    assert "sigmoid" in message


# ------------------------------------------------------------------------------------------ ranking


@each_function(lambda case: case.family.engine == "pairs")
def test_lists_of_another_shape(case: Case) -> None:
    arguments = case.arguments((3, 4))
    for shape in ((4,), (2, 3, 4), ()):
        message = expect(ValueError, case, "scores", {**arguments, "scores": torch.zeros(shape)})
        assert "(lists, items)" in message
    for name in ("relevance", "mask"):
        for shape in ((3, 5), (3, 1), (4,), (1, 3, 4)):
            wrong = torch.ones(shape, dtype=torch.bool if name == "mask" else torch.float32)
            message = expect(ValueError, case, name, {**arguments, name: wrong})
            assert shape_text(wrong) in message
            assert "[3, 4]" in message


@each_function(lambda case: case.family.engine == "pairs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_mask_of_another_dtype(case: Case, dtype: torch.dtype) -> None:
    arguments = case.arguments((3, 4))
    message = expect(TypeError, case, "mask", {**arguments, "mask": torch.ones(3, 4).to(dtype)})
    assert "bool or integers" in message
    expect(TypeError, case, "mask", {**arguments, "mask": [[True] * 4] * 3})
    expect(ValueError, case, "mask", {**arguments, "mask": torch.ones(3, 4, device="meta").bool()})


@each_function(lambda case: case.family.engine == "pairs")
def test_relevance_of_another_dtype(case: Case) -> None:
    arguments = case.arguments((3, 4))
    for dtype in (torch.complex64, torch.float8_e5m2):
        expect(TypeError, case, "relevance", {**arguments, "relevance": torch.ones(3, 4).to(dtype)})


def test_lists_have_no_weight_and_no_avg_factor() -> None:
    scores, relevance = torch.zeros(2, 3), torch.zeros(2, 3)
    call = torch.ops.fastloss.pairs
    with pytest.raises(ValueError, match="ranknet_loss: there is neither weight nor avg_factor"):
        call("ranknet_loss", scores, relevance, [], None, torch.ones(2), "mean", None, None)
    with pytest.raises(ValueError, match="ranknet_loss: there is neither weight nor avg_factor"):
        call("ranknet_loss", scores, relevance, [], None, None, "mean", None, 2.0)


# ---------------------------------------------------------------------------------- metric learning


def test_triplets_of_different_shapes() -> None:
    case = find_case("triplet_margin_loss")
    arguments = case.arguments((3, 4))
    for name in ("positive", "negative"):
        for shape in ((3, 5), (1, 4), (4,), (2, 3, 4), ()):
            wrong = torch.zeros(shape)
            message = expect(ValueError, case, name, {**arguments, name: wrong}, reduction="none")
            assert shape_text(wrong) in message
            assert "[3, 4]" in message
    scalars = {name: torch.tensor(1.0) for name in ("anchor", "positive", "negative")}
    assert "(..., features)" in expect(ValueError, case, "anchor", scalars)
    for name in ("positive", "negative"):
        expect(TypeError, case, name, {**arguments, name: arguments[name].long()})


def test_rows_and_their_labels() -> None:
    case = find_case("batch_hard_triplet_loss")
    arguments = case.arguments((5, 4))
    for shape in ((4,), (5,), (2, 5, 4), ()):
        wrong = {**arguments, "embeddings": torch.zeros(shape)}
        assert "(rows, features)" in expect(ValueError, case, "embeddings", wrong)
    for shape in ((4,), (5, 1), (), (6,)):
        labels = torch.zeros(shape, dtype=torch.int64)
        message = expect(ValueError, case, "labels", {**arguments, "labels": labels})
        assert "(5)" in message
        assert shape_text(labels) in message
    for dtype in (torch.float32, torch.bool, torch.int8, torch.complex64):
        labels = torch.zeros(5).to(dtype)
        message = expect(TypeError, case, "labels", {**arguments, "labels": labels})
        assert "int64" in message


def test_margin_of_two_scores_that_is_no_number() -> None:
    case = find_case("margin_ranking_loss")
    message = expect(TypeError, case, "margin", {**case.arguments(), "margin": "x"})
    assert message.endswith("must be a number, got str")
    for wrong in (torch.ones(2, 3), torch.ones(7)):
        expect(ValueError, case, "target", {**case.arguments((3, 4)), "target": wrong})


# ---------------------------------------------------------------------------------------- elsewhere


@each_case()
def test_the_operator_checks_as_the_function_does(case: Case) -> None:
    """Under torch.compile the operators are called directly: no check may live in the Python
    function alone.
    """
    arguments = case.arguments()
    arguments[case.prediction] = arguments[case.prediction].to(torch.int64)
    name = case.prediction

    @torch.compile(backend="eager", dynamic=False)
    def compiled(prediction: torch.Tensor) -> torch.Tensor:
        return case.loss({**arguments, name: prediction})

    torch._dynamo.reset()
    with pytest.raises(Exception, match=rf"{case.function}: {name} must be float"):
        compiled(arguments[name])


@pytest.mark.parametrize(
    "engine",
    [
        *("pointwise", "softmax", "region", "ranked_region", "box_pair", "box_matrix"),
        *("box_crowd", "pairs", "triplet", "batch_hard", "row_pair", "edges"),
    ],
)
def test_operators_refuse_unknown_formulas(engine: str) -> None:
    case = next(case for case in CASES if case.family.engine == engine)
    shapes = {"box_pair": (2,), "edges": (2, 2, 2)}
    tensors = [
        value
        for value in case.arguments(shapes.get(engine, (2, 2))).values()
        if isinstance(value, torch.Tensor)
    ]
    rest: tuple[Any, ...] = {
        "pointwise": ([], None, None, "mean", None, None),
        "softmax": ([], None, None, "mean", None, None),
        "region": ([1e-5], "softmax", False, True, False, None, None, "mean"),
        "ranked_region": (True, False, None, "mean"),
        "box_pair": ([1e-7], None, None, "mean", None, None),
        "box_matrix": ([1e-7],),
        "box_crowd": (None, None, [0.9, 0.5, 0.5, 0.5], "mean"),
        "pairs": ([], None, None, "mean", None, None),
        "triplet": ([1.0, 2.0, 1e-6, 0.0], "mean"),
        "batch_hard": ([1.0], "mean"),
        "row_pair": ([], None, None, "mean", None, None),
        "edges": ("mean",),
    }[engine]
    with pytest.raises(ValueError, match="cosine_loss"):
        getattr(torch.ops.fastloss, engine)("cosine_loss", *tensors, *rest)


def test_wise_module_momentum() -> None:
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"WiseBoxIoULoss: momentum must be in \[0, 1\]"):
            fastloss.WiseBoxIoULoss(momentum=momentum)


def test_modules_report_errors_by_the_functions_name() -> None:
    with pytest.raises(
        ValueError, match=r"^complete_box_iou_loss: boxes2 must have the shape of boxes1"
    ):
        fastloss.CompleteBoxIoULoss()(torch.zeros(3, 4), torch.zeros(2, 4))


# --------------------------------------------------------------------------------- rows of logits


ROW_LOSSES = (
    "cross_entropy",
    "nll_loss",
    "softmax_focal_loss",
    "poly_cross_entropy",
    "multi_margin_loss",
    "crammer_singer_loss",
)


@pytest.mark.parametrize("loss", ROW_LOSSES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_label_out_of_range(loss: str, dtype: torch.dtype, reduction: str) -> None:
    function = getattr(F, loss)
    target = torch.tensor([[0, 3], [4, 7], [1, 2]], dtype=dtype)
    message = rf"^{loss}: target must be a class index in \[0, 4\].*, got 7 at position \[1, 1\]$"
    with pytest.raises(IndexError, match=message):
        function(torch.zeros(3, 5, 2), target, reduction=reduction)
    if dtype != torch.uint8:
        with pytest.raises(IndexError, match=r"got -1 at position \[2\]"):
            function(torch.zeros(3, 5), torch.tensor([0, 4, -1], dtype=dtype), reduction=reduction)


@pytest.mark.parametrize("loss", ROW_LOSSES)
def test_targets_that_do_not_fit_the_logits(loss: str) -> None:
    function = getattr(F, loss)
    logits = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=rf"^{loss}: target must have one class index per row"):
        function(logits, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"^{loss}: target must have one class index per row"):
        function(logits, torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=rf"^{loss}: input must have a dimension of classes"):
        function(torch.tensor(1.0), torch.tensor(0))
    with pytest.raises(ValueError, match=rf"^{loss}: input must have at least one class"):
        function(torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=rf"^{loss}: target must be uint8, int16, int32 or int64"):
        function(logits, torch.zeros(3, dtype=torch.bool))
    if loss != "cross_entropy":
        with pytest.raises(TypeError, match=rf"^{loss}: target must be uint8, int16"):
            function(logits, torch.zeros(3))


def test_probability_targets_that_do_not_fit() -> None:
    logits = torch.zeros(3, 5)
    for shape in ((3,), (3, 4), (5, 3)):
        with pytest.raises(
            ValueError, match=r"^cross_entropy: target must be probabilities of the shape of input"
        ):
            F.cross_entropy(logits, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^cross_entropy: ignore_index must be negative where"):
        F.cross_entropy(logits, torch.zeros(3, 5), ignore_index=0)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("cross_entropy", "weight"),
        ("nll_loss", "weight"),
        ("poly_cross_entropy", "weight"),
        ("multi_margin_loss", "weight"),
        ("crammer_singer_loss", "weight"),
        ("softmax_focal_loss", "alpha"),
    ],
)
def test_class_weight_of_wrong_length(loss: str, name: str) -> None:
    for shape in ((4,), (3, 5), ()):
        with pytest.raises(ValueError, match=rf"^{loss}: {name} must have one number per class"):
            getattr(F, loss)(
                torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), **{name: torch.ones(shape)}
            )


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("cross_entropy", {"label_smoothing": 1.1}, r"label_smoothing must be in \[0, 1\], got"),
        ("cross_entropy", {"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\]"),
        ("cross_entropy", {"z_loss": -1e-4}, "z_loss must be at least 0, got -0.0001"),
        ("cross_entropy", {"logit_softcap": 0.0}, "logit_softcap must be above 0 or None, got 0.0"),
        ("softmax_focal_loss", {"gamma": -1}, "gamma must be at least 0, got -1"),
        ("softmax_focal_loss", {"alpha": 1.5}, r"alpha must be in \[0, 1\], a Tensor or None"),
        ("poly_cross_entropy", {"epsilon": -2}, "epsilon must be at least -1, got -2"),
        ("multi_margin_loss", {"p": 3}, "p must be 1 or 2, got 3"),
    ],
)
def test_options_of_row_losses(loss: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{loss}: {message}"):
        getattr(F, loss)(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), **options)


def test_distribution_focal_loss_shapes() -> None:
    with pytest.raises(ValueError, match="must have at least two bins"):
        F.distribution_focal_loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="target must have one position per row of input"):
        F.distribution_focal_loss(torch.zeros(3, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="weight must have the shape of target"):
        F.distribution_focal_loss(torch.zeros(3, 4), torch.zeros(3), weight=torch.ones(4))


def test_linear_cross_entropy_arguments() -> None:
    x, weight = torch.zeros(3, 4), torch.zeros(7, 4)
    target = torch.tensor([0, 6, 7])
    wrong: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
        (IndexError, "got 7 at position \\[2\\]", (x, weight, target), {}),
        (ValueError, "linear_weight must have shape", (x, weight[0], target), {}),
        (ValueError, "input must have the 4 features", (x[:, :3], weight, target), {}),
        (ValueError, "target must have one class index", (x, weight, target[:2]), {}),
        (ValueError, "label_smoothing must be in", (x, weight, target), {"label_smoothing": 2}),
        (TypeError, "linear_weight must have the dtype of input", (x, weight.half(), target), {}),
        (TypeError, "linear_bias must be a Tensor", (x, weight, target), {"linear_bias": 1.0}),
        (
            ValueError,
            "linear_bias must have one number per class",
            (x, weight, target),
            {"linear_bias": torch.zeros(6)},
        ),
        (
            ValueError,
            "weight must have one number per class",
            (x, weight, target),
            {"weight": torch.zeros(6)},
        ),
    ]
    for error, message, arguments, options in wrong:
        with pytest.raises(error, match=f"^linear_cross_entropy: .*{message}"):
            F.linear_cross_entropy(*arguments, **options)


# ---------------------------------------------------------------------------------------- sequences


def chain(**changed: Any) -> dict[str, Any]:
    """Two sequences of three steps and four tags, the second one two steps long."""
    return {
        "emissions": torch.zeros(2, 3, 4),
        "tags": torch.tensor([[0, 3, 1], [2, 0, 99]]),
        "transitions": torch.zeros(4, 4),
        "start_transitions": torch.zeros(4),
        "end_transitions": torch.zeros(4),
        "mask": torch.tensor([[True, True, True], [True, True, False]]),
        **changed,
    }


WRONG_CHAINS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (
        ValueError,
        "mask must count the first step of every sequence, got 0 there in sequence 1",
        {"mask": torch.tensor([[1, 1, 0], [0, 1, 1]])},
    ),
    (
        ValueError,
        "mask must count the first steps of a sequence and no others, got a step that counts, 2, "
        "after one that does not in sequence 0",
        {"mask": torch.tensor([[1, 0, 1], [1, 1, 1]])},
    ),
    (ValueError, r"mask must have shape \(B, T\) = \[2, 3\]", {"mask": torch.ones(3, 2).bool()}),
    (TypeError, "mask must be bool or an integer type, got Float", {"mask": torch.ones(2, 3)}),
    (ValueError, r"emissions must have shape \(B, T, K\), got", {"emissions": torch.zeros(3, 4)}),
    (
        ValueError,
        r"emissions must have at least one step and one tag, got shape \[2, 0, 4\]",
        {"emissions": torch.zeros(2, 0, 4)},
    ),
    (
        ValueError,
        r"transitions must have shape \(K, K\) = \[4, 4\] .*got \[3, 4\]",
        {"transitions": torch.zeros(3, 4)},
    ),
    (
        ValueError,
        r"start_transitions must have shape \(K,\) = \[4\] .*got \[5\]",
        {"start_transitions": torch.zeros(5)},
    ),
    (
        ValueError,
        r"end_transitions must have shape \(K,\) = \[4\] .*got \[4, 1\]",
        {"end_transitions": torch.zeros(4, 1)},
    ),
    (TypeError, "end_transitions must be float16", {"end_transitions": torch.zeros(4).int()}),
]


@pytest.mark.parametrize("function", ["crf_loss", "crf_marginals", "crf_decode"])
@pytest.mark.parametrize(("error", "message", "changed"), WRONG_CHAINS)
def test_chains(
    function: str, error: type[Exception], message: str, changed: dict[str, Any]
) -> None:
    arguments = chain(**changed)
    if function != "crf_loss":
        del arguments["tags"]
    with pytest.raises(error, match=f"^{function}: {message}"):
        getattr(F, function)(**arguments)


def test_tags_of_chains() -> None:
    F.crf_loss(**chain())
    for label in (4, -1, 1 << 40):
        tags = torch.tensor([[0, 3, 1], [2, label, 99]])
        message = rf"^crf_loss: tags must be a class index in \[0, 3\], got {label} at position"
        with pytest.raises(IndexError, match=rf"{message} \[1, 1\]"):
            F.crf_loss(**chain(tags=tags))
    with pytest.raises(ValueError, match=r"^crf_loss: tags must have shape \(B, T\) = \[2, 3\]"):
        F.crf_loss(**chain(tags=torch.zeros(2, 4, dtype=torch.int64)))
    with pytest.raises(TypeError, match=r"^crf_loss: tags must be uint8, int16, int32 or int64"):
        F.crf_loss(**chain(tags=torch.zeros(2, 3)))


@pytest.mark.parametrize("num_tags", [0, -1])
def test_field_without_tags(num_tags: int) -> None:
    with pytest.raises(ValueError, match=f"^CRF: num_tags must be above 0, got {num_tags}"):
        fastloss.CRF(num_tags)


TWO_SENTENCES = torch.tensor([[1, 2, 3], [4, 5, -1]])


def tokens(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


WRONG_SENTENCES: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (
        TypeError,
        "candidates must be uint8, int16, int32 or int64, got Float",
        {"candidates": TWO_SENTENCES.float()},
    ),
    (TypeError, "candidates must be uint8, .*, got Bool", {"candidates": TWO_SENTENCES > 2}),
    (TypeError, "candidates must be a Tensor, got list", {"candidates": [[1, 2]]}),
    (ValueError, r"candidates must have shape \(B, T\), got \[3\]", {"candidates": tokens(3)}),
    (
        ValueError,
        r"candidates must have shape .*, got \[2, 3, 1\]",
        {"candidates": tokens(2, 3, 1)},
    ),
    (TypeError, "references must be uint8, .*, got Half", {"references": TWO_SENTENCES.half()}),
    (TypeError, "references must be a Tensor, got NoneType", {"references": None}),
    (
        ValueError,
        r"references must have shape \(B, T\) or \(B, R, T\) with B = 2 .*, got \[3, 3\]",
        {"references": tokens(3, 3)},
    ),
    (
        ValueError,
        r"references must have shape .*, got \[1, 1, 3\]",
        {"references": tokens(1, 1, 3)},
    ),
    (ValueError, r"references must have shape .*, got \[2\]", {"references": tokens(2)}),
    (
        ValueError,
        r"references must have shape .*\[2, 1, 1, 3\]",
        {"references": tokens(2, 1, 1, 3)},
    ),
    (
        ValueError,
        "references must be on candidates's device cpu",
        {"references": TWO_SENTENCES.to("meta")},
    ),
    (ValueError, "max_order must be at least 1, got 0", {"max_order": 0}),
    (ValueError, "max_order must be at least 1, got -2", {"max_order": -2}),
    (TypeError, "max_order must be a number at least 1, got str", {"max_order": "4"}),
    (TypeError, "max_order must be an int of 64 bits, got float", {"max_order": 2.5}),
    (
        ValueError,
        'smoothing must be "none", "floor", "add-k" or "exp", got "add_k"',
        {"smoothing": "add_k"},
    ),
    (TypeError, "smoothing must be a str, got NoneType", {"smoothing": None}),
    (
        ValueError,
        'smoothing_value needs smoothing="floor" or "add-k", got smoothing="exp"',
        {"smoothing_value": 0.1},
    ),
    (
        ValueError,
        "smoothing_value must be at least 0 and finite, got -0.1",
        {"smoothing": "floor", "smoothing_value": -0.1},
    ),
    (
        ValueError,
        "smoothing_value must be at least 0 and finite, got nan",
        {"smoothing": "add-k", "smoothing_value": NAN},
    ),
    (
        TypeError,
        "smoothing_value must be a number at least 0 and finite, got str",
        {"smoothing": "floor", "smoothing_value": "0.1"},
    ),
    (TypeError, "pad_index must be an int of 64 bits, got NoneType", {"pad_index": None}),
    (TypeError, "pad_index must be an int of 64 bits, got float", {"pad_index": 0.0}),
]


@pytest.mark.parametrize(("error", "message", "changed"), WRONG_SENTENCES)
def test_sentences(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"candidates": TWO_SENTENCES, "references": TWO_SENTENCES}
    F.sentence_bleu(**arguments)
    with pytest.raises(error, match=f"^sentence_bleu: {message}"):
        F.sentence_bleu(**{**arguments, **changed})
