# SPDX-License-Identifier: MIT
"""Names held together: formulas = references = functions = modules = rows; signatures, docstrings,
includes.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import CASES, METRICS
from torch import nn

import fastloss
from fastloss import _C, functional, modules, reference

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc"
FUNCTIONS = sorted(functional.__all__)
TASKS = (
    *("boxes", "classification", "detection", "generative", "graph", "ranking"),
    *("regression", "segmentation", "sequence"),
)
ROWS = (*CASES, *METRICS)
# What takes a function, returns no loss, or has no floating argument has no row, but tests of its
# own.
WITHOUT_ROW = {
    *("gradient_penalty", "crf_decode", "detr_matching_cost", "sentence_bleu"),
    "task_aligned_assignment",
}
MODULES_WITHOUT_ROW = {"GradientPenalty"}
# What one of several processes computes of a loss: tests/test_distributed.py has the whole.
PARTS_OF_LOSSES = {"softmax": {"cross_entropy/shard"}}


# -------------------------------------------------------------------------------------------- names


def test_functions_references_and_rows_have_the_same_names() -> None:
    assert sorted(reference.__all__) == FUNCTIONS
    assert sorted({case.function for case in ROWS} | WITHOUT_ROW) == FUNCTIONS


def test_every_formula_has_a_row_and_every_row_a_formula() -> None:
    kernels = {engine: sorted(names) for engine, names in _C.kernels().items()}
    rows: dict[str, set[str]] = {engine: set(PARTS_OF_LOSSES.get(engine, ())) for engine in kernels}
    for case in ROWS:
        if case.family.engine in kernels:  # linear_cross_entropy has the formulas of softmax
            rows[case.family.engine].add(case.kernel_name)
    assert {engine: sorted(names) for engine, names in rows.items()} == kernels


def test_every_module_has_a_row_and_every_loss_function_a_module() -> None:
    of_rows = {case.module for case in CASES if case.module}
    assert sorted(of_rows | MODULES_WITHOUT_ROW) == sorted(modules.__all__)
    assert {case.function for case in CASES if case.module is None} == {
        "pairwise_box_iou",
        "crf_marginals",
        "selective_log_softmax",
    }


def test_modules_call_the_function_of_their_row() -> None:
    for case in CASES:
        if case.module is not None:
            module = getattr(fastloss, case.module)
            assert issubclass(module, nn.Module)
            assert module.function is getattr(functional, case.function)


ABBREVIATIONS = {
    **{word.lower(): word for word in ("IoU", "MSE", "RMSE", "L1", "NLL", "LSGAN")},
    **{word.lower(): word for word in ("NDCG", "MLE", "RankNet", "PPO", "GRPO", "KL", "NCE")},
}
SPELLED_AS_ELSEWHERE = {
    "BinaryCrossEntropy": "BCELoss",
    "BinaryCrossEntropyWithLogits": "BCEWithLogitsLoss",
    "CrossEntropy": "CrossEntropyLoss",
    "CrfLoss": "CRF",
    "LinearCrossEntropy": "LinearCrossEntropyLoss",
}


def test_module_names_follow_the_functions() -> None:
    """CamelCase of the function's name; torch's or pytorch-crf's spelling where they have it."""
    for case in CASES:
        if case.module is None:
            continue
        words = case.function.split("_")
        spelled = "".join(ABBREVIATIONS.get(word, word.capitalize()) for word in words)
        assert case.module == SPELLED_AS_ELSEWHERE.get(spelled, spelled)


def test_rows_have_names_of_their_own() -> None:
    assert len({case.id for case in ROWS}) == len(ROWS)
    assert len({case.label for case in ROWS}) == len(ROWS)


def test_all_lists_are_complete_and_sorted() -> None:
    for package in (functional, reference, modules):
        files = [importlib.import_module(f"{package.__name__}.{task}") for task in TASKS]
        for file in files:
            assert list(file.__all__) == sorted(file.__all__)
            public = {
                name
                for name, value in vars(file).items()
                if getattr(value, "__module__", None) == file.__name__ and not name.startswith("_")
            }
            assert public == set(file.__all__), file.__name__
        assert list(package.__all__) == [name for file in files for name in file.__all__]
    for name in (
        *modules.__all__,
        "functional",
        "reference",
        "patch",
        "build_info",
        "empty_cache",
        "__version__",
    ):
        assert name in fastloss.__all__
        assert hasattr(fastloss, name)


def test_each_function_stands_in_the_file_of_its_task_everywhere() -> None:
    for name in FUNCTIONS:
        task = getattr(functional, name).__module__.rpartition(".")[2]
        assert getattr(reference, name).__module__.rpartition(".")[2] == task
        for case in CASES:
            if case.function == name and case.module is not None:
                assert getattr(modules, case.module).__module__.rpartition(".")[2] == task


# --------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_equals_the_references(name: str) -> None:
    assert inspect.signature(getattr(functional, name)) == inspect.signature(
        getattr(reference, name)
    )


@pytest.mark.parametrize("name", sorted(modules.__all__))
def test_module_has_the_functions_options_and_defaults(name: str) -> None:
    """But for the reduction, whose default is "mean" everywhere, and what a module decides or owns
    itself.
    """
    module = getattr(modules, name)
    function = inspect.signature(module.function).parameters
    differing = {
        "WiseBoxIoULoss": {"version", "momentum", "process_group"},
        "LinearCrossEntropyLoss": {"in_features", "num_classes", "bias", "device", "dtype"},
        "CRF": {"num_tags", "batch_first"},
        "TaskAlignedDetectionLoss": {"topk", "topk2", "alpha", "beta"},
    }.get(name, set())
    options = inspect.signature(module).parameters
    for option in options.values():
        if option.name == "reduction":
            assert option.default == "mean"
        elif option.name not in differing:
            assert option.name in function, option.name
            assert option.default == function[option.name].default, option.name
    passed = set(options) | set(inspect.signature(module.forward).parameters)
    owned = {
        "WiseBoxIoULoss": {"iou_mean"},
        "LinearCrossEntropyLoss": {"linear_weight", "linear_bias"},
        "CRF": {"transitions", "start_transitions", "end_transitions"},
        "TaskAlignedDetectionLoss": {"target_indices", "target_scores"},
    }
    assert set(function) - passed == owned.get(name, set())


# --------------------------------------------------------------------------------------- docstrings


def sections(docstring: str) -> dict[str, str]:
    """The Google sections of a docstring."""
    parts = re.split(r"^(Args|Returns|Raises|Example|Attributes):$", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_names(section: str) -> set[str]:
    return set(re.findall(r"^    (\w+):", section, flags=re.MULTILINE))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_documented(name: str) -> None:
    function = getattr(functional, name)
    docstring = inspect.getdoc(function) or ""
    found = sections(docstring)
    assert {"Args", "Returns", "Raises", "Example"} <= found.keys()
    assert documented_names(found["Args"]) == set(inspect.signature(function).parameters)
    assert {"ValueError", "TypeError"} <= documented_names(found["Raises"])
    assert "{" not in re.sub(r"\$.*?\$", "", docstring), "a placeholder is not filled"
    assert len(docstring.splitlines()[0]) <= 90
    assert docstring.splitlines()[0].endswith(".")


PAPERS_NOT_NEEDED = {
    # Older than papers, or without one; the docstring says so where that surprises.
    "mse_loss",
    "rmse_loss",
    "l1_loss",
    "log_cosh_loss",
    "quantile_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "hinge_loss",
    "pairwise_box_iou",
    "sigmoid_aspect_box_iou_loss",
    "huber_loss",
    "nll_loss",
    "multi_margin_loss",
    "margin_ranking_loss",
    "crammer_singer_loss",
    "selective_log_softmax",
}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in PAPERS_NOT_NEEDED])
def test_function_names_its_paper(name: str) -> None:
    docstring = inspect.getdoc(getattr(functional, name)) or ""
    assert re.search(r"\b(19|20)\d\d,\s+(arXiv \d{4}\.\d{4,5}|doi 10\.\d+/\S+)", docstring)


@pytest.mark.parametrize("name", sorted(modules.__all__))
def test_module_is_documented(name: str) -> None:
    module = getattr(modules, name)
    assert module.__doc__
    assert f"functional.{module.function.__name__}`" in module.__doc__
    assert module.forward.__doc__


def documented_modules() -> Iterator[str]:
    for path in sorted((ROOT / "fastloss").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            yield name


@pytest.mark.parametrize("name", list(documented_modules()))
def test_examples_in_docstrings_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert "integrations" in name
        pytest.skip(f"{name} is an adapter to {error.name}, which is not installed")
    torch.manual_seed(0)
    failures, _ = doctest.testmod(
        module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert failures == 0


def test_every_function_has_an_example_that_calls_it() -> None:
    for name in FUNCTIONS:
        example = sections(inspect.getdoc(getattr(functional, name)) or "")["Example"]
        assert f"F.{name}(" in example
        assert "tensor(" in example


# --------------------------------------------------------------------------------- the house's plan

# What a folder may include; the order of the design: losses → core, engines → losses and core,
# torch → engines.
MAY_INCLUDE = {
    "core": {"core"},
    "losses": {"core", "losses", "engines/backend.h"},
    "engines": {"core", "losses", "engines"},
    "torch": {"core", "engines", "torch"},
}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+["<]([^">]+)[">]', path.read_text(), flags=re.MULTILINE)


def source_files() -> list[Path]:
    return sorted(
        path for path in SOURCES.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".inl"}
    )


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(SOURCES)))
def test_includes_run_one_way(path: Path) -> None:
    folder = path.relative_to(SOURCES).parts[0]
    for name in includes(path):
        first = name.partition("/")[0]
        if first in MAY_INCLUDE and (SOURCES / name).exists():
            assert first in MAY_INCLUDE[folder] or name in MAY_INCLUDE[folder], (
                f"{path.name} includes {name}"
            )
        elif folder != "torch":
            outside = ("torch/", "ATen/", "c10/", "pybind11/", "Python.h")
            assert not name.startswith(outside), f"{path.name} includes {name}"


def test_every_source_file_belongs_to_a_folder_of_the_plan() -> None:
    assert {path.relative_to(SOURCES).parts[0] for path in source_files()} == MAY_INCLUDE.keys()


def python_files() -> list[Path]:
    return sorted(
        path
        for folder in ("fastloss", "tests", "benchmarks", "docs", "examples")
        for path in (ROOT / folder).rglob("*.py")
    )


def test_every_file_has_its_licence() -> None:
    files = [
        *source_files(),
        *python_files(),
        *(ROOT / "tests").rglob("*.cpp"),
        *(ROOT / "tests").rglob("*.cu"),
    ]
    missing = [
        path for path in files if "SPDX-License-Identifier: MIT" not in path.read_text()[:100]
    ]
    assert missing == []


def test_references_use_no_kernel() -> None:
    """The oracle must not be what it judges."""
    for path in (ROOT / "fastloss/reference").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} imports from elsewhere in fastloss"
                assert node.module is None or not node.module.startswith("fastloss"), path.name
            elif isinstance(node, ast.Import):
                assert all(not alias.name.startswith("fastloss") for alias in node.names), path.name


def test_no_formula_refers_to_an_instruction_set() -> None:
    for path in (SOURCES / "losses").glob("*.h"):
        assert not re.search(r"_mm\d*_|__AVX|__SSE|__CUDA|__ARM|immintrin|#if", path.read_text()), (
            path.name
        )


def test_nothing_of_an_instruction_set_leaks_into_another() -> None:
    """Every symbol of the extension that torch could bind to is hidden: one entry point is all it
    shows.
    """
    nm = subprocess.run(["nm", "-D", "--defined-only", _C.__file__], capture_output=True, text=True)
    if nm.returncode != 0:
        pytest.skip("nm is not there to list symbols")
    ours = [line.split()[-1] for line in nm.stdout.splitlines() if "fastloss" in line]
    assert [name for name in ours if "avx" in name or "baseline" in name] == []
    assert "PyInit__C" in nm.stdout


def test_importing_fastloss_brings_no_heavy_packages() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import fastloss; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    for heavy in ("torchvision", "matplotlib", "sklearn", "rich", "ultralytics", "scipy"):
        assert f"'{heavy}'" not in run.stdout
